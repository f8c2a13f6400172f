"""``afmi train``: train what a method needs beside the network, stoppable."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from afmi.cli.group import debug_option
from afmi.cli.options import (
    data_option,
    limit_option,
    model_options,
    quiet_option,
    threads_option,
)
from afmi.cli.runs import ProgressPrinter, stoppable
from afmi.cli.terminal import echo

__all__ = ["train"]


@click.command(short_help="Train the masks of the masking model for a network.")
@click.argument("name", metavar="NAME", type=click.Choice(["masking-model"]))
@data_option(
    "Labelled pictures, as for `afmi evaluate`: best those that the network was trained on."
)
@model_options
@click.option(
    "--out",
    required=True,
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE",
    help="File to write (.safetensors); a checkpoint lies beside it meanwhile, and the same "
    "command resumes.",
)
@click.option(
    "--epochs", type=click.IntRange(min=1), default=1, help="How often the masks see each picture."
)
@click.option(
    "--batch-size", type=click.IntRange(min=2), default=16, metavar="N", help="Pictures in a step."
)
@click.option(
    "--learning-rate",
    type=click.FloatRange(min=0, min_open=True),
    default=2e-3,
    metavar="RATE",
    help="The highest one of Adam for the masks.",
)
@limit_option("Train on N of the pictures, the classes taken in turn.", least=2)
@click.option("--seed", type=int, default=0, help="Of everything drawn.")
@threads_option
@quiet_option()
@debug_option
@click.pass_context
def train(
    ctx: click.Context,
    name: str,
    data: str,
    network: dict[str, Any],
    out: Path,
    epochs: int,
    batch_size: int,
    learning_rate: float,
    limit: int | None,
    seed: int,
    quiet: bool,
) -> None:
    """Train masks for a network: masking-model (Dabkowski & Gal 2017).

    A decoder over the network's own feature maps learns to mark what, kept alone, keeps a class.
    The network itself stays as it is. Afterwards a mask takes one forward pass. Stop it at any time
    and give the same command again: it resumes, and ends with the same masks.

    \b
    Examples:
      afmi train masking-model --data photographs/train --out masks.safetensors
      afmi train masking-model --model resnet50 --data imagenet/train --out masks.safetensors
      afmi explain dog.jpg --model resnet50 --method masking-model:weights=masks.safetensors

    \b
    Exit codes: 0 all went well, 2 nothing to be done with these options, 130 stopped by Ctrl-C;
    at most a minute's work is lost.
    """
    from afmi.models import load_model
    from afmi.training import Recipe, train_masking_model
    from afmi.training.masking_model import checkpoint_of

    def kept() -> str:
        if checkpoint_of(out).exists():
            return "the last checkpoint is kept, and the same command resumes"
        return "there is no checkpoint yet, and the same command begins again"

    recipe = Recipe(epochs=epochs, batch_size=batch_size, learning_rate=learning_rate, seed=seed)
    with stoppable(ctx, kept, quiet=quiet) as progress:
        train_masking_model(
            load_model(**network),
            data,
            out,
            recipe=recipe,
            limit=limit,
            on_step=_step_printer(ProgressPrinter(progress, quiet=quiet)),
        )
    if not quiet:
        spec = f"{name}:weights={shlex.quote(str(out))}"
        echo(f"masks → {out}; `--method {spec}` explains with them")


def _step_printer(printer: ProgressPrinter) -> Callable[[str, int, int, float], None]:
    """Return what prints how far a phase of a training is, and the loss of its last step."""

    def step(phase: str, done: int, total: int, loss: float) -> None:
        line = f"{phase}: step {done} of {total}, loss {loss:.3f}"
        printer.show(phase, done, total, lambda left: f"{line}{left}", last=True)

    return step
