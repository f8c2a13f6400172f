"""Eq. 2: an activation's derivative becomes the slope of the chord from reference to input."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from afmi.gradients.interception import Interception, Operation, Rule
from afmi.gradients.rules.linear import path_operands
from afmi.gradients.tape import Entry

__all__ = ["RULES", "Chord", "ExactChord"]


class Chord:
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

    def __call__(self, state: Interception, operation: Operation) -> Any:
        x = operation.operand
        if len(path_operands(operation)) > 1 or not (isinstance(x, Tensor) and x.requires_grad):
            raise state.no_rule(
                f"{operation.name!r} with an exponent, bound or the like that depends on the image",
                name=operation.name,
            )
        if state.recording is not None:
            before = x.detach().clone() if operation.inplace else x.detach()
            y = operation()
            state.recording.entries.append(self.entry(operation, before, y.detach()))
            return y
        entries = [reader.next(operation.name, (x,)) for reader in state.readers]
        return _ChordFunction.apply(x, self, state, operation, entries)

    def entry(self, operation: Operation, x: Tensor, y: Tensor) -> Entry:
        """Return what the tape holds of the reference: of x, as it was, and y = σ(x)."""
        return Entry(operation.name, (x,), y)

    def run(
        self, operation: Operation, x: Tensor, entries: list[Entry]
    ) -> tuple[Tensor, list[Tensor]]:
        """Make the call, and return what it gave with the multipliers for each reference."""
        before = x.clone() if operation.inplace else x
        y = operation()
        return y, [self.multiplier(operation, before, y, entry) for entry in entries]

    def multiplier(self, operation: Operation, x: Tensor, y: Tensor, entry: Entry) -> Tensor:
        """Return the slope of the chord, of the shape of x."""
        (reference,) = entry.inputs
        dx = x - reference
        multiplier = (y - entry.output).div_(dx)
        near = self._near(x, reference, dx)
        if not bool(near.any()):
            return multiplier
        if _takes_numbers_alone(operation):  # a few of many, so only they are looked at again
            at = near.nonzero(as_tuple=True)
            seen = (x, reference.expand_as(x), dx, y, entry.output.expand_as(y), multiplier)
            slope = self._slope(operation, *(tensor[at] for tensor in seen))
            return multiplier.index_put_(at, slope)
        slope = self._slope(operation, x, reference, dx, y, entry.output, multiplier)
        return torch.where(near, slope, multiplier)

    def _slope(
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


class _ChordFunction(torch.autograd.Function):
    """The operation's own forward, and the multipliers made there, one for each reference."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        rule: Chord,
        state: Interception,
        operation: Operation,
        entries: list[Entry],
    ) -> Tensor:
        # Made now and not in the backward pass: the operands may be overwritten until then.
        y, multipliers = rule.run(operation, x, entries)
        ctx.save_for_backward(*multipliers)
        ctx.state = state
        if operation.inplace:
            ctx.mark_dirty(x)
        return y

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:
        multiplier = ctx.saved_tensors[ctx.state.reference]
        if ctx.state.last:
            return multiplier.mul_(gradient), None, None, None, None
        return gradient * multiplier, None, None, None, None


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
        self, operation: Operation, x: Tensor, kept: Kept, slope: Tensor, rooms: Rooms
    ) -> None:
        """Put into ``slope`` and ``rooms`` what the formula needs of x, not to be written to."""

    @abstractmethod
    def after(self, y: Tensor, kept: Kept, slope: Tensor, rooms: Rooms) -> None:
        """Put the slope into ``slope``, where `before` left off."""

    def fits(self, operation: Operation, x: Tensor) -> bool:
        """Tell whether the formula has enough digits, and any piece of x can be put in alone."""
        return x.dtype in (torch.float32, torch.float64) and _takes_numbers_alone(operation)

    def run(
        self, operation: Operation, x: Tensor, entries: list[Entry]
    ) -> tuple[Tensor, list[Tensor]]:
        """See `Chord.run`."""
        if not self.fits(operation, x):
            return super().run(operation, x, entries)
        if operation.inplace and len(entries) == 1:
            slope = torch.empty_like(x)
            self._fill(operation, x, x, entries[0], slope, make=True)
            return x, [slope]
        before = x.clone() if operation.inplace else x
        y = operation()
        return y, [self.multiplier(operation, before, y, entry) for entry in entries]

    def multiplier(self, operation: Operation, x: Tensor, y: Tensor, entry: Entry) -> Tensor:
        """See `Chord.multiplier`."""
        if not self.fits(operation, x):
            return super().multiplier(operation, x, y, entry)
        slope = torch.empty_like(x)
        self._fill(operation, x, y, entry, slope)
        return slope

    def _fill(
        self,
        operation: Operation,
        x: Tensor,
        y: Tensor,
        entry: Entry,
        slope: Tensor,
        *,
        make: bool = False,
    ) -> None:
        """Fill ``slope``; where ``make``, make the call as well, in place on each piece of x."""
        whole: Rooms | None = None
        for part, output, into, *kept in _pieces(
            [x, y, slope, *entry.inputs, entry.output, *entry.more]
        ):
            if whole is None:  # the first piece is as large as any
                whole = torch.empty_like(part), torch.empty_like(part)
            rooms = whole
            if part.numel() < whole[0].numel():
                rooms = whole[0][: part.numel()], whole[1][: part.numel()]
            self.before(operation, part, kept, into, rooms)
            if make:
                operation.on(part)
            self.after(output, kept, into, rooms)


