"""Operations that are linear in each of two operands: products, quotients, matrix products."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from afmi.modified_gradient.interception import Interception, Operation, Rule
from afmi.modified_gradient.rules.elementwise import Chord
from afmi.modified_gradient.rules.linear import path_operands
from afmi.modified_gradient.tape import Entry

__all__ = ["RULES"]


def bilinear(state: Interception, operation: Operation) -> Any:
    """Linear while one operand is constant; else the mean gradient along the straight line.

    For a product a·b that is (b + b̄)/2 towards a and (a + ā)/2 towards b: the gradient halfway
    between the reference's operands and the input's, which is exact for every operation that is
    linear in each operand. So squeeze-and-excite and a number squared sum to delta.
    """
    operands = path_operands(operation)
    if len(operands) == 1:
        return operation()
    if len(operands) > 2 or not all(isinstance(a, Tensor) for a in operation.args[:2]):
        raise state.no_rule(
            f"{operation.name!r} of {len(operands)} tensors that all depend on the image",
            "multiply them two at a time",
        )
    a, b = operands
    if state.recording is not None:
        # Both, where the call overwrites one: they may be the same tensor.
        seen = (a.detach(), b.detach())
        seen = (seen[0].clone(), seen[1].clone()) if operation.inplace else seen
        output = operation()
        state.recording.entries.append(Entry(operation.name, seen, output.detach()))
        return output
    entries = [reader.next(operation.name, (a, b)) for reader in state.readers]
    return _BilinearFunction.apply(a, b, state, operation, entries)


class _BilinearFunction(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        a: Tensor,
        b: Tensor,
        state: Interception,
        operation: Operation,
        entries: list[Entry],
    ) -> Tensor:
        means = [
            (half.add(reference).mul_(0.5))
            for entry in entries
            for half, reference in zip((a, b), entry.inputs, strict=True)
        ]
        ctx.save_for_backward(*means)
        ctx.state = state
        ctx.name = operation.name
        ctx.shapes = a.shape, b.shape
        output = operation()
        if output is a:
            ctx.mark_dirty(a)
        return output

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:
        first = 2 * ctx.state.reference
        mean_a, mean_b = ctx.saved_tensors[first : first + 2]
        if ctx.name == "mul":
            to_a, to_b = gradient * mean_b, gradient * mean_a
        else:
            to_a, to_b = gradient @ mean_b.mT, mean_a.mT @ gradient
        return to_a.sum_to_size(ctx.shapes[0]), to_b.sum_to_size(ctx.shapes[1]), None, None, None


def matrix_product(state: Interception, operation: Operation) -> Any:
    """A product of two matrices, or of batches of them."""
    operands = path_operands(operation)
    if len(operands) == 2 and min(operands[0].dim(), operands[1].dim()) < 2:
        raise state.no_rule(
            f"{operation.name!r} of a vector and a tensor that both depend on the image",
            "give the vector a second dimension",
        )
    return bilinear(state, operation)


def linear_layer(state: Interception, operation: Operation) -> Any:
    """A fully connected layer, or a general contraction, with constant weights."""
    if len(path_operands(operation)) > 1:
        raise state.no_rule(
            f"{operation.name!r} of several tensors that depend on the image",
            "write it as products or matrix products",
        )
    return operation()


_reciprocal = Chord()


def quotient(state: Interception, operation: Operation) -> Any:
    """Linear in the numerator; a constant over the maps is the chord of 1/x."""
    operands = path_operands(operation)
    if operation.kwargs or len(operation.args) != 2:
        raise state.no_rule("'div' with keywords (a rounding mode, out)", "write it as x / y")
    numerator, denominator = operation.args
    if len(operands) == 1 and operands[0] is numerator:
        return operation()
    if len(operands) == 2:
        raise state.no_rule("'div' of two tensors that both depend on the image", name="div")
    inverse = _reciprocal(state, Operation("reciprocal", torch.reciprocal, (denominator,), {}))
    return numerator.mul_(inverse) if operation.inplace else numerator * inverse


def reversed_quotient(state: Interception, operation: Operation) -> Any:
    """c / x, which Python spells ``x.__rtruediv__(c)``."""
    x, numerator = operation.args[:2]
    return numerator * _reciprocal(state, Operation("reciprocal", torch.reciprocal, (x,), {}))


RULES: dict[str, Rule] = {
    "mul": bilinear,
    "matmul": matrix_product,
    "bmm": matrix_product,
    "mm": matrix_product,
    "linear": linear_layer,
    "addmm": linear_layer,
    "einsum": linear_layer,
    "div": quotient,
    "rdiv": reversed_quotient,
}
