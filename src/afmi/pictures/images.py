"""Read images of every common kind into RGB.

What cannot be read right is refused with an `ImageError` of one line that names the file and
says what was expected, what came, and what to do.  Nothing here changes Pillow's settings.
"""

from __future__ import annotations

import io
import os
import re
import threading
import warnings
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO, TypeAlias

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from afmi.errors import ImageError, near_matches
from afmi.files import regular_file_size
from afmi.pictures.bounded import BoundedFile, printed_lines

__all__ = ["MAX_BYTES", "MAX_PIXELS", "MAX_SIDE", "ImageSource", "read_image"]

MAX_PIXELS = 89_478_485
"""Images of more pixels are refused before they are decoded; assign to it to change the limit."""

MAX_BYTES = 2**29
"""Files of more bytes are refused before they are read; assign to it to change the limit."""

MAX_SIDE = 2**22
"""Images of more pixels a side are refused before they are decoded: each row costs memory, too."""

_MAX_COMMENTS = 1000
_JPEG_MARKER = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]")  # that ends the data of a scan
_BMP_STEPS = 2**22  # Each run of equal pixels takes two.

ImageSource: TypeAlias = (
    str | os.PathLike[str] | Image.Image | np.ndarray | bytes | bytearray | memoryview | BinaryIO
)

# Only these decoders see the bytes: others of Pillow's start programs (EPS) or read no pictures.
_FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "TIFF", "BMP", "PPM")
_EXPECTED = "expected a JPEG, PNG, WebP, GIF, TIFF, BMP or PPM image"
_STARTS = (
    (b"\xff\xd8\xff", "JPEG"),
    (b"\x89PNG", "PNG"),
    (b"GIF8", "GIF"),
    (b"RIFF", "WebP"),
    (b"II*\0", "TIFF"),
    (b"MM\0*", "TIFF"),
    (b"BM", "BMP"),
)
_RAW_SUFFIXES = {".arw", ".cr2", ".dng", ".nef", ".nrw", ".orf", ".pef", ".rw2", ".srw"}
_TIFF_BITS, _TIFF_PHOTOMETRIC, _TIFF_DNG_VERSION = 258, 262, 50706

# warnings.catch_warnings is not safe across threads: two at once can leave filters behind.
_WARNINGS_LOCK = threading.RLock()


def read_image(source: ImageSource) -> Image.Image:
    """Read one image as 8-bit RGB, the way an image viewer shows it.

    The EXIF orientation is applied; of several frames or pages the first is taken (of a PIL
    image, the one it is at); transparent pixels are laid over white; CMYK, YCbCr, LAB and
    palettes are converted.  Embedded colour profiles are not applied.  Grey of 16 bits is scaled
    from 0..65535 (12-bit TIFF: 0..4095).  Grey of 32 bits has no fixed white, so the smallest of
    1 (float only), 255 and 65535 that no pixel exceeds is taken as white.

    Args:
        source: a path; a PIL image; the bytes of an image file; a file opened in binary mode,
            read from where it is to its end and left open; or a numpy array (H, W), (H, W, 1),
            (H, W, 3) or (H, W, 4) of dtype uint8, uint16, bool, or float in [0, 1].

    Returns:
        A new image in mode RGB without metadata, independent of the source.

    Raises:
        ImageError: the source cannot be read right; the message is one line.

    Example:
        >>> read_image(np.array([[0, 65535]], dtype=np.uint16)).getpixel((1, 0))
        (255, 255, 255)
    """
    if isinstance(source, (str, os.PathLike)):
        return _read_path(Path(source))
    if isinstance(source, Image.Image):
        filename = getattr(source, "filename", "")
        return _decode(source, f"the PIL image {str(filename)!r}" if filename else "the PIL image")
    if isinstance(source, np.ndarray):
        return _decode(_array_to_image(source), "the array")
    if isinstance(source, (bytes, bytearray, memoryview)):
        return _read_bytes(bytes(source), "the content given")
    if hasattr(source, "read"):
        filename = getattr(source, "name", "")
        name = f"the open file {filename!r}" if isinstance(filename, str) else "the open file"
        try:
            content = source.read(MAX_BYTES + 1)
        except (OSError, ValueError) as error:
            raise ImageError(f"{name} cannot be read: {_one_line(error)}") from error
        if not isinstance(content, bytes):
            raise ImageError(f"{name} gives {type(content).__name__}; open it in mode 'rb'")
        return _read_bytes(content, name)
    raise ImageError(
        "expected a path, PIL image, numpy array, bytes or binary file as image; "
        f"got {type(source).__name__}: convert it (a tensor with afmi.transforms.to_image)"
    )


