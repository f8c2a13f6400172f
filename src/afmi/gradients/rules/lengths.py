"""Lengths of vectors, and spreads, which are lengths of what is left of a mean."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Size, Tensor

from afmi.errors import OperationError
from afmi.gradients.interception import BackwardState, Handler, Interception
from afmi.gradients.operation import Operation
from afmi.gradients.rule import Factors, Rule, Tensors
from afmi.gradients.rules.composed import composed
from afmi.gradients.rules.elementwise import ExactChord
from afmi.gradients.tape import Entry

__all__ = ["RULES"]


class Length(Rule):
    """√Σx² along the last dimension, which is kept, with multipliers (x + x̄)/(‖x‖ + ‖x̄‖).

    The square's (x + x̄) times the chord of the root; no larger than 1, and 0 where both vectors
    are 0, as PyTorch has it.
    """

    def factors(
        self, operation: Operation, operands: Tensors, outputs: Tensors, entry: Entry
    ) -> Factors:
        (x,) = operands
        reference = entry.inputs[0].expand_as(x)
        lengths = outputs[0] + entry.output
        return [torch.where(lengths > 0, (x + reference) / lengths, torch.zeros_like(x))]

    def pull_back(
        self, gradient: Tensor, factors: Factors, shapes: list[Size], state: BackwardState
    ) -> list[Tensor]:
        return [gradient * factors[0]]


def length(interception: Interception, operation: Operation) -> Any:
    """The Euclidean or another norm of vectors: ``torch.linalg.vector_norm``."""
    x, p = operation.operand, operation.argument(1, "ord", 2)
    dim = operation.argument(2, "dim", None)
    keep = operation.argument(3, "keepdim", False)
    dims = tuple(range(x.dim())) if dim is None else (dim,) if isinstance(dim, int) else tuple(dim)
    if operation.kwargs.get("dtype") is not None:
        x = x.to(operation.kwargs["dtype"])
    if p != 2:
        with interception:
            return _other_norm(x, float(p), dims, keep)
    kept = [1 if d in {e % x.dim() for e in dims} else s for d, s in enumerate(x.shape)]
    moved = x.movedim(dims, tuple(range(-len(dims), 0))).flatten(-len(dims))
    call = Operation("length", torch.linalg.vector_norm, (moved, 2, -1, True), {})
    y = Length()(interception, call).reshape(kept)
    return y if keep else y.squeeze(dims)


def _other_norm(x: Tensor, p: float, dims: tuple[int, ...], keep: bool) -> Tensor:
    magnitude = x.abs()
    if math.isinf(p):
        extreme = torch.amax if p > 0 else torch.amin
        return extreme(magnitude, dims, keep)
    if p == 1:
        return magnitude.sum(dims, keep)
    return magnitude.pow(p).sum(dims, keep).pow(1 / p)


def norm(
    x: Tensor,
    p: float | str | None = "fro",
    dim: Any = None,
    keepdim: bool = False,
    out: None = None,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """``torch.norm``, of all numbers or along dimensions."""
    return torch.linalg.vector_norm(x, _order(p), dim, keepdim, dtype=dtype)


def linalg_norm(
    x: Tensor, ord: Any = None, dim: Any = None, keepdim: bool = False, *, dtype: Any = None
) -> Tensor:
    """``torch.linalg.norm``, of vectors."""
    matrices = x.dim() == 2 if dim is None else not isinstance(dim, int) and len(dim) == 2
    if matrices and ord not in (None, "fro"):
        raise OperationError(
            f"'linalg_norm' of a matrix (ord={ord!r}) that depends on the image has no rule for "
            "the modified gradient; use torch.linalg.vector_norm, or the Frobenius norm"
        )
    return torch.linalg.vector_norm(x, _order(ord), dim, keepdim, dtype=dtype)


def matrix_norm(
    x: Tensor,
    ord: Any = "fro",
    dim: Any = (-2, -1),
    keepdim: bool = False,
    *,
    dtype: Any = None,
) -> Tensor:
    """``torch.linalg.matrix_norm``, Frobenius'."""
    return torch.linalg.norm(x, ord, dim, keepdim, dtype=dtype)


