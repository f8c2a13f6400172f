"""What is explained: a class, a difference of classes, an output, or any number made of outputs."""

from afmi.targets.base import Target
from afmi.targets.boxes import Box
from afmi.targets.choice import (
    OneTarget,
    TargetLike,
    Targets,
    as_target,
    as_targets,
    response,
    target_in_text,
)
from afmi.targets.classes import Class, Difference
from afmi.targets.columns import Columns, class_rows, columns_of
from afmi.targets.recorded import RecordedTarget, recorded_target, target_text
from afmi.targets.regions import Region
from afmi.targets.values import Output, Scalar, Similarity

__all__ = [
    "TARGETS",
    "Box",
    "Class",
    "Columns",
    "Difference",
    "OneTarget",
    "Output",
    "RecordedTarget",
    "Region",
    "Scalar",
    "Similarity",
    "Target",
    "TargetLike",
    "Targets",
    "as_target",
    "as_targets",
    "class_rows",
    "columns_of",
    "recorded_target",
    "response",
    "target_in_text",
    "target_text",
]

TARGETS: dict[str, type[Target]] = {
    "Box": Box,
    "Class": Class,
    "Difference": Difference,
    "Output": Output,
    "Region": Region,
    "Scalar": Scalar,
    "Similarity": Similarity,
}
"""The targets by name; see `afmi.specs`."""
