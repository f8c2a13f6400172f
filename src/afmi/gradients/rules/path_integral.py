"""The mean derivative along the straight line by quadrature, where no closed form is at hand."""

from __future__ import annotations

import warnings
from typing import Any

import numpy
import torch
from torch import Tensor

from afmi.errors import CompletenessWarning, UsageError
from afmi.gradients.interception import Interception, Operation, Rule
from afmi.gradients.rules.linear import path_operands
from afmi.gradients.rules.products import choose, contraction, with_operands
from afmi.gradients.tape import Entry

__all__ = ["RULES", "PathIntegral"]


class PathIntegral:
    """m = ∫₀¹ f′(x̄ + t(x − x̄)) dt for any smooth f of one operand or several.

    Gauss–Legendre quadrature: m ≈ Σ_k w_k f′(x̄ + t_k(x − x̄)), exact where f is a polynomial of
    degree up to 2 · order along the line, and nearly so where it is smooth. It sums to delta as
    nearly as it is exact, so every run is checked: Σ m·Δx is compared with Δy.

    Paper: for a scalar f, A-FMI's Eq. 2; the line is that of Sundararajan et al., *Axiomatic
    Attribution for Deep Networks*, ICML 2017, here for one operation instead of the network.
    Cost: ``order`` forwards and backwards of the operation, and as many again for the check.

    Args:
        order: the number of nodes.

    Raises:
        UsageError: when ``order`` is below 1.
    """

    def __init__(self, order: int = 16) -> None:
        if order < 1:
            raise UsageError(f"expected an order of at least 1, got order={order}")
        nodes, weights = numpy.polynomial.legendre.leggauss(order)
        self.order = order
        self.rule = [
            ((1 + n) / 2, w / 2) for n, w in zip(nodes.tolist(), weights.tolist(), strict=True)
        ]

    def __call__(self, state: Interception, operation: Operation) -> Any:
        operands = path_operands(operation)
        if operation.inplace:
            raise state.no_rule(f"{operation.name!r} in place", "use its form that makes a tensor")
        if state.recording is not None:
            output = operation()
            seen = tuple(x.detach() for x in operands)
            state.recording.entries.append(Entry(operation.name, seen, output.detach()))
            return output
        entries = [reader.next(operation.name, tuple(operands)) for reader in state.readers]
        with torch.no_grad():
            output = operation()
        # Aliases, of which none is made of another: the check differentiates by each alone.
        operands = [x.view_as(x) for x in operands]
        means = []
        for entry in entries:
            mean = self._mean(operation, operands, entry)
            self._check(operation.name, operands, entry, output, mean)
            means.append(mean)
        return choose(state, output, means)

    def _mean(self, operation: Operation, operands: list[Tensor], entry: Entry) -> Tensor:
        """Return a tensor whose derivative by the operands is m; its value is of no use."""
        terms = []
        for t, weight in self.rule:
            # x − x.detach() is 0 and has the derivative 1.
            at = [
                reference * (1 - t) + x.detach() * t + (x - x.detach())
                for x, reference in zip(operands, entry.inputs, strict=True)
            ]
            terms.append(weight * with_operands(operation, at))
        return torch.stack(terms).sum(0)

    def _check(
        self, name: str, operands: list[Tensor], entry: Entry, output: Tensor, mean: Tensor
    ) -> None:
        changes = [x.detach() - r for x, r in zip(operands, entry.inputs, strict=True)]
        # Σ m·Δx from two backward passes: the first is linear in its cotangent.
        cotangent = torch.zeros_like(output, requires_grad=True)
        to_operands = torch.autograd.grad(mean, operands, cotangent, create_graph=True)
        (explained,) = torch.autograd.grad(to_operands, cotangent, changes, retain_graph=True)
        change = output - entry.output
        scale = torch.maximum(output.abs(), entry.output.abs()).max().clamp_min(1e-30)
        error = float((explained - change).abs().max() / scale)
        allowed = torch.finfo(output.dtype).eps ** 0.5
        if not error <= allowed:
            warnings.warn(
                f"{name!r} sums to its change only within {error:.1e} of its size (expected below "
                f"{allowed:.0e}) with {self.order} nodes of quadrature: it bends too sharply "
                "between the reference and the image; register it with a higher order",
                CompletenessWarning,
                stacklevel=2,
            )


def einsum(state: Interception, operation: Operation) -> Any:
    """A product of any number of activations: along the line a polynomial, so few nodes are exact.

    Of n factors, its derivative has the degree n − 1, for which n/2 nodes are enough.
    """
    factors = len(path_operands(operation))
    if factors <= 2:
        return contraction(state, operation)
    return PathIntegral((factors + 1) // 2)(state, operation)


RULES: dict[str, Rule] = {
    **dict.fromkeys(("prod", "cumprod"), PathIntegral()),
    "einsum": einsum,
}
