"""Operations that are linear in each of two operands: products, quotients, matrix products."""

from __future__ import annotations

from typing import Any

import numpy
import torch
from torch import Tensor

from afmi.gradients.interception import Interception, Operation, Rule
from afmi.gradients.rules.elementwise import Chord
from afmi.gradients.rules.linear import argument, path_operands
from afmi.gradients.tape import Entry

__all__ = ["RULES", "choose", "contraction", "with_operands"]


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


def contraction(state: Interception, operation: Operation) -> Any:
    """Any operation that is linear in each of two operands, such as ``tensordot`` of two maps.

    The same rule as `bilinear`, whose derivatives are those of f(a, (b + b̄)/2) + f((a + ā)/2, b).
    """
    operands = path_operands(operation)
    if len(operands) == 1:
        return operation()
    if len(operands) > 2:
        raise state.no_rule(
            f"{operation.name!r} of {len(operands)} tensors that all depend on the image",
            "contract them two at a time",
        )
    a, b = operands
    if state.recording is not None:
        output = operation()
        seen = (a.detach(), b.detach())
        state.recording.entries.append(Entry(operation.name, seen, output.detach()))
        return output
    halves = []
    for reader in state.readers:
        entry = reader.next(operation.name, (a, b))
        mean_a, mean_b = (
            x.detach().add(reference).mul_(0.5)
            for x, reference in zip((a, b), entry.inputs, strict=True)
        )
        halves.append(with_operands(operation, [a, mean_b]) + with_operands(operation, [mean_a, b]))
    with torch.no_grad():
        output = operation()
    return choose(state, output, halves)


def with_operands(operation: Operation, operands: list[Tensor]) -> Tensor:
    """Make the call with other tensors where it has those that depend on the feature maps."""
    left = iter(operands)

    def replaced(value: Any) -> Any:
        if isinstance(value, Tensor):
            return next(left) if value.requires_grad else value
        if isinstance(value, (list, tuple)):
            return type(value)(replaced(item) for item in value)
        return value

    args = tuple(replaced(value) for value in operation.args)
    kwargs = {key: replaced(value) for key, value in operation.kwargs.items()}
    return operation.function(*args, **kwargs)


def choose(state: Interception, output: Tensor, stand_ins: list[Tensor]) -> Tensor:
    """Return ``output`` with the derivatives of the stand-in for the reference that is in use."""
    return _ChosenFunction.apply(output, state, *stand_ins)


class _ChosenFunction(torch.autograd.Function):
    """The output in the forward pass, one of the stand-ins in the backward pass."""

    @staticmethod
    def forward(ctx: Any, output: Tensor, state: Interception, *stand_ins: Tensor) -> Tensor:
        ctx.state = state
        ctx.count = len(stand_ins)
        return output.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:
        chosen = [gradient if r == ctx.state.reference else None for r in range(ctx.count)]
        return None, None, *chosen


def matrix_product(state: Interception, operation: Operation) -> Any:
    """A product of two matrices, of batches of them, or of one with a vector."""
    operands = path_operands(operation)
    if len(operands) == 2 and min(operands[0].dim(), operands[1].dim()) < 2:
        return contraction(state, operation)
    return bilinear(state, operation)


def convolution(state: Interception, operation: Operation) -> Any:
    """Linear in the maps while its weights are constant; else a product of the two.

    Raises:
        OperationError: when its bias depends on the image too.
    """
    bias = argument(operation, 2, "bias", None)
    if isinstance(bias, Tensor) and bias.requires_grad:
        raise state.no_rule(
            f"{operation.name!r} with a bias that depends on the image", "add it afterwards"
        )
    return contraction(state, operation)  # a constant bias, there twice, has no derivative


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
        return _quotient_of_maps(state, operation)
    inverse = _reciprocal(state, Operation("reciprocal", torch.reciprocal, (denominator,), {}))
    return numerator.mul_(inverse) if operation.inplace else numerator * inverse


