"""The one shape of a rule, and the one `torch.autograd.Function` that all rules run in."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import torch
from torch import Size, Tensor

from afmi.gradients.interception import BackwardState, Interception
from afmi.gradients.operation import Operation
from afmi.gradients.tape import Entry

__all__ = ["Factors", "Rule", "Tensors"]

Tensors = Sequence[Tensor]
Factors = Sequence[Any]
"""What `Rule.pull_back` needs: tensors, or None."""


class Rule(ABC):
    """An operation's own forward pass with another backward pass, for which Σ m·Δin = Δout.

    While the reference runs, its `entry` goes onto the tape. While the images run, the `factors`
    are made from the operands and each reference's entry, at once, since the operands may be
    overwritten before the backward pass; `pull_back` applies those of the reference in use.

    Attributes:
        returned: how many of `call`'s tensors the network gets. The first is differentiable, the
            others are not; those beyond go to `entry` and `factors` alone.
    """

    returned: int = 1

    def __call__(self, interception: Interception, operation: Operation) -> Any:
        """Make the call, with this rule's backward pass."""
        return self.apply(interception, operation, *self.operands(interception, operation))

    def operands(self, interception: Interception, operation: Operation) -> list[Tensor]:
        """Return the tensors that the rule gives gradients to; may raise for a call it lacks."""
        return operation.path_operands

    def call(self, operation: Operation) -> tuple[Tensor, ...]:
        """Make the call, in a tuple that may hold more than the network gets."""
        return (operation(),)

    def entry(self, operation: Operation, operands: Tensors, outputs: Tensors) -> Entry:
        """Return what the tape holds of the reference, from detached operands and outputs."""
        return Entry(operation.name, tuple(operands), outputs[0])

    @abstractmethod
    def factors(
        self, operation: Operation, operands: Tensors, outputs: Tensors, entry: Entry
    ) -> Factors:
        """Return what `pull_back` needs against one reference, from ``outputs`` of `call`."""

    @abstractmethod
    def pull_back(
        self, gradient: Tensor, factors: Factors, shapes: list[Size], state: BackwardState
    ) -> Sequence[Tensor | None]:
        """Return Σ_i gradient_i m_ij for each operand, of its shape.

        Args:
            gradient: by the first output.
            factors: those against the reference in use.
            shapes: of the operands.
            state: what the backward pass asks for.
        """

    def traceable_factors(
        self, operation: Operation, operands: Tensors, outputs: Tensors, entry: Entry
    ) -> Factors:
        """Return `factors` by operations that can be recorded and run again for other images.

        None of them reads a number into Python, walks over the batch or raises by a value.
        """
        return self.factors(operation, operands, outputs, entry)

    def traceable_pull_back(
        self, gradient: Tensor, factors: Factors, shapes: list[Size], state: BackwardState
    ) -> Sequence[Tensor | None]:
        """Do as `pull_back` with `traceable_factors`, by operations that can be recorded."""
        return self.pull_back(gradient, factors, shapes, state)

    def entries(
        self, interception: Interception, operation: Operation, operands: Tensors
    ) -> list[Entry]:
        """Return what each reference's tape has for this call."""
        return [reader.next(operation.name, operands) for reader in interception.readers]

    def run(
        self, operation: Operation, operands: Tensors, entries: list[Entry]
    ) -> tuple[tuple[Tensor, ...], list[Factors]]:
        """Make the call, and return what it gave with the factors against each reference."""
        kept = operation.inplace and entries  # for factors, of which no reference needs none
        before = [x.clone() for x in operands] if kept else operands
        outputs = self.call(operation)
        return outputs, [self.factors(operation, before, outputs, entry) for entry in entries]

    def traced(
        self, operation: Operation, operands: Tensors, entries: list[Entry]
    ) -> tuple[tuple[Tensor, ...], list[Factors]]:
        """Do as `run`, in the traceable form."""
        before = [x.clone() if operation.inplace else x for x in operands]
        outputs = self.call(operation)
        factors = [self.traceable_factors(operation, before, outputs, entry) for entry in entries]
        return outputs, factors

    def forward(
        self, interception: Interception, operation: Operation, operands: Tensors
    ) -> tuple[tuple[Tensor, ...], list[Factors]]:
        """Make the call: record it for the reference, or read the tapes for images."""
        tape = interception.recording
        if tape is None:
            entries = self.entries(interception, operation, operands)
            if interception.backward.traced:
                return self.traced(operation, operands, entries)
            return self.run(operation, operands, entries)
        # Detached: a tape outlives its run, and must not keep the graph alive.
        before = [x.detach().clone() if operation.inplace else x.detach() for x in operands]
        outputs = self.call(operation)
        detached = [y if y is None else y.detach() for y in outputs]
        tape.entries.append(self.entry(operation, before, detached))
        return outputs, []

    def apply(self, interception: Interception, operation: Operation, *operands: Tensor) -> Any:
        """Make the call with this rule's backward pass towards ``operands``."""
        if any(x.is_complex() for x in operands):
            name = operation.name
            raise interception.no_rule(f"{name!r} of complex numbers", name=name)
        return _Function.apply(self, interception, operation, *operands)


class _Function(torch.autograd.Function):
    """A rule's forward and backward pass, as autograd runs them."""

    @staticmethod
    def forward(
        ctx: Any, rule: Rule, interception: Interception, operation: Operation, *operands: Tensor
    ) -> Any:
        outputs, factors = rule.forward(interception, operation, operands)
        ctx.save_for_backward(*(factor for each in factors for factor in each))
        ctx.count = len(factors[0]) if factors else 0
        ctx.rule, ctx.state = rule, interception.backward
        ctx.shapes = [x.shape for x in operands]
        if outputs[0] is operands[0]:
            ctx.mark_dirty(operands[0])
        if rule.returned == 1:
            return outputs[0]
        ctx.mark_non_differentiable(*outputs[1 : rule.returned])
        return outputs[: rule.returned]

    @staticmethod
    def backward(ctx: Any, gradient: Tensor, *_: Any) -> Any:
        first = ctx.count * ctx.state.reference
        factors = ctx.saved_tensors[first : first + ctx.count]
        traced = ctx.state.traced
        pull_back = ctx.rule.traceable_pull_back if traced else ctx.rule.pull_back
        gradients = pull_back(gradient, factors, ctx.shapes, ctx.state)
        return None, None, None, *gradients
