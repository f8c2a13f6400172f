"""Batch images: only neighbours of one shape can go through a network at once."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Iterator
from typing import TypeVar

__all__ = ["neighbours"]

T = TypeVar("T")


def neighbours(
    items: Iterable[T], size: int, shape: Callable[[T], Hashable | None]
) -> Iterator[list[T]]:
    """Yield the items in order, in lists of at most ``size`` neighbours of one shape.

    A list also ends with each ``size`` items. So an item decides over no batch but those of the
    ``size`` items that it is among, and work that is cut there has the batches of the whole.
    Nothing is taken out of ``items`` before it is needed.

    Args:
        items: what goes through the network, or stands for what cannot.
        size: the most items of a batch.
        shape: returns what all items of a batch must agree in; None agrees with everything.

    Example:
        >>> list(neighbours("aabbbb", 3, shape=str))
        [['a', 'a'], ['b'], ['b', 'b', 'b']]
    """
    batch: list[T] = []
    common: Hashable | None = None
    for count, item in enumerate(items, 1):
        here = shape(item)
        if None not in (here, common) and here != common:
            yield batch
            batch, common = [], None
        batch.append(item)
        common = common if here is None else here
        if count % size == 0:
            yield batch
            batch, common = [], None
    if batch:
        yield batch
