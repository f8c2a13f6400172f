"""What a network takes besides the images that are explained: other inputs, masks, flags."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from afmi.errors import ShapeError, UsageError
from afmi.network.wrappers import Wrapper, runnable

__all__ = ["Bound", "ForwardArguments", "bound", "rows_of"]

ForwardArguments: TypeAlias = Sequence[Any] | Mapping[str, Any]
"""Positional arguments besides the images, in order; or keywords."""


class Bound(Wrapper):
    """Hand images to a network together with what else it takes.

    A tensor of one row goes along with every image, however many there are in a batch; one without
    dimensions, and whatever is no tensor, goes as it is. Tensors may lie inside tuples, lists and
    dictionaries. They move with the module to another device.

    Args:
        network: takes the images (N, C, …) and the arguments.
        arguments: a tuple of those besides the images, or a dictionary of keywords.
        place: which argument the images are: a position among all, or a keyword.

    Raises:
        UsageError: when these are no such arguments, or leave no such place.
        ShapeError: when a tensor has several rows.
    """

    def __init__(
        self, network: nn.Module, arguments: ForwardArguments, place: int | str = 0
    ) -> None:
        super().__init__()
        arguments = _checked(arguments)
        _check_place(arguments, place)
        self.network = network
        self.place = place
        self.tensors = 0
        self.arguments = _mapped(self._kept, arguments)
        self.training = getattr(network, "training", False)

    @property
    def wrapped(self) -> nn.Module:
        """The network, which takes more than images."""
        return self.network

    def _kept(self, tensor: Tensor) -> _Kept:
        """Register a tensor, and return what stands for it."""
        if tensor.dim() and len(tensor) != 1:
            raise ShapeError(
                "expected forward_arguments of one row, (1, …), which goes along with every image, "
                f"got {tuple(tensor.shape)}; pass tensor[None], or rows for all images to "
                "explain_many or Method.attribute, or wrap the network in an nn.Module that holds "
                "what is the same for a whole batch"
            )
        name = f"argument_{self.tensors}"
        self.register_buffer(name, tensor.detach(), persistent=False)
        self.tensors += 1
        return _Kept(name)

    def forward(self, images: Tensor) -> object:
        """Return what the network gives for images (N, C, …)."""

        def fitting(name: str) -> Tensor:
            tensor: Tensor = getattr(self, name)
            if tensor.device != images.device:
                tensor = tensor.to(images.device)
            if tensor.dim():
                tensor = tensor.expand(len(images), *tensor.shape[1:])
            # Copied, because a network may write into it, or view it otherwise.
            return tensor.clone(memory_format=torch.contiguous_format)

        positional, keywords = [], {}
        if isinstance(self.arguments, Mapping):
            keywords = _mapped(fitting, self.arguments, _Kept)
        else:
            positional = list(_mapped(fitting, self.arguments, _Kept))
        if isinstance(self.place, str):
            keywords[self.place] = images
        else:
            positional.insert(self.place, images)
        return self.network(*positional, **keywords)


class _Kept(str):
    """The name of the buffer that holds a tensor of the arguments."""


def _mapped(function: Callable[[Any], Any], value: Any, kind: type = Tensor) -> Any:
    """Return a value in which whatever is of a kind is replaced by the function's result."""
    if isinstance(value, kind):
        return function(value)
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*(_mapped(function, item, kind) for item in value))
    if type(value) in (tuple, list):
        return type(value)(_mapped(function, item, kind) for item in value)
    if isinstance(value, Mapping):
        return {key: _mapped(function, item, kind) for key, item in value.items()}
    return value


def _checked(arguments: object) -> ForwardArguments:
    named = isinstance(arguments, Mapping)
    if named and all(isinstance(key, str) for key in arguments):
        return arguments
    if not named and isinstance(arguments, (tuple, list)):
        return tuple(arguments)
    advice = "write (tensor,)" if isinstance(arguments, Tensor) else "name keywords by texts"
    raise UsageError(
        "expected forward_arguments as a tuple of what the network takes besides the images, or a "
        f"dictionary of keywords, got {type(arguments).__name__}; {advice}"
    )


def _check_place(arguments: ForwardArguments, place: object) -> None:
    named = isinstance(arguments, Mapping)
    last = 0 if named else len(arguments)
    if isinstance(place, str):
        if named and place in arguments:
            raise UsageError(f"input={place!r} is the images, so leave it out of forward_arguments")
    elif type(place) is not int or not 0 <= place <= last:
        raise UsageError(
            f"expected input as a keyword, or a position up to the {last} positional "
            f"forward_arguments given, got {place!r}"
        )


def bound(
    network: nn.Module, arguments: ForwardArguments | None, place: int | str | None = None
) -> nn.Module:
    """Return a network that takes images alone; itself where there is nothing else to hand over.

    Args:
        network: where it is bound already, these arguments take the place of those.
        arguments: None: none.
        place: None: as it was, or else the first.
    """
    network = runnable(network)
    if arguments is None and place is None:
        return network
    if isinstance(network, Bound):
        place = network.place if place is None else place
        network = network.network
    return Bound(network, () if arguments is None else arguments, 0 if place is None else place)


def rows_of(arguments: ForwardArguments, count: int | None) -> Sequence[ForwardArguments] | None:
    """Return the arguments of each image, where tensors have a row for each; None: all share them.

    Args:
        arguments: for all images.
        count: how many images there are; None: as many as rows.

    Raises:
        ShapeError: when a tensor has neither one row nor one for each image.
    """
    arguments = _checked(arguments)
    rows = sorted({len(t) for t in _tensors(arguments) if t.dim()} - {1})
    if not rows:
        return None
    if len(rows) > 1 or rows[0] != (rows[0] if count is None else count):
        images = "image" if count is None else f"of {count} images"
        raise ShapeError(
            f"expected forward_arguments with one row, or one for each {images}, got tensors of "
            f"{' and '.join(map(str, rows))} rows; pass tensor[None] for one that all share"
        )

    def row(index: int) -> Any:
        def one(tensor: Tensor) -> Tensor:
            return tensor[index : index + 1] if tensor.dim() and len(tensor) != 1 else tensor

        return _mapped(one, arguments)

    return [row(index) for index in range(rows[0])]


def _tensors(arguments: ForwardArguments) -> Iterator[Tensor]:
    found: list[Tensor] = []
    _mapped(found.append, arguments)
    return iter(found)
