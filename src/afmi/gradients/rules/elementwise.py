"""Eq. 2: an activation's derivative becomes the slope of the chord from reference to input."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Size, Tensor

from afmi.gradients.blocking import Scratch, pieces
from afmi.gradients.interception import BackwardState, Handler, Interception
from afmi.gradients.operation import Operation
from afmi.gradients.rule import Factors, Rule, Tensors
from afmi.gradients.tape import Entry

__all__ = ["RULES", "Chord", "ExactChord"]


class Chord(Rule):
    """σ'(y) → (σ(y) − σ(ȳ)) / (y − ȳ), elementwise.

    Where y and ȳ all but coincide the quotient is rounding noise; there the derivative halfway
    between them stands in, whose distance from the chord is of third order. "All but" is relative
    to the numbers and fits the dtype: ε^⅓ where σ is smooth, so that both errors meet at ε^⅔, and
    a few ε where σ' jumps, because there the derivative is no approximation at all.

    Paper: A-FMI, Eq. 2. Differs: takes the derivative halfway instead of at y, which keeps the
    sum to delta.

    Args:
        kinked: whether σ' jumps somewhere.
        floor: the scale of σ near 0, where σ(0) ≠ 0 and differences there lose digits.
    """

    def __init__(self, *, kinked: bool = False, floor: float = 0.0) -> None:
        self.kinked = kinked
        self.floor = floor

    def operands(self, interception: Interception, operation: Operation) -> list[Tensor]:
        x = operation.operand
        if len(operation.path_operands) > 1 or not (isinstance(x, Tensor) and x.requires_grad):
            raise interception.no_rule(
                f"{operation.name!r} with an exponent, bound or the like that depends on the image",
                name=operation.name,
            )
        if x.is_complex():
            raise interception.no_rule(
                f"{operation.name!r} of complex numbers", "apply it to real and imaginary parts"
            )
        return [x]

    def factors(
        self, operation: Operation, operands: Tensors, outputs: Tensors, entry: Entry
    ) -> Factors:
        return [self.slope(operation, operands[0], outputs[0], entry)]

    def pull_back(
        self, gradient: Tensor, factors: Factors, shapes: list[Size], state: BackwardState
    ) -> list[Tensor]:
        (slope,) = factors
        return [slope.mul_(gradient) if state.reuse else gradient * slope]

    def traceable_factors(
        self, operation: Operation, operands: Tensors, outputs: Tensors, entry: Entry
    ) -> Factors:
        return [self.traceable_slope(operation, operands[0], outputs[0], entry)]

    def traceable_slope(self, operation: Operation, x: Tensor, y: Tensor, entry: Entry) -> Tensor:
        """Return `slope` by operations that can be recorded."""
        (reference,), output = entry.inputs, entry.output
        dx = x - reference
        quotient = (y - output) / dx
        slope = self._derivative_or_quotient(operation, x, reference, dx, y, output, quotient)
        return torch.where(self._near(x, reference, dx), slope, quotient)

    def slope(self, operation: Operation, x: Tensor, y: Tensor, entry: Entry) -> Tensor:
        """Return the slope of the chord, of the shape of x."""
        (reference,) = entry.inputs
        dx = x - reference
        quotient = (y - entry.output).div_(dx)
        near = self._near(x, reference, dx)
        if not bool(near.any()):
            return quotient
        if _takes_numbers_alone(operation):  # a few of many, so only they are looked at again
            at = near.nonzero(as_tuple=True)
            of_each = (x, reference.expand_as(x), dx, y, entry.output.expand_as(y), quotient)
            slope = self._derivative_or_quotient(operation, *(tensor[at] for tensor in of_each))
            return quotient.index_put_(at, slope)
        output = entry.output
        slope = self._derivative_or_quotient(operation, x, reference, dx, y, output, quotient)
        return torch.where(near, slope, quotient)

    def _derivative_or_quotient(
        self,
        operation: Operation,
        x: Tensor,
        reference: Tensor,
        dx: Tensor,
        y: Tensor,
        output: Tensor,
        quotient: Tensor,
    ) -> Tensor:
        """Return the derivative between points that all but coincide, or else the quotient."""
        slope = self.derivative(operation, (x + reference).mul_(0.5))
        # Only where it explains the change but for rounding: a kink may lie in between, or
        # σ bend on a smaller scale than x has.
        dy = y - output
        rounding = torch.maximum(y.abs(), output.abs()).mul_(4 * torch.finfo(y.dtype).eps)
        explains = (slope * dx - dy).abs_() <= rounding
        # An infinite derivative where nothing changed, such as the root's at 0, adds nothing.
        slope = torch.where(slope.isfinite(), slope, 0.0)
        return torch.where(explains | (dx == 0), slope, quotient)

    def derivative(self, operation: Operation, x: Tensor) -> Tensor:
        """Return σ'(x)."""
        with torch.enable_grad():
            leaf = x.detach().requires_grad_(True)
            value = operation.on(leaf.clone())
            (slope,) = torch.autograd.grad(value.sum(), leaf)
        return slope

    def _near(self, x: Tensor, reference: Tensor, dx: Tensor) -> Tensor:
        epsilon = torch.finfo(x.dtype).eps
        tolerance = 4 * epsilon if self.kinked else epsilon ** (1 / 3)
        scale = torch.maximum(x.abs(), reference.abs())
        if self.floor:
            scale = scale.clamp_min_(self.floor)
        return dx.abs() <= scale.mul_(tolerance)


