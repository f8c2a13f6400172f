"""What was measured, row by row: as CSV that can be read again, and as Markdown."""

from __future__ import annotations

import csv
import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

__all__ = ["Row", "markdown", "merged", "missed", "read", "slower", "write"]


@dataclass(frozen=True)
class Row:
    """One ratio, or what stood in its way.

    Attributes:
        scenario: which measurement.
        network: name.
        device: "cpu" or "cuda".
        setting: layout and precision, where they are not PyTorch's defaults.
        batch: images per call.
        size: their side in pixels.
        what: what the ratio's upper side is.
        against: its lower side; empty where there is no ratio.
        ratio: median over the rounds; NaN where a side failed.
        low: first quartile.
        high: third quartile.
        rounds: how many.
        seconds: median of the upper side.
        peak_mib: memory that the upper side had in use at most, less what was in use before.
        target: what the ratio should not exceed; NaN: none.
        agreement: mean rank correlation of the maps with ours (or with those in float32); NaN:
            not asked.
        agreement_min: the least over the images.
        x: how many images, classes, stages or masks, where cost is told as these grow; NaN else.
        note: for readers.
        level: how much the command was asked to measure: "quick", "standard" or "full".
        date: day of the measurement.
        machine: processor or GPU.
        threads: of PyTorch.
        clock: see `harness.CLOCKS`.
        versions: of the packages.
    """

    scenario: str
    network: str
    what: str
    against: str = ""
    device: str = "cpu"
    setting: str = ""
    batch: int = 1
    size: int = 0
    ratio: float = math.nan
    low: float = math.nan
    high: float = math.nan
    rounds: int = 0
    seconds: float = math.nan
    peak_mib: float = math.nan
    target: float = math.nan
    agreement: float = math.nan
    agreement_min: float = math.nan
    x: float = math.nan
    note: str = ""
    level: str = ""
    date: str = ""
    machine: str = ""
    threads: int = 0
    clock: str = ""
    versions: str = ""

    @property
    def against_peer(self) -> bool:
        """Whether the lower side is another package, whose maps were compared with ours."""
        known = not math.isnan(self.ratio) and not math.isnan(self.agreement)
        return known and self.scenario != "options"

    @property
    def verdict(self) -> str:
        """Whether the target is met; "within spread" where only the middle half reaches to it."""
        if math.isnan(self.target) or math.isnan(self.ratio):
            return ""
        if self.ratio <= self.target:
            return "yes"
        return "within spread" if self.low <= self.target else "**no**"


def write(path: Path, rows: Iterable[Row]) -> None:
    """Write rows as CSV; NaN is an empty cell."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as file:
        table = csv.DictWriter(file, [f.name for f in fields(Row)], lineterminator="\n")
        table.writeheader()
        for row in rows:
            table.writerow({name: _cell(value) for name, value in asdict(row).items()})


def _cell(value: object) -> object:
    if isinstance(value, float):
        return "" if math.isnan(value) else f"{value:.5g}"
    return value


def read(path: Path) -> list[Row]:
    """Return the rows of a CSV file that `write` made."""
    with path.open(newline="", encoding="utf-8") as file:
        return [_row(line) for line in csv.DictReader(file)]


def _row(line: dict[str, str]) -> Row:
    values: dict[str, Any] = {}
    for column in fields(Row):
        text = line[column.name]
        if column.type == "float":
            values[column.name] = float(text or "nan")
        else:
            values[column.name] = int(text) if column.type == "int" else text
    return Row(**values)


def merged(old: Sequence[Row], new: Sequence[Row]) -> list[Row]:
    """Return new rows with those old ones whose scenario was not run on that device."""
    again = {(row.scenario, row.device) for row in new}
    return [row for row in old if (row.scenario, row.device) not in again] + list(new)


HEADS = ("network", "batch", "size", "ratio", "median", "middle half", "seconds", "MiB")
HEADS += ("target", "met", "agreement", "note")


def markdown(rows: Iterable[Row]) -> str:
    """Return a table."""
    lines = [HEADS, ("---",) * len(HEADS), *map(cells, rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def cells(row: Row) -> tuple[str, ...]:
    """Return what `markdown` says of a row."""
    known = not math.isnan(row.ratio)
    where = f"{row.device}, {row.setting}".strip(", ") if row.device != "cpu" else row.setting
    agreement = _number(row.agreement, ".4f")
    if agreement and not math.isnan(row.agreement_min):
        agreement += f", least {row.agreement_min:.4f}"
    return (
        f"{row.network} ({where})" if where else row.network,
        str(row.batch),
        str(row.size or ""),
        f"{row.what} / {row.against}" if row.against else row.what,
        f"{row.ratio:.3f}" if known else "–",
        f"{row.low:.3f}–{row.high:.3f}" if known else "",
        _number(row.seconds, ".3g"),
        _number(row.peak_mib, ".0f"),
        _number(row.target, ".2f", "≤ "),
        row.verdict,
        agreement,
        row.note.replace("|", "\\|"),
    )


def _number(value: float, form: str, before: str = "") -> str:
    return "" if math.isnan(value) else f"{before}{value:{form}}"


def missed(rows: Iterable[Row]) -> list[Row]:
    """Return the rows whose target is not met."""
    return [row for row in rows if row.verdict not in ("", "yes")]


def slower(rows: Iterable[Row]) -> list[Row]:
    """Return the rows where another package is clearly faster: the whole middle half says so."""
    return [row for row in rows if row.against_peer and row.low > 1]
