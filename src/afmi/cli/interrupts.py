"""Ctrl-C: raised where Python can stop, and not where it would be lost or crash the process."""

from __future__ import annotations

import _thread
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

__all__ = ["interruptible"]

_WAIT = 0.05
"""Seconds until an interruption is raised again."""


@contextmanager
def interruptible() -> Iterator[None]:
    """Raise KeyboardInterrupt at Ctrl-C in this block, but in an import at its end.

    PyTorch's C++ code, which a module's import runs, ends the process at an exception, and other
    libraries turn it into errors of theirs. An interruption that falls into a destructor, whose
    exceptions Python only prints, is raised again.
    """
    outside = threading.current_thread() is not threading.main_thread()
    if outside or signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        yield  # whoever has a handler of their own shall keep it
        return
    hook = sys.unraisablehook

    def on_unraisable(unraisable: Any) -> None:
        if issubclass(unraisable.exc_type, KeyboardInterrupt):
            _again()
        else:
            hook(unraisable)

    signal.signal(signal.SIGINT, _on_interrupt)
    sys.unraisablehook = on_unraisable
    try:
        yield
    finally:
        sys.unraisablehook = hook
        signal.signal(signal.SIGINT, signal.default_int_handler)


def _on_interrupt(_signal: int, frame: FrameType | None) -> None:
    while frame is not None:
        if frame.f_code.co_filename.startswith("<frozen importlib"):
            _again()
            return
        frame = frame.f_back
    raise KeyboardInterrupt


def _again() -> None:
    timer = threading.Timer(_WAIT, _thread.interrupt_main)
    timer.daemon = True
    timer.start()
