"""Eq. 2: an activation's derivative becomes the slope of the chord from reference to input."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from afmi.modified_gradient.interception import Interception, Operation, Rule
from afmi.modified_gradient.rules.linear import path_operands
from afmi.modified_gradient.tape import Entry

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
            state.recording.entries.append(Entry(operation.name, (before,), y.detach()))
            return y
        entries = [reader.next(operation.name, (x,)) for reader in state.readers]
        return _ChordFunction.apply(x, self, state, operation, entries)

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


class ExactChord(Chord):
    """The chord of a function whose values carry no rounding error, such as max(0, y).

    Then the quotient is right to rounding wherever y and ȳ differ at all, and takes half the
    passes over memory.
    """

    def __init__(self) -> None:
        super().__init__(kinked=True)

    def run(
        self, operation: Operation, x: Tensor, entries: list[Entry]
    ) -> tuple[Tensor, list[Tensor]]:
        """See `Chord.run`; needs no copy of what the operation overwrites."""
        if _fits_pieces(operation, x, entries):
            y, quotients = self._in_pieces(operation, x, entries)
        else:
            changes = [x - entry.inputs[0] for entry in entries]
            y = operation()
            pairs = zip(changes, entries, strict=True)
            quotients = [(y - entry.output).div_(dx) for dx, entry in pairs]
        pairs = zip(quotients, entries, strict=True)
        return y, [self._defined(operation, quotient, entry) for quotient, entry in pairs]

    def multiplier(self, operation: Operation, x: Tensor, y: Tensor, entry: Entry) -> Tensor:
        """Return the slope of the chord, of the shape of x."""
        quotient = (y - entry.output).div_(x - entry.inputs[0])
        return self._defined(operation, quotient, entry)

    def _in_pieces(
        self, operation: Operation, x: Tensor, entries: list[Entry]
    ) -> tuple[Tensor, list[Tensor]]:
        """Return y and the quotients, made piece by piece while each piece is in the cache."""
        y = x if operation.inplace else torch.empty_like(x)
        quotients = [torch.empty_like(x) for _ in entries]
        room = x.new_empty(min(x[0].numel(), _PIECE))
        lay = _in_memory_order(x)
        for i, pieces in enumerate(map(_pieces, lay(x))):
            outputs = _pieces(lay(y)[i])
            others = []
            for entry, quotient in zip(entries, quotients, strict=True):
                row = min(i, len(entry.output) - 1)
                at_reference = (lay(entry.inputs[0])[row], lay(entry.output)[row])
                others.append([_pieces(part) for part in (lay(quotient)[i], *at_reference)])
            for j, piece in enumerate(pieces):
                for quotient, reference, _ in others:
                    torch.sub(piece, reference[j], out=quotient[j])
                output = operation.on(piece)
                if not operation.inplace:
                    output = outputs[j].copy_(output)
                dy = room[: piece.numel()]
                for quotient, _, before in others:
                    torch.sub(output, before[j], out=dy)
                    torch.div(dy, quotient[j], out=quotient[j])
        return y, quotients

    def _defined(self, operation: Operation, quotient: Tensor, entry: Entry) -> Tensor:
        """Put the derivative where nothing changed, so that the quotient is 0/0."""
        reference = entry.inputs[0]
        if quotient.device.type == "cpu" and _takes_numbers_alone(operation):
            # Elsewhere asking would cost a wait.
            if bool(quotient.sum().isnan()):
                at = quotient.isnan().nonzero(as_tuple=True)
                seen = reference.expand_as(quotient)[at]
                quotient.index_put_(at, self.derivative(operation, seen))
            return quotient
        undefined = quotient.isnan()
        return torch.where(undefined, self.derivative(operation, reference), quotient)


_PIECE = 65_536
"""Numbers of a piece, of which five fit into a processor's second cache."""


def _pieces(part: Tensor) -> tuple[Tensor, ...]:
    """Cut what lies in one stretch of memory; only views of it are made."""
    return part.view(-1).split(_PIECE)


def _in_memory_order(x: Tensor) -> Callable[[Tensor], Tensor]:
    """Return what turns tensors laid out as x so that their last dimensions lie together."""
    if x.is_contiguous():
        return lambda tensor: tensor
    return lambda tensor: tensor.movedim(1, -1)


def _fits_pieces(operation: Operation, x: Tensor, entries: list[Entry]) -> bool:
    """Tell whether it pays to go through x piece by piece, and can be done without a copy."""
    if x.device.type != "cpu" or x.dim() < 2 or x[0].numel() <= 4 * _PIECE:
        return False
    lay = _in_memory_order(x)
    seen = (x, *(tensor for e in entries for tensor in (e.inputs[0], e.output)))
    return _takes_numbers_alone(operation) and all(lay(tensor).is_contiguous() for tensor in seen)


# fmt: off
_SMOOTH = (
    "silu", "mish", "gelu", "tanh", "tanhshrink", "softsign", "erf", "sin", "expm1", "log1p",
    "log", "log2", "log10", "sqrt", "rsqrt", "reciprocal", "square",
)
_SMOOTH_OFFSET = ("sigmoid", "logsigmoid", "log_sigmoid", "softplus", "exp", "cos")
_KINKED = (
    "leaky_relu", "prelu", "rrelu", "softshrink", "hardswish", "elu", "selu", "celu",
)
_EXACT = (
    "relu", "relu6", "hardtanh", "threshold", "abs", "clamp", "clamp_min", "clamp_max",
)
# fmt: on

RULES: dict[str, Rule] = {
    **dict.fromkeys(_SMOOTH, Chord()),
    **dict.fromkeys(_SMOOTH_OFFSET, Chord(floor=1.0)),
    **dict.fromkeys(_KINKED, Chord(kinked=True)),
    **dict.fromkeys(_EXACT, ExactChord()),
    "hardsigmoid": Chord(kinked=True, floor=1.0),
    "pow": Chord(),
    "float_power": Chord(),
}
