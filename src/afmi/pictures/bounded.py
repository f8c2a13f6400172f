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
# A decoder gives a row when it has read the blocks of the next ones, of 32 rows at most.
_ROWS_BEHIND = 72
_MARK = (1, 254, 3, 252)


def _mark(image: Any) -> Any:
    """Return a colour that no row of a photograph has all over, as Pillow's core takes it."""
    mark = _MARK[: image.im.bands]
    return mark[0] if len(mark) == 1 else mark


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
        self._watched: Any = None
        self._end = 0
        self._marked = False

    def watch_end(self, image: Any, end: int) -> None:
        """Refuse a JPEG whose data end long before its rows; the decoder would fill them with grey.

        Args:
            image: opened from this file, and not decoded yet.
            end: where in the file the marker stands that ends the picture.
        """
        self._watched = image
        self._end = end

    def _size_up_to_end(self, size: int) -> int:
        """Return how much to read, so that the decoder is watched when all but the end is read."""
        image, left = self._watched, self._end - self._file.tell()
        row = image.height - _ROWS_BEHIND
        if row <= 0:
            return size
        if not self._marked:
            image.im.paste(_mark(image), (0, row, image.width, row + 1))
            self._marked = True
        if left > 0:
            return min(size, left) if size > 0 else left
        self._watched = None
        columns = range(0, image.width, max(image.width // 8, 1))
        if all(image.im.getpixel((x, row)) == _mark(image) for x in columns):
            raise ImageError(
                f"{self._name} is a JPEG image that is cut short or damaged (its data end before "
                f"row {row} of {image.height}); get the file again"
            )
        return size

    def header_read(self, size: int, *, steps: int = 0) -> None:
        """Let the rest of a file of ``size`` bytes be read, in so many more ``steps``."""
        self._bytes_left = float("inf")
        self._reads_left = _READS + size // _BYTES_PER_READ + steps

    def read(self, size: int = -1, /) -> bytes:
        """Read as the file does.

        Raises:
            ImageError: the bounds are passed.
        """
        if self._watched is not None:
            size = self._size_up_to_end(size)
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
    """Collect what is printed on the process's standard error in this block, by C libraries too.

    What other threads print meanwhile is not kept apart from it.
    """
    lines: list[str] = []
    try:
        sys.stderr.flush()
        before = os.dup(2)
    except (OSError, AttributeError):  # there is no standard error
        yield lines
        return
    try:
        with tempfile.TemporaryFile() as file:
            os.dup2(file.fileno(), 2)
            try:
                yield lines
            finally:
                sys.stderr.flush()
                os.dup2(before, 2)
                file.seek(0)
                lines += file.read().decode(errors="replace").splitlines()
    finally:
        os.close(before)
