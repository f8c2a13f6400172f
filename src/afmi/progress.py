"""Progress of long computations: methods report their steps, and a program may show them.

Nothing is shown unless a reporter is set, and only in the thread or task that set it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TypeVar

__all__ = ["Reporter", "duration", "report", "reporting", "track"]

T = TypeVar("T")

Reporter = Callable[[str, int, int], None]
"""Called with what is being done, the steps done so far, and the steps in all."""

_reporter: ContextVar[Reporter | None] = ContextVar("afmi_reporter", default=None)


@contextmanager
def reporting(reporter: Reporter | None) -> Iterator[None]:
    """Send the progress of everything in this block to ``reporter``; None silences it.

    Example:
        >>> with reporting(lambda what, done, total: print(f"{what} {done}/{total}")):
        ...     for _ in track(range(2), "masks"):
        ...         pass
        masks 0/2
        masks 1/2
        masks 2/2
    """
    token = _reporter.set(reporter)
    try:
        yield
    finally:
        _reporter.reset(token)


def report(description: str, done: int, total: int) -> None:
    """Tell the reporter, if there is one, how many steps are done."""
    reporter = _reporter.get()
    if reporter is not None:
        reporter(description, done, total)


def track(items: Sequence[T], description: str) -> Iterator[T]:
    """Yield the items, and report the progress before the first one and after each.

    Args:
        items: the steps.
        description: what is being done, such as a method's name.
    """
    report(description, 0, len(items))
    for done, item in enumerate(items, 1):
        yield item
        report(description, done, len(items))


def duration(seconds: float) -> str:
    """Return a length of time for the reader: ``12 s``, ``5 min``, ``3.5 h``.

    Example:
        >>> duration(0.2), duration(300), duration(12600)
        ('1 s', '5 min', '3.5 h')
    """
    if seconds < 90:
        return f"{max(seconds, 1):.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