Kept = Sequence[Tensor]
"""What the tape has of the reference: the entry's ``inputs``, its ``output`` and ``more``."""

Rooms = tuple[Tensor, Tensor]


class Rectifier(FormulaChord):
    """max(0, y): m = (σ(y) + σ(ȳ))/(|y| + |ȳ|).

    That is the chord's slope, for σ(y) = (y + |y|)/2 makes (y + ȳ)/(|y| + |ȳ|) of
    (|y| − |ȳ|)/(y − ȳ); and nothing in it cancels. It is 1 and 0 where both are positive and
    negative. The tape has |ȳ|, and the least number for 0, for the derivative 0 where both are 0.
    """

    def fits(self, operation: Operation, x: Tensor) -> bool:
        """See `FormulaChord.fits`."""
        return True

    def entry(self, operation: Operation, x: Tensor, y: Tensor) -> Entry:
        """See `Chord.entry`."""
        least = 2.0**-24 if x.dtype == torch.float16 else torch.finfo(x.dtype).tiny
        return Entry(operation.name, (x.abs().clamp_min_(least),), y)

    def before(
        self, operation: Operation, x: Tensor, kept: Kept, slope: Tensor, rooms: Rooms
    ) -> None:
        torch.abs(x, out=slope)
        slope.add_(kept[0])

    def after(self, y: Tensor, kept: Kept, slope: Tensor, rooms: Rooms) -> None:
        torch.add(y, kept[1], out=rooms[0])
        torch.div(rooms[0], slope, out=slope)


