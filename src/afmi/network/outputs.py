"""What a network's outputs mean: which of them are logits, and the probabilities they stand for."""

from __future__ import annotations

import torch
from torch import Tensor

from afmi.errors import AfmiError, ModelError

__all__ = ["check_outputs", "logits_of", "probabilities"]


def logits_of(output: object) -> Tensor:
    """Return the logits (N, C) in what a network returned: a tensor, or an object with ``.logits``.

    Raises:
        ModelError: when there are no logits of that shape.
    """
    logits = output
    if isinstance(output, dict) and "logits" in output:
        logits = output["logits"]
    elif hasattr(output, "logits"):
        logits = output.logits  # type: ignore[attr-defined]
    elif isinstance(output, (tuple, list)) and output:
        logits = output[0]
    tensor = isinstance(logits, Tensor)
    if not tensor or logits.dim() != 2 or not logits.is_floating_point() or not logits.shape[1]:
        returned = f"{tuple(logits.shape)} {logits.dtype}" if tensor else type(output).__name__
        if isinstance(output, dict):
            returned = f"a dict of {', '.join(map(repr, output)) or 'nothing'}"
        raise ModelError(
            f"the network must return class logits (N, C), but returned {returned}; "
            "wrap it in an nn.Module whose forward returns the logits"
        )
    return logits


def probabilities(logits: Tensor) -> Tensor:
    """Return softmax probabilities of logits (N, K), in double precision on the CPU."""
    return torch.softmax(logits.to("cpu", torch.float64), 1)


def check_outputs(logits: Tensor, of: str = "the network") -> None:
    """Raise unless each image's logits (N, K) stand for probabilities.

    The arg-max of NaN is class 0, so it must not be taken for a prediction. A class may be ruled
    out by −∞; NaN, +∞, and −∞ for all classes leave no probabilities.

    Args:
        logits: (N, K).
        of: what gives them, for the message.

    Raises:
        AfmiError: when the softmax of a row is not defined.
    """
    largest = logits.detach().amax(1)  # to which NaN spreads
    failed = (~largest.isfinite()).nonzero().flatten().tolist()
    if failed:
        kind = "NaN" if bool(largest[failed[0]].isnan()) else "infinity"
        where = f" for {len(failed)} of {len(logits)} images" if len(logits) > 1 else ""
        raise AfmiError(
            f"{of} gives {kind} instead of logits{where}, so no class is predicted; see whether "
            "the image suits the network (one that standardises each image divides by zero where "
            "all pixels are equal), whether its weights are finite, and whether its activations "
            f"overflow in {logits.dtype}"
        )
