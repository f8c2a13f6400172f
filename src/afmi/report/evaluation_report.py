"""Report an evaluation: one page that needs no other file, and the numbers as CSV."""

from __future__ import annotations

import io
import json
import math
import os
from collections.abc import Mapping, Sequence
from typing import Any

from PIL import Image

from afmi.evaluation.results import Results
from afmi.files import Location, location, write_files
from afmi.report.column_sections import (
    curve_sections,
    other_section,
    table_section,
    terms_section,
)
from afmi.report.page import Cell, Page, Section, Table, Tile, TileRow, render_page
from afmi.report.statistics import CONFIDENCE, Paired
from afmi.report.summary import Summary, summarise
from afmi.report.tables import csv_text, curve_rows, pair_rows, table_rows
from afmi.report.words import UNKNOWN, counted, finding, interval, joined, number, unfinished
from afmi.stores import RemotePath

__all__ = ["write_report", "write_summary"]

_MOST_EXAMPLES = 12
_MOST_FAILURES = 100
_MOST_PAIRED = 30
# Beyond these the shares of wins and losses would not fit beside each other.
_MOST_SHARES = 12


def write_report(
    folder: str | os.PathLike[str] | RemotePath,
    out: str | os.PathLike[str] | RemotePath | None = None,
    *,
    methods: Sequence[str] | None = None,
    beside: Mapping[str, float] | None = None,
    beside_title: str = "Paper",
) -> dict[str, Location]:
    """Write the report of an evaluation, finished or not.

    Args:
        folder: that `afmi evaluate` wrote; or its URL, in a store.
        out: where to; None: next to the results, in a store too. Made where missing.
        methods: labels or keys of those to report; None: all.
        beside: published values of the leading column by method, shown in a separate column.
        beside_title: heading of the published values.

    Returns:
        The paths: ``page`` (HTML), ``table1``, ``curves`` and ``pairs`` (CSV).

    Raises:
        UsageError: when there is no evaluation in the folder, or no such method.
        AfmiError: when a file of the results is damaged, or one of the report cannot be written.
    """
    summary = summarise(Results.open(folder), methods)
    return write_summary(summary, out, beside=beside, beside_title=beside_title)


def write_summary(
    summary: Summary,
    out: str | os.PathLike[str] | RemotePath | None = None,
    *,
    beside: Mapping[str, float] | None = None,
    beside_title: str = "Paper",
) -> dict[str, Location]:
    """Write the report of a summary; see `write_report`."""
    folder = summary.results.folder if out is None else location(out)
    texts = {
        "page": render_page(_page(summary, beside or {}, beside_title)),
        "table1": csv_text(table_rows(summary, beside or {})),
        "curves": csv_text(curve_rows(summary)),
        "pairs": csv_text(pair_rows(summary)),
    }
    files = {kind: folder / f"{kind}.csv" for kind in texts} | {"page": folder / "report.html"}
    # The page last: where it is new, the tables are too. A lone surrogate stands for a byte of a
    # file name that is no UTF-8.
    encoded = {kind: text.encode(errors="backslashreplace") for kind, text in texts.items()}
    write_files({files[kind]: encoded[kind] for kind in reversed(files)})
    return files


def _page(summary: Summary, beside: Mapping[str, float], beside_title: str) -> Page:
    run = summary.results.manifest["run"]
    network = run.get("model", {}).get("name") or "a network"
    data = run.get("data", {}).get("name") or "unnamed pictures"
    sections = [
        table_section(summary, beside, beside_title),
        *curve_sections(summary),
        other_section(summary),
        _leader_section(summary),
        _pair_section(summary),
        _example_section(summary),
        _failure_section(summary),
        terms_section(summary),
        _repeat_section(summary),
    ]
    created = str(summary.results.manifest.get("created", ""))
    leading = summary.columns.get(summary.leading or "")
    test = "measured" if leading is None else f"put to the test: {leading.measures}"
    return Page(
        f"How faithful are explanations of {network}?",
        f"{counted(len(summary.methods), 'method')} explained what the network {network} made of "
        f"{counted(len(summary.results.images), 'picture')} ({data}), and each explanation was "
        f"{test}. {_explained(summary)}{finding(summary)}",
        [section for section in sections if section is not None],
        f"Made by afmi {run.get('afmi', '')}"
        + (f" from an evaluation begun on {created[:10]}." if created else "."),
        warning=unfinished(summary),
        contents=True,
    )


