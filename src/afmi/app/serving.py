"""Serve the page: where, for whom, and with which limits."""

from __future__ import annotations

import os
import signal
import socket
import tempfile
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import nn

from afmi.app.guard import Guard, is_for_this_machine
from afmi.app.page import page
from afmi.errors import UsageError

__all__ = ["Server", "check_address", "served"]

_MEGABYTE = 1_000_000
_TEMPORARY = "GRADIO_TEMP_DIR"
_VISITORS = 100
"""How many sessions are kept; the oldest makes room."""


@dataclass(frozen=True)
class Server:
    """A page that is being served.

    Attributes:
        address: of the page.
        blocks: the page.
    """

    address: str
    blocks: Any
    _ended: threading.Event = field(default_factory=threading.Event)

    def wait(self) -> None:
        """Return when the program is asked to end; raise KeyboardInterrupt at Ctrl-C."""
        before = None
        if threading.current_thread() is threading.main_thread():
            # Without this the program would end at once, and leave the visitors' files behind.
            before = signal.signal(signal.SIGTERM, lambda *_: self._ended.set())
        try:
            while not self._ended.wait(1):  # in steps, so that every system notices Ctrl-C
                pass
        finally:
            if before is not None:
                signal.signal(signal.SIGTERM, before)


def check_address(host: str, port: int) -> None:
    """Raise a `UsageError` where the page cannot be served, before it is built."""
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        with socket.socket(family, socket.SOCK_STREAM) as tried:
            # As the server does, so that a port that was just given up can be had.
            tried.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            tried.bind((host, port))
    except OSError as error:
        raise _unusable(host, port) from error


def _unusable(host: str, port: int) -> UsageError:
    return UsageError(
        f"the page cannot be served at {host}:{port}, which is in use or no address of this "
        "machine; choose another --port or --host"
    )


@contextmanager
def served(
    model: nn.Module,
    *,
    host: str,
    port: int,
    most_megabytes: float,
    examples: Path | None = None,
    accounts: Mapping[str, str] | None = None,
) -> Iterator[Server]:
    """Serve the page within this block; see `afmi.app.serve`.

    What visitors upload and save lies in a folder that only this user can read, and that is removed
    at the end.
    """
    from starlette.middleware import Middleware

    check_address(host, port)
    most_bytes = int(most_megabytes * _MEGABYTE)
    # With passwords no other name is dangerous: browsers keep them by the name of the page.
    local = is_for_this_machine(host) and not accounts
    with tempfile.TemporaryDirectory(prefix="afmi-app-") as folder, _environment(folder):
        blocks = page(model, examples=examples)
        try:
            _, address, _ = blocks.launch(
                server_name=host,
                server_port=port,
                max_file_size=most_bytes,
                auth=None if not accounts else list(accounts.items()),
                theme=_theme(),
                app_kwargs={"middleware": [Middleware(Guard, most_bytes=most_bytes, local=local)]},
                state_session_capacity=_VISITORS,
                prevent_thread_lock=True,
                quiet=True,
                inbrowser=False,
                share=False,
                show_error=False,
                footer_links=[],
                run_history=False,
                enable_monitoring=False,
                mcp_server=False,
                ssr_mode=False,
                pwa=False,
            )
        except OSError as error:
            raise _unusable(host, port) from error
        try:
            yield Server(address, blocks)
        finally:
            blocks.close(verbose=False)


def _theme() -> Any:
    """Return Gradio's own theme with the system's fonts, and colours that everyone can read."""
    from gradio.themes import Default

    theme = Default(font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"])
    return theme.set(
        body_text_color_subdued="*neutral_600",
        block_info_text_color="*neutral_600",
        color_accent="*primary_700",
        button_primary_background_fill="*primary_700",
        button_primary_background_fill_hover="*primary_800",
        button_primary_background_fill_dark="*primary_700",
        button_primary_background_fill_hover_dark="*primary_800",
    )


@contextmanager
def _environment(folder: str) -> Iterator[None]:
    """Let Gradio keep its files in a folder."""
    before = os.environ.get(_TEMPORARY)
    os.environ[_TEMPORARY] = folder
    try:
        yield
    finally:
        if before is None:
            del os.environ[_TEMPORARY]
        else:
            os.environ[_TEMPORARY] = before
