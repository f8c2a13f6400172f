"""A target of which a record keeps the name alone."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from afmi import specs
from afmi.errors import AfmiError, TargetError
from afmi.targets.base import Target

__all__ = ["RecordedTarget", "recorded_target", "target_text"]


@dataclass(frozen=True)
class RecordedTarget(Target):
    """What was explained, where only its name is kept, as of a function.

    Attributes:
        text: how records write it.
        words: its label.
        place: where its score is taken, bool (H, W); None: everywhere.
    """

    text: str
    words: str
    place: Tensor | None = None

    def score(self, model: nn.Module, images: Tensor) -> Tensor:
        """See `Target.score`."""
        raise TargetError(f"of {self.text} its name alone was kept; pass the function itself")

    def label(self, model: nn.Module) -> str:
        """See `Target.label`."""
        return self.words

    def area(self, size: tuple[int, ...]) -> Tensor | None:
        """See `Target.area`."""
        known = self.place is not None and tuple(self.place.shape) == tuple(size)
        return self.place if known else None


def target_text(target: Target) -> str:
    """Return how records write a target."""
    return target.text if isinstance(target, RecordedTarget) else specs.text(target)


def recorded_target(
    text: str, words: str, size: tuple[int, ...], area: Tensor | None = None
) -> Target:
    """Return the target that a record names.

    Args:
        text: how records write it.
        words: its label.
        size: of the image.
        area: where its score was taken.
    """
    try:
        target = specs.parse(text, Target)
        there = target.area(size) if len(size) == 2 else None
    except (
        AfmiError,
        ValueError,
        TypeError,
        LookupError,
        RuntimeError,
    ):  # such as a function, or a mask of pixels
        return RecordedTarget(text, words, area)
    if (there is None) != (area is None) or (
        there is not None and area is not None and not torch.equal(there, area)
    ):
        return RecordedTarget(text, words, area)
    return target
