"""Bound what a decoder may read of a file, and keep what it prints apart."""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, BinaryIO

from afmi.errors import ImageError

__all__ = ["HEADER_BYTES", "BoundedFile", "printed_lines"]

HEADER_BYTES = 2**24
"""The most bytes that may be read before an image's size is known."""
_HEADER_READS = 100_000
# Beyond these a decoder steps through data that is not the picture: of PNG's chunks, the smallest
# in use are of some kilobytes, and are read in four steps.
_READS, _BYTES_PER_READ = 100_000, 256


class BoundedFile:
    """A binary file of which a decoder reads neither too much nor in too many steps.

    Decoders written in Python take a step for each byte of a comment, each chunk or each marker,
    and hostile files hold millions of these.

    Args:
        file: opened in binary mode.
        name: what to call it in errors.
    """

    def __init__(self, file: BinaryIO, name: str) -> None:
        self._file = file
        self._name = name
        self._reads_left = _HEADER_READS
        self._bytes_left: float = HEADER_BYTES

    def header_read(self, size: int, *, steps: int = 0) -> None:
        """Let the rest of a file of ``size`` bytes be read, in so many more ``steps``."""
        self._bytes_left = float("inf")
        self._reads_left = _READS + size // _BYTES_PER_READ + steps

    def read(self, size: int = -1, /) -> bytes:
        """Read as the file does.

        Raises:
            ImageError: the bounds are passed.
        """
        content = self._file.read(size)
        self._reads_left -= 1
        if size > 0:  # else all there is, which WebP's decoder needs to know the image's size
            self._bytes_left -= len(content)
        if self._reads_left < 0 or self._bytes_left < 0:
            raise ImageError(
                f"{self._name} holds too much beside its picture, such as comments or metadata; "
                "save the picture again without them"
            )
        return content

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)


@contextmanager
def printed_lines() -> Iterator[list[str]]:
    """Collect what C libraries print on the process's standard error in this block.

    What Python prints meanwhile, in other threads, is not kept apart from it.
    """
    lines: list[str] = []
    sys.stderr.flush()
    try:
        before = os.dup(2)
    except OSError:  # there is no standard error
        yield lines
        return
    try:
        with tempfile.TemporaryFile() as file:
            os.dup2(file.fileno(), 2)
            try:
                yield lines
            finally:
                os.dup2(before, 2)
                file.seek(0)
                lines += file.read().decode(errors="replace").splitlines()
    finally:
        os.close(before)
