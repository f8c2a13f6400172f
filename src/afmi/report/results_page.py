"""Tell of an evaluation: one page that needs no other file, and the numbers as CSV."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from afmi.evaluation.results import Results
from afmi.files import write_files
from afmi.report.charts import MOST_LINES, Interval, Line, draw_intervals, draw_lines, svg_text
from afmi.report.page import Cell, Chart, Page, Section, Table, Tile, TileRow, render_page
from afmi.report.statistics import CONFIDENCE, RESAMPLES, Estimate, Paired
from afmi.report.summary import MethodSummary, Summary, summarise
from afmi.report.tables import csv_text, curve_rows, pair_rows, table_rows

__all__ = ["UNKNOWN", "finding", "number", "times", "unfinished", "write_report", "write_summary"]

UNKNOWN = "–"
"""What tables show where nothing was measured."""
_MOST_EXAMPLES = 12
_MOST_FAILURES = 100
_MOST_PAIRED = 30
# Beyond these the shares of wins and losses would not fit beside each other.
_MOST_SHARES = 12
# The mean of the softmax ratio may be huge; curves are shown up to this height.
_HIGHEST_RATIO = 3.0


def write_report(
    folder: str | os.PathLike[str],
    out: str | os.PathLike[str] | None = None,
    *,
    methods: Sequence[str] | None = None,
    beside: Mapping[str, float] | None = None,
    beside_title: str = "Paper",
) -> dict[str, Path]:
    """Write the report of an evaluation, finished or not.

    Args:
        folder: that `afmi evaluate` wrote.
        out: where to; None: next to the results. Made where missing.
        methods: labels or keys of those to tell of; None: all.
        beside: published Accuracy-AUC by method, to be shown in a column of its own.
        beside_title: that column's heading.

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
    out: str | os.PathLike[str] | None = None,
    *,
    beside: Mapping[str, float] | None = None,
    beside_title: str = "Paper",
) -> dict[str, Path]:
    """Write the report of an evaluation that is summed up already; see `write_report`."""
    folder = summary.results.folder if out is None else Path(out)
    files = {
        "page": folder / "report.html",
        "table1": folder / "table1.csv",
        "curves": folder / "curves.csv",
        "pairs": folder / "pairs.csv",
    }
    texts = {
        "page": render_page(_page(summary, beside or {}, beside_title)),
        "table1": csv_text(table_rows(summary, beside or {})),
        "curves": csv_text(curve_rows(summary)),
        "pairs": csv_text(pair_rows(summary)),
    }
    # The page last: where it is new, the tables are too.
    order = ("table1", "curves", "pairs", "page")
    write_files(
        {files[kind]: lambda file, text=texts[kind]: file.write(_encoded(text)) for kind in order}
    )
    return files


def _encoded(text: str) -> bytes:
    # A lone surrogate stands for a byte of a file name that is no UTF-8.
    return text.encode(errors="backslashreplace")


# --- words and numbers ------------------------------------------------------------------------


def number(value: float, digits: int = 3) -> str:
    """Return a number for a table, with a true minus sign; "–" where it is unknown."""
    if not math.isfinite(value):
        return UNKNOWN
    size = abs(value)
    text = f"{value:.{digits}f}" if size < 1000 else f"{value:.3g}"
    return text.replace("-", "−") if float(text) else text.lstrip("-")


def times(value: float) -> str:
    """Return how many times: ``1.0 ×``, ``230 ×``."""
    if not math.isfinite(value):
        return UNKNOWN
    return f"{value:.1f} ×" if value < 100 else f"{value:,.0f} ×"


def _seconds(value: float) -> str:
    if not math.isfinite(value):
        return UNKNOWN
    return f"{value:.4f}" if value < 0.1 else f"{value:.3f}" if value < 10 else f"{value:.1f}"


