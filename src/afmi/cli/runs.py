"""What commands share that run for long: the time left, Ctrl-C, what was typed."""

from __future__ import annotations

import shlex
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import click

from afmi.cli.group import INTERRUPTED
from afmi.cli.terminal import Progress, echo, progress_shown
from afmi.files import Location
from afmi.progress import duration

if TYPE_CHECKING:
    from afmi.datasets.run import Progress as DatasetProgress

__all__ = [
    "EVERY",
    "PiecePrinter",
    "ProgressPrinter",
    "command_line",
    "kept_in",
    "stoppable",
    "warn_of_failed",
]

EVERY = 30
"""Seconds between lines of progress, where there is no terminal for a bar."""


def command_line() -> str:
    """Return what the user typed, for a manifest."""
    return shlex.join(["afmi", *sys.argv[1:]])


def kept_in(out: Location) -> Callable[[], str]:
    """Return what says of a folder that it keeps what was finished, for `stoppable`."""
    return lambda: f"what was finished is in {out}, and the same command resumes"


@contextmanager
def stoppable(
    ctx: click.Context, kept: Callable[[], str], *, quiet: bool, total: int = 1
) -> Iterator[Progress]:
    """Show progress and warnings in this block; Ctrl-C ends the command in one line.

    Args:
        ctx: of the command.
        kept: gives what is said of the work that was done until then.
        quiet: whether the user wants errors only.
        total: pictures that a bar counts, if there are several.
    """
    with progress_shown(total, quiet=quiet) as progress:
        try:
            yield progress
        except KeyboardInterrupt:
            progress.line(f"afmi: interrupted; {kept()}", err=True)
            ctx.exit(INTERRUPTED)


class ProgressPrinter:
    """Moves a bar; without a terminal prints a line now and then, which tells the time left.

    Args:
        progress: what prints.
        quiet: whether the user wants errors only.
        clock: seconds.
    """

    def __init__(
        self, progress: Progress, *, quiet: bool, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._progress = progress
        self._quiet = quiet
        self._clock = clock
        self._phase = ""
        self._began = (0.0, 0.0)
        self._printed = 0.0

    def show(
        self,
        phase: str,
        done: float,
        total: float | None,
        line: Callable[[str], str],
        *,
        new: float | None = None,
        last: bool = False,
    ) -> None:
        """Tell how far a phase of the work has come.

        Args:
            phase: what is counted.
            done: how many.
            total: of how many; None: nobody knows.
            line: makes the line of ``", about 2 min left"``, or of "" where that is not known.
            new: how many this call did, by which the time left is estimated; None: as ``done``.
            last: whether there is always a line when all are done.
        """
        self._progress.within(phase, int(done), None if total is None else int(total))
        now, new = self._clock(), done if new is None else new
        if phase != self._phase:  # what came before says nothing of its speed
            self._phase, self._began, self._printed = phase, (now, new), now
            return
        due = now - self._printed >= EVERY or (last and done == total)
        began, before = self._began
        if self._quiet or sys.stderr.isatty() or not due or new == before:
            return
        self._printed = now
        left = ""
        if total is not None and done < total:
            left = f", about {duration((now - began) * (total - done) / (new - before))} left"
        self._progress.line(line(left), err=True)


class PiecePrinter:
    """Prints how many pictures are in finished pieces.

    Args:
        printer: prints.

    Attributes:
        done: pictures in finished pieces.
        failed: those of them that could not be read or explained.
    """

    def __init__(self, printer: ProgressPrinter) -> None:
        self._printer = printer
        self.done = self.failed = 0

    def show(self, at: DatasetProgress) -> None:
        """Move the bar; without a terminal print a line now and then."""
        self.done, self.failed = at.done, at.failed

        def line(left: str) -> str:
            of = "" if at.total is None else f" of {at.total:,}"
            return f"{at.done:,}{of} pictures explained{left}"

        self._printer.show("pictures explained", at.done, at.total, line, new=at.new)


def warn_of_failed(failed: int, count: int, where: str) -> None:
    """Warn of pictures that failed, if any did.

    Args:
        failed: how many.
        count: of how many.
        where: says what says why, such as ``the report says why``.
    """
    if failed:
        echo(
            f"afmi: warning: {failed} of {count} pictures could not be read or explained; {where}",
            err=True,
        )
