"""The reference tape: what each nonlinear operation saw and gave while the reference ran."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from torch import Tensor

from afmi.errors import ModelError, ShapeError

__all__ = ["Entry", "Tape", "TapeMismatchError", "TapeReader"]


class TapeMismatchError(ModelError):
    """The network took another way for the images than for the reference."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One operation of the reference's run.

    Attributes:
        name: the operation's name.
        inputs: its operands that depend on the layer, or what the rule keeps of each; detached.
        output: what it gave, detached.
        more: what else the rule keeps, such as the positions of a pooling's maxima.
    """

    name: str
    inputs: tuple[Tensor, ...]
    output: Tensor
    more: tuple[Tensor, ...] = ()


@dataclass
class Tape:
    """The reference's run from the layer on, in call order.

    Attributes:
        entries: one for each operation whose rule asks for the reference.
    """

    entries: list[Entry] = field(default_factory=list)

    def keep(self, written: Tensor) -> None:
        """Copy each recorded tensor whose memory ``written`` shares, before it is overwritten."""
        memory = written.untyped_storage().data_ptr()

        def kept(tensor: Tensor) -> Tensor:
            return tensor.clone() if tensor.untyped_storage().data_ptr() == memory else tensor

        for i, entry in enumerate(self.entries):
            if any(t.untyped_storage().data_ptr() == memory for t in (*entry.inputs, entry.output)):
                inputs = tuple(kept(t) for t in entry.inputs)
                self.entries[i] = replace(entry, inputs=inputs, output=kept(entry.output))


class TapeReader:
    """Hand out a tape's entries in order while the images run, and notice any difference."""

    def __init__(self, tape: Tape) -> None:
        self._entries = tape.entries
        self._next = 0

    def next(self, name: str, operands: Sequence[Tensor]) -> Entry:
        """Return the entry for the operation that runs now.

        Raises:
            TapeMismatchError: when the reference ran another operation here.
            ShapeError: when its tensors do not broadcast against the operands.
        """
        if self._next >= len(self._entries):
            raise TapeMismatchError(
                f"the network runs {name!r} for the images where it ran nothing more for the "
                "reference; its flow must not depend on the values of its input"
            )
        entry = self._entries[self._next]
        self._next += 1
        if entry.name != name:
            raise TapeMismatchError(
                f"the network runs {name!r} for the images where it ran {entry.name!r} for the "
                "reference; its flow must not depend on the values of its input"
            )
        for operand, reference in zip(operands, entry.inputs, strict=True):
            same = operand.dim() == reference.dim() and all(
                r in (1, o) for o, r in zip(operand.shape, reference.shape, strict=True)
            )
            if not same:
                raise ShapeError(
                    f"{name!r} has operands of shape {tuple(operand.shape)} for the images but "
                    f"{tuple(reference.shape)} for the reference"
                )
        return entry

    def finish(self) -> None:
        """Raise a `TapeMismatchError` when the reference's run had more operations."""
        if self._next != len(self._entries):
            raise TapeMismatchError(
                f"the network ran {len(self._entries)} nonlinear operations for the reference but "
                f"{self._next} for the images; its flow must not depend on the values of its input"
            )
