"""Operations that are linear in each of two operands: products, quotients, matrix products."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from typing import Any

import numpy
import torch
from torch import Size, Tensor

from afmi.gradients.interception import BackwardState, Handler, Interception
from afmi.gradients.operation import Operation
from afmi.gradients.rule import Factors, Rule, Tensors
from afmi.gradients.rules.elementwise import Chord
from afmi.gradients.tape import Entry

__all__ = ["RULES", "StandIn", "contraction", "quotient_slopes"]


class Bilinear(Rule):
    """The mean gradient along the straight line, for two operands that depend on the image.

    For a product a·b that is (b + b̄)/2 towards a and (a + ā)/2 towards b: the gradient halfway
    between the reference's operands and the input's, which is exact for every operation that is
    linear in each operand. So squeeze-and-excite and a number squared sum to delta. While one
    operand is constant the call is linear, and stays as it is.
    """

    def __call__(self, interception: Interception, operation: Operation) -> Any:
        operands = operation.path_operands
        if len(operands) == 1:
            return operation()
        if len(operands) > 2:
            raise interception.no_rule(
                f"{operation.name!r} of {len(operands)} tensors that all depend on the image",
                "multiply them two at a time",
            )
        return self.apply(interception, operation, *operands)

    def factors(
        self, operation: Operation, operands: Tensors, outputs: Tensors, entry: Entry
    ) -> Factors:
        return [
            operand.add(reference).mul_(0.5)
            for operand, reference in zip(operands, entry.inputs, strict=True)
        ]


class Product(Bilinear):
    """a · b, number by number."""

    def pull_back(
        self, gradient: Tensor, factors: Factors, shapes: list[Size], state: BackwardState
    ) -> list[Tensor]:
        mean_a, mean_b = factors
        return _reduced([gradient * mean_b, gradient * mean_a], shapes)


class MatrixProduct(Bilinear):
    """A product of two matrices, or of batches of them."""

    def pull_back(
        self, gradient: Tensor, factors: Factors, shapes: list[Size], state: BackwardState
    ) -> list[Tensor]:
        mean_a, mean_b = factors
        return _reduced([gradient @ mean_b.mT, mean_a.mT @ gradient], shapes)


def _reduced(gradients: list[Tensor], shapes: list[Size]) -> list[Tensor]:
    """Sum gradients over what their operands were broadcast along."""
    return [g.sum_to_size(shape) for g, shape in zip(gradients, shapes, strict=True)]


class StandIn(Rule):
    """A rule whose backward pass is that of another computation, one for each reference."""

    @abstractmethod
    def stand_in(
        self, operation: Operation, operands: Tensors, output: Tensor, entry: Entry
    ) -> Tensor:
        """Return a tensor like ``output`` with the derivatives that the rule wants."""

    def traceable_stand_in(
        self, operation: Operation, operands: Tensors, output: Tensor, entry: Entry
    ) -> Tensor:
        """Return `stand_in` by operations that can be recorded."""
        return self.stand_in(operation, operands, output, entry)

    def apply(self, interception: Interception, operation: Operation, *operands: Tensor) -> Any:
        if interception.recording is not None:
            return super().apply(interception, operation, *operands)
        entries = self.entries(interception, operation, operands)
        with torch.no_grad():
            output = operation()
        # Outside of the function's forward, where autograd would not follow them.
        traced = interception.backward.traced
        stand_in = self.traceable_stand_in if traced else self.stand_in
        stand_ins = [stand_in(operation, operands, output, entry) for entry in entries]
        call = Operation(operation.name, output.clone, (), {})
        return super().apply(interception, call, *stand_ins)

    def forward(
        self, interception: Interception, operation: Operation, operands: Tensors
    ) -> tuple[tuple[Tensor, ...], list[Factors]]:
        if interception.recording is not None:
            return super().forward(interception, operation, operands)
        return self.call(operation), []

    def factors(
        self, operation: Operation, operands: Tensors, outputs: Tensors, entry: Entry
    ) -> Factors:
        return []

    def pull_back(
        self, gradient: Tensor, factors: Factors, shapes: list[Size], state: BackwardState
    ) -> list[Tensor | None]:
        return [gradient if r == state.reference else None for r in range(len(shapes))]


class Contraction(StandIn, Bilinear):
    """Any operation that is linear in each of two operands, such as ``tensordot`` of two maps.

    The derivatives are those of f(a, (b + b̄)/2) + f((a + ā)/2, b).
    """

    def stand_in(
        self, operation: Operation, operands: Tensors, output: Tensor, entry: Entry
    ) -> Tensor:
        a, b = operands
        mean_a, mean_b = (
            x.detach().add(reference).mul_(0.5)
            for x, reference in zip(operands, entry.inputs, strict=True)
        )
        return operation.with_operands([a, mean_b]) + operation.with_operands([mean_a, b])


contraction = Contraction()
_product = Product()
_matrix_product = MatrixProduct()


def _any_complex(operation: Operation) -> bool:
    return any(x.is_complex() for x in operation.path_operands)


def _by_parts(
    interception: Interception, operation: Operation, multiply: Callable[[Tensor, Tensor], Tensor]
) -> Tensor:
    """Multiply complex operands by their real and imaginary parts, whose products have rules."""
    first, operands = operation.operand, operation.path_operands
    with interception:
        a, b = (x if x.is_complex() else x * (1 + 0j) for x in operands)
        product = torch.complex(
            multiply(a.real, b.real) - multiply(a.imag, b.imag),
            multiply(a.real, b.imag) + multiply(a.imag, b.real),
        )
        return first.copy_(product) if operation.inplace else product


def product(interception: Interception, operation: Operation) -> Any:
    """A product number by number."""
    if _any_complex(operation) and len(operation.path_operands) == 2:
        return _by_parts(interception, operation, torch.mul)
    return _product(interception, operation)


def matrix_product(interception: Interception, operation: Operation) -> Any:
    """A product of two matrices, of batches of them, or of one with a vector."""
    if _any_complex(operation) and len(operation.path_operands) == 2:
        return _by_parts(interception, operation, torch.matmul)
    with_vector = min(x.dim() for x in operation.path_operands) < 2
    return (contraction if with_vector else _matrix_product)(interception, operation)


def convolution(interception: Interception, operation: Operation) -> Any:
    """Linear in the maps while its weights are constant; else a product of the two.

    Raises:
        OperationError: when its bias depends on the image too.
    """
    bias = operation.argument(2, "bias", None)
    if isinstance(bias, Tensor) and bias.requires_grad:
        raise interception.no_rule(
            f"{operation.name!r} with a bias that depends on the image", "add it afterwards"
        )
    return contraction(interception, operation)  # a constant bias, there twice, has no derivative


class QuotientOfMaps(Rule):
    """x/y with the mean derivatives along the straight line from x̄, ȳ to x, y."""

    def factors(
        self, operation: Operation, operands: Tensors, outputs: Tensors, entry: Entry
    ) -> Factors:
        return quotient_slopes(*operands, *entry.inputs)

    def traceable_factors(
        self, operation: Operation, operands: Tensors, outputs: Tensors, entry: Entry
    ) -> Factors:
        return quotient_slopes(*operands, *entry.inputs, every_case=True)

    def pull_back(
        self, gradient: Tensor, factors: Factors, shapes: list[Size], state: BackwardState
    ) -> list[Tensor]:
        return _reduced([gradient * slope for slope in factors], shapes)


_quotient_of_maps = QuotientOfMaps()
_reciprocal = Chord()


def quotient(interception: Interception, operation: Operation) -> Any:
    """Linear in the numerator; a constant over the maps is the chord of 1/x."""
    operands = operation.path_operands
    if operation.kwargs or len(operation.args) != 2:
        raise interception.no_rule(
            "'div' with keywords (a rounding mode, out)", "write it as x / y"
        )
    numerator, denominator = operation.args
    if len(operands) == 1 and operands[0] is numerator:
        return operation()
    if _any_complex(operation):
        raise interception.no_rule("'div' by complex numbers that depend on the image")
    if len(operands) == 2:
        return _quotient_of_maps(interception, operation)
    call = Operation("reciprocal", torch.reciprocal, (denominator,), {})
    inverse = _reciprocal(interception, call)
    return numerator.mul_(inverse) if operation.inplace else numerator * inverse


_NODES, _WEIGHTS = (array.tolist() for array in numpy.polynomial.legendre.leggauss(10))


def quotient_slopes(
    x: Tensor, y: Tensor, reference_x: Tensor, reference_y: Tensor, *, every_case: bool = False
) -> tuple[Tensor, Tensor]:
    """Return the means of ∂(x/y)/∂x and ∂(x/y)/∂y along the straight line.

    With L = ∫ 1/y_t dt = ln(y/ȳ)/(y − ȳ): L towards x, and towards y

        −∫ x_t/y_t² dt = −(x̄ (1/ȳ − L) + x (L − 1/y))/(y − ȳ).

    Where y and ȳ lie so near each other that this cancels, Gauss–Legendre quadrature with ten
    nodes gives the same to float64's rounding. Where their signs differ the line crosses the
    pole; there x · (1/y) is taken as the product that it is: (1/y + 1/ȳ)/2 and −(x + x̄)/(2yȳ).

    Args:
        x, y, reference_x, reference_y: x, y, x̄ and ȳ.
        every_case: whether to compute what no number may need, without looking.
    """
    ratio = y / reference_y
    change = y - reference_y
    mean = ratio.log() / change
    to_y = reference_x * (1 / reference_y - mean) + x * (mean - 1 / y)
    to_y = -to_y / change
    near = (ratio > 0.6) & (ratio < 1.7)
    if every_case or bool(near.any()):
        near_mean, near_to_y = torch.zeros_like(mean), torch.zeros_like(to_y)
        for node, weight in zip(_NODES, _WEIGHTS, strict=True):
            t = (1 + node) / 2
            inverse = 1 / (reference_y * (1 - t) + y * t)
            near_mean += weight / 2 * inverse
            near_to_y -= weight / 2 * (reference_x * (1 - t) + x * t) * inverse**2
        mean = torch.where(near, near_mean, mean)
        to_y = torch.where(near, near_to_y, to_y)
    crossing = ~(ratio > 0)
    if every_case or bool(crossing.any()):
        mean = torch.where(crossing, (1 / y + 1 / reference_y) / 2, mean)
        to_y = torch.where(crossing, -(x + reference_x) / (2 * y * reference_y), to_y)
    return mean, to_y


def reversed_quotient(interception: Interception, operation: Operation) -> Any:
    """y / x, which Python spells ``x.__rtruediv__(y)``."""
    x, numerator = operation.args[:2]
    numerator = torch.as_tensor(numerator, dtype=x.dtype, device=x.device)
    return quotient(interception, Operation("div", torch.div, (numerator, x), {}))


_CONTRACTIONS = (
    *("tensordot", "inner", "outer", "ger", "mv", "dot", "vdot", "kron", "linalg_vecdot", "cross"),
)

RULES: dict[str, Handler] = {
    "mul": product,
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
