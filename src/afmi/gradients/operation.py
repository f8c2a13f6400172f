"""One call that a network makes, as rules see it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

from torch import Tensor

from afmi.network.layers import Layer
from afmi.network.operations import is_inplace

__all__ = ["Awaited", "Operation"]


class Awaited(NamedTuple):
    """A layer whose module has returned, and whose maps the operation ``layer.then`` on that gives.

    ``take`` gets the maps, and returns what the network goes on with.
    """

    tensor: Tensor
    layer: Layer
    sides: int
    take: Callable[[Tensor], Tensor]


@dataclass(frozen=True, slots=True)
class Operation:
    """One intercepted call whose operands depend on the feature maps.

    Attributes:
        name: its canonical name, such as ``relu``.
        function, args, kwargs: the call as the network made it.
    """

    name: str
    function: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: dict[str, Any]

    def __call__(self) -> Any:
        """Make the call as it stands."""
        return self.function(*self.args, **self.kwargs)

    @property
    def inplace(self) -> bool:
        """Whether the call overwrites its first operand."""
        return is_inplace(self.function, self.args, self.kwargs)

    @property
    def written(self) -> Tensor | None:
        """The tensor that the call writes to, if it does."""
        out = self.kwargs.get("out")
        if isinstance(out, Tensor):
            return out
        writes = self.args and isinstance(self.args[0], Tensor) and self.inplace
        return self.args[0] if writes else None

    def on(self, first: Tensor) -> Any:
        """Make the same call with another first operand."""
        if self.args:
            return self.function(first, *self.args[1:], **self.kwargs)
        return self.function(**{**self.kwargs, "input": first})

    @property
    def operand(self) -> Tensor:
        """The first operand."""
        return self.args[0] if self.args else self.kwargs["input"]

    @property
    def path_operands(self) -> list[Tensor]:
        """The operands that depend on the feature maps, in order."""
        return list(_tensors_on_path([*self.args, *self.kwargs.values()]))

    def argument(self, position: int, name: str, default: Any) -> Any:
        """Return one argument of the call, given by position or by name."""
        if name in self.kwargs:
            return self.kwargs[name]
        return self.args[position] if len(self.args) > position else default

    def with_operands(self, operands: Iterable[Tensor]) -> Tensor:
        """Make the call with other tensors in place of its `path_operands`."""
        remaining = iter(operands)

        def replaced(value: Any) -> Any:
            if isinstance(value, Tensor):
                return next(remaining) if value.requires_grad else value
            if isinstance(value, (list, tuple)):
                return type(value)(replaced(item) for item in value)
            return value

        args = tuple(replaced(value) for value in self.args)
        kwargs = {key: replaced(value) for key, value in self.kwargs.items()}
        return self.function(*args, **kwargs)


def _tensors_on_path(values: Iterable[Any]) -> Iterator[Tensor]:
    for value in values:
        if isinstance(value, Tensor):
            if value.requires_grad:
                yield value
        elif isinstance(value, (list, tuple)):
            yield from _tensors_on_path(value)
