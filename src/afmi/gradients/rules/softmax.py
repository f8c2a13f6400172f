"""Softmax, log-softmax and log-sum-exp: chords of the exponential, whatever the shift.

With p = softmax(x) and ℓ = log p = x − LSE(x), p_i = exp(ℓ_i), so the chord of the exponential
(Eq. 2) from ℓ̄_i to ℓ_i is the logarithmic mean of the two probabilities,

    M_i = (p_i − p̄_i) / (ℓ_i − ℓ̄_i),     p_i − p̄_i = M_i (Δx_i − ΔLSE).

Both p and p̄ sum to 1, so 0 = Σ_i M_i (Δx_i − ΔLSE), which says what ΔLSE is made of:

    ΔLSE = Σ_j w_j Δx_j,     w_j = M_j / Σ_k M_k.

So the multipliers are w for log-sum-exp, I − 1wᵀ for log-softmax and diag(M) − M Mᵀ/Σ_k M_k for
softmax: the derivatives as they are, with M where they have p. They are exact, do not change when
a constant is added to x or x̄, add up to 1 or 0 over a row as the derivatives do, and nothing in
them cancels or overflows, so that scores that differ by hundreds are as good as near ones. The
mean of softmax's derivative along the straight line has no closed form; this needs none. (The
weights w are known as Sato's and Vartia's, 1976, from index numbers.)
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Size, Tensor

from afmi.gradients.interception import BackwardState, Handler, Interception
from afmi.gradients.operation import Operation
from afmi.gradients.rule import Factors, Rule, Tensors
from afmi.gradients.tape import Entry

__all__ = ["RULES", "probability_means"]


def probability_means(x: Tensor, reference: Tensor, dim: int | tuple[int, ...]) -> Tensor:
    """Return M, the logarithmic means of softmax(x) and softmax(x̄) along ``dim``.

    M = max(p, p̄) (1 − e^−|d|) / |d| with d = ℓ − ℓ̄, which is 0 where a mask leaves no probability.
    """
    log_p = x - torch.logsumexp(x, dim, keepdim=True)
    log_q = reference - torch.logsumexp(reference, dim, keepdim=True)
    distance = (log_p - log_q).abs()
    shrunk = torch.where(distance == 0, 1.0, -torch.expm1(-distance) / distance)
    mean = torch.maximum(log_p, log_q).exp_() * shrunk
    return mean.masked_fill_((log_p == -torch.inf) & (log_q == -torch.inf), 0.0)


class Softmax(Rule):
    """softmax(x) along a dimension, with multipliers diag(M) − M Mᵀ/Σ_k M_k."""

    def __init__(self, dim: int) -> None:
        self.dim = dim

    def factors(
        self, operation: Operation, operands: Tensors, outputs: Tensors, entry: Entry
    ) -> Factors:
        (x,) = operands
        reference = entry.inputs[0].expand_as(x)
        means = probability_means(x, reference, self.dim)
        return [means, means / means.sum(self.dim, keepdim=True)]

    def pull_back(
        self, gradient: Tensor, factors: Factors, shapes: list[Size], state: BackwardState
    ) -> list[Tensor]:
        means, weights = factors
        return [means * (gradient - (weights * gradient).sum(self.dim, keepdim=True))]


class LogSumExp(Rule):
    """log Σ exp(x) over dimensions, which are kept, with multipliers w = M/Σ_k M_k."""

    def __init__(self, dim: tuple[int, ...]) -> None:
        self.dim = dim

    def factors(
        self, operation: Operation, operands: Tensors, outputs: Tensors, entry: Entry
    ) -> Factors:
        (x,) = operands
        reference = entry.inputs[0].expand_as(x)
        means = probability_means(x, reference, self.dim)
        return [means / means.sum(self.dim, keepdim=True)]

    def pull_back(
        self, gradient: Tensor, factors: Factors, shapes: list[Size], state: BackwardState
    ) -> list[Tensor]:
        return [gradient * factors[0]]


def _input_and_dim(interception: Interception, operation: Operation) -> tuple[Tensor, int]:
    x = operation.operand
    dtype = operation.kwargs.get("dtype")
    dim = operation.argument(1, "dim", None)
    if dim is None:
        raise interception.no_rule(f"{operation.name!r} without a dimension", "give it dim=")
    return x if dtype is None else x.to(dtype), dim


def softmax(interception: Interception, operation: Operation) -> Any:
    """The probabilities of scores, such as attention's weights."""
    x, dim = _input_and_dim(interception, operation)
    return Softmax(dim)(interception, Operation("softmax", torch.softmax, (x, dim), {}))


def log_softmax(interception: Interception, operation: Operation) -> Any:
    """x − LSE(x)."""
    x, dim = _input_and_dim(interception, operation)
    return x - _logsumexp(interception, x, (dim,))


def logsumexp(interception: Interception, operation: Operation) -> Any:
    """log Σ exp(x) over one dimension or several."""
    x, dim = _input_and_dim(interception, operation)
    dims = (dim,) if isinstance(dim, int) else tuple(dim)
    y = _logsumexp(interception, x, dims)
    return y if operation.argument(2, "keepdim", False) else y.squeeze(dims)


def _logsumexp(interception: Interception, x: Tensor, dims: tuple[int, ...]) -> Tensor:
    call = Operation("logsumexp", torch.logsumexp, (x, dims, True), {})
    return LogSumExp(dims)(interception, call)


RULES: dict[str, Handler] = {
    "softmax": softmax,
    "log_softmax": log_softmax,
    "logsumexp": logsumexp,
}
