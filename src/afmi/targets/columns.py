"""Which column of a network's scores is explained: for all images, for each, or the highest."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from afmi.errors import TargetError
from afmi.network.labels import is_truth_value
from afmi.network.outputs import check_outputs

__all__ = ["Columns", "class_rows", "columns_of"]


@dataclass(frozen=True)
class Columns:
    """The columns to explain, as the caller gave them, until the scores (N, K) are known.

    Attributes:
        value: int64 (N,), or None for the predicted class of each image.
        classes: whether the columns are classes, of which one can be predicted.
    """

    value: Tensor | None
    classes: bool = True

    def __getitem__(self, part: slice) -> Columns:
        """Return the classes of some of the images."""
        return replace(self, value=None if self.value is None else self.value[part])

    def of(self, logits: Tensor) -> Tensor:
        """Return the class of each image, int64 (N,), given the logits (N, K).

        Raises:
            TargetError: when a class is out of the logits' range.
            AfmiError: when an image's logits are not finite.
        """
        check_outputs(logits)
        classes = logits.shape[1]
        if self.value is None:
            if classes > 1 and not self.classes:
                raise TargetError(
                    f"the network returns {classes} values and predicts no class; say which one is "
                    f"to be explained: an index from 0 to {classes - 1}"
                )
            return logits.argmax(1)
        low, high = int(self.value.min()), int(self.value.max())
        if low < 0 or high >= classes:
            raise TargetError(
                f"expected a class from 0 to {classes - 1}, got {low if low < 0 else high}"
            )
        return self.value.to(logits.device)


def columns_of(
    target: int | Tensor | Sequence[int] | None, inputs: Tensor, classes: bool = True
) -> Columns:
    """Return the columns that a caller gave for these images (N, C, *spatial).

    Raises:
        TargetError: when it is neither an integer nor one integer for each image.
    """
    if target is None:
        return Columns(None, classes)
    indices = _indices(target, inputs)
    batch = inputs.shape[0]
    if indices.dim() == 0 or indices.shape == (1,):
        indices = indices.reshape(1).expand(batch)
    if indices.shape != (batch,):
        raise TargetError(
            f"expected one class for all images or one for each of {batch}, got shape "
            f"{tuple(indices.shape)}; attribute_classes takes several classes per image"
        )
    return Columns(indices.to(torch.int64), classes)


def class_rows(targets: Sequence[int] | Tensor, inputs: Tensor) -> Tensor:
    """Return several classes of these images (N, C, *spatial) as int64 (T, N).

    Args:
        targets: T classes for all images, or int64 (T, N).
        inputs: the images.

    Raises:
        TargetError: when they are no such classes.
    """
    classes = _indices(targets, inputs)
    if classes.dim() == 1:
        classes = classes[:, None].expand(-1, inputs.shape[0])
    if classes.dim() != 2 or classes.shape[1] != inputs.shape[0] or not classes.shape[0]:
        raise TargetError(
            f"expected T classes or integer classes (T, {inputs.shape[0]}), got shape "
            f"{tuple(classes.shape)}"
        )
    return classes.to(torch.int64)


def _indices(given: object, inputs: Tensor) -> Tensor:
    """Return classes as whole numbers on the images' device, in the shape in which they came."""
    try:
        if _holds_truth_values(given):
            raise TypeError("a truth value is no class")
        classes = torch.as_tensor(given, device=inputs.device).to_dense()
    except (TypeError, ValueError, RuntimeError) as error:
        raise TargetError(
            f"expected a class index, or several in a list or tensor, got {given!r}; "
            "afmi.find_class(model, label) finds a label's"
        ) from error
    if classes.numel() and (classes.is_floating_point() or classes.is_complex()):
        raise TargetError(f"expected integer classes, got {tuple(classes.shape)} {classes.dtype}")
    return classes


def _holds_truth_values(given: object) -> bool:
    """Tell whether any of these is one, which a tensor would take for 0 or 1 beside numbers."""
    if isinstance(given, (list, tuple)):
        return any(map(_holds_truth_values, given))
    return is_truth_value(given)
