"""The pages that quote the package: messages and numbers are those of the code and the tables."""

from __future__ import annotations

import ast
import csv
import re
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import pytest

from afmi import errors

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"


def _read(name: str) -> str:
    return (DOCS / name).read_text(encoding="utf-8")


QUOTED = [
    " ".join(block.split()) for block in re.findall(r"```text\n(.*?)```", _read("trouble.md"), re.S)
]


@cache
def _messages() -> str:
    """Return all texts of the package, with an ellipsis for each value that is put into one."""
    texts = []
    for path in sorted((ROOT / "src" / "afmi").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.JoinedStr):
                texts.append("".join(_part(value) for value in node.values))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                texts.append(node.value)
    return "\n".join(texts)


def _part(value: ast.expr) -> str:
    return value.value if isinstance(value, ast.Constant) else "…"


@pytest.mark.parametrize("message", QUOTED)
def test_trouble_quotes_messages_of_the_package(message: str) -> None:
    kind, colon, text = message.partition(": ")
    if colon and kind.endswith(("Error", "Warning")):
        assert hasattr(errors, kind) or f"class {kind}(" in _source("methods/base.py")
        message = text
    parts = [part.strip("; ") for part in message.split("…")]
    parts = [part for part in parts if len(part) > 12]
    assert parts
    for part in parts:
        assert part in _messages(), part


def _source(name: str) -> str:
    return (ROOT / "src" / "afmi" / name).read_text(encoding="utf-8")


def test_trouble_quotes_many() -> None:
    assert len(QUOTED) > 20


def test_numbers_of_the_choice_are_those_of_the_tables() -> None:
    tables = "".join(_read(f"{name}.md") for name in ("results", "multiscale", "limitations"))
    numbers = re.findall(r"[+−]?\d\.\d{3,4}\b", _read("choosing.md"))
    assert len(numbers) > 40
    assert not [number for number in numbers if number not in tables]


TABLES = {
    "results": [
        *("photos", "photos110", "photos11", "squeezenet", "squeezenet100"),
        *("squeezenet-regions", "mnist"),
    ],
    "multiscale": [
        *("multiscale-photos", "multiscale-squeezenet", "multiscale-lite0", "multiscale-lite1"),
        *("multiscale-lite2", "lite0-passes", "lite0-regions", "multiscale-squeezenet-rivals"),
        "photos-regions",
    ],
}
"""The files of docs/results that the tables of insertion on a page are from, in their order."""

AGAIN = {"photos": ["photos-afmi"]}
"""The files of methods that were measured again, whose rows stand in a table instead."""

AS_RUN = re.compile(r", (?:reference=black|relative=true|area=0\.001)| \((?:relative=true[^)]*)\)")
"""What newer names of methods say besides those that the files have."""


def _rows(name: str) -> list[dict[str, str]]:
    with (DOCS / "results" / f"{name}.csv").open(encoding="utf-8", newline="") as file:
        return [
            {key.removeprefix("insertion/"): value for key, value in row.items()}
            for row in csv.DictReader(file)
        ]


def _written(row: dict[str, str], names: Sequence[str], sign: str = "") -> list[str]:
    return [f"{float(row[name]):{sign}.4f}" for name in names]


def _measured(name: str) -> tuple[dict[str, dict[str, str]], dict[tuple[str, str], list[str]]]:
    """Return what the files of a table have: rows by method, and differences."""
    rows, differences = {}, {}
    for file in (name, *AGAIN.get(name, ())):
        rows |= {AS_RUN.sub("", row["method"]): row for row in _rows(f"{file}-table1")}
        differences |= _differences(file)
    return rows, differences


def _differences(name: str) -> dict[tuple[str, str], list[str]]:
    """Return differences and their intervals, of the first method less the second."""
    found = {}
    for row in _rows(f"{name}-pairs"):
        of = AS_RUN.sub("", row["first"]), AS_RUN.sub("", row["second"])
        found[of] = _written(row, ("difference", "low", "high"), "+")
        reverse = {key: str(-float(row[key])) for key in ("difference", "low", "high")}
        found[of[::-1]] = _written(reverse, ("difference", "high", "low"), "+")
    return found


