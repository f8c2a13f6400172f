"""``afmi metrics``: list what can be measured of a method's maps."""

from __future__ import annotations

from dataclasses import fields
from typing import TYPE_CHECKING, Any

import click

from afmi.cli.group import debug_option
from afmi.cli.terminal import echo_json, print_table

if TYPE_CHECKING:
    from afmi.metrics import Metric

__all__ = ["metrics"]

_BETTER = {True: "higher", False: "lower", None: None}


@click.command(short_help="List the metrics that evaluations measure.")
@click.option("--json", "json_wanted", is_flag=True, help="Print one JSON list, with parameters.")
@debug_option
def metrics(json_wanted: bool) -> None:
    """List the metrics that `afmi evaluate` measures.

    Shows what each one's headline says of a method's maps, and whether higher is better. Those
    marked as standard are measured by default.

    Any spelling of a name works for --metrics: Grid pointing, grid-pointing, GridPointing.

    \b
    Examples:
      afmi metrics
      afmi metrics --json | jq '.[].parameters'
      afmi evaluate --data photographs/ --metrics insertion,grid-pointing
    """
    from afmi.metrics import CATALOGUE

    records = [_record(cls) for cls in CATALOGUE.values()]
    if json_wanted:
        echo_json(records)
        return
    print_table(
        ("name", "measures", "better", "standard", "paper"),
        [
            [
                record["name"],
                record["measures"],
                record["better"] or "–",
                "yes" if record["standard"] else "–",
                record["paper"],
            ]
            for record in records
        ],
    )


def _record(cls: type[Metric]) -> dict[str, Any]:
    headline = cls.columns[0]
    return {
        "name": cls.name,
        "class": cls.__name__,
        "measures": headline.measures,
        "headline": headline.source,
        "better": _BETTER[headline.higher_is_better],
        "standard": cls.standard,
        "paper": cls.paper,
        "columns": [column.name for column in cls.columns],
        "parameters": [field.name for field in fields(cls)],
    }
