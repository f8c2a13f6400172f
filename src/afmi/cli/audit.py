"""``afmi audit``: find classes that a network recognises for two reasons."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from afmi.cli.group import debug_option
from afmi.cli.options import (
    data_option,
    image_key_option,
    json_option,
    label_key_option,
    layer_option,
    limit_option,
    model_options,
    out_option,
    pieces_options,
    quiet_option,
    reference_option,
)
from afmi.cli.runs import (
    PiecePrinter,
    ProgressPrinter,
    command_line,
    kept_in,
    stoppable,
    warn_of_failed,
)
from afmi.cli.terminal import echo, echo_json, print_table

if TYPE_CHECKING:
    from afmi.auditing import Audit
    from afmi.engines import Engine
    from afmi.files import Location

__all__ = ["audit"]


@click.command(short_help="Find classes that are recognised for two reasons.")
@data_option("Labelled pictures, as in `afmi evaluate`.")
@image_key_option
@label_key_option
@model_options
@layer_option
@reference_option("What a picture is compared with, as in `afmi explain`.  [default: black]")
@click.option(
    "--classes",
    metavar="A,B,C",
    help="Audit these classes only, by label or index.  [default: all that have pictures]",
)
@click.option(
    "--versus",
    metavar="LABEL|INDEX",
    help="Ask why pictures are recognised as their class rather than as this one.",
)
@click.option(
    "--all-classes",
    is_flag=True,
    help="Describe pictures by what speaks for any audited class, and not for their own alone.",
)
@click.option(
    "--threshold",
    type=click.FloatRange(-1, 1),
    metavar="S",
    help="Mean silhouette from which a group stands apart.  [default: 0.4]",
)
@click.option(
    "--confirm/--no-confirm",
    default=True,
    help="Change pictures of groups apart to see what the network says.",
)
@click.option(
    "--seed",
    type=click.IntRange(min=0),
    default=0,
    metavar="N",
    help="Of the groups, of resampling, and of the controls.",
)
@out_option(
    "afmi-audit",
    "Folder for the page and the tables, or its URL; the same command resumes a stopped run.",
    remote=True,
)
@limit_option("Audit N of the pictures, the classes taken in turn.")
@pieces_options
@json_option("Print the record as JSON.")
@quiet_option()
@debug_option
@click.pass_context
def audit(
    ctx: click.Context,
    data: str,
    image_key: str | None,
    label_key: str | None,
    network: dict[str, Any],
    layer: str | None,
    reference: str | None,
    classes: str | None,
    versus: str | None,
    all_classes: bool,
    threshold: float | None,
    confirm: bool,
    seed: int,
    out: Location,
    limit: int | None,
    batch_size: int,
    engine: Engine,
    json_wanted: bool,
    quiet: bool,
) -> None:
    """Look for classes that a network recognises for two reasons, of which one may be wrong.

    For every picture it computes what goes through each feature map to the score of its class, and
    finds pictures of a class that stand apart by that, such as those with a watermark. The page
    shows them with the place of what tells them apart, and what the network says when that is
    pasted into pictures of other classes or removed. Whether the network should use it, you say.

    Prints a line a class, the most suspicious first, and writes audit.html, audit.json,
    classes.csv, images.csv and, for other tools, the contributions as Parquet tables.

    \b
    Examples:
      afmi audit --data photographs/
      afmi audit --data val/ --model resnet50 --batch-size 32 --out audits/resnet50
      afmi audit --data scans.csv --model my_net.py:build --weights my_net.pt --versus healthy
      afmi audit --data val/ --engine ray --address auto --workers 16

    \b
    Exit codes: 0 the audit is written, whatever it found, 2 nothing to be done with these options,
    130 stopped by Ctrl-C; what was finished is kept.
    """
    from afmi.auditing import audit as run
    from afmi.models import load_model

    classifier = load_model(**network, layer=layer)
    chosen = None if classes is None else [name.strip() for name in classes.split(",")]
    with stoppable(ctx, kept_in(out), quiet=quiet) as progress:
        printer = PiecePrinter(ProgressPrinter(progress, quiet=quiet))
        result = run(
            classifier,
            data,
            out,
            classes=chosen,
            versus=versus,
            all_classes=all_classes,
            reference=reference,
            **({} if threshold is None else {"threshold": threshold}),
            confirm=confirm,
            seed=seed,
            limit=limit,
            image_key=image_key,
            label_key=label_key,
            batch_size=batch_size,
            engine=engine,
            command=command_line(),
            on_piece=printer.show,
        )
    warn_of_failed(printer.failed, printer.done, "images.csv says which")
    if json_wanted:
        echo_json(result.to_dict())
    elif not quiet:
        _print(result)


def _print(result: Audit) -> None:
    rows = [
        [
            *(one.label, f"{one.count:,}", f"{one.recognised:.0%}", f"{one.isolation:.2f}"),
            one.verdict,
        ]
        for one in result.classes
    ]
    print_table(["class", "pictures", "predicted as it", "isolation", "verdict"], rows)
    echo(f"{result.finding} → {result.page}")
