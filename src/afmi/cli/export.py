"""``afmi export``: write a network with its map as one file, for ONNX Runtime without PyTorch."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import click

from afmi.cli.group import debug_option
from afmi.cli.options import SIZE, json_option, layer_option, model_options, quiet_option
from afmi.cli.terminal import echo, echo_json, one_line_warnings

__all__ = ["export"]


@click.command(short_help="Write a network with its map as one file, for use without PyTorch.")
@model_options
@layer_option
@click.option(
    "--target",
    "targets",
    multiple=True,
    metavar="LABEL|INDEX|given|predicted",
    help="Class that the file explains; may be repeated, for a map of each.  given: the file takes "
    "the class with each image.  predicted: always that.  [default: given]",
)
@click.option(
    "--reference",
    metavar="NAME|FILE",
    default="black",
    help="What pictures are compared with: black, white, random, mean, several joined by +, or an "
    "image file.",
)
@click.option(
    "--exact",
    is_flag=True,
    help="Do not average the modified gradients over places, so that the map sums to the change of "
    "the score on every network.",
)
@click.option(
    "--size", type=SIZE, metavar="PIXELS", help="Side of the images, or HxW.  [default: the crop]"
)
@click.option("--half", is_flag=True, help="Compute in 16 bits; the file has half the size.")
@click.option(
    "--out",
    type=click.Path(dir_okay=False, path_type=Path),
    default=Path("net-with-map.onnx"),
    metavar="FILE",
    help="The file: .onnx, or .pt2 for torch.export.load.",
)
@json_option("Print what was written as one JSON object.")
@quiet_option("Print errors only (and what --json prints).")
@debug_option
def export(
    network: dict[str, Any],
    layer: str | None,
    targets: tuple[str, ...],
    reference: str,
    exact: bool,
    size: int | tuple[int, int] | None,
    half: bool,
    out: Path,
    json_wanted: bool,
    quiet: bool,
) -> None:
    """Write one file that takes images and gives the network's outputs and the A-FMI map.

    It runs in ONNX Runtime, in C++, in a browser or on a phone. Images are in [0, 1]: the file
    normalises them itself. Before it gets its name it is run, and its maps are compared with ours.
    `pip install 'afmi[export]'` installs what is needed.

    \b
    Examples:
      afmi export --model photos --out photos-with-map.onnx
      afmi export --model resnet50 --target collie --target kelpie
      afmi export --model nets.py:build --weights net.pth --crop 64 --target predicted

    \b
    Exit codes: 0 written, 2 the network has no such form, or these options cannot be used.
    """
    from afmi.exporting import export as run
    from afmi.models import load_model

    model = load_model(**network, layer=layer)
    with one_line_warnings():
        exported = run(
            model.half() if half else model,
            out,
            classes=_classes(targets),
            reference=reference,
            averaged=not exact,
            size=size,
        )
    if json_wanted:
        echo_json({**dataclasses.asdict(exported), "path": str(exported.path)})
    elif not quiet:
        echo(
            f"{exported.path}  takes {', '.join(exported.inputs)}; gives "
            f"{', '.join(exported.outputs)}  at {exported.metadata['layer']}  its maps differ from "
            f"ours by {exported.difference:.0e} of the largest number"
        )


def _classes(targets: tuple[str, ...]) -> Any:
    """Return what `afmi.export` takes for the texts of --target."""
    if len(targets) <= 1 and (not targets or targets[0] in ("given", "predicted")):
        return targets[0] if targets else "given"
    return [int(text) if text.isdecimal() else text for text in targets]
