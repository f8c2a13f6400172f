"""Targets that are no class: an output, any function of the outputs, a similarity."""

from __future__ import annotations

import functools
import math
import os
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from afmi.errors import ShapeError, TargetError, UsageError
from afmi.network.classifier import classifier_of, labels_of
from afmi.network.labels import is_truth_value
from afmi.pictures.images import read_channels
from afmi.pictures.transforms import to_tensor
from afmi.targets.base import Target, bits, output_tensor, score_rows

__all__ = ["Output", "Scalar", "Similarity"]


@dataclass(frozen=True)
class Output(Target):
    """One of the numbers that the network returns, as it returns it: a regression's value, say.

    Args:
        index: which of the outputs (N, K): k; of outputs (N, K, …) several indices. None: the only
            one.

    Example:
        >>> model = nn.Sequential(nn.Flatten(), nn.Linear(12, 3), nn.Softmax(1))
        >>> image = torch.rand(1, 3, 2, 2)
        >>> torch.equal(Output(2).score(model, image), model(image)[:, 2])
        True
    """

    index: int | tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        if isinstance(self.index, tuple) and len(self.index) == 1:
            object.__setattr__(self, "index", self.index[0])
        if any(map(is_truth_value, self.index if isinstance(self.index, tuple) else (self.index,))):
            raise UsageError(f"expected the index of an output, got {self.index!r}; count from 0")

    def score(self, model: nn.Module, images: Tensor) -> Tensor:
        """See `Target.score`."""
        outputs = output_tensor(model, images, self)
        shape = tuple(outputs.shape[1:])
        if self.index is None:
            if math.prod(shape) != 1:
                raise TargetError(
                    f"the network returns {shape} numbers for each image; say which one: "
                    "afmi.targets.Output(index)"
                )
            return outputs.reshape(len(images))
        index = self.index if isinstance(self.index, tuple) else (self.index,)
        fits = len(index) == len(shape) and all(
            0 <= i < n for i, n in zip(index, shape, strict=True)
        )
        if not fits:
            raise TargetError(
                f"expected an index into outputs of shape {shape}, got {self.index}; count from 0"
            )
        return outputs[(slice(None), *index)]

    def label(self, model: nn.Module) -> str:
        """See `Target.label`."""
        labels = labels_of(model)
        if isinstance(self.index, int) and labels:
            return labels[self.index] if 0 <= self.index < len(labels) else f"output {self.index}"
        if self.index is None:
            return labels[0] if len(labels) == 1 else "the output"
        index = self.index if isinstance(self.index, tuple) else (self.index,)
        return f"output {', '.join(map(str, index))}"


@dataclass(frozen=True)
class Scalar(Target):
    """Any number made of the outputs, by a function through which gradients pass.

    Args:
        function: takes what the model returns for N images (a `Classifier`: the one output tensor
            that is meant, else all that the network returned) and returns (N,), each number made of
            its own image's outputs alone.
        name: what pictures call it; None: the function's name.
        unit: what the number is.

    Example:
        >>> model = nn.Sequential(nn.Flatten(), nn.Linear(12, 3))
        >>> entropy = Scalar(lambda y: torch.special.entr(y.softmax(1)).sum(1), unit="nats")
        >>> entropy.score(model, torch.rand(2, 3, 2, 2)).shape
        torch.Size([2])
    """

    function: Callable[[Any], Tensor]
    name: str | None = None
    unit: str = field(default="value", kw_only=True)  # type: ignore[misc]

    def __post_init__(self) -> None:
        if not callable(self.function):
            raise UsageError(
                f"expected a function of the outputs, got {self.function!r}; such as "
                "Scalar(lambda outputs: outputs[:, 0])"
            )

    def score(self, model: nn.Module, images: Tensor) -> Tensor:
        """See `Target.score`."""
        return score_rows(self.function(model(images)), images, f"the target {self._title()!r}")

    def label(self, model: nn.Module) -> str:
        """See `Target.label`."""
        return self._title()

    def _title(self) -> str:
        if self.name is not None:
            return self.name
        name = getattr(self.function, "__name__", type(self.function).__name__)
        return "a function of the outputs" if name == "<lambda>" else name


@dataclass(frozen=True, eq=False)
class Similarity(Target):
    """How alike an image's embedding is to another: the cosine of the angle between both.

    For networks that return embeddings (N, D): what in this image makes it like that one.

    Args:
        to: an embedding (D,); or an image (C, …) or (1, C, …) as the model takes it, or an image's
            file, whose embedding is computed once.

    Example:
        >>> model = nn.Sequential(nn.Flatten(), nn.Linear(12, 5))
        >>> image = torch.rand(1, 3, 2, 2)
        >>> Similarity(image[0]).fixed(model, image).score(model, image).item()
        1.0...
    """

    unit = "cosine similarity"

    to: Tensor | str
    _embedding: Tensor | None = field(default=None, init=False, repr=False)

    def __post_init__(self) -> None:
        if isinstance(self.to, (str, os.PathLike)):
            object.__setattr__(self, "to", os.fspath(self.to))
            return
        if not isinstance(self.to, Tensor) or not self.to.is_floating_point() or not self.to.dim():
            raise ShapeError(
                "expected an embedding (D,) or an image (C, …) as a floating-point tensor, or an "
                f"image's file, got {self.to!r}"
            )
        # A copy: what the caller does with the tensor later must not change the target.
        object.__setattr__(self, "to", self.to.detach().clone())
        if self.to.dim() == 1:
            object.__setattr__(self, "_embedding", self.to)

    def fixed(self, model: nn.Module, images: Tensor) -> Target | Sequence[Target]:
        """See `Target.fixed`."""
        if self._embedding is not None:
            return self
        other = self.to
        if isinstance(other, str):
            classifier = classifier_of(model)
            if classifier is None:
                other = to_tensor(read_channels(other, images.shape[1]))
            else:
                other = classifier.prepare(other)
        other = other if other.dim() == images.dim() else other[None]
        with torch.no_grad():
            embedding = output_tensor(model, other.to(images), self)
        fixed = Similarity(self.to)
        object.__setattr__(fixed, "_embedding", embedding.flatten().detach())
        return fixed

    def score(self, model: nn.Module, images: Tensor) -> Tensor:
        """See `Target.score`."""
        outputs = output_tensor(model, images, self)
        if self._embedding is None:
            raise TargetError("the other image's embedding is not known before the network has run")
        if outputs.shape[1:] != self._embedding.shape:
            raise TargetError(
                f"expected outputs (N, {len(self._embedding)}), as long as the embedding compared "
                f"with, got {tuple(outputs.shape)}"
            )
        embedding = self._embedding.to(outputs.device, outputs.dtype)
        return F.cosine_similarity(outputs, embedding[None], dim=1)

    def label(self, model: nn.Module) -> str:
        """See `Target.label`."""
        name = os.path.basename(self.to) if isinstance(self.to, str) else "the other image"
        return f"likeness to {name}"

    @functools.cached_property
    def _identity(self) -> tuple[Hashable, ...]:
        return bits(self.to), bits(self._embedding)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Similarity) and self._identity == other._identity

    def __hash__(self) -> int:
        return hash(self._identity)
