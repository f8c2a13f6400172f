"""``afmi explain-dataset``: explain every picture of a data set into tables that resume."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from afmi.cli.explain import SOME_FAILED
from afmi.cli.group import debug_option
from afmi.cli.options import (
    TARGET,
    asked_target,
    image_key_option,
    label_key_option,
    layer_option,
    limit_option,
    model_options,
    out_option,
    pieces_options,
    quiet_option,
    reference_option,
    versus_option,
)
from afmi.cli.runs import (
    PiecePrinter,
    ProgressPrinter,
    command_line,
    kept_in,
    stoppable,
    warn_of_failed,
)
from afmi.cli.terminal import echo

if TYPE_CHECKING:
    from afmi.engines import Engine
    from afmi.files import Location

__all__ = ["explain_dataset"]


@click.command("explain-dataset", short_help="Explain all pictures of a data set.")
@click.argument("source", metavar="SOURCE")
@image_key_option
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
    "--labelled",
    is_flag=True,
    help="Explain the class that each picture is labelled with; SOURCE has labels then, as --data "
    "of `afmi evaluate`.",
)
@label_key_option
@click.option(
    "--method",
    default="A-FMI",
    metavar="NAME",
    help="Explanation method (`afmi methods` lists them).",
)
@reference_option("What a picture is compared with, as in `afmi explain`.  [default: the method's]")
@click.option(
    "--vectors",
    type=click.Choice(["auto", "importance", "contribution", "none"]),
    default="auto",
    help="What is kept for each feature map: its importance (FMI), or what of the score's change "
    "goes through it.  [auto: the importance, where the method gives it]",
)
@click.option("--maps/--no-maps", default=True, help="Keep the maps, at the layer's size.")
@click.option("--pictures", is_flag=True, help="Draw an overlay of each picture, as a PNG file.")
@out_option(
    "afmi-explanations",
    "Folder for the tables, or its URL (s3://bucket/explained); the same command resumes a stopped "
    "run.",
    remote=True,
)
@limit_option("Explain N of the pictures, evenly spread (of tar files behind a URL, the first N).")
@pieces_options
@quiet_option()
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
    labelled: bool,
    label_key: str | None,
    method: str,
    reference: str | None,
    vectors: str,
    maps: bool,
    pictures: bool,
    out: Location,
    limit: int | None,
    batch_size: int,
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
    from afmi.datasets import explain_dataset as run
    from afmi.models import load_model

    classifier = load_model(**network, layer=layer)
    asked = asked_target(classifier, target, versus)
    with stoppable(ctx, kept_in(out), quiet=quiet) as progress:
        printer = PiecePrinter(ProgressPrinter(progress, quiet=quiet))
        run(
            classifier,
            source,
            out,
            target=asked,
            labelled=labelled,
            method=method,
            reference=reference,
            vectors=None if vectors == "none" else vectors,  # type: ignore[arg-type]
            maps=maps,
            pictures=pictures,
            limit=limit,
            image_key=image_key,
            label_key=label_key,
            batch_size=batch_size,
            engine=engine,
            command=command_line(),
            on_piece=printer.show,
        )
    count, failed = printer.done, printer.failed
    warn_of_failed(failed, count, "their rows say why")
    if not quiet:
        echo(f"{count - failed} explanations → {out}")
    if failed:
        ctx.exit(SOME_FAILED)