def _quotient_of_maps(state: Interception, operation: Operation) -> Tensor:
    x, y = operation.args
    if state.recording is not None:
        output = x / y
        seen = (x.detach(), y.detach())
        seen = (seen[0].clone(), seen[1].clone()) if operation.inplace else seen
        state.recording.entries.append(Entry("div", seen, output.detach()))
    else:
        entries = [reader.next("div", (x, y)) for reader in state.readers]
        output = _QuotientFunction.apply(x, y, state, entries)
    return x.copy_(output) if operation.inplace else output


class _QuotientFunction(torch.autograd.Function):
    """x/y with the mean derivatives along the straight line from x̄, ȳ to x, y."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, y: Tensor, state: Interception, entries: list[Entry]
    ) -> Tensor:
        slopes = [slope for entry in entries for slope in quotient_slopes(x, y, *entry.inputs)]
        ctx.save_for_backward(*slopes)
        ctx.state = state
        ctx.shapes = x.shape, y.shape
        return x / y

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:
        first = 2 * ctx.state.reference
        to_x, to_y = (gradient * slope for slope in ctx.saved_tensors[first : first + 2])
        return to_x.sum_to_size(ctx.shapes[0]), to_y.sum_to_size(ctx.shapes[1]), None, None


_NODES, _WEIGHTS = (array.tolist() for array in numpy.polynomial.legendre.leggauss(10))


def quotient_slopes(
    x: Tensor, y: Tensor, reference_x: Tensor, reference_y: Tensor
) -> tuple[Tensor, Tensor]:
    """Return the means of ∂(x/y)/∂x and ∂(x/y)/∂y along the straight line.

    With L = ∫ 1/y_t dt = ln(y/ȳ)/(y − ȳ): L towards x, and towards y

        −∫ x_t/y_t² dt = −(x̄ (1/ȳ − L) + x (L − 1/y))/(y − ȳ).

    Where y and ȳ lie so near each other that this cancels, Gauss–Legendre quadrature with ten
    nodes gives the same to float64's rounding. Where their signs differ the line crosses the
    pole; there x · (1/y) is taken as the product that it is: (1/y + 1/ȳ)/2 and −(x + x̄)/(2yȳ).
    """
    ratio = y / reference_y
    change = y - reference_y
    mean = ratio.log() / change
    to_y = reference_x * (1 / reference_y - mean) + x * (mean - 1 / y)
    to_y = -to_y / change
    near = (ratio > 0.6) & (ratio < 1.7)
    if bool(near.any()):
        near_mean, near_to_y = torch.zeros_like(mean), torch.zeros_like(to_y)
        for node, weight in zip(_NODES, _WEIGHTS, strict=True):
            t = (1 + node) / 2
            inverse = 1 / (reference_y * (1 - t) + y * t)
            near_mean += weight / 2 * inverse
            near_to_y -= weight / 2 * (reference_x * (1 - t) + x * t) * inverse**2
        mean = torch.where(near, near_mean, mean)
        to_y = torch.where(near, near_to_y, to_y)
    crossing = ~(ratio > 0)
    if bool(crossing.any()):
        mean = torch.where(crossing, (1 / y + 1 / reference_y) / 2, mean)
        to_y = torch.where(crossing, -(x + reference_x) / (2 * y * reference_y), to_y)
    return mean, to_y


def reversed_quotient(state: Interception, operation: Operation) -> Any:
    """y / x, which Python spells ``x.__rtruediv__(y)``."""
    x, numerator = operation.args[:2]
    numerator = torch.as_tensor(numerator, dtype=x.dtype, device=x.device)
    return quotient(state, Operation("div", torch.div, (numerator, x), {}))


_CONTRACTIONS = ("tensordot", "inner", "outer", "ger", "mv", "dot", "vdot", "kron")

RULES: dict[str, Rule] = {
    "mul": bilinear,
    "matmul": matrix_product,
    "bmm": matrix_product,
    "mm": matrix_product,
    **dict.fromkeys(_CONTRACTIONS, contraction),
    "conv1d": convolution,
    "conv2d": convolution,
    "conv3d": convolution,
    "conv_transpose1d": convolution,
    "conv_transpose2d": convolution,
    "conv_transpose3d": convolution,
    "linear": convolution,
    "div": quotient,
    "rdiv": reversed_quotient,
}
