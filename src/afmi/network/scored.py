"""Scored: a network whose only output is the score that a target makes of its outputs."""

from __future__ import annotations

from collections.abc import Hashable
from typing import Protocol

from torch import Tensor, nn

from afmi.network.outputs import Declaration

__all__ = ["Score", "Scored", "anchor"]


class Score(Hashable, Protocol):
    """What makes a score of a network's run."""

    def score(self, model: nn.Module, images: Tensor) -> Tensor:
        """Run the network on images (N, C, …) and return a score for each, (N,)."""
        ...


class Scored(nn.Module):
    """Return one score for each image, (N, 1).

    Every method explains it as it does a network with one output, so that each rule of the engine
    holds for what a target does with the outputs, too.

    Args:
        model: the network, used as it is.
        target: makes the score.
    """

    declaration = Declaration("value")

    def __init__(self, model: nn.Module, target: Score) -> None:
        super().__init__()
        self.model = model
        self.target = target
        self.training = model.training

    def forward(self, images: Tensor) -> Tensor:
        """Return the scores (N, 1) of images (N, C, …)."""
        return self.target.score(self.model, images)[:, None]


def anchor(model: nn.Module) -> tuple[nn.Module, Hashable]:
    """Return the network that facts about a model are kept with, and what is scored of it.

    A `Scored` lives no longer than one explanation, and the network lives on.
    """
    return (model.model, model.target) if isinstance(model, Scored) else (model, None)
