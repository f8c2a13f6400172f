"""Take the loose forms in which a user says what is to be explained."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor, nn

from afmi import specs
from afmi.errors import TargetError
from afmi.network.classifier import classify, find_class, labels_of
from afmi.network.outputs import responses
from afmi.network.scored import Scored
from afmi.network.trial import meaning_of
from afmi.targets.base import Target
from afmi.targets.classes import Class
from afmi.targets.values import Scalar

__all__ = [
    "OneTarget",
    "TargetLike",
    "Targets",
    "as_target",
    "as_targets",
    "response",
    "target_in_text",
]

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
        given: a class by its index or label, a `Target` or its text, or a function of the outputs;
            or one of these for each image; or int64 (N,). None: the class that the model predicts.

    Raises:
        TargetError: when there is no class of a label.
    """
    if isinstance(given, (list, tuple)):
        if not any(map(_is_rich, given)):
            return given  # type: ignore[return-value]
        each = as_targets(model, given)
        classes = [target.index(model) for target in each if isinstance(target, Class)]
        return classes if len(classes) == len(each) else Targets(tuple(each))
    if not _is_rich(given):
        return given  # type: ignore[return-value]
    target = _target(model, given)
    return target.index(model) if isinstance(target, Class) else Targets((target,))


def as_targets(model: nn.Module, given: Sequence[Any]) -> list[Target]:
    """Return several targets that a user gave, each in any form."""
    return [_target(model, one) if _is_rich(one) else Class(one) for one in given]


def target_in_text(model: nn.Module, text: str) -> Target:
    """Return the target that a text names: a class by its label or index, or as in `afmi.specs`.

    What can be a label is one: a text with a colon or parenthesis where it equals a label, any
    other where it is one or a part of one.

    Raises:
        TargetError: when there is no class of a label.
        UsageError: when a target's parameters do not fit.

    Example:
        >>> target_in_text(nn.Identity(), "3"), target_in_text(nn.Identity(), "output:index=3")
        (Class(of='3'), Output(index=3))
    """
    name, sign, _ = re.split(r"([:(])|$", text.strip(), maxsplit=1)
    if not _names_a_target(name):
        return Class(text)
    if sign:
        labels = labels_of(model)
        is_label = any(label.casefold() == text.strip().casefold() for label in labels)
        return Class(text) if is_label else specs.parse(text, Target)
    try:
        return Class(find_class(model, text))
    except TargetError:
        return specs.parse(text, Target)


def _names_a_target(name: str) -> bool:
    from afmi.targets import TARGETS

    return specs.fold(name) in map(specs.fold, TARGETS)


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


def _target(model: nn.Module, given: Any) -> Target:
    if isinstance(given, Target):
        return given
    return target_in_text(model, given) if isinstance(given, str) else Scalar(given)
