"""``afmi compare``: several methods on one picture, side by side."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from afmi.cli.group import debug_option
from afmi.cli.options import (
    TARGET,
    asked_target,
    json_option,
    layer_option,
    model_options,
    out_option,
    quiet_option,
    versus_option,
    writable_folder,
)
from afmi.cli.runs import stoppable
from afmi.cli.terminal import echo, echo_json

if TYPE_CHECKING:
    from afmi.explanation import Explanation

__all__ = ["compare"]


@click.command(short_help="Compare methods on one picture, side by side.")
@click.argument("image", metavar="IMAGE")
@click.option(
    "--methods",
    default="a-fmi,grad-cam,grad-cam++,deeplift,integratedgradients,gradient,random",
    metavar="all|A,B,C",
    help="Names joined by commas (`afmi methods` lists them), or all, which takes minutes. "
    "Parameters follow a colon: a-fmi:reference=white.",
)
@click.option(
    "--target",
    metavar=TARGET,
    help="Class to explain, or another target, such as output:index=3.  [default: the predicted "
    "class]",
)
@versus_option
@model_options
@layer_option
@out_option(
    "afmi-out",
    "Folder for the figure, its numbers and, for each method, pictures and record.",
)
@json_option()
@quiet_option("Print errors only (and what --json prints).")
@debug_option
@click.pass_context
def compare(
    ctx: click.Context,
    image: str,
    methods: str,
    target: str | None,
    versus: str | None,
    network: dict[str, Any],
    layer: str | None,
    out: Path,
    json_wanted: bool,
    quiet: bool,
) -> None:
    """Explain one picture by several methods, and show what each puts first.

    The figure has a column for each method: its map over the picture, then the picture's most
    important 5, 10, 20, 30, 40 and 50 % of the pixels on black, with the probability that the
    network then gives the class, or the score of another target. The time that it will take is
    printed beforehand; each method is saved as soon as it is done, so Ctrl-C loses nothing.

    \b
    Examples:
      afmi compare cat.jpg
      afmi compare cat.jpg --methods all
      afmi compare dog.jpg --model resnet50 --target collie --methods a-fmi,xrai,rise
      afmi compare dog.jpg --model resnet50 --target malamute --versus "Eskimo dog"

    \b
    Exit codes: 0 all went well (unsupported methods are named), 2 nothing to be done with these
    options, 130 stopped by Ctrl-C; what was finished is kept.
    """
    from afmi.batching import prepare
    from afmi.comparison import compare as run
    from afmi.comparison import estimate
    from afmi.methods import chosen_methods
    from afmi.models import load_model

    classifier = load_model(**network, layer=layer)
    prepared = prepare(classifier, image)  # once for all methods
    chosen = list(chosen_methods(classifier, methods).values())
    asked = asked_target(classifier, target, versus)
    writable_folder(out)
    talks = not (quiet or json_wanted)
    stem = Path(image).stem

    def kept() -> str:
        return f"what was finished is in {out}"

    with stoppable(ctx, kept, quiet=quiet, total=len(chosen)) as progress:
        if talks:
            estimated = estimate(classifier, prepared, chosen)
            progress.line(f"{len(chosen)} methods, {estimated.text()}")

        def save(explanation: Explanation, seconds: float) -> None:
            files = explanation.save(out, stem)
            progress.step(explanation.method)
            if talks:
                progress.line(f"{explanation.method}  {seconds:.1f} s  → {files['figure']}")

        comparison = run(classifier, prepared, asked, methods=chosen, on_result=save)
    figure = comparison.save(out, stem)["figure"]
    for name, reason in comparison.refused.items():
        echo(f"afmi: {name} left out: {reason}", err=True)
    if json_wanted:
        echo_json({**comparison.to_dict(), "figure": str(figure)})
    elif talks:
        echo(f"side by side → {figure}")