def _takes_numbers_alone(operation: Operation) -> bool:
    """Tell whether any number can be put in alone: no other operand is a tensor of some shape."""
    others = (*operation.args[1:], *(v for k, v in operation.kwargs.items() if k != "input"))
    return not any(isinstance(value, Tensor) for value in others)


class FormulaChord(Chord):
    """A chord whose slope has one formula for all numbers, made piece by piece in few passes.

    Nothing is looked for among the numbers, which on a CPU takes longer than the arithmetic, and
    each piece stays in the processor's cache from its first operation to its last.
    """

    @abstractmethod
    def before(
        self, operation: Operation, x: Tensor, kept: Kept, slope: Tensor, scratch: Scratch
    ) -> None:
        """Put into ``slope`` and ``scratch`` what the formula needs of x, not to be written to."""

    @abstractmethod
    def after(self, y: Tensor, kept: Kept, slope: Tensor, scratch: Scratch) -> None:
        """Put the slope into ``slope``, where `before` left off."""

    def fits(self, operation: Operation, x: Tensor) -> bool:
        """Tell whether the formula has enough digits, and any piece of x can be put in alone."""
        return x.dtype in (torch.float32, torch.float64) and _takes_numbers_alone(operation)

    def run(
        self, operation: Operation, operands: Tensors, entries: list[Entry]
    ) -> tuple[tuple[Tensor, ...], list[Factors]]:
        x = operands[0]
        if not (operation.inplace and len(entries) == 1 and self.fits(operation, x)):
            return super().run(operation, operands, entries)
        return (x,), [[self._filled(operation, x, x, entries[0], call=True)]]

    def slope(self, operation: Operation, x: Tensor, y: Tensor, entry: Entry) -> Tensor:
        if not self.fits(operation, x):
            return super().slope(operation, x, y, entry)
        return self._filled(operation, x, y, entry)

    @abstractmethod
    def formula(self, operation: Operation, x: Tensor, y: Tensor, kept: Kept) -> Tensor:
        """Return the slope in one piece, by operations that can be recorded."""

    def traceable_slope(self, operation: Operation, x: Tensor, y: Tensor, entry: Entry) -> Tensor:
        if not self.fits(operation, x):
            return super().traceable_slope(operation, x, y, entry)
        return self.formula(operation, x, y, [*entry.inputs, entry.output, *entry.more])

    def _filled(
        self, operation: Operation, x: Tensor, y: Tensor, entry: Entry, *, call: bool = False
    ) -> Tensor:
        """Return the slope; where ``call``, make the call as well, in place on each piece of x."""
        slope = torch.empty_like(x)
        tensors = [x, y, slope, *entry.inputs, entry.output, *entry.more]
        for (part, output, into, *kept), scratch in pieces(tensors):
            self.before(operation, part, kept, into, scratch)
            if call:
                operation.on(part)
            self.after(output, kept, into, scratch)
        return slope


