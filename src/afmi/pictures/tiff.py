"""What TIFF files hold that other pictures do not: several pages, and bands beyond a screen's.

Pillow decodes what a screen can show. Other bands, and colours of more than 8 bits, are read by
tifffile, which is imported only then, after what it would need has been bounded.
"""

from __future__ import annotations

import math
import struct
import zlib
from collections.abc import Mapping
from typing import Any, BinaryIO

import numpy as np

from afmi.errors import ImageError
from afmi.pictures.bounded import printed_lines

__all__ = ["MOST_PAGES", "STARTS", "full_pages", "has_more_bands", "is_cut", "read_bands"]

STARTS = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
"""How TIFF files begin."""

MOST_PAGES = 1000
"""Pages beyond these are not counted."""

_SUBFILE, _BITS, _COMPRESSION, _PHOTOMETRIC, _SAMPLES, _EXTRA = 254, 258, 259, 262, 277, 338
_REDUCED_OR_MASK = 0b101
_PLAIN, _DEFLATE, _LZW = (0, 1), (8, 32946), (5,)
_RGB = 2


def full_pages(file: BinaryIO) -> list[int]:
    """Return which pages of a file are pictures of their own: not smaller copies, nor masks.

    Args:
        file: a TIFF file; left where it was.
    """
    place = file.tell()
    try:
        return [page for page, kind in enumerate(_subfile_types(file)) if not kind]
    except struct.error:  # cut short: the decoder says so
        return [0]
    finally:
        file.seek(place)


def _subfile_types(file: BinaryIO) -> list[int]:
    """Follow the chain of directories: of each page, whether it only serves another one."""
    file.seek(0)
    head = file.read(8)
    mark = "<" if head[:2] == b"II" else ">"
    big = struct.unpack(mark + "H", head[2:4])[0] == 43
    offset_form, count_form, entry = ("Q", "Q", 20) if big else ("I", "H", 12)

    def number(form: str) -> int:
        return struct.unpack(mark + form, file.read(struct.calcsize(mark + form)))[0]

    file.seek(8 if big else 4)
    following, seen, kinds = number(offset_form), set(), []
    while following and following not in seen and len(kinds) < MOST_PAGES:
        seen.add(following)
        file.seek(following)
        count, kind = number(count_form), 0
        for _ in range(min(count, 2**16)):
            row = file.read(entry)
            tag, type_ = struct.unpack(mark + "HH", row[:4])
            if tag == _SUBFILE:
                value = row[12:] if big else row[8:]
                form = "H" if type_ == 3 else "I"
                kind = struct.unpack_from(mark + form, value)[0] & _REDUCED_OR_MASK
        kinds.append(kind)
        following = number(offset_form)
    return kinds


def has_more_bands(tags: Mapping[int, Any]) -> bool:
    """Say whether a page has bands that are neither colours nor opacity, by Pillow's tags."""
    samples, extra = _first(tags.get(_SAMPLES, 1)), tags.get(_EXTRA, ())
    extra = extra if isinstance(extra, tuple) else (extra,)
    unnamed = _first(tags.get(_PHOTOMETRIC, 1)) == _RGB and samples > 3 and not extra
    return unnamed or 0 in extra or len(extra) > 1


def is_cut(tags: Mapping[int, Any]) -> bool:
    """Say whether Pillow would cut colours to 8 bits that tifffile can read at their depth."""
    bits = tags.get(_BITS, (1,))
    decodable = _first(tags.get(_COMPRESSION, 1)) in (*_PLAIN, *_DEFLATE)
    return decodable and _first(tags.get(_SAMPLES, 1)) > 1 and max(bits) > 8


def _first(value: Any) -> Any:
    return value[0] if isinstance(value, tuple) else value


def read_bands(file: BinaryIO, name: str, page: int, size: int, most: int) -> np.ndarray:
    """Read all bands of one page: (H, W, C), in the numbers of the file.

    Args:
        file: a TIFF file.
        name: what to call it in errors.
        page: which, in the file's chain.
        size: of the file, in bytes.
        most: numbers that there may be.

    Raises:
        ImageError: it is too large, compressed otherwise, or no plain picture of bands.
    """
    import tifffile

    file.seek(0)
    with printed_lines(), tifffile.TiffFile(file) as opened:
        found: Any = opened.pages[page]
        _check(found, name, most)
        _check_segments(found, file, name, size)
        values = found.asarray(maxworkers=1)
    if found.photometric == 0 and values.dtype.kind == "u":  # white is 0
        values = np.iinfo(values.dtype).max - values
    return np.moveaxis(values, 0, 2) if found.axes == "SYX" else values


def _check(page: Any, name: str, most: int) -> None:
    if page.axes not in ("YX", "YXS", "SYX") or page.dtype is None or page.photometric == 3:
        raise ImageError(
            f"{name} holds a TIFF page of shape {page.shape} with axes {page.axes}; expected one "
            "picture of bands: read it with what made it, and give an array (H, W, C)"
        )
    if math.prod(page.shape) > most:
        raise ImageError(
            f"{name} holds {math.prod(page.shape)} numbers, {page.shape}; expected at most {most}: "
            "scale it down, or raise afmi.images.MAX_PIXELS if you trust it"
        )
    able = (*_PLAIN, *_DEFLATE, *(_LZW if _has_imagecodecs() else ()))
    if page.compression not in able or page.predictor not in (1, 2):
        raise ImageError(
            f"{name} holds bands compressed by {page.compression.name} (predictor "
            f"{int(page.predictor)}), which cannot be read here; save it uncompressed or deflated, "
            "or give an array (H, W, C)"
            + ("; pip install imagecodecs reads LZW" if page.compression in _LZW else "")
        )


def _has_imagecodecs() -> bool:
    import importlib.util

    return importlib.util.find_spec("imagecodecs") is not None


def _check_segments(page: Any, file: BinaryIO, name: str, size: int) -> None:
    """See that all segments are there, and none is inflated beyond what it is to hold."""
    largest = math.prod(page.chunks) * page.dtype.itemsize
    for offset, count in zip(page.dataoffsets, page.databytecounts, strict=True):
        if offset + count > size:
            raise ImageError(
                f"{name} is a TIFF image that is cut short or damaged (its pixels lie beyond its "
                "end); get the file again"
            )
        if page.compression in _DEFLATE and count:
            file.seek(offset)
            inflated = zlib.decompressobj().decompress(file.read(count), largest + 1)
            if len(inflated) > largest:
                raise ImageError(
                    f"{name} is a TIFF image that is damaged (a part holds more pixels than it "
                    "may); get the file again"
                )