def _interval(estimate: Estimate, digits: int = 3) -> str:
    if not math.isfinite(estimate.low):
        return ""
    # A dash between them would look like a minus sign before a negative end.
    between = "–" if estimate.low >= 0 else " to "
    return f"{number(estimate.low, digits)}{between}{number(estimate.high, digits)}"


def _cell(estimate: Estimate | None, *, strong: bool = False, told: int = 0) -> Cell:
    """Return value and interval; ``told``: the count that needs no mention."""
    if estimate is None or not estimate.known:
        return Cell(UNKNOWN)
    note = _interval(estimate)
    if told and estimate.count != told:
        note += f" · {estimate.count:,} pictures"
    return Cell(number(estimate.value), note.removeprefix(" · "), strong=strong)


def _joined(words: Sequence[str]) -> str:
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"


def _counted(count: int, what: str) -> str:
    return f"{count:,} {what}{'' if count == 1 else 's'}"


def finding(summary: Summary) -> str:
    """Say in a sentence or two which method leads on Accuracy-AUC, and how surely."""
    leader = summary.leader
    if leader is None or leader.accuracy is None:
        return "Insertion was not measured, so no method leads on Accuracy-AUC."
    estimate = leader.accuracy
    text = f"Highest on Accuracy-AUC is {leader.label}: {number(estimate.value)}"
    if _interval(estimate):
        text += f" (95 % interval {_interval(estimate)})"
    others = [
        m
        for m in summary.methods
        if m is not leader and m.accuracy is not None and m.accuracy.known
    ]
    if not others:
        return f"{text}."
    rivals = summary.rivals
    if rivals:
        names = _joined([method.label for method in rivals])
        return (
            f"{text}. Picture by picture, {names} cannot be told apart from it: the interval of "
            "the difference includes zero."
        )
    if all(_clear(summary, leader, other) for other in others):
        return f"{text}. Picture by picture, its lead over every other method is clear."
    return f"{text}. Too few pictures are done to say how sure its lead is."


def _clear(summary: Summary, leader: MethodSummary, other: MethodSummary) -> bool:
    pair = summary.pair(leader.label, other.label)
    return pair is not None and pair.clear


def unfinished(summary: Summary) -> str:
    """Say what is not done yet; "" when the evaluation is finished."""
    late = [m for m in summary.methods if not m.finished]
    told = []
    if late:
        done = [f"{m.label} ({m.done:,} of {m.images:,} pictures)" for m in late]
        told.append(
            f"Not finished: {_joined(done)}. Averages of {'it' if len(late) == 1 else 'these'} are "
            "over other pictures than those of the rest, so compare them with care."
        )
    if summary.waiting:
        told.append(f"Not begun: {_joined(summary.waiting)}.")
    return " ".join([*told, "Run the same command again to go on."]) if told else ""


# --- the page ---------------------------------------------------------------------------------


def _page(summary: Summary, beside: Mapping[str, float], beside_title: str) -> Page:
    run = summary.results.manifest["run"]
    network = run.get("model", {}).get("name") or "a network"
    data = run.get("data", {}).get("name") or "unnamed pictures"
    count = len(summary.results.images)
    sections = [
        _table_section(summary, beside, beside_title),
        _curve_section(summary),
        _other_section(summary),
        _leader_section(summary),
        _pair_section(summary),
        _example_section(summary),
        _failure_section(summary),
        _terms_section(summary),
        _repeat_section(summary),
    ]
    created = str(summary.results.manifest.get("created", ""))
    return Page(
        f"How faithful are explanations of {network}?",
        f"{_counted(len(summary.methods), 'method')} explained what the network {network} made of "
        f"{_counted(count, 'picture')} ({data}), and each explanation was put to the test: does "
        f"the network still know the class from the pixels ranked first? {finding(summary)}",
        [section for section in sections if section is not None],
        f"Made by afmi {run.get('afmi', '')}"
        + (f" from an evaluation begun on {created[:10]}." if created else "."),
        warning=unfinished(summary),
        contents=True,
    )


