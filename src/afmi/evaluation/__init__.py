"""Evaluate methods on labelled pictures: resumable, in flat memory, with a report."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from afmi.packages import imported

if TYPE_CHECKING:
    from afmi.data.labelled import LabelledImages, open_images
    from afmi.evaluation.failures import MemoryWarning
    from afmi.evaluation.plan import Piece
    from afmi.evaluation.results import Results
    from afmi.evaluation.run import evaluate
    from afmi.evaluation.shard import MetricWarning, Shard, ShardResult, evaluate_shard

imported("pyarrow", "an evaluation", "afmi[evaluation]")

# A report needs no PyTorch, whose import takes seconds, so names are loaded when first used.
_HOMES = {
    "LabelledImages": "afmi.data.labelled",
    "MemoryWarning": "afmi.evaluation.failures",
    "MetricWarning": "afmi.evaluation.shard",
    "Piece": "afmi.evaluation.plan",
    "Results": "afmi.evaluation.results",
    "Shard": "afmi.evaluation.shard",
    "ShardResult": "afmi.evaluation.shard",
    "evaluate": "afmi.evaluation.run",
    "evaluate_shard": "afmi.evaluation.shard",
    "open_images": "afmi.data.labelled",
}

__all__ = [
    "LabelledImages",
    "MemoryWarning",
    "MetricWarning",
    "Piece",
    "Results",
    "Shard",
    "ShardResult",
    "evaluate",
    "evaluate_shard",
    "open_images",
]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES})
