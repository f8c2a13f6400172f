"""Progress of long computations: methods report their steps, and a program may show them.

Methods' steps are shown where a reporter is set, and only in the thread or task that set it. Long
calls set one themselves in a terminal and in a notebook, unless they are told otherwise.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from rich.progress import Progress as RichProgress

__all__ = [
    "Bars",
    "Reporter",
    "bar_of_rich",
    "counted",
    "duration",
    "is_shown",
    "report",
    "reporting",
    "showing",
    "track",
]

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
    token = _reporter.set(reporter or _silent)
    try:
        yield
    finally:
        _reporter.reset(token)


def _silent(description: str, done: int, total: int) -> None:
    """Show nothing, also of calls that would show themselves."""


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


def is_shown(progress: bool | None) -> bool:
    """Tell whether a long call shows how far it has come.

    Args:
        progress: what the user said. None: in a terminal and in a notebook, unless what goes on
            there is shown already.
    """
    if progress is not None:
        return progress
    return _reporter.get() is None and (_is_terminal() or _is_notebook())


def _is_terminal() -> bool:
    return sys.stderr is not None and sys.stderr.isatty()


def _is_notebook() -> bool:
    shell = getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)()
    return type(shell).__name__ == "ZMQInteractiveShell"


@contextmanager
def showing(progress: bool | None) -> Iterator[Bars | None]:
    """Show the progress of everything in this block; see `is_shown`.

    Yields:
        The bars, or None where none are shown.
    """
    if not is_shown(progress):
        yield None
        return
    with Bars() as bars, reporting(bars.show):
        yield bars


def counted(
    items: Iterable[T], description: str, total: int | None, progress: bool | None
) -> Iterator[T]:
    """Yield items as they come, and count them in a bar; see `is_shown`.

    No reporter is set: between two items the caller's own work goes on.

    Args:
        items: the steps.
        description: what is being done.
        total: how many there are; None: nobody knows.
        progress: what the user said.
    """
    if not is_shown(progress):
        yield from items
        return
    with Bars() as bars:
        bars.show(description, 0, total)
        for done, item in enumerate(items, 1):
            bars.show(description, done, total)
            yield item


class Bars:
    """A bar for each thing that is done, on stderr or in a notebook, gone when all are done."""

    def __init__(self) -> None:
        self._bar: RichProgress | None = None
        self._tasks: dict[str, Any] = {}

    def __enter__(self) -> Bars:
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.stop()

    def show(self, what: str, done: int, total: int | None) -> None:
        """Show how far something has come; a `Reporter`."""
        if self._bar is None:
            self._bar = bar_of_rich()
            self._bar.start()
        if what not in self._tasks:
            self._tasks[what] = self._bar.add_task(what, total=total)
        # What comes again for each image, such as a method's steps, begins anew.
        shown = total is None or done < total
        self._bar.update(self._tasks[what], completed=done, total=total, visible=shown)


def bar_of_rich() -> RichProgress:
    """Return the bar that all of afmi shows, on stderr."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bar

    return Bar(
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.description}", markup=False),
        console=Console(stderr=True),
        transient=True,
        redirect_stdout=False,  # it would turn the lines of stdout into stderr's
        redirect_stderr=False,
    )


def duration(seconds: float) -> str:
    """Return a length of time for the reader: ``12 s``, ``5 min``, ``3.5 h``.

    Example:
        >>> duration(0.2), duration(300), duration(12600)
        ('1 s', '5 min', '3.5 h')
    """
    if seconds < 90:
        return f"{max(seconds, 1):.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
