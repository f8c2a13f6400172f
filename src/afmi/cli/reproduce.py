"""``afmi reproduce``: the paper's tables and figures, made again."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from afmi.cli.group import debug_option
from afmi.cli.options import (
    engine_options,
    json_option,
    limit_option,
    model_options,
    out_option,
    quiet_option,
    writable_folder,
)
from afmi.cli.terminal import echo, echo_json, print_table, progress_shown

if TYPE_CHECKING:
    from afmi.engines import Engine

__all__ = ["reproduce"]


@click.command(short_help="Make the paper's tables and figures again.")
@click.argument("name", metavar="[NAME]", required=False)
@click.option(
    "--image",
    "images",
    multiple=True,
    metavar="FILE",
    help="Picture for a figure, or a folder or quoted glob of them; may be repeated.",
)
@click.option(
    "--imagenet",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="Folder of ImageNet (val/<wnid>/ in it), or any with a folder of pictures for each class.",
)
@click.option("--mnist", type=click.Path(path_type=Path), metavar="DIR", help="Folder of MNIST.")
@limit_option("Take N pictures at most.  [default: as many as in the paper]")
@click.option(
    "--methods",
    metavar="all|A,B,C",
    help="Names joined by commas (`afmi methods` lists them).  [default: the paper's]",
)
@click.option(
    "--target",
    "targets",
    multiple=True,
    metavar="LABEL|INDEX",
    help="Class to explain, for all pictures or one for each; for figure4 two classes.  "
    "[default: the picture's class folder, or the predicted class]",
)
@model_options
@engine_options
@out_option("afmi-reproduced", "Folder for figures, tables and records.")
@json_option()
@quiet_option("Print errors only (and what --json prints).")
@debug_option
def reproduce(
    name: str | None,
    images: tuple[str, ...],
    imagenet: Path | None,
    mnist: Path | None,
    limit: int | None,
    methods: str | None,
    targets: tuple[str, ...],
    network: dict[str, Any],
    engine: Engine,
    out: Path,
    json_wanted: bool,
    quiet: bool,
) -> None:
    """Make a table or figure of the paper again; without a NAME, list them.

    Networks, methods and settings are the paper's unless options say otherwise: torchvision's
    VGG-19 and the like with their first ImageNet weights, which are downloaded once. What the paper
    reports stands beside the results.

    \b
    Examples:
      afmi reproduce
      afmi reproduce figure1 --image dogsled.jpg
      afmi reproduce figure3 --imagenet imagenet/ --out figures
      afmi reproduce figure4 --image both.jpg --target collie --target "Ibizan hound"
      afmi reproduce figure7 --image dog.jpg --model vgg16,resnet50
      afmi reproduce figure5 --imagenet my-classes/ --model photos --methods a-fmi,grad-cam
    """
    from afmi.experiments import CATALOGUE, Request, experiment_named

    if name is None:
        if json_wanted:
            echo_json([_entry(cls) for cls in CATALOGUE.values()])
            return
        print_table(
            ("name", "shows", "needs", "networks", "paper"),
            [
                [cls.name, cls.shows, cls.data, ", ".join(cls.models), cls.section]
                for cls in CATALOGUE.values()
            ],
        )
        return
    experiment = experiment_named(name)()
    from afmi.pictures.finding import find_images

    models = tuple(part.strip() for part in (network.pop("name") or "").split(",") if part.strip())
    writable_folder(out)
    talks = not (quiet or json_wanted)
    with progress_shown(quiet=quiet) as progress:
        result = experiment.run(
            Request(
                out=out,
                images=tuple(find_images(images)),
                imagenet=imagenet,
                mnist=mnist,
                limit=limit,
                models=models,
                network=network,
                methods=methods,
                targets=targets,
                engine=engine,
                report=progress.line if talks else _silent,
            )
        )
    if json_wanted:
        files = [str(file) for file in result.files]
        echo_json({**_entry(type(experiment)), "rows": result.rows, "files": files})
    elif talks:
        if result.rows:
            columns = list(result.rows[0])
            print_table(columns, [[_cell(row.get(c)) for c in columns] for row in result.rows])
        echo(f"The paper ({experiment.section}): {experiment.finding}.")
        for file in result.files:
            echo(f"→ {file}")


def _silent(_line: str) -> None:
    pass


def _entry(experiment: Any) -> dict[str, Any]:
    return {
        "name": experiment.name,
        "shows": experiment.shows,
        "paper": experiment.section,
        "finding": experiment.finding,
        "needs": experiment.data,
        "models": list(experiment.models),
        "methods": list(experiment.methods),
    }


def _cell(value: Any) -> str:
    if isinstance(value, float):
        return "–" if math.isnan(value) else f"{value:.4g}"
    return "–" if value is None else str(value)


# Here the networks are the paper's unless one is named, and there may be several.
for _option in reproduce.params:
    if isinstance(_option, click.Option) and _option.name == "model":
        _option.default = None
        _option.show_default = "the paper's"
        _option.help = f"{_option.help} Several joined by commas, where the paper has several."
