"""Walk over large tensors piece by piece, each while it lies in the processor's cache."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

__all__ = ["Scratch", "pieces"]

Scratch = tuple[Tensor, Tensor]
"""Two tensors like a piece, to be written to."""

_PIECE = 131_072
"""Numbers of a piece, of which four fit into a processor's second cache."""


def pieces(tensors: list[Tensor]) -> Iterator[tuple[Sequence[Tensor], Scratch]]:
    """Cut tensors alike, and give each piece of them with scratch memory of its size.

    Those of the reference may have one image for all. Tensors stay whole where they are small, lie
    on another device, or do not all lie in one stretch of memory in the same order.
    """
    largest: Scratch | None = None
    for piece in _cut(tensors):
        if largest is None:  # the first piece is as large as any
            largest = torch.empty_like(piece[0]), torch.empty_like(piece[0])
        count = piece[0].numel()
        if count < largest[0].numel():
            yield piece, (largest[0][:count], largest[1][:count])
        else:
            yield piece, largest


def _cut(tensors: list[Tensor]) -> Iterator[Sequence[Tensor]]:
    x = tensors[0]
    if x.device.type != "cpu" or x.dim() < 2 or x[0].numel() <= 4 * _PIECE:
        yield tensors
        return
    ordered = tensors if x.is_contiguous() else [tensor.movedim(1, -1) for tensor in tensors]
    if not all(tensor.is_contiguous() for tensor in ordered):
        yield tensors
        return
    for i in range(len(x)):
        rows = (tensor[min(i, len(tensor) - 1)].view(-1) for tensor in ordered)
        yield from zip(*(row.split(_PIECE) for row in rows), strict=True)
