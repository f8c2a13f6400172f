"""Recurrent layers, which some networks run along the rows and columns of their maps."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from afmi.errors import OperationError
from afmi.gradients.interception import Handler
from afmi.gradients.rules.composed import composed

__all__ = ["RULES"]

State = tuple[Tensor, ...]
Cell = Callable[[Tensor, State, list[Tensor]], State]


def _projected(x: Tensor, h: Tensor, weights: list[Tensor]) -> tuple[Tensor, Tensor]:
    """Return what the gates see of the input and of the hidden state, each with its bias."""
    from_x, from_h, *biases = weights
    bias_x, bias_h = biases or (None, None)
    return F.linear(x, from_x, bias_x), F.linear(h, from_h, bias_h)


def _lstm_cell(x: Tensor, state: State, weights: list[Tensor]) -> State:
    """c' = σ(f) c + σ(i) tanh(g), h' = σ(o) tanh(c').

    Paper: Hochreiter & Schmidhuber, *Long Short-Term Memory*, Neural Computation 1997.
    """
    h, c = state
    seen, remembered = _projected(x, h, weights)
    i, f, g, o = (seen + remembered).chunk(4, -1)
    c = f.sigmoid() * c + i.sigmoid() * g.tanh()
    return o.sigmoid() * c.tanh(), c


def _gru_cell(x: Tensor, state: State, weights: list[Tensor]) -> State:
    """n = tanh(n_x + σ(r) n_h), h' = n + σ(z) (h − n).

    Paper: Cho et al., *Learning Phrase Representations using RNN Encoder–Decoder*, EMNLP 2014.
    """
    (h,) = state
    seen, remembered = _projected(x, h, weights)
    (r_x, z_x, n_x), (r_h, z_h, n_h) = seen.chunk(3, -1), remembered.chunk(3, -1)
    n = (n_x + (r_x + r_h).sigmoid() * n_h).tanh()
    return (n + (z_x + z_h).sigmoid() * (h - n),)


def _along(
    name: str,
    cell: Cell,
    x: Tensor,
    starts: State,
    weights: list[Tensor],
    has_biases: bool,
    layers: int,
    _dropout: float,
    _train: bool,
    bidirectional: bool,
    batch_first: bool,
) -> tuple[Tensor, ...]:
    """Run a cell along a sequence, layer by layer and in one or both directions."""
    directions = 2 if bidirectional else 1
    each = 4 if has_biases else 2
    if not isinstance(has_biases, bool) or len(weights) != layers * directions * each:
        raise OperationError(
            f"{name!r} of packed sequences or with projections has no rule for the modified "
            "gradient; run it on padded sequences, without proj_size"
        )
    x = x.transpose(0, 1) if batch_first else x
    ends: list[State] = []
    for layer in range(layers):
        outputs = []
        for direction in range(directions):
            run = layer * directions + direction
            state = tuple(start[run] for start in starts)
            hidden = []
            for step in x.unbind(0) if direction == 0 else x.flip(0).unbind(0):
                state = cell(step, state, weights[run * each : (run + 1) * each])
                hidden.append(state[0])
            outputs.append(torch.stack(hidden if direction == 0 else hidden[::-1]))
            ends.append(state)
        x = torch.cat(outputs, -1)
    x = x.transpose(0, 1) if batch_first else x
    return (x, *(torch.stack(parts) for parts in zip(*ends, strict=True)))


def lstm(x: Tensor, starts: State, *rest) -> tuple[Tensor, ...]:
    """``nn.LSTM``: the output, the last hidden states and cells."""
    return _along("lstm", _lstm_cell, x, starts, *rest)


def gru(x: Tensor, start: Tensor, *rest) -> tuple[Tensor, ...]:
    """``nn.GRU``: the output and the last hidden states."""
    return _along("gru", _gru_cell, x, (start,), *rest)


RULES: dict[str, Handler] = {"lstm": composed(lstm), "gru": composed(gru)}
