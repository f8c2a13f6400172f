"""Read what options say: sizes, numbers per channel, the folder for results."""

from __future__ import annotations

import tempfile
from pathlib import Path

import click

from afmi.errors import UsageError

__all__ = ["NUMBERS", "SIZE", "writable_folder"]


def writable_folder(folder: Path) -> Path:
    """Make a folder unless it exists, and see that files can be written into it.

    Raises:
        UsageError: when that fails.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        why = error.strerror or type(error).__name__
        raise UsageError(
            f"cannot write into the folder {str(folder)!r}: {why}; choose another with --out"
        ) from error
    return folder


class _Numbers(click.ParamType):
    """Numbers joined by commas, one per channel: ``0.485,0.456,0.406``."""

    name = "numbers"

    def convert(
        self, value: object, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[float, ...]:
        if isinstance(value, tuple):
            return value
        try:
            return tuple(float(part) for part in str(value).split(","))
        except ValueError:
            self.fail(f"expected numbers joined by commas, got {value!r}", param, ctx)


class _Size(click.ParamType):
    """A side in pixels, or height x width: ``224`` or ``224x320``."""

    name = "size"

    def convert(
        self, value: object, param: click.Parameter | None, ctx: click.Context | None
    ) -> int | tuple[int, int]:
        sides = str(value).lower().split("x")
        if len(sides) > 2 or not all(side.isdecimal() and int(side) > 0 for side in sides):
            self.fail(f"expected pixels, or height x width, got {value!r}", param, ctx)
        return int(sides[0]) if len(sides) == 1 else (int(sides[0]), int(sides[1]))


NUMBERS = _Numbers()
SIZE = _Size()
