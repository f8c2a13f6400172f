"""Evaluate methods on labelled pictures: resumable, in flat memory, with a report."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from afmi.evaluation.datasets import LabelledImages, open_images
    from afmi.evaluation.report import write_report
    from afmi.evaluation.results import Results
    from afmi.evaluation.run import Piece, evaluate
    from afmi.evaluation.shard import MetricWarning, Shard, ShardResult, evaluate_shard

# A report needs no PyTorch, whose import takes seconds, so names are loaded when first used.
_HOMES = {
    "LabelledImages": "datasets",
    "MetricWarning": "shard",
    "Piece": "run",
    "Results": "results",
    "Shard": "shard",
    "ShardResult": "shard",
    "evaluate": "run",
    "evaluate_shard": "shard",
    "open_images": "datasets",
    "write_report": "report",
}

__all__ = [
    "LabelledImages",
    "MetricWarning",
    "Piece",
    "Results",
    "Shard",
    "ShardResult",
    "evaluate",
    "evaluate_shard",
    "open_images",
    "write_report",
]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES})
