"""What is explained: a class, a difference of classes, an output, or any number made of outputs."""

from afmi.targets.base import Target
from afmi.targets.choice import OneTarget, TargetLike, Targets, as_target, as_targets, response
from afmi.targets.classes import Class, Difference
from afmi.targets.columns import Columns, class_rows, columns_of
from afmi.targets.values import Output, Scalar, Similarity

__all__ = [
    "TARGETS",
    "Class",
    "Columns",
    "Difference",
    "OneTarget",
    "Output",
    "Scalar",
    "Similarity",
    "Target",
    "TargetLike",
    "Targets",
    "as_target",
    "as_targets",
    "class_rows",
    "columns_of",
    "response",
]

TARGETS: dict[str, type[Target]] = {
    "Class": Class,
    "Difference": Difference,
    "Output": Output,
    "Scalar": Scalar,
    "Similarity": Similarity,
}
"""The targets by name; see `afmi.specs`."""