def _one_line(error: BaseException) -> str:
    text = getattr(error, "strerror", None) or str(error)
    return " ".join(text.split()) or type(error).__name__


def _read_path(path: Path) -> Image.Image:
    name = repr(str(path))  # repr keeps odd names (newlines, undecodable bytes) on one line
    try:
        size = regular_file_size(path)
        with path.open("rb") as file:
            return _decode_file(file, name, path.suffix.lower(), size)
    except IsADirectoryError as error:
        raise ImageError(f"{name} is a folder; expected a file: name an image inside it") from error
    except (FileNotFoundError, NotADirectoryError) as error:
        raise ImageError(_why_missing(path, name)) from error
    except PermissionError as error:
        raise ImageError(
            f"{name} may not be read (permission denied); change its rights or its folder's"
        ) from error
    except ImageError:  # a ValueError too
        raise
    except (OSError, ValueError) as error:  # ValueError: a null byte in the path
        raise ImageError(f"{name} cannot be opened: {_one_line(error)}; check the path") from error


def _why_missing(path: Path, name: str) -> str:
    if path.is_symlink():
        target = os.readlink(path)
        return f"{name} is a link to {target!r}, which does not exist; mend or remove the link"
    folder = path.parent
    if not folder.is_dir():
        return f"{name} does not exist, nor does its folder {str(folder)!r}; check the path"
    try:
        with os.scandir(folder) as entries:  # the first 5000 only: matching is slow
            names = sorted(entry.name for entry in islice(entries, 5000))
    except OSError:
        names = []
    return f"{name} does not exist" + (near_matches(path.name, names) or "; check the path")


def _read_bytes(content: bytes, name: str) -> Image.Image:
    return _decode_file(io.BytesIO(content), name, "", len(content))


def _decode_file(file: BinaryIO, name: str, suffix: str, size: int) -> Image.Image:
    if size > MAX_BYTES:
        raise ImageError(
            f"{name} has more than {MAX_BYTES} bytes; expected at most so many: scale it down, or "
            "raise afmi.images.MAX_BYTES if you trust it"
        )
    head = file.read(512)
    if not head:
        raise ImageError(f"{name} is empty; {_EXPECTED}: get the file again (or rewind it)")
    with _WARNINGS_LOCK, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what Pillow warns of is refused below, or harmless
        bounded: Any = BoundedFile(file, name)
        try:
            image = _open(bounded, head)
        except ImageError:
            raise
        except Image.DecompressionBombError as error:
            raise ImageError(f"{_too_large(name)} ({_one_line(error)})") from error
        except Exception as error:  # on hostile bytes decoders raise errors of many types
            start = next((kind for magic, kind in _STARTS if head.startswith(magic)), "")
            if start:
                raise ImageError(_damaged(name, start, error)) from error
            raise ImageError(
                f"{name} is not an image that can be read (it holds {_looks_like(head)}); "
                f"{_EXPECTED}: convert it"
            ) from error
    bounded.header_read(size, steps=_BMP_STEPS if image.format == "BMP" else 0)
    if image.format == "JPEG":
        _watch_end(file, image, bounded)
    elif re.match(rb"P[123]\s", head):
        _check_comments(file, name)
    tags = getattr(image, "tag_v2", {})
    if image.format == "TIFF" and (suffix in _RAW_SUFFIXES or _TIFF_DNG_VERSION in tags):
        # Pillow would read the small preview that leads such files.
        raise ImageError(f"{name} is a camera raw file; {_EXPECTED}: export it as one of these")
    _mend_transparent_colour(image)
    return _decode(image, name)


