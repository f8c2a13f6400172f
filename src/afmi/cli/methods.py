"""``afmi methods``: list the explanation methods."""

from __future__ import annotations

from dataclasses import fields
from typing import TYPE_CHECKING, Any

import click

from afmi.cli.group import debug_option
from afmi.cli.options import json_option
from afmi.cli.terminal import echo_json, print_table

if TYPE_CHECKING:
    from afmi.methods import Method

__all__ = ["methods"]

_FEATURES = {"pixel": "pixels", "region": "regions", "feature map": "feature maps"}


@click.command(short_help="List the explanation methods.")
@json_option("Print one JSON list, with parameters.")
@debug_option
def methods(json_wanted: bool) -> None:
    """List the explanation methods.

    Each is told by the features that carry the attribution and by how they get their scores; the
    cost is in passes through the network for one picture of 224 × 224 pixels, with the method's
    defaults.

    Any spelling of a name works for --method: A-FMI, afmi; Grad-CAM, grad_cam, GradCAM.

    \b
    Examples:
      afmi methods
      afmi methods --json | jq '.[].name'
      afmi explain cat.jpg --method grad-cam
    """
    from afmi.methods import CATALOGUE

    records = [_record(cls) for cls in CATALOGUE.values()]
    if json_wanted:
        echo_json(records)
        return
    columns = ("name", "family", "features", "scores", "cost", "paper")
    print_table(columns, [[record[column] for column in columns] for record in records])


def _record(cls: type[Method]) -> dict[str, Any]:
    return {
        "name": cls.name,
        "class": cls.__name__,
        "family": cls.family,
        "features": _FEATURES.get(cls.family, "none"),
        "scores": cls.scores,
        "signed": cls.signed,
        "cost": cls.default_cost(),
        "paper": cls.paper,
        "parameters": [field.name for field in fields(cls) if field.name != "model"],
    }