def _done(method: MethodSummary) -> Cell:
    text = f"{method.done:,}" + ("" if method.finished else f" of {method.images:,}")
    notes = [] if method.finished else ["not finished"]
    notes += [f"{method.failed:,} failed"] if method.failed else []
    return Cell(text, ", ".join(notes), tone="" if method.finished else "bad")


def _time(summary: Summary, method: MethodSummary) -> Cell:
    if method.seconds is None or not method.seconds.known:
        return Cell(UNKNOWN)
    ratio = times(summary.times(method))
    return Cell(_seconds(method.seconds.value), "" if ratio == UNKNOWN else ratio)


def _table_section(summary: Summary, beside: Mapping[str, float], beside_title: str) -> Section:
    headings = [
        Cell("Method"),
        Cell("Accuracy-AUC", "95 % interval"),
        *([Cell(beside_title, "Accuracy-AUC")] if beside else []),
        Cell("Correct ones", "Accuracy-AUC"),
        Cell("Softmax-AUC", "mean"),
        Cell("Softmax-AUC", "median"),
        Cell("Softmax-AUC", "ratio of means"),
        Cell("Residual", "median size"),
        Cell("Seconds", "per picture"),
        Cell("Pictures", "done"),
    ]
    leader = summary.leader
    rows = [
        [
            Cell(method.label, method.family, strong=method is leader),
            _cell(method.accuracy, strong=method is leader, told=method.done - method.failed),
            *([Cell(number(beside.get(method.label, math.nan), 4))] if beside else []),
            _cell(method.accuracy_correct),
            _cell(method.softmax_mean),
            _cell(method.softmax_median),
            _cell(method.softmax_ratio),
            _cell(method.completeness),
            _time(summary, method),
            _done(method),
        ]
        for method in summary.methods
    ]
    paragraphs = [
        "The best first. Higher is better for all areas; a residual of 0 means that a map "
        "accounts for all of the change of the score. The terms are explained below."
    ]
    if summary.results.refused:
        refused = summary.results.refused.items()
        paragraphs.append(
            "Left out: " + "; ".join(f"{label} ({reason})" for label, reason in refused) + "."
        )
    drawn = [
        Interval(m.label, m.family, m.accuracy, m.finished)
        for m in summary.methods
        if m.accuracy is not None and m.accuracy.known
    ]
    charts = []
    if drawn:
        figure = draw_intervals(drawn, "Accuracy-AUC, with its 95 % interval")
        best = ", ".join(f"{d.label} {number(d.estimate.value)}" for d in drawn)
        charts.append(Chart(svg_text(figure, "intervals"), f"Accuracy-AUC by method: {best}"))
    return Section("Table 1", paragraphs, table=Table(headings, rows), charts=charts)


def _curve_section(summary: Summary) -> Section | None:
    drawn = [(m, m.curves) for m in summary.methods if m.curves is not None]
    if not drawn:
        return None
    styles = _styles([m for m, _ in drawn])

    def line(m: MethodSummary, percents: np.ndarray, y: np.ndarray, area: Estimate | None) -> Line:
        return Line(m.label, m.family, percents, y, area and area.value, styles[m.label])

    accuracy = [
        line(m, c.percents, np.array([e.value for e in c.accuracy]), m.accuracy) for m, c in drawn
    ]
    charts = [_chart(accuracy, "Accuracy", "Accuracy", (0, 1.02))]
    rated = [(m, c) for m, c in drawn if c.ratio_mean]
    ratios = [
        line(m, c.percents, np.array([e.value for e in c.ratio_mean]), m.softmax_mean)
        for m, c in rated
    ]
    steadier = [line(m, c.percents, c.ratio_of_means, m.softmax_ratio) for m, c in rated]
    paragraphs = [
        "How well the network knows the class when it sees only the pixels that a method ranks "
        f"first, {_hidden(summary)}. The earlier a curve rises, the better. The numbers in the "
        "legends are the areas; curves.csv holds every point."
    ]
    if ratios:
        top = _ceiling(ratios)
        charts.append(_chart(ratios, "Softmax ratio (mean)", "Mean of p̂ / p", (0, top)))
        if any(line.y[np.isfinite(line.y)].max(initial=0) > top for line in ratios):
            paragraphs.append(
                f"Some curves of the mean softmax ratio rise above {top:g} and are cut off there: "
                "a few pictures whose p is tiny make up most of the mean."
            )
    if steadier:
        charts.append(
            _chart(
                steadier,
                "Softmax ratio (ratio of means), which no single picture can dominate",
                "Mean of p̂ / mean of p",
                (0, _ceiling(steadier)),
            )
        )
    return Section("Curves of insertion", paragraphs, charts=charts)


