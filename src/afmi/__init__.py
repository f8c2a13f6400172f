"""Explain image classifiers: which parts of a picture made a network say what it said.

>>> import afmi
>>> model = afmi.load_model("photos")
>>> model.labels[3]
'cat'
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from afmi import errors, evaluation, methods, metrics, report
    from afmi.api import explain, explain_classes, explain_many
    from afmi.comparison import Comparison, compare
    from afmi.evaluation import evaluate
    from afmi.explanation import Explanation
    from afmi.methods.feature_maps.afmi import AFMI
    from afmi.models import load_model
    from afmi.network.classifier import Classifier, find_class
    from afmi.network.layers import find_layer
    from afmi.pictures import references
    from afmi.pictures.finding import find_images

__version__ = "0.1.0"

# PyTorch takes seconds to import, so names are loaded when they are first used: `afmi --help`
# answers at once.
_HOMES = {
    "AFMI": "afmi.methods",
    "Classifier": "afmi.network.classifier",
    "Comparison": "afmi.comparison",
    "Explanation": "afmi.explanation",
    "compare": "afmi.comparison",
    "evaluate": "afmi.evaluation",
    "explain": "afmi.api",
    "explain_classes": "afmi.api",
    "explain_many": "afmi.api",
    "find_class": "afmi.network.classifier",
    "find_images": "afmi.pictures.finding",
    "find_layer": "afmi.network.layers",
    "load_model": "afmi.models",
}
_MODULES = {
    "errors": "afmi.errors",
    "evaluation": "afmi.evaluation",
    "figures": "afmi.pictures.figures",
    "gradients": "afmi.gradients",
    "images": "afmi.pictures.images",
    "maps": "afmi.pictures.maps",
    "methods": "afmi.methods",
    "metrics": "afmi.metrics",
    "plots": "afmi.pictures.plots",
    "references": "afmi.pictures.references",
    "report": "afmi.report",
    "transforms": "afmi.pictures.transforms",
}

__all__ = [
    "AFMI",
    "Classifier",
    "Comparison",
    "Explanation",
    "compare",
    "errors",
    "evaluate",
    "evaluation",
    "explain",
    "explain_classes",
    "explain_many",
    "find_class",
    "find_images",
    "find_layer",
    "load_model",
    "methods",
    "metrics",
    "references",
    "report",
]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    if name in _MODULES:
        return importlib.import_module(_MODULES[name])
    raise AttributeError(f"module 'afmi' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES, *_MODULES})
