"""``afmi report``: sum up an evaluation as a page, tables and a few lines on the terminal."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from afmi.cli.group import debug_option
from afmi.cli.options import writable_folder
from afmi.cli.terminal import print_table
from afmi.files import as_json

if TYPE_CHECKING:
    from afmi.report.statistics import Estimate
    from afmi.report.summary import MethodSummary, Summary

__all__ = ["report"]

_COLUMNS = (
    "method",
    "Accuracy-AUC",
    "95 % interval",
    "Softmax-AUC",
    "median",
    "ratio of means",
    "residual",
    "s/picture",
    "times",
    "done",
)


@click.command(short_help="Sum up an evaluation: a page, and tables.")
@click.argument("results", metavar="RESULTS", type=click.Path(path_type=Path))
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    help="Folder for the report.  [default: RESULTS]",
)
@click.option(
    "--methods", metavar="A,B,C", help="Names joined by commas.  [default: all that were measured]"
)
@click.option("--json", "json_wanted", is_flag=True, help="Print the numbers as JSON.")
@debug_option
def report(results: Path, out: Path | None, methods: str | None, json_wanted: bool) -> None:
    """Sum up what `afmi evaluate` wrote into the folder RESULTS, finished or not.

    Prints one line a method, the best first, each average with its 95 % interval, and writes
    report.html, a page that needs no other file, with curves, comparisons, example pictures and
    what every term means; and table1.csv, curves.csv and pairs.csv with the numbers.

    \b
    Examples:
      afmi report results/
      afmi report results/ --methods a-fmi,grad-cam --out paper/
      afmi report results/ --json | jq '.methods[0]'

    \b
    Exit codes: 0 the report is written (of an unfinished evaluation too, with a warning), 2 there
    is nothing to report, or it cannot be written.
    """
    from afmi.evaluation.results import Results
    from afmi.report.results_page import finding, unfinished, write_summary
    from afmi.report.summary import summarise

    names = None if methods is None else [n for part in methods.split(",") if (n := part.strip())]
    opened = Results.open(results)
    opened.chosen(names)  # before anything is written or takes time
    writable_folder(results if out is None else out)
    summary = summarise(opened, names)
    files = write_summary(summary, out)
    warning = unfinished(summary)
    if warning:
        click.echo(f"afmi: warning: {warning}", err=True)
    if json_wanted:
        click.echo(as_json(_record(summary, files), indent=2))
        return
    print_table(_COLUMNS, [_row(summary, method) for method in summary.methods])
    for label, reason in opened.refused.items():
        click.echo(f"{label} left out: {reason}")
    click.echo(finding(summary))
    for path in files.values():
        click.echo(f"→ {path}")


def _row(summary: Summary, method: MethodSummary) -> list[str]:
    from afmi.report.results_page import UNKNOWN, number, times

    def value(estimate: Estimate | None, digits: int = 3) -> str:
        return UNKNOWN if estimate is None else number(estimate.value, digits)

    accuracy = method.accuracy
    ends = [UNKNOWN] if accuracy is None else [number(accuracy.low), number(accuracy.high)]
    failed = f", {method.failed} failed" if method.failed else ""
    return [
        method.label,
        value(accuracy),
        UNKNOWN if UNKNOWN in ends else " to ".join(ends),
        value(method.softmax_mean),
        value(method.softmax_median),
        value(method.softmax_ratio),
        value(method.completeness),
        value(method.seconds, 4),
        times(summary.times(method)),
        f"{method.done}/{method.images}{failed}",
    ]


def _record(summary: Summary, files: dict[str, Path]) -> dict[str, Any]:
    from dataclasses import asdict

    from afmi.report.results_page import finding

    def estimate(found: Estimate | None) -> dict[str, Any] | None:
        return None if found is None else asdict(found)

    return {
        "finding": finding(summary),
        "finished": summary.finished,
        "methods": [
            {
                "method": m.label,
                "family": m.family,
                "images": m.images,
                "done": m.done,
                "failed": m.failed,
                "accuracy_auc": estimate(m.accuracy),
                "accuracy_auc_of_correct": estimate(m.accuracy_correct),
                "softmax_auc_mean": estimate(m.softmax_mean),
                "softmax_auc_median": estimate(m.softmax_median),
                "softmax_auc_ratio_of_means": estimate(m.softmax_ratio),
                "completeness_median_residual": estimate(m.completeness),
                "seconds": estimate(m.seconds),
                "others": {key: estimate(found) for key, found in m.others.items()},
            }
            for m in summary.methods
        ],
        "refused": summary.results.refused,
        "failures": [asdict(failure) for failure in summary.failures],
        "files": {kind: str(path) for kind, path in files.items()},
    }
