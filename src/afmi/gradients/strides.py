"""Keep gradients from strides that PyTorch's backward pass of batch norms misreads."""

from __future__ import annotations

from typing import Any

from torch import Tensor

__all__ = ["keep_from_odd_strides"]


def keep_from_odd_strides(logits: Tensor) -> None:
    """Have gradients of batch norms laid out as PyTorch's backward pass expects them.

    With one image, a gradient that comes from transposed tokens has the strides of channels that
    lie last but for the batch's own. PyTorch 2.15 takes it for contiguous on the CPU, and gives a
    derivative of permuted numbers, without a word. It is right where the maps are channels-last.
    """
    nodes: list[Any] = [logits.grad_fn]
    met = set(nodes)
    for node in nodes:  # which grows meanwhile
        norm = type(node).__name__.startswith("NativeBatchNorm")
        if norm and node._saved_input.is_contiguous():
            node.register_prehook(_contiguous)
        for before, _ in node.next_functions:
            if before is not None and before not in met:
                met.add(before)
                nodes.append(before)


def _contiguous(gradients: tuple[Tensor | None, ...]) -> tuple[Tensor | None, ...]:
    return tuple(g if g is None else g.contiguous() for g in gradients)
