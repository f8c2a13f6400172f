"""Every explanation method, found by existing: one file each, in the folder of its features.

`CATALOGUE` lists the classes by name; each is also an attribute here, such as
``afmi.methods.AFMI``.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from afmi import specs
from afmi.errors import UsageError
from afmi.methods.base import Attribution as Attribution
from afmi.methods.base import BlankMapWarning as BlankMapWarning
from afmi.methods.base import LayerMethod as LayerMethod
from afmi.methods.base import Method
from afmi.specs import Catalogue

_FAMILIES = ("control", "pixel", "region", "feature map")
_NAMES = (
    "CATALOGUE",
    "Attribution",
    "BlankMapWarning",
    "LayerMethod",
    "Method",
    "MethodsLike",
    "chosen_methods",
    "method_named",
)


def _order(cls: type[Method]) -> tuple[int, bool, str]:
    return _FAMILIES.index(cls.family), cls.name == "A-FMI", cls.__name__.lower()


CATALOGUE: Catalogue[Method] = Catalogue(Method, __name__, _order, _NAMES)
"""Every method's class by its name, families in the paper's order."""

__getattr__ = CATALOGUE.attribute
__dir__ = CATALOGUE.names

specs.register(Method, "method", lambda: CATALOGUE)

MethodsLike = str | Sequence[str | type[Method] | Method]


def chosen_methods(model: nn.Module, methods: MethodsLike) -> dict[str, Method]:
    """Return the methods that were meant, by the label that tells each from the others.

    Args:
        model: the network to explain.
        methods: ``"all"``, or specs joined by commas, or a sequence of specs, classes or instances.
            A spec is a name, perhaps with parameters: ``"a-fmi:averaged=false:reference=white"``;
            several values of one are joined by "+": ``"xrai:scales=50+100"``. See `afmi.specs`.

    Raises:
        UsageError: when a method or parameter does not exist, a value does not fit, one instance
            explains another model, or two that differ have one label.

    Example:
        >>> list(chosen_methods(nn.Identity(), "grad-cam,a-fmi:averaged=no"))
        ['Grad-CAM', 'A-FMI (averaged=false)']
    """
    chosen = specs.choose(methods, Method, model=model)
    for label, method in chosen.items():
        if method.model is not model:
            raise UsageError(f"the {label} given explains another model; pass the class instead")
    return chosen


def method_named(text: str) -> type[Method]:
    """Return the method that a user named: ``afmi``, ``A-FMI``, ``grad-cam`` and ``GradCAM`` alike.

    Raises:
        UsageError: when there is none; near matches are listed.
    """
    return specs.named(text, CATALOGUE, "method")
