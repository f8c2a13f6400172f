"""``afmi models``: list the networks, and the classes and layers of one."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import click

from afmi.cli.group import debug_option
from afmi.cli.options import json_option
from afmi.cli.terminal import echo_json, print_table

if TYPE_CHECKING:
    from afmi.network.classifier import Classifier

__all__ = ["models"]


@click.command(short_help="List the networks, or the labels or layers of one.")
@click.argument("name", required=False)
@click.option("--labels", is_flag=True, help="List the classes of the network called NAME.")
@click.option(
    "--layers",
    is_flag=True,
    help="List the layers of the network called NAME that give feature maps, with the shape "
    "(K, h, w) of their output, and mark the one that is found automatically.",
)
@json_option("Print one JSON list.")
@debug_option
def models(name: str | None, labels: bool, layers: bool, json_wanted: bool) -> None:
    """List the networks whose name contains NAME, or all; or the labels or layers of one.

    Names that begin with timm: list timm's, with hf: the types of image classifiers that
    transformers can build. No weights are downloaded. With --labels and --layers NAME is whatever
    --model may be: a factory of yours, package.module:function or path/to/file.py:function, too.

    \b
    Examples:
      afmi models                       all of them
      afmi models resnet                those called resnet…
      afmi models timm:convnext         timm's called convnext…, each with its weights
      afmi models resnet50 --labels     what its classes are called
      afmi models vgg19 --layers        where it has feature maps, for --layer
      afmi models nets.py:build --layers
    """
    if labels and layers:
        raise click.UsageError("--labels and --layers go one at a time")
    if (labels or layers) and name is None:
        option = "--labels" if labels else "--layers"
        raise click.UsageError(f"{option} needs the NAME of one network")
    if labels:
        assert name is not None
        columns, records = ("index", "label"), _labels(name)
    elif layers:
        assert name is not None
        columns, records = ("layer", "module", "maps", "chosen"), _layers(name)
    else:
        columns = ("name", "parameters", "top1", "input_size", "weights_file")
        records = _models(name)
    if json_wanted:
        echo_json(records)
        return
    heads = {"top1": "top-1", "input_size": "input", "weights_file": "weights"}
    print_table(
        [heads.get(column, column) for column in columns],
        [[_cell(column, record[column]) for column in columns] for record in records],
    )


def _cell(column: str, value: Any) -> str:
    if value is None:
        return "–"
    texts = {
        "parameters": lambda: f"{value:.1f} M",
        "top1": lambda: f"{value:.1f} %",
        "maps": lambda: " × ".join(map(str, value)),
        "chosen": lambda: "← found automatically" if value else "",
    }
    return texts.get(column, lambda: str(value))()


def _models(part: str | None) -> list[dict[str, Any]]:
    from afmi.errors import ModelError, near_matches
    from afmi.models import describe_models

    prefix = (part or "").casefold().partition(":")[0] if ":" in (part or "") else ""
    entries = describe_models(prefix)
    chosen = [e for e in entries if part is None or part.casefold() in e.name.casefold()]
    if not chosen:
        near = near_matches(part or "", [e.name for e in entries])
        raise ModelError(
            f"no model's name contains {part!r}{near or '; `afmi models` lists them all'}"
        )
    return [asdict(entry) for entry in chosen]


def _built(name: str) -> Classifier:
    """Build a network for its labels and layers alone; those of a factory come as it makes them."""
    from afmi.models import load_model

    return load_model(name, weights=None)


def _labels(name: str) -> list[dict[str, Any]]:
    model = _built(name)
    if not model.labels:
        from afmi.errors import ModelError

        raise ModelError(f"{name} has no labels; its classes go by their index")
    return [{"index": index, "label": label} for index, label in enumerate(model.labels)]


def _layers(name: str) -> list[dict[str, Any]]:
    from afmi.errors import LayerError
    from afmi.network.layer_list import list_layers

    records = [asdict(layer) for layer in list_layers(_built(name))]
    if not records:
        raise LayerError(f"{name} has no layer that gives feature maps (N, K, h, w)")
    return records
