"""``afmi train``: train what a method needs beside the network, resumable."""

from __future__ import annotations

import shlex
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from afmi.cli.group import INTERRUPTED, debug_option
from afmi.cli.options import model_options
from afmi.cli.terminal import Progress, echo, progress_shown
from afmi.progress import duration

__all__ = ["train"]

_EVERY = 30
"""Seconds between lines of progress, where there is no terminal for a bar."""


@click.command(short_help="Train the masks of the masking model for a network.")
@click.argument("name", metavar="NAME", type=click.Choice(["masking-model"]))
@click.option(
    "--data",
    required=True,
    metavar="FOLDER|CSV|TAR|URL|mnist:DIR",
    help="Labelled pictures, as for `afmi evaluate`: best those that the network was trained on.",
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
@click.option(
    "--limit",
    type=click.IntRange(min=2),
    metavar="N",
    help="Train on N of the pictures, the classes taken in turn.",
)
@click.option("--seed", type=int, default=0, help="Of everything drawn.")
@click.option(
    "--threads", type=click.IntRange(min=1), metavar="N", help="CPU threads.  [default: PyTorch's]"
)
@click.option("--quiet", is_flag=True, help="Print errors only.")
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
    threads: int | None,
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
    import torch

    from afmi.models import load_model
    from afmi.training import Recipe, train_masking_model
    from afmi.training.masking_model import checkpoint_of

    if threads is not None:
        torch.set_num_threads(threads)
    recipe = Recipe(epochs=epochs, batch_size=batch_size, learning_rate=learning_rate, seed=seed)
    with progress_shown(quiet=quiet) as progress:
        printer = _StepPrinter(progress, quiet=quiet)
        try:
            train_masking_model(
                load_model(**network),
                data,
                out,
                recipe=recipe,
                limit=limit,
                on_step=printer.step,
            )
        except KeyboardInterrupt:
            kept = (
                "the last checkpoint is kept, and the same command resumes"
                if checkpoint_of(out).exists()
                else "there is no checkpoint yet, and the same command begins again"
            )
            progress.line(f"afmi: interrupted; {kept}", err=True)
            ctx.exit(INTERRUPTED)
    if not quiet:
        spec = f"{name}:weights={shlex.quote(str(out))}"
        echo(f"masks → {out}; `--method {spec}` explains with them")


class _StepPrinter:
    """Prints how far a phase of a training is, the loss of its last step, and the time left.

    Args:
        progress: what prints.
        quiet: whether the user wants errors only.
        clock: seconds.
    """

    def __init__(
        self, progress: Progress, *, quiet: bool, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._progress = progress
        self._quiet = quiet
        self._clock = clock
        self._phase = ""
        self._began = (0.0, 0)
        self._printed = 0.0

    def step(self, phase: str, done: int, total: int, loss: float) -> None:
        """Move the bar; without a terminal print a line now and then."""
        self._progress.within(phase, done, total)
        now = self._clock()
        if phase != self._phase:  # how long a step takes is known from its end to the next one's
            self._phase, self._began, self._printed = phase, (now, done), now
            return
        due = now - self._printed >= _EVERY or done == total
        if self._quiet or sys.stderr.isatty() or not due:
            return
        self._printed = now
        began, before = self._began
        left = duration((now - began) * (total - done) / (done - before))
        time_left = "" if done == total else f", about {left} left"
        self._progress.line(
            f"{phase}: step {done} of {total}, loss {loss:.3f}{time_left}", err=True
        )
