"""The sections of a report that show the declared columns: tables, charts, and what they mean."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from afmi.metrics.columns import Column
from afmi.report.charts import MOST_LINES, Interval, Line, draw_intervals, draw_lines, svg_text
from afmi.report.page import Cell, Chart, Section, Table
from afmi.report.statistics import RESAMPLES
from afmi.report.summary import MethodSummary, Summary, metric_of
from afmi.report.words import UNKNOWN, amount, directions, interval, number, times

__all__ = ["curve_sections", "other_section", "table_section", "terms_section"]

# The mean of a ratio may be huge; curves of ratios are shown up to this height.
_HIGHEST_RATIO = 3.0
_BETTER = {True: "Higher is better.", False: "Lower is better.", None: ""}


def _cell(summary: Summary, method: MethodSummary, key: str, *, strong: bool = False) -> Cell:
    """Return value and interval, or value and multiple; the leading column's count where short."""
    estimate, column = method.known(key), summary.columns[key]
    if estimate is None:
        return Cell(UNKNOWN)
    note = interval(estimate)
    if column.multiples:
        note = times(summary.multiple(method, key)).replace(UNKNOWN, "")
    elif key == summary.leading and estimate.count != method.done - method.failed:
        note = f"{note} · {estimate.count:,} pictures".removeprefix(" · ")
    return Cell(amount(column, estimate.value), note, strong=strong)


def _done(method: MethodSummary) -> Cell:
    text = f"{method.done:,}" + ("" if method.finished else f" of {method.images:,}")
    notes = [] if method.finished else ["not finished"]
    notes += [f"{method.failed:,} failed"] if method.failed else []
    return Cell(text, ", ".join(notes), tone="" if method.finished else "bad")


def table_section(summary: Summary, beside: Mapping[str, float], beside_title: str) -> Section:
    """Return Table 1, with the published values where there are any."""
    columns, leader = summary.main, summary.leader
    headings = [Cell(column.title, column.subtitle) for column in columns.values()]
    if summary.leading is not None:
        column = columns[summary.leading]
        notes = filter(None, ("95 % interval", column.unit))
        headings[list(columns).index(summary.leading)] = Cell(column.title, ", ".join(notes))
    cells = [
        [_cell(summary, m, key, strong=m is leader and key == summary.leading) for key in columns]
        for m in summary.methods
    ]
    if beside and headings:
        for row, m in zip(cells, summary.methods, strict=True):
            row.insert(1, Cell(number(beside.get(m.label, math.nan), 4)))
        headings.insert(1, Cell(beside_title, headings[0].text))
    paragraphs = [
        f"The best first. {directions(list(columns.values()))} The terms are explained below."
    ]
    if summary.results.refused:
        refused = summary.results.refused.items()
        paragraphs.append(
            "Left out: " + "; ".join(f"{label} ({reason})" for label, reason in refused) + "."
        )
    return Section(
        "Table 1",
        paragraphs,
        table=Table(
            [Cell("Method"), *headings, Cell("Pictures", "done")],
            [
                [Cell(m.label, m.family, strong=m is leader), *row, _done(m)]
                for row, m in zip(cells, summary.methods, strict=True)
            ],
        ),
        charts=_interval_charts(summary),
    )


def _interval_charts(summary: Summary) -> list[Chart]:
    if summary.leading is None or summary.leader is None:
        return []
    title = summary.columns[summary.leading].title
    drawn = [
        Interval(m.label, m.family, estimate, m.finished)
        for m in summary.methods
        if (estimate := m.known(summary.leading)) is not None
    ]
    figure = draw_intervals(drawn, f"{title}, with its 95 % interval")
    best = ", ".join(f"{d.label} {number(d.estimate.value)}" for d in drawn)
    return [Chart(svg_text(figure, "intervals"), f"{title} by method: {best}")]


