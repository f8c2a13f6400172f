"""Take the loose forms in which a user says what is to be explained."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor, nn

from afmi.network.classifier import classify
from afmi.network.outputs import responses
from afmi.network.scored import Scored
from afmi.network.trial import meaning_of
from afmi.targets.base import Target
from afmi.targets.classes import Class
from afmi.targets.values import Scalar

__all__ = ["OneTarget", "TargetLike", "Targets", "as_target", "as_targets", "response"]

OneTarget: TypeAlias = "int | str | Target | Callable[[Any], Tensor]"
TargetLike: TypeAlias = "OneTarget | Tensor | Sequence[OneTarget] | None"


@dataclass(frozen=True)
class Targets:
    """What is explained where it is more than classes' indices.

    Attributes:
        each: one target for all images, or one for each.
    """

    each: tuple[Target, ...]


def as_target(model: nn.Module, given: TargetLike) -> int | Tensor | Sequence[int] | Targets | None:
    """Return what a user meant: classes' indices, where that is all, or targets.

    Args:
        model: whose labels are meant.
        given: a class by its index or label, a `Target`, or a function of the outputs; or one of
            these for each image; or int64 (N,). None: the class that the model predicts.

    Raises:
        TargetError: when there is no class of a label.
    """
    if isinstance(given, (list, tuple)):
        if not any(map(_is_rich, given)):
            return given  # type: ignore[return-value]
        each = as_targets(given)
        classes = [target.index(model) for target in each if isinstance(target, Class)]
        return classes if len(classes) == len(each) else Targets(tuple(each))
    if not _is_rich(given):
        return given  # type: ignore[return-value]
    target = _target(given)
    return target.index(model) if isinstance(target, Class) else Targets((target,))


def as_targets(given: Sequence[Any]) -> list[Target]:
    """Return several targets that a user gave, each in any form."""
    return [_target(one) if _is_rich(one) else Class(one) for one in given]


def response(model: nn.Module, target: Target, images: Tensor) -> Tensor:
    """Return what the network answers for images, float64 (N,) on the CPU.

    Of a class that is the probability; of another target, its score.
    """
    if isinstance(target, Class):
        scores = classify(model, images).to("cpu", torch.float64)
        return responses(scores, meaning_of(model, images))[:, target.index(model)]
    return classify(Scored(model, target), images)[:, 0].to("cpu", torch.float64)


def _is_rich(given: object) -> bool:
    """Tell whether this is more than an index, or several."""
    if isinstance(given, (Target, str)):
        return True
    return callable(given) and not isinstance(given, (Tensor, np.ndarray))


def _target(given: Any) -> Target:
    if isinstance(given, Target):
        return given
    return Class(given) if isinstance(given, str) else Scalar(given)
