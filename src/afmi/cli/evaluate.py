"""``afmi evaluate``: measure methods on labelled pictures, in pieces that are never lost."""

from __future__ import annotations

import math
import shlex
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import click

from afmi.cli.group import debug_option
from afmi.cli.options import (
    TARGET,
    asked_target,
    data_option,
    image_key_option,
    label_key_option,
    layer_option,
    limit_option,
    model_options,
    out_option,
    pieces_options,
    quiet_option,
    versus_option,
)
from afmi.cli.runs import ProgressPrinter, command_line, kept_in, stoppable, warn_of_failed
from afmi.cli.terminal import Progress, echo
from afmi.errors import AfmiError

if TYPE_CHECKING:
    from afmi.engines import Engine
    from afmi.evaluation import Piece, Results
    from afmi.files import Location

__all__ = ["evaluate"]


@click.command(short_help="Measure methods on labelled pictures.")
@data_option(
    "A folder with one folder per class (ImageNet's layout too), a CSV file with the columns "
    "image and label, WebDataset's tar files (shard-{000..010}.tar), a URL of such a folder or of "
    "tar files (s3://, https://, zip://…), mnist:DIR or imagenet:DIR.",
)
@image_key_option
@label_key_option
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
@limit_option(
    "Evaluate N of the pictures, the classes taken in turn (of tar files behind a URL, the first "
    "N)."
)
@layer_option
@pieces_options
@quiet_option()
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
    from afmi.evaluation import evaluate as run
    from afmi.models import load_model

    classifier = load_model(**network, layer=layer)
    asked = asked_target(classifier, target, versus)
    with stoppable(ctx, kept_in(out), quiet=quiet) as progress:
        printer = _MethodPrinter(progress, quiet=quiet)
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
            command=command_line(),
            on_begin=printer.begin,
            on_method=printer.method,
            on_refusal=printer.refusal,
        )
    failed = {i for label in results.methods for i in results.errors(label)}
    warn_of_failed(len(failed), len(results.images), "the report says why")
    if not quiet:
        echo(f"results → {out}; `afmi report {shlex.quote(str(out))}` makes the tables")


class _MethodPrinter:
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
        self._printer = ProgressPrinter(progress, quiet=quiet, clock=clock)

    def begin(self, piece: Piece, done: float, total: float) -> None:
        """Move the bar; without a terminal print a line now and then."""
        known = total if math.isfinite(total) else None

        def line(left: str) -> str:
            part = f"{done:,.0f} passes through the network so far"
            if known is not None:
                part = f"{done / known:.0%} of this run{left}"
            return f"{piece.label}: from picture {piece.start}; {part}"

        self._printer.show("passes through the network", done, known, line)

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
