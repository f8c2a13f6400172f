"""``afmi report``: sum up an evaluation as a page, tables and a few lines on the terminal."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from afmi.cli.group import debug_option
from afmi.cli.options import LOCATION, writable_folder
from afmi.cli.terminal import echo, echo_json, print_table

if TYPE_CHECKING:
    from afmi.files import Location
    from afmi.report.summary import Summary

__all__ = ["report"]


@click.command(short_help="Sum up an evaluation: a page, and tables.")
@click.argument("results", metavar="RESULTS", type=LOCATION)
@click.option(
    "--out",
    type=LOCATION,
    metavar="FOLDER|URL",
    help="Folder for the report.  [default: RESULTS]",
)
@click.option(
    "--methods", metavar="A,B,C", help="Names joined by commas.  [default: all that were measured]"
)
@click.option("--json", "json_wanted", is_flag=True, help="Print the numbers as JSON.")
@debug_option
def report(results: Location, out: Location | None, methods: str | None, json_wanted: bool) -> None:
    """Sum up what `afmi evaluate` wrote into the folder, or URL, RESULTS, finished or not.

    Prints one line a method, the best first, each average with its 95 % interval, and writes
    report.html, a page that needs no other file, with curves, comparisons, example pictures and
    what every term means; and table1.csv, curves.csv and pairs.csv with the numbers.

    \b
    Examples:
      afmi report results/
      afmi report results/ --methods a-fmi,grad-cam --out paper/
      afmi report s3://bucket/results --out report/
      afmi report results/ --json | jq '.methods[0]'

    \b
    Exit codes: 0 the report is written (of an unfinished evaluation too, with a warning), 2 there
    is nothing to report, or it cannot be written.
    """
    from afmi.evaluation.results import Results
    from afmi.report.evaluation_report import write_summary
    from afmi.report.summary import summarise
    from afmi.report.words import finding, unfinished

    names = None if methods is None else [n for part in methods.split(",") if (n := part.strip())]
    opened = Results.open(results)
    opened.chosen(names)  # before anything is written or takes time
    writable_folder(results if out is None else out)
    summary = summarise(opened, names)
    files = write_summary(summary, out)
    warning = unfinished(summary)
    if warning:
        echo(f"afmi: warning: {warning}", err=True)
    if json_wanted:
        echo_json(_record(summary, files))
        return
    headings, *rows = _table(summary)
    print_table(headings, rows)
    for label, reason in opened.refused.items():
        echo(f"{label} left out: {reason}")
    echo(finding(summary))
    for path in files.values():
        echo(f"→ {path}")


def _table(summary: Summary) -> list[list[str]]:
    """Return the columns of Table 1, the headings first."""
    from afmi.report.words import UNKNOWN, amount, number, times

    headings, rows = ["method"], [[method.label] for method in summary.methods]
    title = ""
    for key, column in summary.main.items():
        # Of one title with several averages, the others go by the average.
        headings.append(column.title if column.title != title else column.subtitle)
        title = column.title
        for row, method in zip(rows, summary.methods, strict=True):
            estimate = method.known(key)
            row.append(UNKNOWN if estimate is None else amount(column, estimate.value))
            if key == summary.leading:
                ends = [] if estimate is None else [number(estimate.low), number(estimate.high)]
                row.append(UNKNOWN if UNKNOWN in ends or not ends else " to ".join(ends))
            if column.multiples:
                row.append(times(summary.multiple(method, key)))
        headings += ["95 % interval"] if key == summary.leading else []
        headings += ["times"] if column.multiples else []
    for row, method in zip(rows, summary.methods, strict=True):
        failed = f", {method.failed} failed" if method.failed else ""
        row.append(f"{method.done}/{method.images}{failed}")
    return [[*headings, "done"], *rows]


def _record(summary: Summary, files: dict[str, Location]) -> dict[str, Any]:
    from dataclasses import asdict

    from afmi.report.words import finding

    return {
        "finding": finding(summary),
        "finished": summary.finished,
        "leading": summary.leading,
        "methods": [
            {
                "method": m.label,
                "family": m.family,
                "images": m.images,
                "done": m.done,
                "failed": m.failed,
                "averages": {
                    key: asdict(m.averages[key]) if key in m.averages else None
                    for key in (*summary.main, *summary.others)
                },
            }
            for m in summary.methods
        ],
        "refused": summary.results.refused,
        "failures": [asdict(failure) for failure in summary.failures],
        "files": {kind: str(path) for kind, path in files.items()},
    }
