"""Windows of a pooling whose numbers lie side by side, taken and given back by convolutions."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["Windows", "adaptive_windows", "each_side"]

Sides = tuple[int, ...]


def each_side(
    value: int | Sequence[int | None], dimensions: int, like: Sequence[int] = ()
) -> Sides:
    """Return one number for each side, where one may stand for all.

    Args:
        value: as PyTorch's pooling takes it.
        dimensions: how many sides.
        like: what None stands for.
    """
    values = [value] * dimensions if isinstance(value, int) or value is None else list(value)
    values = values * dimensions if len(values) == 1 else values
    return tuple(like[i] if one is None else one for i, one in enumerate(values))


@dataclass(frozen=True)
class Windows:
    """How a pooling cuts maps into windows; each field has one number for each side.

    Attributes:
        kernel, stride, padding, dilation: as in ``max_pool2d``.
        ceil_mode: whether a window may hang over the far edge by more than the padding.
    """

    kernel: Sides
    stride: Sides
    padding: Sides
    dilation: Sides
    ceil_mode: bool = False

    @property
    def dimensions(self) -> int:
        """How many sides the maps have."""
        return len(self.kernel)

    def counts(self, sides: Sequence[int]) -> Sides:
        """Return how many windows there are along each side."""
        made = []
        for side, kernel, stride, padding, dilation in self._along(sides):
            room = side + 2 * padding - dilation * (kernel - 1) - 1
            count = (-(-room // stride) if self.ceil_mode else room // stride) + 1
            # A window that begins beyond the far edge is none.
            if self.ceil_mode and (count - 1) * stride >= side + padding:
                count -= 1
            made.append(count)
        return tuple(made)

    def take(self, x: Tensor) -> Tensor:
        """Return the numbers of each window of maps (N, C, *sides), (N · C, numbers, *windows).

        Beyond the edges they are the least that there are.
        """
        rows = x.reshape(-1, 1, *x.shape[2:])
        edges = self._edges(x.shape[2:])
        if any(map(any, edges)):
            rows = F.pad(rows, _flat(edges), value=torch.finfo(x.dtype).min)
        convolution = (F.conv1d, F.conv2d, F.conv3d)[self.dimensions - 1]
        return convolution(rows, self._each_number(x), stride=self.stride, dilation=self.dilation)

    def give(self, numbers: Tensor, sides: Sequence[int]) -> Tensor:
        """Return what the windows' numbers (R, numbers, *windows) sum to at each place.

        Args:
            numbers: as from `take`.
            sides: of the maps.

        Returns:
            (R, 1, *sides).
        """
        transposed = (F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d)
        sums = transposed[self.dimensions - 1](
            numbers, self._each_number(numbers), stride=self.stride, dilation=self.dilation
        )
        # What hangs over the edges goes, and places that no window covers get 0.
        edges = [
            (-before, side - (reached - before))
            for (before, _), side, reached in zip(
                self._edges(sides), sides, sums.shape[2:], strict=True
            )
        ]
        return F.pad(sums, _flat(edges)) if any(map(any, edges)) else sums

    def _along(self, sides: Sequence[int]) -> list[tuple[int, ...]]:
        of_each = (self.kernel, self.stride, self.padding, self.dilation)
        return list(zip(sides, *of_each, strict=True))

    def _edges(self, sides: Sequence[int]) -> list[tuple[int, int]]:
        """Return how far windows hang over the two ends of each side."""
        counts = self.counts(sides)
        return [
            (padding, max(0, (count - 1) * stride + dilation * (kernel - 1) + 1 - padding - side))
            for (side, kernel, stride, padding, dilation), count in zip(
                self._along(sides), counts, strict=True
            )
        ]

    def _each_number(self, like: Tensor) -> Tensor:
        """Return kernels that take one number each, (numbers, 1, *kernel)."""
        count = math.prod(self.kernel)
        identity = torch.eye(count, dtype=like.dtype, device=like.device)
        return identity.reshape(count, 1, *self.kernel)


def adaptive_windows(sides: Sequence[int], counts: Sequence[int]) -> Windows | None:
    """Return the windows of an adaptive pooling; None: they differ in size."""
    if any(side % count for side, count in zip(sides, counts, strict=True)):
        return None
    kernel = tuple(side // count for side, count in zip(sides, counts, strict=True))
    return Windows(kernel, kernel, (0,) * len(kernel), (1,) * len(kernel))


def _flat(edges: Sequence[tuple[int, int]]) -> list[int]:
    """Return the ends of the sides as ``pad`` takes them: the last side's first."""
    return [end for pair in reversed(edges) for end in pair]
