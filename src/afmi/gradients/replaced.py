"""Run a network on from a layer whose feature maps are changed, for many changes at once."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn

from afmi.errors import AfmiError
from afmi.gradients.interception import ORDINARY, Interception
from afmi.gradients.stages import taken_at
from afmi.network.channels_last import in_fast_layout
from afmi.network.checking import check_run, named_failures
from afmi.network.guards import evaluation_mode, without_compilation
from afmi.network.layers import Layer, Place
from afmi.network.memory import in_parts, is_out_of_memory
from afmi.network.outputs import scores_of
from afmi.network.scored import Scored
from afmi.network.watch import Watch
from afmi.network.wrappers import Wrapper

__all__ = ["ChangedMaps", "batch_of"]

_NUMBERS = 2**24
"""Numbers that the changed maps of a batch hold at most, 64 MB in float32."""

Change = Callable[[Tensor, int, int], None]
"""Writes changes ``start`` to ``stop`` into feature maps (stop − start, K, *spatial)."""


class ChangedMaps:
    """The logits of one image whose feature maps at a layer are changed in many ways.

    The changes are rows of a batch from the layer on, so what leads to the layer runs once for a
    batch of them. That is believed as long as a row without a change in each batch gives the
    logits of the image; where it does not, or the network fails on more rows than it was given
    images, copies of the image run through the whole network.

    Args:
        model: the network.
        image: (1, C, *spatial).
        place: the layer.
        maps: its feature maps of the image, (1, K, *spatial).
        logits: of the image, (1, C).
        size: the most changes in a batch; None: see `batch_of`.
    """

    def __init__(
        self,
        model: nn.Module,
        image: Tensor,
        place: Place,
        maps: Tensor,
        logits: Tensor,
        size: int | None = None,
    ) -> None:
        self.model, self.image, self.place = model, image, place
        self.plain = logits
        self.size = batch_of(maps) if size is None else size
        self.copies = False

    def logits(self, count: int, change: Change) -> Tensor:
        """Return the logits (count, C), one row for each change."""

        def run(start: int, stop: int) -> Tensor:
            if not self.copies:
                rows = self._shared(start, stop, change)
                if rows is not None:
                    return rows
                self.copies = True
            images = self.image.expand(stop - start, *self.image.shape[1:])
            return check_run(self._rows(images, 0, change, start, stop), images)

        with named_failures(self.model, self.image):
            parts, self.size = in_parts(run, count, self.size)
        return torch.cat(parts)

    def _shared(self, start: int, stop: int, change: Change) -> Tensor | None:
        """Return the logits of changes that share the way to the layer; None: they are not to."""
        try:
            rows = self._rows(self.image, 1, change, start, stop)
        except (RuntimeError, AfmiError) as error:
            if is_out_of_memory(error):
                raise
            return None
        if len(rows) != 1 + stop - start:
            return None
        tolerance = torch.finfo(rows.dtype).eps ** 0.5
        close = torch.isclose(
            rows[:1], self.plain, rtol=tolerance, atol=tolerance * float(self.plain.abs().max())
        )
        return rows[1:] if bool(close.all()) else None

    def _rows(
        self, images: Tensor, unchanged: int, change: Change, start: int, stop: int
    ) -> Tensor:
        """Run images whose maps become so many unchanged rows, and those of the changes."""
        sides = images.dim() - 2
        count = unchanged + stop - start

        def replace(output: Tensor, layer: Layer) -> Tensor:
            rows = output.expand(count, *output.shape[1:]).clone()
            layout = layer.token_layout
            change((rows if layout is None else layout.maps(rows))[unchanged:], start, stop)
            return rows

        def run(some: Tensor, fast: bool) -> Tensor:
            model = self.model
            if unchanged and isinstance(model, Scored):  # which counts its images
                model = Scored(_OfTheFirst(model.model), model.target)
                some = some.expand(count, *some.shape[1:])
            state = _Replacing(Watch(some, fast=fast), replace, self.place[1])
            with ExitStack() as contexts:
                contexts.enter_context(taken_at(state, self.place, sides, state.begin))
                contexts.enter_context(state)
                return scores_of(model, some).as_subclass(Tensor)

        with (
            torch.inference_mode(False),
            torch.no_grad(),
            evaluation_mode(self.model),
            without_compilation(),
        ):
            return in_fast_layout(self.model, run, images)


class _OfTheFirst(Wrapper):
    """A network that runs the first of its images, whose maps become rows for all of them."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    @property
    def wrapped(self) -> nn.Module:
        return self.network

    def forward(self, images: Tensor) -> Any:
        return self.network(images[:1])


class _Replacing(Interception):
    """A run without gradients that goes on with other maps from the layer on."""

    def __init__(
        self, watch: Watch, replace: Callable[[Tensor, Layer], Tensor], layer: Layer
    ) -> None:
        super().__init__(ORDINARY, watch, None, [])
        self._replace = replace
        self._layer = layer

    def begin(self, tensor: Tensor) -> Tensor:
        with torch._C.DisableTorchFunction():
            self.leaf = self._replace(tensor.detach(), self._layer)
        return self.leaf

    def _passed(
        self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        if self.leaf is None:
            return self._captured(func, args, func(*args, **kwargs))
        return func(*args, **kwargs)


def batch_of(maps: Tensor) -> int:
    """Return how many changes of such maps (1, K, *spatial) run at once."""
    return max(1, _NUMBERS // maps[0].numel())