def curve_sections(summary: Summary) -> list[Section]:
    """Return a section for each metric that has curves."""
    sections = []
    for place, (metric, facts) in enumerate(summary.results.metrics.items()):
        keys = [
            key
            for key, column in summary.columns.items()
            if metric_of(key) == metric
            and column.kind == "curve"
            and any(key in method.curves for method in summary.methods)
        ]
        if not keys:
            continue
        paragraphs = [facts.about] if facts.about else []
        paragraphs += ["curves.csv holds every point; the numbers in the legends are the areas."]
        charts = []
        for key in keys:
            chart, note = _curve_chart(summary, key, f"curve-{place}-{len(charts)}")
            charts.append(chart)
            paragraphs += [note] if note else []
        heading = f"Curves of {summary.results.metric_label(metric).lower()}"
        sections.append(Section(heading, paragraphs, charts=charts))
    return sections


def _curve_chart(summary: Summary, key: str, name: str) -> tuple[Chart, str]:
    """Return the chart of a column, and what has to be said of it."""
    column = summary.columns[key]
    drawn = [m for m in summary.methods if key in m.curves]
    styles = _styles(drawn)
    lines = []
    for m in drawn:
        curve, area = m.curves[key], m.known(f"{metric_of(key)}/{column.area}")
        value = None if area is None else area.value
        lines.append(Line(m.label, m.family, curve.percents, curve.heights, value, styles[m.label]))
    # Sorting leaves equal areas in the order of the methods.
    lines.sort(key=lambda line: math.inf if line.area is None else -line.area)
    heights = np.concatenate([line.y[np.isfinite(line.y)] for line in lines])
    low, high = heights.min(initial=0), heights.max(initial=0)
    # Shares and ratios are drawn from 0 to 1 at least.
    top = 1.05 * high if column.unit else max(1.05 * high, 1.05)
    cut = bool(column.per) and high > _HIGHEST_RATIO
    top = _HIGHEST_RATIO if cut else top or 1.0
    averaged = f" ({column.subtitle})" if column.aggregate != "mean" or column.per else ""
    title = f"{column.title}{averaged}"
    areas = ", ".join(
        line.label if line.area is None else f"{line.label} {number(line.area)}" for line in lines
    )
    prefix = "areas: " if column.area else ""
    text = f"{title} against {column.over.partition(':')[0]}; {prefix}{areas}"
    figure = draw_lines(lines, column.over, title, ylim=(1.05 * low, top))
    chart = Chart(svg_text(figure, name), text, title, len(lines) > MOST_LINES)
    note = (
        f"Some curves of the {column.title.lower()} ({column.aggregate}) rise above {top:g} and "
        "are cut off there: a few pictures where it is divided by next to nothing make up most of "
        "it."
    )
    return chart, note if cut else ""


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


def other_section(summary: Summary) -> Section | None:
    """Return the columns that Table 1 has no room for; None where there are none."""
    columns = summary.others
    if not columns:
        return None
    label = summary.results.metric_label
    headings = [
        Cell(label(metric_of(key)), f"{column.title}, {column.subtitle}")
        for key, column in columns.items()
    ]
    rows = [
        [method.label, *(_cell(summary, method, key) for key in columns)]
        for method in summary.methods
    ]
    terms = []
    for metric in dict.fromkeys(map(metric_of, columns)):
        declared = [column for key, column in columns.items() if metric_of(key) == metric]
        better = {column.title: _BETTER[column.higher_is_better] for column in declared}
        terms += [
            (f"{label(metric)}: {title}", f"{meaning} {better[title]}".rstrip())
            for title, meaning in _terms(declared)
        ]
    return Section(
        "Other measurements",
        ["Each average stands above its 95 % interval."],
        table=Table(["Method", *headings], rows),
        terms=terms,
    )


def _terms(columns: Iterable[Column]) -> list[tuple[str, str]]:
    """Return each title with what its columns measure."""
    texts: dict[str, dict[str, None]] = {}
    for column in columns:
        text = f"{column.measures[:1].upper()}{column.measures[1:].rstrip('.')}."
        texts.setdefault(column.title, {})[text] = None
    return [(title, " ".join(measured)) for title, measured in texts.items()]


def terms_section(summary: Summary) -> Section:
    """Return what the leading metric, the columns of Table 1 and the statistics mean."""
    facts = summary.results.metrics.get(metric_of(summary.leading))
    about = [(facts.name, facts.about)] if facts is not None and facts.about else []
    return Section(
        "What the terms mean",
        terms=[*about, *_terms(summary.main.values())],
        prose="evaluation_terms.html",
        facts={"resamples": RESAMPLES},
    )
