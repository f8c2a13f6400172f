"""A network as users of other packages have it: its own inputs in, its own outputs explained."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from afmi.errors import ModelError
from afmi.network.outputs import Declaration
from afmi.network.wrappers import Wrapper, runnable

__all__ = ["AsGiven", "as_given"]


class AsGiven(Wrapper):
    """Explain what a network returns as it is: a softmax at its end is not undone.

    Other packages do so, while ours explain what goes into a softmax.
    """

    declaration = Declaration("value")

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network
        self.training = getattr(network, "training", False)

    @property
    def wrapped(self) -> nn.Module:
        """The network."""
        return self.network

    def forward(self, images: Tensor, *args: Any, **kwargs: Any) -> Any:
        """Return what the network returns."""
        return self.network(images, *args, **kwargs)


def as_given(model: Any) -> AsGiven:
    """Return a network whose outputs are explained as they are.

    Raises:
        ModelError: it is no ``nn.Module``.
    """
    network = runnable(model)
    if not isinstance(network, nn.Module):
        raise ModelError(
            f"expected a network that is an nn.Module, got {type(network).__name__}; wrap your "
            "function in an nn.Module, whose operations can be watched"
        )
    return AsGiven(network)
