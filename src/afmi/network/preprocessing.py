"""How pictures are prepared for a network, as a record that its library or its weights fill in."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from PIL import Image
from torch import nn

from afmi.errors import ModelError
from afmi.network.outputs import Meaning

__all__ = ["Preprocessing", "class_count", "with_classes"]

_SETTINGS = ("mean", "std", "labels", "resize", "crop", "interpolation", "output")


@dataclass(frozen=True)
class Preprocessing:
    """How images are prepared for a network, and what its classes are called.

    Attributes:
        mean, std, labels, resize, crop, interpolation, output: a `Classifier`'s.
        classes: how many classes the network has; None: not known.
        unknown: which of the above the caller must give, because the model's own cannot be
            read or reproduced; ``why`` says so.
    """

    mean: Sequence[float] = (0.0, 0.0, 0.0)
    std: Sequence[float] = (1.0, 1.0, 1.0)
    labels: Sequence[str] = ()
    resize: int | tuple[int, int] | None = None
    crop: int | tuple[int, int] | None = None
    interpolation: Image.Resampling = Image.Resampling.BILINEAR
    output: Meaning | None = None
    classes: int | None = None
    unknown: tuple[str, ...] = ()
    why: str = ""

    def settings(self, given: Mapping[str, Any], name: str) -> dict[str, Any]:
        """Return what a `Classifier` is made with, where the caller gave some of it.

        Args:
            given: settings of the caller, which go before these; others are passed on.
            name: what to call the network in errors.

        Raises:
            ModelError: when the caller must give more, or the labels are not one for each class.
        """
        missing = [key for key in self.unknown if key not in given]
        if missing:
            raise ModelError(f"{self.why}; pass {', '.join(f'{key}=' for key in missing)}")
        count = len(given.get("labels", ()))
        if self.classes and "labels" in given and count != self.classes:
            raise ModelError(
                f"{name} has {self.classes} classes, but got {count} labels; pass one label per "
                "class, in the order of the logits"
            )
        return {key: getattr(self, key) for key in _SETTINGS} | dict(given)


def class_count(network: nn.Module) -> int | None:
    """Return how many classes a network has, or None where it has no weights.

    It is the first length of its last weight, which is the head's in every network that registers
    its modules in the order of the forward pass.
    """
    weights = list(network.state_dict().values())
    return weights[-1].shape[0] if weights and weights[-1].dim() else None


def with_classes(preprocessing: Preprocessing, network: nn.Module) -> Preprocessing:
    """Add the network's number of classes, and drop labels that do not fit it."""
    count = class_count(network)
    labels = preprocessing.labels if count == len(preprocessing.labels) else ()
    return replace(preprocessing, labels=labels, classes=count)
