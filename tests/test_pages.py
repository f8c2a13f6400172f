"""The pages that quote the package: messages and numbers are those of the code and the tables."""

from __future__ import annotations

import ast
import re
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