def _open(file: Any, head: bytes) -> Image.Image:
    if head[:2] not in (b"II", b"MM"):
        return Image.open(file, formats=_FORMATS)
    with printed_lines():  # of a TIFF what is wrong is logged as well as raised
        return Image.open(file, formats=_FORMATS)


def _watch_end(file: BinaryIO, image: Image.Image, bounded: BoundedFile) -> None:
    """Let the end of a JPEG's data be watched, unless they come in several scans."""
    place = file.tell()  # where the data begin
    marker = _JPEG_MARKER.search(file.read())
    file.seek(place)
    if marker is not None and marker[0] == b"\xff\xd9":
        bounded.watch_end(image, place + marker.start())


def _check_comments(file: BinaryIO, name: str) -> None:
    """Refuse a plain PNM file with many comments, each of which Pillow copies all the rest for."""
    place = file.tell()
    comments = sum(block.count(b"#") for block in iter(lambda: file.read(2**20), b""))
    file.seek(place)
    if comments > _MAX_COMMENTS:
        raise ImageError(
            f"{name} holds {comments} comments; expected at most {_MAX_COMMENTS}: save the "
            "picture again without them"
        )


def _mend_transparent_colour(image: Image.Image) -> None:
    """Bring a PNG's transparent colour, which Pillow leaves at the file's depth, to 8 bits."""
    colour = image.info.get("transparency")
    tiles: Any = getattr(image, "tile", None)
    layout = tiles[0][3] if tiles and image.format == "PNG" else None
    if layout in ("L;2", "L;4") and isinstance(colour, int):
        image.info["transparency"] = colour * (85 if layout == "L;2" else 17)
    elif layout == "RGB;16B" and isinstance(colour, tuple):
        image.info["transparency"] = tuple(part >> 8 for part in colour)


def _too_large(name: str, size: tuple[int, int] | None = None) -> str:
    pixels = f"{size[0]} x {size[1]} = {size[0] * size[1]} pixels" if size else "too many pixels"
    return (
        f"{name} has {pixels}; expected at most {MAX_PIXELS}: "
        "scale it down, or raise afmi.images.MAX_PIXELS if you trust it"
    )


def _damaged(name: str, kind: str | None, error: BaseException) -> str:
    what = f"a {kind} image that is" if kind else "an image that is"
    # Pillow's own words for it name the file object.
    unknown = isinstance(error, UnidentifiedImageError)
    why = "its beginning cannot be read" if unknown else _one_line(error)
    return f"{name} is {what} cut short or damaged ({why}); get the file again"


def _looks_like(head: bytes) -> str:
    if head[4:8] == b"ftyp":
        return f"a HEIC, AVIF or video file of brand {head[8:12].decode('latin-1')!r}"
    lowered = head.lower()
    for mark, kind in ((b"%pdf", "a PDF"), (b"<svg", "an SVG drawing"), (b"<html", "a web page")):
        if mark in lowered:
            return kind
    try:
        text = head.decode("utf-8", errors="strict" if len(head) < 512 else "ignore")
    except UnicodeDecodeError:
        return "unknown data"
    return "unknown data" if "\0" in text or not text.strip() else "text"


def _decode(image: Image.Image, name: str) -> Image.Image:
    """Return the image as new, upright, opaque RGB without metadata."""
    width, height = image.size
    if width < 1 or height < 1:
        raise ImageError(f"{name} has {width} x {height} pixels; expected at least 1 x 1")
    if width * height > MAX_PIXELS:
        raise ImageError(_too_large(name, image.size))
    if max(width, height) > MAX_SIDE:
        raise ImageError(
            f"{name} has {width} x {height} pixels; expected at most {MAX_SIDE} a side: cut it up, "
            "or raise afmi.images.MAX_SIDE if you trust it"
        )
    with _WARNINGS_LOCK, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            _load(image)
            return _to_rgb(image, name)
        except ImageError:
            raise
        except Exception as error:  # on hostile bytes decoders raise errors of many types
            raise ImageError(_damaged(name, image.format, error)) from error