def _hidden(summary: Summary) -> str:
    """Say what the network sees instead of the other pixels."""
    told = summary.results.manifest["run"].get("metrics", {}).get("insertion", {})
    canvas = told.get("canvas", "Black()")
    return "the rest black" if canvas == "Black()" else f"the rest from the canvas {canvas}"


def _styles(methods: Sequence[MethodSummary]) -> dict[str, int]:
    """Number the lines of each panel, the same for all charts."""
    together = len(methods) <= MOST_LINES
    counts: dict[str, int] = {}
    styles = {}
    for method in methods:
        panel = "" if together else method.family
        styles[method.label] = counts.get(panel, 0)
        counts[panel] = styles[method.label] + 1
    return styles


def _ceiling(lines: Sequence[Line]) -> float:
    highest = max(float(line.y[np.isfinite(line.y)].max(initial=0)) for line in lines)
    return min(max(1.05 * highest, 1.05), _HIGHEST_RATIO)


def _chart(lines: Sequence[Line], title: str, ylabel: str, ylim: tuple[float, float]) -> Chart:
    ordered = sorted(lines, key=lambda line: -math.inf if line.area is None else line.area)[::-1]
    areas = ", ".join(
        line.label if line.area is None else f"{line.label} {number(line.area)}" for line in ordered
    )
    name = "".join(c for c in title.lower() if c.isalpha())
    figure = draw_lines(ordered, ylabel, ylim=ylim)
    wide = len(lines) > MOST_LINES
    return Chart(svg_text(figure, name), f"{title} against PI; areas: {areas}", title, wide)


def _other_section(summary: Summary) -> Section | None:
    metrics = summary.other_metrics
    if not metrics:
        return None
    better = {True: "higher is better", False: "lower is better", None: ""}
    headings = [
        "Method",
        *(Cell(facts.name, better[facts.higher_is_better]) for facts in metrics.values()),
    ]
    rows = [
        [method.label, *(_cell(method.others.get(key)) for key in metrics)]
        for method in summary.methods
    ]
    return Section(
        "Other measurements",
        ["Means over the pictures, with 95 % intervals."],
        table=Table(headings, rows),
        terms=[(facts.name, _sentence(facts.measures)) for facts in metrics.values()],
    )


def _sentence(text: str) -> str:
    return f"{text[:1].upper()}{text[1:].rstrip('.')}."


def _leader_section(summary: Summary) -> Section | None:
    leader = summary.leader
    if leader is None:
        return None
    rows = []
    for other in summary.methods:
        pair = None if other is leader else summary.pair(leader.label, other.label)
        if pair is None or not pair.difference.known:
            continue
        tone = "" if not pair.clear else "good" if pair.difference.value > 0 else "bad"
        difference = Cell(
            _signed(pair.difference.value, 3), _interval(pair.difference), tone, strong=pair.clear
        )
        shares = (f"{share:.0%}" for share in (pair.wins, pair.ties, pair.losses))
        rows.append([other.label, difference, *shares, f"{pair.difference.count:,}"])
    if not rows:
        return None
    headings = ["Against", Cell("Difference", "95 % interval"), "Better", "Equal", "Worse"]
    return Section(
        f"{leader.label} against the others",
        [
            f"Accuracy-AUC of {leader.label} less that of the other, picture by picture: the mean "
            "difference, and the share of the pictures where it is better, equal or worse. A "
            "difference is tinted where its interval excludes zero."
        ],
        table=Table([*headings, "Pictures"], rows),
    )


