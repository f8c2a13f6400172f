"""What is explained: the score of a class."""

from afmi.targets.classes import Target, TargetLike, class_rows, class_target

__all__ = ["Target", "TargetLike", "class_rows", "class_target"]
