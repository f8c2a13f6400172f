"""Target, the one abstraction of what is explained: outputs in, a score for each image out."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from afmi import specs
from afmi.errors import TargetError
from afmi.network.outputs import declaration_of, selected

__all__ = ["Target", "bits", "output_tensor", "score_rows"]


@dataclass(frozen=True)
class Target(ABC):
    """What is explained of a network's outputs: one number for each image.

    A subclass is a frozen dataclass whose fields say which number. The modified gradient passes
    through what it does with the outputs by the engine's rules, so that maps of its score sum to
    the change of the score as those of a class do.
    """

    unit: ClassVar[str] = "value"
    """What its score is."""

    @abstractmethod
    def score(self, model: nn.Module, images: Tensor) -> Tensor:
        """Run the network on images (N, C, …) and return the score of each, (N,).

        Each image's score depends on that image alone.
        """

    @abstractmethod
    def label(self, model: nn.Module) -> str:
        """Return what is explained in words, such as ``malamute rather than Eskimo dog``."""

    def fixed(self, model: nn.Module, images: Tensor) -> Target | Sequence[Target]:
        """Return the target with all that the images themselves decide, such as their class.

        That is decided once and holds for all that is made of an image, references included.

        Returns:
            One target for all images, or one for each of the images (N, C, …).
        """
        return self

    def ends(self, model: nn.Module) -> tuple[str, str]:
        """Return what positive and what negative values of its maps do, in words."""
        return "raises it", "lowers it"

    def compared(self, model: nn.Module) -> tuple[int, ...]:
        """Return the classes that the score is made of, if it is made of some."""
        return ()

    def alike(self) -> Hashable:
        """Return what of the target decides how the network is run and its outputs are read.

        A network is tried once for all targets that are alike in it.
        """
        return self

    def opaque(self, model: nn.Module) -> str | None:
        """Say why no gradient can pass through the score, and what to do; None: it can."""
        return None

    def area(self, size: tuple[int, ...]) -> Tensor | None:
        """Return where on an image of this size the score is taken, bool (H, W), on the CPU.

        None: everywhere.
        """
        return None


def output_tensor(model: nn.Module, images: Tensor, target: Target) -> Tensor:
    """Run a network and return its one output tensor (N, …).

    Raises:
        TargetError: when it returns several, of which none is singled out.
    """
    output = selected(model(images), declaration_of(model).key)
    if not isinstance(output, Tensor) or len(output) != len(images):
        form = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
        raise TargetError(
            f"{specs.text(target)} needs one output tensor with a row for each image, and the "
            f"network returned {form}; name it: Classifier(network, output_key=…), or use "
            "afmi.targets.Scalar(function)"
        )
    return output


def score_rows(scores: Any, images: Tensor, target: object) -> Tensor:
    """Return scores as (N,), where there is one for each image.

    Raises:
        TargetError: when there is not, or gradients cannot pass.
    """
    if isinstance(scores, Tensor) and scores.shape == (len(images), 1):
        scores = scores[:, 0]
    if (
        not isinstance(scores, Tensor)
        or scores.shape != (len(images),)
        or not scores.is_floating_point()
    ):
        form = f"{tuple(scores.shape)} {scores.dtype}" if isinstance(scores, Tensor) else scores
        raise TargetError(
            f"expected one floating-point score for each of {len(images)} images from {target}, a "
            f"tensor ({len(images)},), got {form}; keep the outputs' first dimension"
        )
    return scores


def _bytes(tensor: Tensor) -> bytes:
    return tensor.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes()


def bits(value: Any) -> Hashable:
    """Return what tells a field's value from others: of a tensor its numbers."""
    if isinstance(value, Tensor):
        return tuple(value.shape), str(value.dtype), _bytes(value)
    return value if isinstance(value, (str, tuple)) else None


def _catalogue() -> Mapping[str, type[Target]]:
    from afmi.targets import TARGETS

    return TARGETS


specs.register(Target, "target", _catalogue)
