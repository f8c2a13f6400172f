"""What is around a network: parallel, compiled and averaged wrappers, and this package's own."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator
from typing import Any

from torch import nn

__all__ = ["Wrapper", "runnable", "within", "wrappings"]

_REPLACED = {
    "torch.nn.parallel.data_parallel.DataParallel": "module",
    "torch.nn.parallel.distributed.DistributedDataParallel": "module",
    "torch.optim.swa_utils.AveragedModel": "module",
    "timm.utils.model_ema.ModelEma": "ema",  # which is no nn.Module
    "timm.utils.model_ema.ModelEmaV2": "module",  # which cannot be called
    "timm.utils.model_ema.ModelEmaV3": "module",
}
"""Where wrappers keep the network that they spread over devices or average. It is explained itself,
since copies of it that run in other threads cannot be watched."""

_RUN = {"torch._dynamo.eval_frame.OptimizedModule": "_orig_mod"}
"""Where wrappers keep the network that is run through them: methods that only look at its outputs
run what was compiled."""


class Wrapper(nn.Module):
    """A module of this package around a network, which is looked at through it."""

    @property
    @abstractmethod
    def wrapped(self) -> nn.Module:
        """What is inside."""


def _inside(model: Any, places: dict[str, str]) -> Any:
    """Return what a wrapper keeps in one of these places, or None."""
    for kind in type(model).__mro__:
        place = places.get(f"{kind.__module__}.{kind.__qualname__}")
        if place is not None:
            return getattr(model, place)
    return None


def wrappings(model: Any) -> Iterator[Any]:
    """Yield a model, what it wraps, what that wraps, …, and last the network itself.

    Example:
        >>> network = nn.Linear(2, 2)
        >>> [type(one).__name__ for one in wrappings(nn.DataParallel(network))]
        ['DataParallel', 'Linear']
    """
    inside = model
    while inside is not None:
        yield inside
        if isinstance(inside, Wrapper):
            inside = inside.wrapped
        else:
            inside = _inside(inside, _REPLACED | _RUN)


def within(model: Any) -> Any:
    """Return the network within all wrappers, this package's own among them."""
    *_, network = wrappings(model)
    return network


def runnable(model: Any) -> Any:
    """Return what is run in a model's place: the network that parallel and averaged wrappers hold.

    The weights are those of the wrapper: an average's are the averaged ones.
    """
    while (inside := _inside(model, _REPLACED)) is not None:
        model = inside
    return model