Kept = Sequence[Tensor]
"""What the tape has of the reference: the entry's ``inputs``, its ``output`` and ``more``."""


class Rectifier(FormulaChord):
    """max(0, y): m = (σ(y) + σ(ȳ))/(|y| + |ȳ|).

    That is the chord's slope, for σ(y) = (y + |y|)/2 makes (y + ȳ)/(|y| + |ȳ|) of
    (|y| − |ȳ|)/(y − ȳ); and nothing in it cancels. It is 1 and 0 where both are positive and
    negative. The tape has |ȳ|, and the least number for 0, for the derivative 0 where both are 0.
    """

    def fits(self, operation: Operation, x: Tensor) -> bool:
        return True

    def entry(self, operation: Operation, operands: Tensors, outputs: Tensors) -> Entry:
        x = operands[0]
        least = 2.0**-24 if x.dtype == torch.float16 else torch.finfo(x.dtype).tiny
        return Entry(operation.name, (x.abs().clamp_min_(least),), outputs[0])

    def before(
        self, operation: Operation, x: Tensor, kept: Kept, slope: Tensor, scratch: Scratch
    ) -> None:
        torch.abs(x, out=slope)
        slope.add_(kept[0])

    def after(self, y: Tensor, kept: Kept, slope: Tensor, scratch: Scratch) -> None:
        torch.add(y, kept[1], out=scratch[0])
        torch.div(scratch[0], slope, out=slope)

    def formula(self, operation: Operation, x: Tensor, y: Tensor, kept: Kept) -> Tensor:
        return (y + kept[1]) / (x.abs() + kept[0])


class ExactChord(FormulaChord):
    """The chord of a function that gives its argument or a bound, such as min(max(0, y), 6).

    Its values carry no rounding error, so the quotient is right wherever y and ȳ differ at all. The
    tape has ȳ moved away from 0 by its last digits: where y is ȳ, that gives the derivative. The
    least number, added to the difference, makes 0 of what would be 0/0.
    """

    def __init__(self) -> None:
        super().__init__(kinked=True)

    def entry(self, operation: Operation, operands: Tensors, outputs: Tensors) -> Entry:
        x = operands[0]
        if not self.fits(operation, x):
            return super().entry(operation, operands, outputs)
        limits = torch.finfo(x.dtype)
        moved = (x * (1 + 2 * limits.eps)).sub_(limits.tiny / limits.eps)
        return Entry(operation.name, (moved,), operation.on(moved.clone()))

    def before(
        self, operation: Operation, x: Tensor, kept: Kept, slope: Tensor, scratch: Scratch
    ) -> None:
        torch.sub(x, kept[0], out=slope)
        slope.add_(torch.finfo(x.dtype).tiny)

    def after(self, y: Tensor, kept: Kept, slope: Tensor, scratch: Scratch) -> None:
        torch.sub(y, kept[1], out=scratch[0])
        torch.div(scratch[0], slope, out=slope)

    def formula(self, operation: Operation, x: Tensor, y: Tensor, kept: Kept) -> Tensor:
        return (y - kept[1]) / (x - kept[0] + torch.finfo(x.dtype).tiny)


