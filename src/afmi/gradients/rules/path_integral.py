"""The mean derivative along the straight line by quadrature, where no closed form is at hand."""

from __future__ import annotations

import warnings
from typing import Any

import numpy
import torch
from torch import Tensor

from afmi.errors import CompletenessWarning, UsageError
from afmi.gradients.interception import Handler, Interception
from afmi.gradients.operation import Operation
from afmi.gradients.rule import Tensors
from afmi.gradients.rules.products import StandIn, contraction
from afmi.gradients.tape import Entry

__all__ = ["RULES", "PathIntegral"]


class PathIntegral(StandIn):
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

    def operands(self, interception: Interception, operation: Operation) -> list[Tensor]:
        if operation.inplace:
            raise interception.no_rule(
                f"{operation.name!r} in place", "use its form that makes a tensor"
            )
        return operation.path_operands

    def stand_in(
        self, operation: Operation, operands: Tensors, output: Tensor, entry: Entry
    ) -> Tensor:
        # Aliases, of which none is made of another: the check differentiates by each alone.
        aliases = [x.view_as(x) for x in operands]
        mean = self._mean(operation, aliases, entry)
        self._check(operation.name, aliases, entry, output, mean)
        return mean

    def traceable_stand_in(
        self, operation: Operation, operands: Tensors, output: Tensor, entry: Entry
    ) -> Tensor:
        return self._mean(operation, [x.view_as(x) for x in operands], entry)

    def _mean(self, operation: Operation, operands: list[Tensor], entry: Entry) -> Tensor:
        """Return a tensor whose derivative by the operands is m; its value is of no use."""
        terms = []
        for t, weight in self.rule:
            # x − x.detach() is 0 and has the derivative 1.
            at = [
                reference * (1 - t) + x.detach() * t + (x - x.detach())
                for x, reference in zip(operands, entry.inputs, strict=True)
            ]
            terms.append(weight * operation.with_operands(at))
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


def einsum(interception: Interception, operation: Operation) -> Any:
    """A product of any number of activations: along the line a polynomial, so few nodes are exact.

    Of n factors, its derivative has the degree n − 1, for which n/2 nodes are enough.
    """
    factors = len(operation.path_operands)
    if factors <= 2:
        return contraction(interception, operation)
    return PathIntegral((factors + 1) // 2)(interception, operation)


RULES: dict[str, Handler] = {
    **dict.fromkeys(("prod", "cumprod"), PathIntegral()),
    "einsum": einsum,
}