def _load(image: Image.Image) -> None:
    if image.format != "TIFF":
        image.load()
        return
    # libtiff prints what is wrong, and often goes on.
    with printed_lines() as lines:
        image.load()
    errors = [line for line in lines if "warning" not in line.lower()]
    if errors:
        raise OSError(errors[0])


def _to_rgb(image: Image.Image, name: str) -> Image.Image:
    try:
        upright = ImageOps.exif_transpose(image)
    except Exception:  # damaged EXIF says nothing about the picture
        upright = image
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        upright = _scale_grey(upright, name, *_grey_scale(image))
    elif upright.has_transparency_data:
        upright = upright.convert("RGBA")
        upright = Image.alpha_composite(Image.new("RGBA", upright.size, "white"), upright)
    rgb = upright.convert("RGB")  # a copy at least
    rgb.info = {}
    return rgb


def _grey_scale(image: Image.Image) -> tuple[tuple[int, ...], bool]:
    """Return the values that may be white, and whether the scale runs from white to black."""
    tags: Any = getattr(image, "tag_v2", {})
    inverted = tags.get(_TIFF_PHOTOMETRIC, 1) == 0  # Pillow leaves it so beyond 8 bits
    if image.mode == "F":
        return (1, 255, 65535), inverted
    if image.mode == "I" and image.format not in ("PNG", "PPM"):
        return (255, 65535), inverted
    return (4095 if tags.get(_TIFF_BITS) == (12,) else 65535,), inverted


def _scale_grey(
    image: Image.Image, name: str, whites: tuple[int, ...], inverted: bool
) -> Image.Image:
    values = np.asarray(image)
    low, high = values.min(), values.max()
    white = next((white for white in whites if high <= white), None)
    if white is None or not low >= 0:  # NaN too
        raise ImageError(
            f"{name} holds grey values {low:g} to {high:g}; expected 0 to "
            f"{' or '.join(map(str, whites))}: rescale it"
        )
    grey = np.rint(values.astype(np.float32) * np.float32(255 / white)).astype(np.uint8)
    if inverted:
        grey = 255 - grey
    if isinstance(transparent := image.info.get("transparency"), int):
        grey[values == transparent] = 255
    return Image.fromarray(grey)


def _array_to_image(array: np.ndarray) -> Image.Image:
    actual = f"got shape {array.shape}, dtype {array.dtype}"
    if array.ndim not in (2, 3) or array.size == 0 or array.shape[2:] not in ((), (1,), (3,), (4,)):
        raise ImageError(
            "expected an array of shape (H, W) or (H, W, C) with 1, 3 or 4 channels; "
            f"{actual}: move the channels last, e.g. array.transpose(1, 2, 0)"
        )
    if array.dtype == np.bool_:
        array = array * np.uint8(255)
    elif array.dtype == np.uint16:
        array = np.rint(array / np.float32(257)).astype(np.uint8)
    elif array.dtype.kind == "f":
        low, high = array.min(), array.max()
        if not (low >= -1e-6 and high <= 1 + 1e-6):  # NaN too
            raise ImageError(
                f"expected a float array in [0, 1]; got values {low:g} to {high:g}: rescale it"
            )
        array = np.rint(array.clip(0, 1) * 255).astype(np.uint8)
    elif array.dtype != np.uint8:
        raise ImageError(
            f"expected an array of dtype uint8, uint16, bool, or float in [0, 1]; {actual}: "
            "convert it, e.g. array.astype(numpy.uint8)"
        )
    return Image.fromarray(
        np.ascontiguousarray(array[..., 0] if array.shape[2:] == (1,) else array)
    )
