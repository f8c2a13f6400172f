"""``afmi evaluate``: measure methods on labelled pictures, in pieces that are never lost."""

from __future__ import annotations

import math
import shlex
import sys
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import click

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
from afmi.cli.terminal import Progress, echo, progress_shown
from afmi.errors import AfmiError
from afmi.progress import duration

if TYPE_CHECKING:
    from afmi.engines import Engine
    from afmi.evaluation import Piece, Results
    from afmi.files import Location

__all__ = ["evaluate"]

_EVERY = 30
"""Seconds between lines of progress, where there is no terminal for a bar."""


@click.command(short_help="Measure methods on labelled pictures.")
@click.option(
    "--data",
    required=True,
    metavar="FOLDER|CSV|TAR|URL|mnist:DIR",
    help="A folder with one folder per class (ImageNet's layout too), a CSV file with the columns "
    "image and label, WebDataset's tar files (shard-{000..010}.tar), a URL of such a folder or of "
    "tar files (s3://, https://, zip://…), mnist:DIR or imagenet:DIR.",
)
@click.option(
    "--image-key",
    metavar="NAME",
    help="Suffix of the pictures in tar files, or column of a CSV file, where it is another.",
)
@click.option(
    "--label-key",
    metavar="NAME",
    help="Likewise of the labels: a suffix, a field of the JSON, or a column.",
)
@model_options
@click.option(
    "--target",
    metavar=TARGET,
    help="What is explained of every picture, such as output (a network's only value) or "
    "output:index=3.  [default: the class that it is labelled with]",
)
@versus_option
@click.option(
    "--methods",
    default="a-fmi,grad-cam,grad-cam++,deeplift,inputxgradient,gradient,random",
    metavar="all|A,B,C",
    help="Names joined by commas (`afmi methods` lists them), with parameters where wanted: "
    "a-fmi:averaged=false:reference=white.",
)
@click.option(
    "--metrics",
    metavar="all|A,B,C",
    help="Names joined by commas (`afmi metrics` lists them), with parameters where wanted: "
    "insertion:canvas=mean.  [default: insertion (value-insertion where no class is explained), "
    "completeness, cost]",
)
@out_option(
    "afmi-results",
    "Folder for the results, or its URL (s3://bucket/results); the same command resumes a stopped "
    "run.",
    remote=True,
)
@click.option(
    "--limit",
    type=click.IntRange(min=1),
    metavar="N",
    help="Evaluate N of the pictures, the classes taken in turn (of tar files behind a URL, the "
    "first N).",
)
@layer_option
@batch_size_option
@click.option(
    "--threads",
    type=click.IntRange(min=1),
    metavar="N",
    help="CPU threads of each process; part of what a run is, since they decide the last digits.  "
    "[default: PyTorch's]",
)
@engine_options
@click.option("--quiet", is_flag=True, help="Print errors only.")
@debug_option
@click.pass_context
def evaluate(
    ctx: click.Context,
    data: str,
    image_key: str | None,
    label_key: str | None,
    network: dict[str, Any],
    target: str | None,
    versus: str | None,
    methods: str,
    metrics: str | None,
    out: Location,
    limit: int | None,
    layer: str | None,
    batch_size: int,
    threads: int | None,
    engine: Engine,
    quiet: bool,
) -> None:
    """Explain labelled pictures by several methods and measure what the maps are worth.

    Every number is kept as a row (image, method, metric, value) in Parquet files, in pieces that
    are written whole as soon as they are done. Stop it at any time and give the same command
    again: it resumes, and ends with the same numbers. `afmi report FOLDER` makes the tables.

    With a --target that is no class (a regression's value, say) the pictures need no labels.

    \b
    Examples:
      afmi evaluate --data photographs/ --methods a-fmi,grad-cam,random --limit 200
      afmi evaluate --data val/ --model resnet50 --methods all --out results/resnet50
      afmi evaluate --data labels.csv --model my_net.py:build --weights my_net.safetensors
      afmi evaluate --data "https://example.org/val-{000..010}.tar" --limit 500
      afmi evaluate --data houses/ --model nets.py:price --output value --target output
      afmi evaluate --data val/ --workers 4 --threads 1
      afmi evaluate --data val/ --engine ray --address auto --workers 16 --gpus-per-worker 1
      afmi report afmi-results

    \b
    Exit codes: 0 all went well (pictures that failed are named in the report), 2 nothing to be
    done with these options, 130 stopped by Ctrl-C; what was finished is kept.
    """
    import torch

    from afmi.evaluation import evaluate as run
    from afmi.models import load_model

    if threads is not None:
        torch.set_num_threads(threads)
    classifier = load_model(**network, layer=layer)
    (asked,) = asked_targets(classifier, () if target is None else (target,), versus) or (None,)
    command = shlex.join(["afmi", *sys.argv[1:]])
    with progress_shown(quiet=quiet) as progress:
        printer = _ProgressPrinter(progress, quiet=quiet)
        try:
            results = run(
                classifier,
                data,
                out,
                target=asked,
                methods=methods,
                metrics=metrics,
                limit=limit,
                image_key=image_key,
                label_key=label_key,
                batch_size=batch_size,
                engine=engine,
                command=command,
                on_begin=printer.begin,
                on_method=printer.method,
                on_refusal=printer.refusal,
            )
        except KeyboardInterrupt:
            progress.line(
                f"afmi: interrupted; what was finished is in {out}, and the same command resumes",
                err=True,
            )
            ctx.exit(INTERRUPTED)
    failed = {i for label in results.methods for i in results.errors(label)}
    if failed:
        echo(
            f"afmi: warning: {len(failed)} of {len(results.images)} pictures could not be read or "
            "explained; the report says why",
            err=True,
        )
    if not quiet:
        echo(f"results → {out}; `afmi report {shlex.quote(str(out))}` makes the tables")


