"""What is explained: the score of a class."""

from afmi.targets.columns import Columns, TargetLike, class_rows, class_target

__all__ = ["Columns", "TargetLike", "class_rows", "class_target"]
