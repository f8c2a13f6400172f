"""What belongs to one visitor, how long work is stopped, and what it warned of."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

from afmi.app.photographs import Photograph
from afmi.comparison import Comparison
from afmi.explanation import Explanation
from afmi.progress import Reporter, reporting

__all__ = ["Explained", "Session", "StoppedError", "Subject", "noted_warnings"]


class StoppedError(Exception):
    """The visitor stopped the work, or chose another photograph meanwhile."""


@dataclass(eq=False)
class Explained:
    """An explanation, and what was computed of it.

    Attributes:
        explanation: of a photograph.
        curve: what the network answers for ever more of the pixels that it ranks first; empty
            until somebody looks at it.
    """

    explanation: Explanation
    curve: tuple[float, ...] = ()


@dataclass(eq=False)
class Subject:
    """A photograph, and all that was made of it, so that nothing is ever shown beside another.

    Attributes:
        photograph: the one chosen.
        explained: the last explanation of it.
        comparison: the last one of it.
    """

    photograph: Photograph
    explained: Explained | None = None
    comparison: Comparison | None = None


@dataclass
class Session:
    """What one visitor sees, and no other.

    Several threads work for a visitor who is quick: each reads `subject` once and keeps to it.

    Attributes:
        subject: the photograph chosen, with what was made of it.
        stops: how often work was stopped.
    """

    subject: Subject | None = None
    stops: int = 0

    def take(self, photograph: Photograph | None) -> None:
        """Choose a photograph, and forget all of the one before."""
        self.subject = None if photograph is None else Subject(photograph)
        self.stop()  # after it, so that no work begins for the one before and is not stopped

    def stop(self) -> None:
        """Let the work that is done for the visitor end at its next step."""
        self.stops += 1

    @contextmanager
    def working(self, show: Reporter) -> Iterator[Callable[[], None]]:
        """Report progress in this block, and end it where the visitor stops it.

        Args:
            show: gets the progress.

        Yields:
            What raises where the work was stopped: before its outcome is kept, say.

        Raises:
            StoppedError: at a step of the work, or when asked.
        """
        begun = self.stops

        def check() -> None:
            if self.stops != begun:
                raise StoppedError

        def step(what: str, done: int, total: int) -> None:
            check()
            show(what, done, total)

        with reporting(step):
            yield check


_noted: ContextVar[list[str] | None] = ContextVar("afmi_app_warnings", default=None)
_installing = threading.Lock()


@contextmanager
def noted_warnings() -> Iterator[list[str]]:
    """Collect what this thread is warned of in this block; other threads have lists of their own.

    Python's warnings belong to the whole process. The first block redirects them for good: whoever
    puts them back as they were, such as a thread that reads a file meanwhile, then puts back this.
    """
    _listen()
    notes: list[str] = []
    token = _noted.set(notes)
    try:
        yield notes
    finally:
        _noted.reset(token)


def _listen() -> None:
    with _installing:
        if not isinstance(warnings.showwarning, _Listener):
            warnings.showwarning = _Listener(warnings.showwarning)
            warnings.simplefilter("always", UserWarning)


@dataclass(frozen=True)
class _Listener:
    """Note what a visitor's thread is warned of, and show everything else as before."""

    show: Callable[..., None]

    def __call__(
        self, message: Warning | str, category: type[Warning], *rest: Any, **more: Any
    ) -> None:
        notes = _noted.get()
        if notes is None or not issubclass(category, UserWarning):
            self.show(message, category, *rest, **more)
            return
        text = " ".join(str(message).split())
        if text not in notes:
            notes.append(text)
