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
    if not isinstance(logits, Tensor) or logits.dim() != 2 or not logits.is_floating_point():
        returned = f"shape {tuple(logits.shape)}" if isinstance(logits, Tensor) else type(output)
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

    The arg-max of NaN is class 0, so it must not be taken for a prediction. A logit of −infinity
    stands for a probability of 0, which is fine as long as not all are.

    Args:
        logits: (N, K).
        of: what gives them, for the message.

    Raises:
        AfmiError: when a logit is NaN or infinite, or all are −infinity.
    """
    failed = probabilities(logits).isnan().any(1).nonzero().flatten().tolist()
    if failed:
        row = logits[failed[0]]
        kind = "NaN" if bool(row.isnan().any()) else "infinite"
        where = f" for {len(failed)} of {len(logits)} images" if len(logits) > 1 else ""
        raise AfmiError(
            f"{of} gives {kind} instead of logits{where}: its activations overflow in "
            f"{logits.dtype}, or it divides by zero there; try float32 or float64, and look for "
            "a normalisation by the image's own mean or deviation"
        )