class _ProgressPrinter:
    """Prints the progress of an evaluation, and what each method scored.

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
        self._began: float | None = None
        self._printed = 0.0

    def begin(self, piece: Piece, done: float, total: float) -> None:
        """Move the bar; without a terminal print a line now and then."""
        known = math.isfinite(total)
        self._progress.within(
            "passes through the network", int(done), int(total) if known else None
        )
        now = self._clock()
        if self._began is None:  # loading says nothing of the pieces' speed
            self._began = self._printed = now
        if self._quiet or sys.stderr.isatty() or now - self._printed < _EVERY or not done:
            return
        self._printed = now
        part = f"{done:,.0f} passes through the network so far"
        if known:
            left = (now - self._began) * (total - done) / done
            part = f"{done / total:.0%} of this run, about {duration(left)} left"
        self._progress.line(f"{piece.label}: from picture {piece.start}; {part}", err=True)

    def method(self, label: str, results: Results) -> None:
        """Print a method's headline; a damaged piece is reported, but stops no other method."""
        if self._quiet:
            return
        import numpy as np

        try:
            measured = results.read(label)
        except AfmiError as error:
            self._progress.line(f"afmi: warning: {error}", err=True)
            return
        parts = [f"{label}:"]
        for name, text in (
            ("insertion/accuracy_auc", "Accuracy-AUC {:.4f}"),
            ("value_insertion/value_auc", "Value-AUC {:.4g}"),
            ("cost/seconds", "{:.3g} s per picture"),
        ):
            if name in measured.values:
                parts.append(text.format(np.nanmean(measured.values[name])))
        if measured.errors:
            parts.append(f"{len(measured.errors)} of {len(results.images)} pictures failed")
        self._progress.line("  ".join(parts))

    def refusal(self, label: str, reason: str) -> None:
        """Say that a method cannot be used."""
        self._progress.line(f"afmi: {label} left out: {reason}", err=True)
