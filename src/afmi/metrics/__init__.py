"""Every metric, one file each; a new file is listed by itself.

`CATALOGUE` lists the classes by name; each is also an attribute here, such as
``afmi.metrics.Insertion``. `FMIPrototypes` is here too, but measures a network and its training
images instead of a method's maps, so it is no `Metric` and not in the catalogue.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from afmi.specs import Catalogue

if TYPE_CHECKING:
    from afmi.metrics.base import Metric

_HOMES: dict[str, str] = dict.fromkeys(
    ("Case", "Metric", "MetricsLike", "chosen_metrics"),
    "afmi.metrics.base",
) | {"FMIPrototypes": "afmi.metrics.fmi_prototypes"}


def _base() -> type[Metric]:
    from afmi.metrics.base import Metric

    return Metric


def _order(cls: type[Metric]) -> tuple[bool, bool, str]:
    return not cls.standard, cls.name != "Insertion", cls.__name__


CATALOGUE: Catalogue[Metric] = Catalogue(_base, __name__, _order, _HOMES)
"""Every metric's class by its name; those measured by default come first."""

__getattr__ = CATALOGUE.attribute
__dir__ = CATALOGUE.names