class SmoothChord(FormulaChord):
    """The chord of a function that bends on the scale of 1, with PyTorch's own derivative.

    m = (Δσ Δy³ + δ⁴ s)/(Δy⁴ + δ⁴) with s = (σ'(y) + σ'(ȳ))/2: the quotient where y and ȳ differ by
    more than δ = ε^⅓, and the derivative where the quotient is rounding noise. They meet where s
    misses the chord, which it does by Δy²/12 times the third derivative, by less than rounding.

    Args:
        slope_of: (g, x, out, keywords of the call): puts g·σ'(x) into ``out``.
    """

    def __init__(self, slope_of: Callable[[Tensor, Tensor, Tensor, dict[str, Any]], Any]) -> None:
        super().__init__()
        self.slope_of = slope_of

    def entry(self, operation: Operation, operands: Tensors, outputs: Tensors) -> Entry:
        x = operands[0]
        if not self.fits(operation, x):
            return super().entry(operation, operands, outputs)
        slope = torch.empty_like(x)
        self._weighted(operation, x, slope)
        return Entry(operation.name, (x,), outputs[0], more=(slope,))

    def _weighted(self, operation: Operation, x: Tensor, out: Tensor) -> None:
        """Put δ⁴σ'(x)/2 into ``out``."""
        half = x.new_full((), _weight(x) / 2).expand_as(x)
        self.slope_of(half, x, out, operation.kwargs)

    def before(
        self, operation: Operation, x: Tensor, kept: Kept, slope: Tensor, scratch: Scratch
    ) -> None:
        self._weighted(operation, x, scratch[1])
        torch.sub(x, kept[0], out=slope)

    def after(self, y: Tensor, kept: Kept, slope: Tensor, scratch: Scratch) -> None:
        change, slopes = scratch
        torch.sub(y, kept[1], out=change)
        change.mul_(slope)
        slope.mul_(slope)
        slopes.addcmul_(change, slope).add_(kept[2])
        slope.mul_(slope).add_(_weight(slope))
        torch.div(slopes, slope, out=slope)

    def formula(self, operation: Operation, x: Tensor, y: Tensor, kept: Kept) -> Tensor:
        change, weight = x - kept[0], _weight(x)
        square = change * change
        derivatives = kept[2] + self.derivative(operation, x) * (weight / 2)
        return ((y - kept[1]) * change * square + derivatives) / (square * square + weight)


def _weight(x: Tensor) -> float:
    """Return δ⁴."""
    return torch.finfo(x.dtype).eps ** (4 / 3)


def _silu_slope(g: Tensor, x: Tensor, out: Tensor, keywords: dict[str, Any]) -> None:
    torch.ops.aten.silu_backward.grad_input(g, x, grad_input=out)


def _gelu_slope(g: Tensor, x: Tensor, out: Tensor, keywords: dict[str, Any]) -> None:
    kind = keywords.get("approximate", "none")
    torch.ops.aten.gelu_backward.grad_input(g, x, approximate=kind, grad_input=out)


# fmt: off
_SMOOTH = (
    "mish", "tanh", "tanhshrink", "softsign", "erf", "erfinv", "sin", "tan", "asin", "atan", "sinh",
    "asinh", "acosh", "atanh", "expm1", "log1p", "log", "log2", "log10", "sqrt", "rsqrt",
    "reciprocal", "square", "logit", "entr",
)
_SMOOTH_OFFSET = (
    "sigmoid", "logsigmoid", "log_sigmoid", "softplus", "exp", "exp2", "cos", "cosh", "acos",
    "sinc", "erfc", "ndtr", "log_ndtr", "lgamma", "digamma", "i0",
)
_KINKED = (
    "leaky_relu", "prelu", "rrelu", "threshold", "softshrink", "hardshrink", "hardswish", "elu",
    "selu", "celu",
)
_EXACT = ("relu6", "hardtanh", "abs", "clamp", "clamp_min", "clamp_max", "nan_to_num")
# fmt: on

RULES: dict[str, Handler] = {
    **dict.fromkeys(_SMOOTH, Chord()),
    **dict.fromkeys(_SMOOTH_OFFSET, Chord(floor=1.0)),
    **dict.fromkeys(_KINKED, Chord(kinked=True)),
    **dict.fromkeys(_EXACT, ExactChord()),
    "relu": Rectifier(),
    "silu": SmoothChord(_silu_slope),
    "gelu": SmoothChord(_gelu_slope),
    "hardsigmoid": Chord(kinked=True, floor=1.0),
    "pow": Chord(),
    "float_power": Chord(),
}
