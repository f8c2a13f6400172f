"""Every explanation method, found by existing: one file each, in the folder of its features.

`CATALOGUE` lists the classes by name; each is also an attribute here, such as
``afmi.methods.AFMI``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from afmi.specs import Catalogue

if TYPE_CHECKING:
    from afmi.methods.base import Method

_FAMILIES = ("control", "pixel", "region", "feature map")
_HOMES: dict[str, str] = dict.fromkeys(
    ("Attribution", "BlankMapWarning", "LayerMethod", "Method", "MethodsLike", "chosen_methods"),
    "afmi.methods.base",
)


def _base() -> type[Method]:
    from afmi.methods.base import Method

    return Method


def _order(cls: type[Method]) -> tuple[int, bool, str]:
    return _FAMILIES.index(cls.family), cls.name == "A-FMI", cls.__name__.lower()


CATALOGUE: Catalogue[Method] = Catalogue(_base, __name__, _order, _HOMES)
"""Every method's class by its name, families in the paper's order."""

__getattr__ = CATALOGUE.attribute
__dir__ = CATALOGUE.names
