"""Functions of one tensor whose outputs depend on several positions: what their rules share."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import torch
from torch import Tensor

from afmi.gradients.interception import Interception
from afmi.gradients.tape import Entry

__all__ = ["Mixing"]


class Mixing(ABC):
    """A function f of one tensor, with multipliers for which Σ_j m_ij (x_j − x̄_j) = y_i − ȳ_i.

    The matrix m is never built: `pull_back` applies its transpose to a gradient.
    """

    name: str
    """What the tape calls it."""

    @abstractmethod
    def value(self, x: Tensor) -> Tensor:
        """Return y = f(x)."""

    @abstractmethod
    def factors(self, x: Tensor, y: Tensor, reference: Tensor, output: Tensor) -> list[Tensor]:
        """Return what `pull_back` needs, from x, y = f(x), x̄ and ȳ = f(x̄)."""

    @abstractmethod
    def pull_back(self, gradient: Tensor, factors: list[Tensor]) -> Tensor:
        """Return Σ_i gradient_i m_ij, of the shape of x."""

    def apply(self, state: Interception, x: Tensor) -> Tensor:
        """Return f(x), recorded for the reference or with these multipliers for images."""
        if state.recording is not None:
            y = self.value(x)
            state.recording.entries.append(Entry(self.name, (x.detach(),), y.detach()))
            return y
        entries = [reader.next(self.name, (x,)) for reader in state.readers]
        return _MixingFunction.apply(x, self, state, entries)


class _MixingFunction(torch.autograd.Function):
    """The function's own forward, and the factors made there, a run of them for each reference."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, rule: Mixing, state: Interception, entries: list[Entry]
    ) -> Tensor:
        y = rule.value(x)
        found = [rule.factors(x, y, e.inputs[0].expand_as(x), e.output) for e in entries]
        ctx.save_for_backward(*(factor for factors in found for factor in factors))
        ctx.count = len(found[0]) if found else 0
        ctx.rule = rule
        ctx.state = state
        return y

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:
        first = ctx.count * ctx.state.reference
        factors = list(ctx.saved_tensors[first : first + ctx.count])
        return ctx.rule.pull_back(gradient, factors), None, None, None