def _signed(value: float, digits: int) -> str:
    return f"{value:+.{digits}f}".replace("-", "−")


def _pair_section(summary: Summary) -> Section | None:
    compared = [m for m in summary.methods if m.areas is not None]
    if summary.leader is None or len(compared) < 3:  # two are compared above
        return None
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
        "Each number is the mean difference of Accuracy-AUC, in hundredths, of the method of the "
        "row less that of the column, over the pictures that both have. It is tinted where its "
        "95 % interval excludes zero: blue where the row is better, orange where it is worse."
        + (
            " Below it stand the shares of the pictures where the row is better and worse, in "
            "percent."
            if shares
            else ""
        ),
        f"Of {_counted(count, 'comparison')}, about {chance} would be tinted by chance alone if "
        "all methods were equal. pairs.csv holds the intervals.",
    ]
    return Section(
        "Method against method",
        paragraphs,
        table=Table(
            ["Row less column", *(f"#{n + 1}" for n in range(len(named)))], rows, dense=True
        ),
    )


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
        label = int(results.images.labels[place])
        name = labels[label] if label < len(labels) else f"class {label}"
        tiles = [Tile(photograph, "Picture", _probability(summary.originals, image), lossy=True)]
        for method in summary.methods:
            map_ = _opened(results.example(image, method.label, "map"))
            if map_ is None:
                continue
            kept = _opened(results.example(image, method.label, "insertion"))
            caption = _probability(method.shown, image)
            tiles.append(Tile(map_, method.label, caption, below=kept, lossy=True))
        rows.append(TileRow(tiles, f"{name} · {results.images.keys[place]}", flows=True))
    if not rows:
        return None
    paragraphs = [
        "Each method’s map over the picture (warm: for the class; cool: against it), below it the "
        "tenth of the pixels that it ranks first. The percentage is the network’s probability of "
        "the class, for the whole picture and for that tenth. The best method comes first."
    ]
    if left_out:
        paragraphs.append(f"{left_out} more are in the folder examples.")
    return Section("Example pictures", paragraphs, rows=rows)


def _probability(known: Mapping[int, float], image: int) -> str:
    value = known.get(image)
    if value is None:
        return ""
    return "under 0.1 %" if 0 < value < 0.001 else f"{100 * value:.1f} %"


def _opened(path: Path) -> Image.Image | None:
    try:
        with Image.open(path) as picture:
            return picture.convert("RGB")
    except OSError:  # an example that was not drawn, or is damaged: the rest tells enough
        return None


def _failure_section(summary: Summary) -> Section | None:
    if not summary.failures:
        return None
    everyone = len(summary.methods)
    rows = [
        [
            Cell(failure.key),
            Cell(failure.reason),
            Cell("all methods" if len(failure.methods) == everyone else _joined(failure.methods)),
        ]
        for failure in summary.failures[:_MOST_FAILURES]
    ]
    count = len({failure.key for failure in summary.failures})
    text = (
        f"{_counted(count, 'picture')} could not be read or explained, and "
        f"{'is' if count == 1 else 'are'} left out of the averages."
    )
    if len(summary.failures) > _MOST_FAILURES:
        text += f" The first {_MOST_FAILURES} reasons are listed."
    return Section("Pictures that failed", [text], table=Table(["Picture", "Why", "For"], rows))


