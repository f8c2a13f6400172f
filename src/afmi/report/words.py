"""Say an evaluation's numbers and its outcome in words, the same on pages and terminals."""

from __future__ import annotations

import math
from collections.abc import Sequence

from afmi.metrics.columns import Column
from afmi.report.statistics import Estimate
from afmi.report.summary import Summary, metric_of

__all__ = [
    "UNKNOWN",
    "amount",
    "counted",
    "directions",
    "finding",
    "interval",
    "joined",
    "number",
    "times",
    "unfinished",
]

UNKNOWN = "–"
"""What tables show where nothing was measured."""


def number(value: float, digits: int = 3) -> str:
    """Return a number for a table, with a true minus sign; "–" where it is unknown."""
    if not math.isfinite(value):
        return UNKNOWN
    size = abs(value)
    text = f"{value:.{digits}f}" if size < 1000 else f"{value:.3g}"
    return text.replace("-", "−") if float(text) else text.lstrip("-")


def amount(column: Column, value: float) -> str:
    """Return a column's number; short times keep a fourth digit, and long ones need but one."""
    if column.unit != "s":
        return number(value)
    return number(value, 4 if value < 0.1 else 3 if value < 10 else 1)


def times(value: float) -> str:
    """Return how many times: ``1.0 ×``, ``230 ×``."""
    if not math.isfinite(value):
        return UNKNOWN
    return f"{value:.1f} ×" if value < 100 else f"{value:,.0f} ×"


def interval(estimate: Estimate) -> str:
    """Return the ends of an interval; "" where it has none."""
    if not math.isfinite(estimate.low):
        return ""
    # A dash between them would look like a minus sign before a negative end.
    between = "–" if estimate.low >= 0 else " to "
    return f"{number(estimate.low)}{between}{number(estimate.high)}"


def joined(words: Sequence[str]) -> str:
    """Return ``a, b and c``."""
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"


def counted(count: int, what: str) -> str:
    """Return a number with its noun: ``1 picture``, ``1,000 pictures``."""
    return f"{count:,} {what}{'' if count == 1 else 's'}"


def directions(columns: Sequence[Column]) -> str:
    """Say which way each column is better, in a sentence; "" where none has a way."""
    clauses = []
    for better, word in ((True, "higher"), (False, "lower")):
        titles = dict.fromkeys(c.title for c in columns if c.higher_is_better is better)
        if titles:
            clauses.append(f"{word} is better for {joined(list(titles))}")
    text = "; ".join(clauses)
    return f"{text[:1].upper()}{text[1:]}." if text else ""


def finding(summary: Summary) -> str:
    """Say in a sentence or two which method leads in the leading column, and how sure that is."""
    if summary.leading is None:
        return "No metric was measured that ranks methods, so none leads."
    column, leader = summary.columns[summary.leading], summary.leader
    if leader is None:
        name = summary.results.metrics[metric_of(summary.leading)].name
        return f"{name} was not measured, so no method leads on {column.title}."
    estimate = leader.averages[summary.leading]
    best = "Highest" if column.higher_is_better else "Lowest"
    text = f"{best} on {column.title} is {leader.label}: {amount(column, estimate.value)}"
    if interval(estimate):
        text += f" (95 % interval {interval(estimate)})"
    others = [m for m in summary.methods if m is not leader and m.known(summary.leading)]
    if not others:
        return f"{text}."
    rivals = summary.rivals
    if rivals:
        return (
            f"{text}. Picture by picture, {joined([method.label for method in rivals])} cannot be "
            "told apart from it: the interval of the difference includes zero."
        )
    pairs = [summary.pair(leader.label, other.label) for other in others]
    if all(pair is not None and pair.clear for pair in pairs):
        return f"{text}. Picture by picture, its lead over every other method is clear."
    return f"{text}. Too few pictures are done to say how sure its lead is."


def unfinished(summary: Summary) -> str:
    """Say what is not done yet; "" when the evaluation is finished."""
    late = [m for m in summary.methods if not m.finished]
    sentences = []
    if late:
        done = [f"{m.label} ({m.done:,} of {m.images:,} pictures)" for m in late]
        sentences.append(
            f"Not finished: {joined(done)}. Averages of {'it' if len(late) == 1 else 'these'} are "
            "over other pictures than those of the rest, so compare them with care."
        )
    if summary.waiting:
        sentences.append(f"Not begun: {joined(summary.waiting)}.")
    if not summary.results.ended:
        sentences.append(
            f"The data have not been read to their end: these are their first "
            f"{counted(len(summary.results.images), 'picture')}."
        )
    return " ".join([*sentences, "Run the same command again to resume."]) if sentences else ""
