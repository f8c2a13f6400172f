"""Targets made of the scores of classes: one class, or one rather than another."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from afmi.errors import TargetError
from afmi.network.classifier import class_label, classify, find_class
from afmi.network.outputs import read_outputs, scores_of
from afmi.targets.base import Target

__all__ = ["Class", "Difference"]


@dataclass(frozen=True)
class Class(Target):
    """The score of a class: its logit, or its probability where a network gives nothing else.

    Args:
        of: the class, as its index or label.

    Example:
        >>> Class(2).label(nn.Identity())
        'class 2'
    """

    unit = "logit"

    of: int | str

    def score(self, model: nn.Module, images: Tensor) -> Tensor:
        """See `Target.score`."""
        return _column(scores_of(model, images), self.index(model))

    def label(self, model: nn.Module) -> str:
        """See `Target.label`."""
        return class_label(model, self.index(model))

    def index(self, model: nn.Module) -> int:
        """Return the class's index.

        Raises:
            TargetError: when there is no such class.
        """
        return find_class(model, self.of)

    def ends(self, model: nn.Module) -> tuple[str, str]:
        """See `Target.ends`."""
        return "for", "against"

    def compared(self, model: nn.Module) -> tuple[int, ...]:
        """See `Target.compared`."""
        return (self.index(model),)


@dataclass(frozen=True)
class Difference(Target):
    """Why one class *rather than* another: the difference of their logits, y_a − y_b.

    The map sums to the change of the margin between both. Without ``versus`` the class is set
    against all others by the log-odds of its probability: y_a − log Σ_{b≠a} exp y_b for logits.

    Args:
        of: the class a, as its index or label; None: the class that the network predicts, or of a
            network that predicts ``versus`` the most probable other one.
        versus: the class b; None: all the others.

    Example:
        >>> model = nn.Sequential(nn.Flatten(), nn.Linear(12, 3))
        >>> image = torch.rand(1, 3, 2, 2)
        >>> score, y = Difference(0, 2).score(model, image), model(image)[0]
        >>> torch.allclose(score, y[0] - y[2])
        True
    """

    of: int | str | None = None
    versus: int | str | None = None

    @property
    def unit(self) -> str:  # type: ignore[override]
        """See `Target.unit`."""
        return "log-odds" if self.versus is None else "margin"

    def score(self, model: nn.Module, images: Tensor) -> Tensor:
        """See `Target.score`."""
        outputs = read_outputs(model, images)
        scores, meaning = outputs.scores, outputs.meaning
        a, b = self._indices(model)
        score = _column(scores, a)
        if meaning == "value":
            raise TargetError(
                "the network returns values and no classes, of which one could be set against "
                "another; use afmi.targets.Scalar(lambda y: y[:, 0] - y[:, 1]), say"
            )
        if b is not None:
            return score - _column(scores, b)
        if meaning == "probabilities":
            return score.log() - (1 - score).log()
        if meaning == "sigmoid":
            return score
        others = [k for k in range(scores.shape[1]) if k != a]
        return score - torch.logsumexp(scores[:, others], 1)

    def label(self, model: nn.Module) -> str:
        """See `Target.label`."""
        a, b = self._indices(model)
        other = "any other" if b is None else class_label(model, b)
        return f"{class_label(model, a)} rather than {other}"

    def ends(self, model: nn.Module) -> tuple[str, str]:
        """See `Target.ends`."""
        a, b = self._indices(model)
        other = "any other" if b is None else class_label(model, b)
        return f"for {class_label(model, a)}", f"for {other}"

    def fixed(self, model: nn.Module, images: Tensor) -> Target | Sequence[Target]:
        """See `Target.fixed`."""
        if self.of is not None:
            a, b = self._indices(model)
            if a == b:
                raise TargetError(
                    f"expected two classes, got {class_label(model, a)!r} twice; leave one out"
                )
            return Difference(a, b)
        scores = classify(model, images)
        b = None if self.versus is None else find_class(model, self.versus)
        if b is not None:
            if not 0 <= b < scores.shape[1]:
                raise _out_of_range(b, scores.shape[1])
            scores = scores.index_fill(
                1, torch.tensor([b], dtype=torch.int64, device=scores.device), -torch.inf
            )
        return [Difference(a, b) for a in scores.argmax(1).tolist()]

    def compared(self, model: nn.Module) -> tuple[int, ...]:
        """See `Target.compared`."""
        a, b = self._indices(model)
        return (a,) if b is None else (a, b)

    def _indices(self, model: nn.Module) -> tuple[int, int | None]:
        if self.of is None:
            raise TargetError("the predicted class is not known before the network has run")
        b = None if self.versus is None else find_class(model, self.versus)
        return find_class(model, self.of), b


def _column(scores: Tensor, index: int) -> Tensor:
    if not 0 <= index < scores.shape[1]:
        raise _out_of_range(index, scores.shape[1])
    return scores[:, index]


def _out_of_range(index: int, classes: int) -> TargetError:
    return TargetError(f"expected a class from 0 to {classes - 1}, got {index}")
