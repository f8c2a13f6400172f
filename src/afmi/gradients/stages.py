"""Layers at which a run is differentiated: where it begins, and stages on the way from there."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass

from torch import Tensor
from torch._subclasses import FakeTensor

from afmi.errors import LayerError
from afmi.gradients.interception import Interception
from afmi.gradients.operation import Awaited
from afmi.network.graph import first_tensor
from afmi.network.guards import watching_module
from afmi.network.layers import Layer, Place, maps_of

__all__ = ["Stage", "StageMaps", "plain", "split", "taken_at"]


@dataclass(frozen=True)
class StageMaps:
    """What a layer gave.

    Attributes:
        features: feature maps A (N, K, *spatial), detached.
        extra_tokens: tokens (N, P, K) beside those of the maps, such as a class token, detached.
    """

    features: Tensor
    extra_tokens: Tensor


class Stage:
    """A layer that a run passes behind its first one, whose gradient is asked for as well.

    Attributes:
        tensor: what it gave, in the run's graph; None: not reached yet.
    """

    def __init__(self, place: Place) -> None:
        self.place = place
        self.tensor: Tensor | None = None
        self._version = 0

    def watched(self, state: Interception, sides: int) -> AbstractContextManager[None]:
        """Return a context in which the layer's output is kept."""

        def keep(maps: Tensor) -> Tensor:
            self.tensor, self._version = maps, maps._version
            return state.mark(maps)

        return taken_at(state, self.place, sides, keep)

    @property
    def reached(self) -> Tensor:
        """Return what the layer gave, (N, K, *spatial) or its tokens.

        Raises:
            LayerError: when the run did not reach it from where it begins.
        """
        if self.tensor is None or not self.tensor.requires_grad:
            raise LayerError(
                f"layer {self.place[1]} was not reached on the way from the images to the logits; "
                "choose one through which that leads"
            )
        if self.tensor._version != self._version:
            raise LayerError(
                f"the network overwrites what layer {self.place[1]} gave, beside going on with it; "
                "choose the module around it"
            )
        return self.tensor

    def maps(self, sides: int) -> StageMaps:
        """Return what the layer gave, without its graph, for images of so many sides."""
        tensor = plain(self.reached.detach())
        return StageMaps(*split(tensor, self.place[1], sides))


def taken_at(
    state: Interception, place: Place, sides: int, take: Callable[[Tensor], Tensor]
) -> AbstractContextManager[None]:
    """Return a context in which ``take`` gets the layer's output, and replaces it.

    Args:
        state: of the run.
        place: module and name of the layer.
        sides: how many the images have.
        take: what is done with the maps.
    """
    module, layer = place
    reached = False

    def capture(output: object) -> object:
        nonlocal reached
        if reached:
            raise LayerError(
                f"layer {layer} runs more than once in a forward pass, so its maps are not one "
                "thing; choose the module around it"
            )
        reached = True
        first = first_tensor(output)
        if layer.then is not None and first is not None:
            state.awaited.append(Awaited(first, layer, sides, take))
            return None
        taken = take(maps_of(layer, first if first is not None else output, sides))
        # Of several, such as a block's maps and its attention, the first are the maps.
        return type(output)((taken, *output[1:])) if isinstance(output, (tuple, list)) else taken

    return watching_module(module, capture)


def plain(tensor: Tensor) -> Tensor:
    """Return a tensor as one of PyTorch's own kind; one that a trace follows stays itself."""
    return tensor if isinstance(tensor, FakeTensor) else tensor.as_subclass(Tensor)


def split(tensor: Tensor, layer: Layer | None, sides: int) -> tuple[Tensor, Tensor]:
    """Return the feature maps in a layer's output, of so many sides, and the tokens beside them."""
    if layer is None or layer.token_layout is None:
        return tensor, tensor[(..., slice(0), *[0] * (sides - 1), slice(None))]
    return layer.token_layout.maps(tensor), layer.token_layout.extra_tokens(tensor)