def _explained(summary: Summary) -> str:
    """Say what was explained; nothing where it is as ever, the labelled class."""
    label = summary.target.get("label", "the labelled class")
    return "" if label == "the labelled class" else f"What was explained of each is {label}. "


def _leader_section(summary: Summary) -> Section | None:
    leader = summary.leader
    if leader is None or summary.leading is None:
        return None
    column = summary.columns[summary.leading]
    rows = []
    for other in summary.methods:
        pair = None if other is leader else summary.pair(leader.label, other.label)
        if pair is None or not pair.difference.known:
            continue
        tone = "" if not pair.clear else "good" if pair.difference.value > 0 else "bad"
        difference = Cell(
            _signed(pair.difference.value, 3), interval(pair.difference), tone, strong=pair.clear
        )
        shares = (f"{share:.0%}" for share in (pair.wins, pair.ties, pair.losses))
        rows.append([other.label, difference, *shares, f"{pair.difference.count:,}"])
    if not rows:
        return None
    headings = ["Against", Cell("Difference", "95 % interval"), "Better", "Equal", "Worse"]
    return Section(
        f"{leader.label} against the others",
        [
            f"How much better {leader.label} is than the other in {column.title}, picture by "
            "picture: the mean difference, and the share of the pictures where it is better, equal "
            "or worse. A difference is tinted where its interval excludes zero."
        ],
        table=Table([*headings, "Pictures"], rows),
    )


def _signed(value: float, digits: int) -> str:
    return f"{value:+.{digits}f}".replace("-", "−")


def _pair_section(summary: Summary) -> Section | None:
    compared = [m for m in summary.methods if m.ranking is not None]
    if summary.leading is None or len(compared) < 3:  # two are compared above
        return None
    column = summary.columns[summary.leading]
    named = compared[:_MOST_PAIRED]
    shares = len(named) <= _MOST_SHARES
    rows = []
    for place, first in enumerate(named, 1):
        row: list[str | Cell] = [Cell(f"#{place} {first.label}")]
        for second in named:
            pair = None if first is second else summary.pair(first.label, second.label)
            row.append(Cell("") if pair is None else _pair_cell(pair, shares))
        rows.append(row)
    count = len(compared) * (len(compared) - 1) // 2
    chance = max(round(count * (1 - CONFIDENCE)), 1)
    paragraphs = [
        f"Each number says how much better the method of the row is than that of the column: the "
        f"mean difference of {column.title}, in hundredths, over the pictures that both have. It "
        "is tinted where its 95 % interval excludes zero: blue where the row is better, orange "
        "where it is worse."
        + (
            " Below it stand the shares of the pictures where the row is better and worse, in "
            "percent."
            if shares
            else ""
        ),
        f"Of {counted(count, 'comparison')}, about {chance} would be tinted by chance alone if "
        "all methods were equal. pairs.csv holds the intervals.",
    ]
    headings = ["Row against column", *(f"#{place}" for place, _ in enumerate(named, 1))]
    return Section("Method against method", paragraphs, table=Table(headings, rows, dense=True))


def _pair_cell(pair: Paired, shares: bool) -> Cell:
    value = pair.difference.value
    if not math.isfinite(value):
        return Cell(UNKNOWN)
    tone = ("good" if value > 0 else "bad") if pair.clear else ""
    note = f"{100 * pair.wins:.0f} : {100 * pair.losses:.0f}" if shares else ""
    return Cell(_signed(100 * value, 1), note, tone, strong=pair.clear)