class ExactChord(FormulaChord):
    """The chord of a function that gives its argument or a bound, such as min(max(0, y), 6).

    Its values carry no rounding error, so the quotient is right wherever y and ȳ differ at all. The
    tape has ȳ moved away from 0 by its last digits: where y is ȳ, that gives the derivative. The
    least number, added to the difference, makes 0 of what would be 0/0.
    """

    def __init__(self) -> None:
        super().__init__(kinked=True)

    def entry(self, operation: Operation, x: Tensor, y: Tensor) -> Entry:
        """See `Chord.entry`."""
        if not self.fits(operation, x):
            return super().entry(operation, x, y)
        limits = torch.finfo(x.dtype)
        moved = (x * (1 + 2 * limits.eps)).sub_(limits.tiny / limits.eps)
        return Entry(operation.name, (moved,), operation.on(moved.clone()))

    def before(
        self, operation: Operation, x: Tensor, kept: Kept, slope: Tensor, rooms: Rooms
    ) -> None:
        torch.sub(x, kept[0], out=slope)
        slope.add_(torch.finfo(x.dtype).tiny)

    def after(self, y: Tensor, kept: Kept, slope: Tensor, rooms: Rooms) -> None:
        torch.sub(y, kept[1], out=rooms[0])
        torch.div(rooms[0], slope, out=slope)


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

    def entry(self, operation: Operation, x: Tensor, y: Tensor) -> Entry:
        """See `Chord.entry`."""
        if not self.fits(operation, x):
            return super().entry(operation, x, y)
        slope = torch.empty_like(x)
        self._weighted(operation, x, slope)
        return Entry(operation.name, (x,), y, more=(slope,))

    def _weighted(self, operation: Operation, x: Tensor, out: Tensor) -> None:
        """Put δ⁴σ'(x)/2 into ``out``."""
        half = x.new_full((), _weight(x) / 2).expand_as(x)
        self.slope_of(half, x, out, operation.kwargs)

    def before(
        self, operation: Operation, x: Tensor, kept: Kept, slope: Tensor, rooms: Rooms
    ) -> None:
        self._weighted(operation, x, rooms[1])
        torch.sub(x, kept[0], out=slope)

    def after(self, y: Tensor, kept: Kept, slope: Tensor, rooms: Rooms) -> None:
        room, slopes = rooms
        torch.sub(y, kept[1], out=room)
        room.mul_(slope)
        slope.mul_(slope)
        slopes.addcmul_(room, slope).add_(kept[2])
        slope.mul_(slope).add_(_weight(slope))
        torch.div(slopes, slope, out=slope)


def _weight(x: Tensor) -> float:
    """Return δ⁴."""
    return torch.finfo(x.dtype).eps ** (4 / 3)


_PIECE = 131_072
"""Numbers of a piece, of which four fit into a processor's second cache."""


def _pieces(tensors: list[Tensor]) -> Iterator[Sequence[Tensor]]:
    """Cut tensors alike, of which those of the reference may have one image for all.

    They stay whole where they are small, lie on another device, or do not all lie in one stretch of
    memory in the same order.
    """
    x = tensors[0]
    if x.device.type != "cpu" or x.dim() < 2 or x[0].numel() <= 4 * _PIECE:
        yield tensors
        return
    laid = tensors if x.is_contiguous() else [tensor.movedim(1, -1) for tensor in tensors]
    if not all(tensor.is_contiguous() for tensor in laid):
        yield tensors
        return
    for i in range(len(x)):
        rows = (tensor[min(i, len(tensor) - 1)].view(-1) for tensor in laid)
        yield from zip(*(row.split(_PIECE) for row in rows), strict=True)


def _silu_slope(g: Tensor, x: Tensor, out: Tensor, keywords: dict[str, Any]) -> None:
    torch.ops.aten.silu_backward.grad_input(g, x, grad_input=out)


def _gelu_slope(g: Tensor, x: Tensor, out: Tensor, keywords: dict[str, Any]) -> None:
    kind = keywords.get("approximate", "none")
    torch.ops.aten.gelu_backward.grad_input(g, x, approximate=kind, grad_input=out)


# fmt: off
_SMOOTH = (
    "mish", "tanh", "tanhshrink", "softsign", "erf", "sin", "expm1", "log1p",
    "log", "log2", "log10", "sqrt", "rsqrt", "reciprocal", "square",
)
_SMOOTH_OFFSET = ("sigmoid", "logsigmoid", "log_sigmoid", "softplus", "exp", "cos")
_KINKED = (
    "leaky_relu", "prelu", "rrelu", "threshold", "softshrink", "hardswish", "elu", "selu", "celu",
)
_EXACT = ("relu6", "hardtanh", "abs", "clamp", "clamp_min", "clamp_max")
# fmt: on

RULES: dict[str, Rule] = {
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