def _order(p: float | str | None) -> float:
    if p is None or p == "fro":
        return 2
    if isinstance(p, str):
        raise OperationError(
            f"the norm {p!r} of what depends on the image has no rule for the modified gradient; "
            "use a norm of vectors"
        )
    return p


def variance(
    x: Tensor,
    dim: Any = None,
    unbiased: bool = True,
    keepdim: bool = False,
    *,
    correction: float | None = None,
) -> Tensor:
    """mean((x − mean x)²): linear maps and a square, whose rule is exact."""
    centred, count, dims = _centred(x, dim, unbiased, correction)
    return (centred * centred).sum(dims, keepdim=keepdim) / count


def deviation(
    x: Tensor,
    dim: Any = None,
    unbiased: bool = True,
    keepdim: bool = False,
    *,
    correction: float | None = None,
) -> Tensor:
    """√var: the length of the centred vector, whose rule holds where the map is constant too."""
    centred, count, dims = _centred(x, dim, unbiased, correction)
    return torch.linalg.vector_norm(centred, dim=dims, keepdim=keepdim) / math.sqrt(count)


def _centred(
    x: Tensor, dim: Any, unbiased: bool, correction: float | None
) -> tuple[Tensor, float, tuple[int, ...]]:
    """Return x less its mean, by how many the squares are divided, and the dimensions."""
    if isinstance(dim, bool):  # torch.var(x, unbiased)
        dim, unbiased = None, dim
    dims = tuple(range(x.dim())) if dim is None else (dim,) if isinstance(dim, int) else tuple(dim)
    correction = float(unbiased) if correction is None else correction
    count = math.prod(x.shape[d] for d in dims) - correction
    return x - x.mean(dims, keepdim=True), count, dims


def _with_mean(spread: Callable[..., Tensor]) -> Callable[..., tuple[Tensor, Tensor]]:
    def both(
        x: Tensor,
        dim: Any = None,
        unbiased: bool = True,
        keepdim: bool = False,
        *,
        correction: float | None = None,
    ) -> tuple[Tensor, Tensor]:
        _, _, dims = _centred(x.detach(), dim, unbiased, correction)
        spread_of_x = spread(x, dim, unbiased, keepdim, correction=correction)
        return spread_of_x, x.mean(dims, keepdim=keepdim)

    return both


def hypot(x: Tensor, y: Tensor) -> Tensor:
    """√(x² + y²): a length."""
    return torch.linalg.vector_norm(torch.stack(torch.broadcast_tensors(x, y), -1), dim=-1)


def dist(x: Tensor, y: Tensor, p: float = 2) -> Tensor:
    """The length of the difference."""
    return torch.linalg.vector_norm((x - y).flatten(), p)


def cdist(x: Tensor, y: Tensor, p: float = 2.0, compute_mode: str | None = None) -> Tensor:
    """The distances between the rows of one matrix and those of another."""
    return torch.linalg.vector_norm(x.unsqueeze(-2) - y.unsqueeze(-3), p, -1)


class Absolute(ExactChord):
    """|x|, whose chord is exact; of a complex number the length of its two parts."""

    def __call__(self, interception: Interception, operation: Operation) -> Any:
        x = operation.operand
        if not x.is_complex():
            return super().__call__(interception, operation)
        with interception:
            return torch.linalg.vector_norm(torch.view_as_real(x), dim=-1)


RULES: dict[str, Handler] = {
    "linalg_vector_norm": length,
    "vector_norm": length,
    "norm": composed(norm),
    "linalg_norm": composed(linalg_norm),
    "linalg_matrix_norm": composed(matrix_norm),
    "var": composed(variance),
    "std": composed(deviation),
    "var_mean": composed(_with_mean(variance)),
    "std_mean": composed(_with_mean(deviation)),
    "hypot": composed(hypot),
    "dist": composed(dist),
    "cdist": composed(cdist),
    "abs": Absolute(),
}