def _terms_section(summary: Summary) -> Section:
    percents = next((m.curves.percents for m in summary.methods if m.curves is not None), None)
    if percents is None:
        percents = np.arange(5, 101, 5)
    lowest, highest, most = percents[0], percents[-1], (percents[-1] - percents[0]) / 100
    return Section(
        "What the terms mean",
        terms=[
            (
                "Insertion",
                "The pixels are ranked by a method’s map, highest first. Those ranked first are "
                f"shown to the network, {_hidden(summary)}. A good explanation lets the network "
                "know the class from few pixels.",
            ),
            (
                "PI",
                "Percentage of insertion: the share of the pixels that are kept. Here it goes "
                f"from {lowest:g} % to {highest:g} % in {len(percents)} steps. Where pixels have "
                "equal values, the one that comes first in reading order (from the top left, row "
                "by row) ranks higher, for every method alike.",
            ),
            (
                "Accuracy-AUC",
                "The share of the pictures that the network classifies as labelled, as an area "
                f"under its curve over PI (trapezoids) from {lowest:g} % to {highest:g} %. Below "
                f"{lowest:g} % nothing is counted, so the highest possible value is {most:g}, not "
                "1; it would mean that the network is right at every step.",
            ),
            (
                "Correct ones",
                "Accuracy-AUC over those pictures alone that the network gets right when it sees "
                "all of them: an explanation of a mistake cannot help the network.",
            ),
            (
                "Softmax-AUC",
                "For each picture the network’s probability of the class from the kept pixels, p̂, "
                "is divided by that from the whole picture, p; the area under that ratio over PI "
                "is taken. It may exceed 1, where the network is surer of the part than of the "
                "whole. The mean over pictures is the published measure, but a few pictures with "
                "a tiny p can dominate it: p̂ / p is then in the hundreds. The median, and the "
                "ratio of means (mean p̂ over mean p), do not suffer from that.",
            ),
            (
                "Residual",
                "Some methods promise that a map sums to the change of the class’s score, Δy, from "
                "the reference picture. The residual is (Σ map − Δy) / |Δy|; shown is the median "
                "of its size. 0 is exact. Methods that promise no such sum have none.",
            ),
            (
                "Seconds",
                "Median time to explain one picture, on the machine named below. Below it, how "
                "many times as long as the fastest method; the control, which does not look at the "
                "network, does not count as one.",
            ),
            (
                "95 % interval",
                f"How far an average might be off because other pictures could have been chosen: "
                f"the pictures are drawn again with replacement {RESAMPLES:,} times, and the "
                "interval holds the middle 95 % of the averages (percentile bootstrap). It says "
                "nothing of other networks or kinds of pictures.",
            ),
            (
                "Picture by picture",
                "Two methods are compared on the same pictures, by the difference on each. That "
                "is sharper than comparing two intervals, for pictures differ in difficulty far "
                "more than methods do: intervals may overlap and the difference still be clear.",
            ),
            (
                "Control",
                "A random ranking of the pixels. A method no better than that has found nothing.",
            ),
        ],
    )


def _repeat_section(summary: Summary) -> Section:
    manifest = summary.results.manifest
    run, machine = manifest["run"], manifest.get("machine") or {}
    model, data = run.get("model", {}), run.get("data", {})
    facts = {
        "Network": _facts(model, ("name", "weights", "fingerprint")),
        "Pictures": _facts(data, ("name", "images", "fingerprint")),
        "Versions": _facts({**run, "python": machine.get("python")}, ("afmi", "torch", "python")),
        "Machine": _facts(machine, [key for key in machine if key != "python"]),
        "Batch size": str(run.get("batch_size", "")),
        "Seed": str(run.get("seed", "")),
        "Begun": str(manifest.get("created", "")),
    }
    facts |= {
        f"Metric: {name}": _parameters(parameters)
        for name, parameters in run.get("metrics", {}).items()
    }
    rows = [
        [
            method.label,
            Cell(_parameters(told.get("parameters") or {})),
            Cell(str(told.get("paper") or "")),
        ]
        for method in summary.methods
        for told in [summary.results.facts(method.label)]
    ]
    command = str(manifest.get("command") or "")
    return Section(
        "How to repeat it",
        ["The same command on the same pictures gives the same numbers, times apart."],
        terms=[(name, text) for name, text in facts.items() if text],
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
