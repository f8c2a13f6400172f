"""``afmi demo``: a tour on real photographs."""

from __future__ import annotations

from pathlib import Path

import click

from afmi.cli.group import debug_option
from afmi.cli.options import out_option, writable_folder
from afmi.cli.terminal import echo, one_line_warnings

__all__ = ["demo"]


@click.command(short_help="Explain a few real photographs, offline, in under a minute.")
@out_option("afmi-demo", "Folder for the pictures and the page that shows them.")
@debug_option
def demo(out: Path) -> None:
    """Explain a few real photographs with two networks: no download, under a minute.

    One network knows the thousand classes of ImageNet, the other is the small one of afmi's own.
    A-FMI stands beside Grad-CAM and Gradient; the pictures and one HTML page that shows them go to
    a folder, and what to try next is printed.

    \b
    Examples:
      afmi demo
      afmi demo --out /tmp/tour
    """
    writable_folder(out)
    from afmi.demo.run import run_demo

    with one_line_warnings():
        run_demo(out, report=echo)
