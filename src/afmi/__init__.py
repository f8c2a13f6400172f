"""Explain image networks: which parts of a picture made a network say what it said.

>>> import afmi
>>> model = afmi.load_model()
>>> model.labels[249]
'malamute'
"""

from __future__ import annotations

import importlib
from typing import Any

from afmi._version import __version__ as __version__

# PyTorch takes seconds to import, so names are loaded when they are first used: `afmi --help`
# answers at once. Type checkers read the same table in __init__.pyi, which `make format` writes.
_HOMES = {
    "AFMI": "afmi.methods.feature_maps.afmi",
    "Audit": "afmi.auditing.records",
    "Classifier": "afmi.network.classifier",
    "Comparison": "afmi.comparison",
    "Explanation": "afmi.explanation",
    "Gallery": "afmi.explanation",
    "Unexplained": "afmi.batching",
    "app": "afmi.app",
    "audit": "afmi.auditing.run",
    "callbacks": "afmi.tracking.callbacks",
    "compare": "afmi.comparison",
    "compat": "afmi.compat",
    "datasets": "afmi.datasets",
    "engines": "afmi.engines",
    "errors": "afmi.errors",
    "evaluate": "afmi.evaluation.run",
    "evaluation": "afmi.evaluation",
    "explain": "afmi.api",
    "explain_classes": "afmi.api",
    "explain_dataset": "afmi.datasets.run",
    "explain_many": "afmi.api",
    "export": "afmi.exporting.writing",
    "figures": "afmi.pictures.figures",
    "find_class": "afmi.network.classifier",
    "find_images": "afmi.pictures.finding",
    "find_layer": "afmi.network.layers",
    "fmi_prototypes": "afmi.evaluation.prototypes",
    "gradients": "afmi.gradients",
    "images": "afmi.pictures.images",
    "load_model": "afmi.models.load",
    "log": "afmi.tracking.logging",
    "maps": "afmi.pictures.maps",
    "methods": "afmi.methods",
    "metrics": "afmi.metrics",
    "open_explanations": "afmi.datasets.reading",
    "plots": "afmi.pictures.plots",
    "references": "afmi.pictures.references",
    "report": "afmi.report",
    "targets": "afmi.targets",
    "train_masking_model": "afmi.training.masking_model",
    "training": "afmi.training",
    "transforms": "afmi.pictures.transforms",
    "unchanged": "afmi.network.trace",
    "volumes": "afmi.pictures.volumes",
}
"""The module of each public name; where both have one name, the module itself is meant."""

__all__ = list(_HOMES)  # pyright: ignore[reportUnsupportedDunderAll]


def __getattr__(name: str) -> Any:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module = importlib.import_module(home)
    return module if home.endswith(f".{name}") else getattr(module, name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES})
