"""``afmi app``: a page for whoever reads no Python."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from afmi.cli.group import debug_option
from afmi.cli.options import layer_option, model_options, threads_option
from afmi.cli.terminal import echo, one_line_warnings
from afmi.errors import UsageError

__all__ = ["app"]


@click.command(short_help="Explain photographs on a page in the browser.")
@model_options
@layer_option
@click.option(
    "--host",
    default="127.0.0.1",
    metavar="ADDRESS",
    help="Address to listen at; 0.0.0.0 lets other machines in.",
)
@click.option("--port", type=click.IntRange(1, 65535), default=7860, metavar="N")
@click.option(
    "--max-upload",
    type=click.FloatRange(min=0, min_open=True),
    default=20,
    metavar="MB",
    help="The largest file that visitors may bring.",
)
@click.option(
    "--examples",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    metavar="FOLDER",
    help="Pictures to offer.  [default: some that come with scikit-image]",
)
@click.option(
    "--accounts",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    metavar="FILE",
    help="Ask for a password: a file with one NAME:PASSWORD a line.",
)
@threads_option
@debug_option
def app(
    network: dict[str, Any],
    layer: str | None,
    host: str,
    port: int,
    max_upload: float,
    examples: Path | None,
    accounts: Path | None,
) -> None:
    """Serve a page on which photographs are explained, for whoever reads no Python.

    Drop a photograph, take one with the camera or choose an example: the page says what the network
    sees in it, and shows the map of any class by any method that the network allows, with what was
    checked in words, and the record to save. It needs no connection to the internet, loads nothing
    from elsewhere, and is served to this machine alone unless --host says otherwise. What visitors
    bring is deleted after an hour, and when the page ends. Needs pip install 'afmi[app]'.

    \b
    Examples:
      afmi app
      afmi app --model resnet50 --weights resnet50.safetensors
      afmi app --model nets.py:build --weights net.pth --crop 224 --labels names.txt
      afmi app --examples photographs/ --host 0.0.0.0 --accounts accounts.txt

    \b
    Exit codes: 2 nothing to be done with these options, 130 stopped by Ctrl-C.
    """
    known = None if accounts is None else _accounts(accounts)
    from afmi.app import serve
    from afmi.app.guard import is_for_this_machine
    from afmi.models import load_model

    if known is None and not is_for_this_machine(host):
        echo(
            f"afmi: warning: whoever reaches {host} can use the page, which asks for no password; "
            "give --accounts FILE, or leave --host out",
            err=True,
        )
    with one_line_warnings():
        classifier = load_model(**network, layer=layer)
        serve(
            classifier,
            host=host,
            port=port,
            most_megabytes=max_upload,
            examples=examples,
            accounts=known,
            on_ready=lambda address: echo(f"{classifier.name}: open {address} (Ctrl-C ends it)"),
        )


def _accounts(file: Path) -> dict[str, str]:
    """Return the passwords in a file by their names.

    Raises:
        UsageError: it holds none, or something else.
    """
    lines = [line for line in file.read_text("utf-8").splitlines() if line.strip()]
    pairs = [line.partition(":") for line in lines]
    if not pairs or not all(name.strip() and password for name, _, password in pairs):
        raise UsageError(f"expected one NAME:PASSWORD a line in '{file}', got something else")
    return {name.strip(): password for name, _, password in pairs}