def _example_section(summary: Summary) -> Section | None:
    results = summary.results
    labels = results.manifest["run"].get("model", {}).get("labels") or []
    rows, left_out = [], max(len(results.examples) - _MOST_EXAMPLES, 0)
    for image in results.examples[:_MOST_EXAMPLES]:
        photograph = _opened(results.photograph(image))
        place = results.positions.get(image)
        if photograph is None or place is None:
            continue
        name = _class_name(labels, int(results.images.labels[place]))
        tiles = [
            Tile(photograph, "Picture", _answer(summary, summary.originals, image), lossy=True)
        ]
        for method in summary.methods:
            map_ = _opened(results.example(image, method.label, "map"))
            if map_ is None:
                continue
            kept = _opened(results.example(image, method.label, "insertion"))
            caption = _answer(summary, method.shown, image)
            tiles.append(Tile(map_, method.label, caption, below=kept, lossy=True))
        rows.append(TileRow(tiles, f"{name}{results.images.keys[place]}", flows=True))
    if not rows:
        return None
    rises, falls, told = "for the class", "against it", "The percentage is the network’s "
    told += "probability of the class"
    if not summary.of_classes:
        rises, falls, told = "raises the score", "lowers it", "The number is the score explained"
    paragraphs = [
        f"Each method’s map over the picture (warm: {rises}; cool: {falls}), below it the tenth of "
        f"the pixels that it ranks first. {told}, for the whole picture and for that tenth. The "
        "best method comes first."
    ]
    if left_out:
        paragraphs.append(f"{left_out} more are in the folder examples.")
    return Section("Example pictures", paragraphs, rows=rows)


def _class_name(labels: Sequence[str], label: int) -> str:
    """Return what comes before an example's name: its class, where it has one."""
    if label < 0:
        return ""
    return f"{labels[label] if label < len(labels) else f'class {label}'} · "


def _answer(summary: Summary, known: Mapping[int, float], image: int) -> str:
    """Return what the network answers for an example, or for its top tenth."""
    value = known.get(image)
    if value is None:
        return ""
    if not summary.of_classes:
        return f"{summary.target.get('unit') or 'score'} {number(value)}"
    return "under 0.1 %" if 0 < value < 0.001 else f"{100 * value:.1f} %"


def _opened(path: Location) -> Image.Image | None:
    try:
        with Image.open(io.BytesIO(path.read_bytes())) as picture:
            return picture.convert("RGB")
    except OSError:  # an example that was not drawn, or is damaged: the rest tells enough
        return None


def _failure_section(summary: Summary) -> Section | None:
    if not summary.failures:
        return None
    everyone = len(summary.methods)
    rows = [
        [f.key, f.reason, "all methods" if len(f.methods) == everyone else joined(f.methods)]
        for f in summary.failures[:_MOST_FAILURES]
    ]
    count = len({failure.key for failure in summary.failures})
    text = (
        f"{counted(count, 'picture')} could not be read, explained or measured, and "
        f"{'is' if count == 1 else 'are'} left out of those averages."
    )
    if len(summary.failures) > _MOST_FAILURES:
        text += f" The first {_MOST_FAILURES} reasons are listed."
    return Section("Pictures that failed", [text], table=Table(["Picture", "Why", "For"], rows))


def _repeat_section(summary: Summary) -> Section:
    manifest = summary.results.manifest
    run, machine = manifest["run"], manifest.get("machine") or {}
    model, data = run.get("model", {}), run.get("data", {})
    terms = {
        "Explained": _facts(summary.target, ("label", "text", "unit")),
        "Network": _facts(model, ("name", "weights")),
        "Pictures": _facts(data, ("name", "images", "fingerprint")),
        "Versions": _facts({**run, "python": machine.get("python")}, ("afmi", "torch", "python")),
        "Machine": _facts(machine, [key for key in machine if key != "python"]),
        "Batch size": str(run.get("batch_size", "")),
        "Seed": str(run.get("seed", "")),
        "Begun": str(manifest.get("created", "")),
    }
    terms |= {
        f"Metric: {name}": _parameters(parameters)
        for name, parameters in run.get("metrics", {}).items()
    }
    methods = {method.label: summary.results.facts(method.label) for method in summary.methods}
    rows = [
        [label, _parameters(facts.get("parameters") or {}), str(facts.get("paper") or "")]
        for label, facts in methods.items()
    ]
    command = str(manifest.get("command") or "")
    return Section(
        "How to repeat it",
        ["The same command on the same pictures gives the same numbers, times apart."],
        terms=[(name, text) for name, text in terms.items() if text],
        table=Table(["Method", "Parameters", "Paper"], rows),
        code=[command] if command else (),
    )


def _facts(known: Mapping[str, Any], wanted: Sequence[str]) -> str:
    return ", ".join(f"{key} {known[key]}" for key in wanted if known.get(key) not in (None, ""))


def _parameters(parameters: Mapping[str, Any]) -> str:
    if not parameters:
        return "none"
    return ", ".join(
        f"{key} = {value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)}"
        for key, value in parameters.items()
    )