def _numbers(cell: str) -> list[str]:
    return re.findall(r"[+-]?\d\.\d{4}", cell.replace("−", "-").replace("–", " "))


def _same(written: list[str], row: list[str]) -> bool:
    """Tell whether two rows of numbers are the same, where a zero has any sign."""
    return list(map(float, written)) == list(map(float, row))


@pytest.mark.parametrize("page", TABLES)
def test_tables_of_insertion_are_those_of_the_files(page: str) -> None:
    tables = re.findall(
        r"^\| method \| pictures .+\n\|[-|]+\n((?:\|.+\n)+)", _read(f"{page}.md"), re.M
    )
    heads = re.findall(r"^\| method \| pictures .+$", _read(f"{page}.md"), re.M)
    for name, head, table in zip(TABLES[page], heads, tables, strict=True):
        columns = re.findall(r"less ([^|]+?)'s", head)
        rows, differences = _measured(name)
        for line in table.splitlines():
            method, count, average, *cells = (cell.strip() for cell in line.strip("|").split("|"))
            method = AS_RUN.sub("", method)
            row = rows[method]
            ends = ("accuracy_auc", "accuracy_auc_low", "accuracy_auc_high")
            assert _numbers(average) == _written(row, ends), (name, method)
            assert int(count.replace(",", "")) == int(row["done"]), (name, method)
            against = cells[-2 - len(columns) : -2] if page == "results" else cells[: len(columns)]
            for other, cell in zip(columns, against, strict=True):
                if cell:
                    assert _same(_numbers(cell), differences[method, other]), (name, method, other)


FRONT = {
    "Grad-CAM": ["photos", "squeezenet", "mnist"],
    "A-FMI": [
        *("multiscale-photos", "multiscale-squeezenet", "multiscale-lite0-imagenet10"),
        *("multiscale-lite1", "multiscale-lite2-imagenet10"),
    ],
}
"""The files that the columns of the README's tables are from, by the method subtracted."""


@pytest.mark.parametrize("other", FRONT)
def test_tables_of_the_readme_are_those_of_the_files(other: str) -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    section = readme.partition("## Which method deserves belief?")[2].partition("\n## ")[0]
    first, second = re.findall(r"(?:^\|.+\n)+", section, re.M)
    table = first if other == "Grad-CAM" else second
    for line in table.splitlines()[2:]:
        method, *cells = (cell.strip() for cell in line.strip("|").split("|"))
        method = method.replace(", un-averaged (exact sum)", " (averaged=false)")
        for name, cell in zip(FRONT[other], cells, strict=True):
            rows, differences = _measured(name)
            numbers = [float(x) for x in re.findall(r"[+-]?\d\.\d{3}", cell.replace("−", "-"))]
            right = [float(rows[method]["accuracy_auc"])] if numbers and other == "Grad-CAM" else []
            if numbers and method != other:
                right += map(float, differences[method, other])
            assert numbers == pytest.approx(right, abs=0.00056), (name, method)


def test_commands_of_the_choice_are_those_above_the_tables() -> None:
    pages = "".join(_read(f"{name}.md") for name in ("results", "multiscale", "limitations"))
    commands = re.findall(r"^\$ (.+)$", _read("choosing.md"), re.MULTILINE)
    assert len(commands) > 8
    assert not [command for command in commands if command not in pages]


def test_the_front_picture_is_small() -> None:
    assert (DOCS / "images" / "front.jpg").stat().st_size < 120_000


@pytest.mark.slow
def test_the_front_picture_is_what_its_command_draws(tmp_path: Path) -> None:
    import io

    import numpy as np
    from PIL import Image

    from tools import front_picture

    drawn = Image.open(io.BytesIO(front_picture.drawn(front_picture.explanations())))
    with Image.open(front_picture.FILE) as kept:
        assert kept.size == drawn.size
        difference = np.asarray(kept, np.float32) - np.asarray(drawn, np.float32)
    assert np.abs(difference).mean() < 2
