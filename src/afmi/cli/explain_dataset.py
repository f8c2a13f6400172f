"""``afmi explain-dataset``: explain every picture of a data set into tables that resume."""

from __future__ import annotations

import shlex
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from afmi.cli.explain import SOME_FAILED
from afmi.cli.group import INTERRUPTED, debug_option
from afmi.cli.options import (
    TARGET,
    asked_targets,
    batch_size_option,
    engine_options,
    layer_option,
    model_options,
    out_option,
    versus_option,
)
from afmi.cli.terminal import echo, progress_shown
from afmi.progress import duration

if TYPE_CHECKING:
    from afmi.cli.terminal import Progress as Bar
    from afmi.datasets.run import Progress
    from afmi.engines import Engine

__all__ = ["explain_dataset"]

_EVERY = 30
"""Seconds between lines of progress, where there is no terminal for a bar."""


@click.command("explain-dataset", short_help="Explain all pictures of a data set.")
@click.argument("source", metavar="SOURCE")
@click.option(
    "--image-key",
    metavar="NAME",
    help="Suffix of the pictures in tar files, or column of a list, where it is another.",
)
@model_options
@layer_option
@click.option(
    "--target",
    metavar=TARGET,
    help="Class to explain, or another target, such as output:index=3.  [default: the predicted "
    "class]",
)
@versus_option
@click.option(
    "--method",
    default="A-FMI",
    metavar="NAME",
    help="Explanation method (`afmi methods` lists them).",
)
@click.option(
    "--reference",
    metavar="NAME|FILE",
    help="What a picture is compared with, as in `afmi explain`.  [default: the method's]",
)
@click.option(
    "--vectors",
    type=click.Choice(["auto", "importance", "contribution", "none"]),
    default="auto",
    help="What is kept for each feature map: its importance (FMI), or what of the score's change "
    "goes through it.  [auto: the importance, where the method gives it]",
)
@click.option("--maps/--no-maps", default=True, help="Keep the maps, at the layer's size.")
@click.option("--pictures", is_flag=True, help="Draw an overlay of each picture, as a PNG file.")
@out_option("afmi-explanations", "Folder for the tables; the same command resumes a stopped run.")
@click.option(
    "--limit",
    type=click.IntRange(min=1),
    metavar="N",
    help="Explain N of the pictures, evenly spread (of tar files behind a URL, the first N).",
)
@batch_size_option
@click.option(
    "--threads", type=click.IntRange(min=1), metavar="N", help="CPU threads.  [default: PyTorch's]"
)
@engine_options
@click.option("--quiet", is_flag=True, help="Print errors only.")
@debug_option
@click.pass_context
def explain_dataset(
    ctx: click.Context,
    source: str,
    image_key: str | None,
    network: dict[str, Any],
    layer: str | None,
    target: str | None,
    versus: str | None,
    method: str,
    reference: str | None,
    vectors: str,
    maps: bool,
    pictures: bool,
    out: Path,
    limit: int | None,
    batch_size: int,
    threads: int | None,
    engine: Engine,
    quiet: bool,
) -> None:
    """Explain every picture of a data set, and keep what is found in Parquet tables.

    SOURCE is a folder with pictures at any depth, a quoted glob, a CSV or Parquet file with the
    column image, WebDataset's tar files (shard-{000..010}.tar), or a URL of such a folder or of tar
    files (s3://, https://, zip://…). For each picture a row holds its class and probability, the
    residual, the importance of each feature map, and the map at the layer's size: about 1 kB.
    `afmi.open_explanations(FOLDER)` reads them in Python.

    Tables are written whole as soon as they are done. Stop it at any time and give the same command
    again: it resumes, and ends with the same bytes, however many workers there are.

    \b
    Examples:
      afmi explain-dataset photographs/ --out explained
      afmi explain-dataset "train-{000..146}.tar" --model resnet50 --workers 4 --threads 1
      afmi explain-dataset s3://bucket/train --model resnet50 --engine ray --address auto
      afmi explain-dataset photos.parquet --target collie --vectors contribution --no-maps

    \b
    Exit codes: 0 all explained, 1 some pictures failed (their rows say why), 2 nothing to be done
    with these options, 130 stopped by Ctrl-C; what was finished is kept.
    """
    import torch

    from afmi.datasets import explain_dataset as run
    from afmi.models import load_model

    if threads is not None:
        torch.set_num_threads(threads)
    classifier = load_model(**network, layer=layer)
    (asked,) = asked_targets(classifier, () if target is None else (target,), versus) or (None,)
    with progress_shown(quiet=quiet) as progress:
        printer = _ProgressPrinter(progress, quiet=quiet)
        try:
            explanations = run(
                classifier,
                source,
                out,
                target=asked,
                method=method,
                reference=reference,
                vectors=None if vectors == "none" else vectors,  # type: ignore[arg-type]
                maps=maps,
                pictures=pictures,
                limit=limit,
                image_key=image_key,
                batch_size=batch_size,
                engine=engine,
                command=shlex.join(["afmi", *sys.argv[1:]]),
                on_piece=printer.show,
            )
        except KeyboardInterrupt:
            progress.line(
                f"afmi: interrupted; what was finished is in {out}, and the same command resumes",
                err=True,
            )
            ctx.exit(INTERRUPTED)
    count, failed = len(explanations), printer.failed
    if failed:
        echo(
            f"afmi: warning: {failed} of {count} pictures could not be read or explained; their "
            "rows say why",
            err=True,
        )
    if not quiet:
        echo(f"{count - failed} explanations → {out}")
    if failed:
        ctx.exit(SOME_FAILED)


class _ProgressPrinter:
    """Prints how many pictures are in finished pieces, and how long the others will take.

    Args:
        progress: what prints.
        quiet: whether the user wants errors only.
        clock: seconds.

    Attributes:
        failed: pictures that could not be read or explained.
    """

    def __init__(
        self, progress: Bar, *, quiet: bool, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._progress = progress
        self._quiet = quiet
        self._clock = clock
        self._began: float | None = None
        self._printed = 0.0
        self.failed = 0

    def show(self, at: Progress) -> None:
        """Move the bar; without a terminal print a line now and then."""
        self.failed = at.failed
        self._progress.within("pictures explained", at.done, at.total)
        now = self._clock()
        if self._began is None:  # loading says nothing of the pieces' speed
            self._began = self._printed = now
        if self._quiet or sys.stderr.isatty() or now - self._printed < _EVERY or not at.new:
            return
        self._printed = now
        line = f"{at.done:,} pictures explained"
        if at.total is not None:
            left = (now - self._began) / at.new * (at.total - at.done)
            line = f"{at.done:,} of {at.total:,} pictures explained, about {duration(left)} left"
        self._progress.line(line, err=True)
