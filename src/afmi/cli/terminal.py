"""What commands print: tables, warnings, and progress that never meets the results."""

from __future__ import annotations

import re
import sys
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import click

from afmi.errors import CompletenessWarning
from afmi.files import as_json
from afmi.progress import bar_of_rich, reporting

if TYPE_CHECKING:
    from rich.progress import Progress as RichProgress
    from rich.progress import TaskID

__all__ = ["Progress", "echo", "echo_json", "one_line_warnings", "print_table", "progress_shown"]

# Control characters, which could rewrite what a terminal shows, and marks that turn the direction
# of writing or end the line.
_HIDDEN = re.compile("[\x00-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069]")


def visible(text: str) -> str:
    """Return a text with its control characters written out, as JSON writes them.

    Example:
        >>> print(visible("\\x1b[2Jcat\\n"))
        \\u001b[2Jcat\\u000a
    """
    return _HIDDEN.sub(lambda match: f"\\u{ord(match[0]):04x}", text)


def echo(text: str, *, err: bool = False) -> None:
    """Print a line; everything that a command prints goes through here, or through a table."""
    click.echo(visible(text), err=err)


def echo_json(value: Any) -> None:
    """Print JSON, indented."""
    for line in as_json(value, indent=2).split("\n"):
        echo(line)


def print_table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print a table that fits the terminal; into a pipe or file, one line a row."""
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    terminal = sys.stdout.isatty()
    # Never wrapped in a pipe, so that grep and cut find whole rows.
    console = Console(file=sys.stdout, width=None if terminal else 10_000, highlight=False)
    table = Table(box=box.SIMPLE_HEAD if terminal else None, pad_edge=False, show_edge=False)
    for column in columns:
        table.add_column(column, overflow="fold")
    for row in rows:
        # Text, not str: brackets in a label are no markup.
        table.add_row(*(Text(visible(cell)) for cell in row))
    with console.capture() as capture:
        console.print(table)
    for line in capture.get().splitlines():
        click.echo(line.rstrip())


class Progress:
    """A bar on stderr, for several pictures or a long method; silent when that is no terminal.

    Args:
        total: how many steps there are.
        shown: whether the user wants to see it at all.
    """

    def __init__(self, total: int, *, shown: bool) -> None:
        self._total = total
        self._shown = shown and sys.stderr.isatty()
        self._bar: RichProgress | None = None
        self._tasks: dict[str, TaskID] = {}

    def __enter__(self) -> Progress:
        if self._total > 1:
            self._update("", 0, self._total, "pictures")
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    def step(self, description: str) -> None:
        """Count one picture as done."""
        if self._bar is not None and "" in self._tasks:
            self._bar.update(self._tasks[""], advance=1, description=visible(description))

    def within(self, what: str, done: int, total: int | None) -> None:
        """Show how far a method has come within a picture; an `afmi.progress.Reporter`.

        Args:
            what: is counted.
            done: how many.
            total: of how many; None: nobody knows.
        """
        self._update(what, done, total, what)

    def line(self, text: str, *, err: bool = False) -> None:
        """Print a line, above the bar where both share a terminal."""
        if self._bar is not None and (err or sys.stdout.isatty()):
            self._bar.console.print(visible(text), markup=False, highlight=False, soft_wrap=True)
        else:
            echo(text, err=err)

    def _update(self, key: str, done: int, total: int | None, description: str) -> None:
        if not self._shown:
            return
        if self._bar is None:
            self._bar = bar_of_rich()
            self._bar.start()
        if key not in self._tasks:
            self._tasks[key] = self._bar.add_task(description, total=total)
        self._bar.update(
            self._tasks[key], completed=done, total=total, visible=total is None or done < total
        )


@contextmanager
def progress_shown(total: int = 1, *, quiet: bool) -> Iterator[Progress]:
    """Show in this block a bar for ``total`` pictures, the methods' own progress, and warnings."""
    with (
        Progress(total, shown=not quiet) as progress,
        one_line_warnings(progress),
        reporting(progress.within),
    ):
        yield progress


@contextmanager
def one_line_warnings(progress: Progress | None = None) -> Iterator[None]:
    """Show each warning once, as ``afmi: warning: …`` on stderr, without a line of source.

    Of `CompletenessWarning`s that differ in their numbers alone the first three are shown: a long
    run would bring one for every batch, and the results hold the residual of every image.
    """
    shown: set[str] = set()
    kinds: Counter[str] = Counter()

    def show(message: Warning | str, *_: object, **__: object) -> None:
        text = f"afmi: warning: {' '.join(str(message).split())}"
        if text in shown:
            return
        shown.add(text)
        if isinstance(message, CompletenessWarning):
            kind = re.sub(r"\d+", "", text)
            kinds[kind] += 1
            if kinds[kind] > 3:
                return
            if kinds[kind] == 3:
                text += " (more of these, with other numbers, are not shown)"
        if progress is None:
            echo(text, err=True)
        else:
            progress.line(text, err=True)

    with warnings.catch_warnings():
        # Python shows a text once per place; the user wants each text once.
        warnings.simplefilter("always", UserWarning)
        warnings.showwarning = show
        yield
