"""A page for whoever reads no Python: a photograph in, what the network made of it out.

Needs the extra ``app``, Gradio, which is loaded when the page is built.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from torch import nn

from afmi.packages import imported

if TYPE_CHECKING:
    from gradio import Blocks

__all__ = ["HOST", "MOST_MEGABYTES", "PORT", "build", "serve"]

HOST = "127.0.0.1"
"""Where the page is served unless told otherwise: on this machine, and for it alone."""
PORT = 7860
MOST_MEGABYTES = 20
"""The largest file that may be uploaded unless told otherwise."""


def build(model: nn.Module, *, examples: Path | None = None) -> Blocks:
    """Return the page as Gradio's Blocks, to be mounted in a program of yours.

    `serve` serves it, and guards it as well.

    Args:
        model: a `Classifier` of pictures, as `afmi.load_model` returns it.
        examples: a folder of pictures to offer. None: some that come with scikit-image.

    Raises:
        UsageError: the page has no use for the network.
        MissingPackageError: Gradio is not installed.
        ImageError: there are no pictures in the folder.
    """
    imported("gradio", "the app", "afmi[app]")
    from afmi.app.page import page

    return page(model, examples=examples)


def serve(
    model: nn.Module,
    *,
    host: str = HOST,
    port: int = PORT,
    most_megabytes: float = MOST_MEGABYTES,
    examples: Path | None = None,
    accounts: dict[str, str] | None = None,
    on_ready: Callable[[str], object] | None = None,
) -> None:
    """Serve the page until KeyboardInterrupt, or until the program is asked to end (SIGTERM).

    Args:
        model: as in `build`.
        host: the address to listen at; others than 127.0.0.1 can be reached by other machines.
        port: from 1 to 65,535.
        most_megabytes: the largest file that may be uploaded.
        examples: as in `build`.
        accounts: passwords by their names, which the page asks for. None: it asks for none.
        on_ready: called with the page's address as soon as it can be opened.

    Raises:
        UsageError: the address is taken or does not exist; otherwise as for `build`.
        ImageError: as for `build`.
    """
    imported("gradio", "the app", "afmi[app]")
    from afmi.app.serving import served

    with served(
        model,
        host=host,
        port=port,
        most_megabytes=most_megabytes,
        examples=examples,
        accounts=accounts,
    ) as server:
        if on_ready is not None:
            on_ready(server.address)
        server.wait()
