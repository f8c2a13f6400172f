"""Read images of every common kind: into RGB, or into as many bands as a network takes.

What cannot be read right is refused with an `ImageError` of one line that names the file and
says what was expected, what came, and what to do.  Nothing here changes Pillow's settings.
"""

from __future__ import annotations

import io
import os
import re
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, TypeAlias

import numpy as np
from PIL import Image, UnidentifiedImageError

from afmi.errors import ImageError, UsageError, first_line, near_matches
from afmi.files import regular_file_size
from afmi.pictures import tiff
from afmi.pictures.bounded import BoundedFile, printed_lines
from afmi.pictures.npy import NPY, read_npy
from afmi.pictures.pixels import (
    Pixels,
    in_bytes,
    pixels_of_array,
    pixels_of_image,
    rgb_of_image,
)

__all__ = [
    "MAX_BYTES",
    "MAX_PIXELS",
    "MAX_SIDE",
    "FileContent",
    "ImageSource",
    "Reader",
    "count_pages",
    "read_by",
    "read_channels",
    "read_content",
    "read_image",
    "read_pixels",
]

MAX_PIXELS = 89_478_485
"""Images of more pixels are refused before they are decoded; assign to it to change the limit."""

MAX_BYTES = 2**29
"""Files of more bytes are refused before they are read; assign to it to change the limit."""

MAX_SIDE = 2**22
"""Images of more pixels a side are refused before they are decoded: each row costs memory, too."""

_MAX_BANDS = 4
"""A picture may hold as many numbers as one of so many bands and the most pixels."""
_MAX_COMMENTS = 1000
_JPEG_MARKER = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]")  # that ends the data of a scan
_BMP_STEPS = 2**22  # Each run of equal pixels takes two.

ImageSource: TypeAlias = (
    str | os.PathLike[str] | Image.Image | np.ndarray | bytes | bytearray | memoryview | BinaryIO
)

Reader: TypeAlias = Callable[[Any], np.ndarray]
"""Makes an array (H, W, C) of a path, or of whatever else stands for an image."""

# Only these decoders see the bytes: others of Pillow's start programs (EPS) or read no pictures.
_FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "TIFF", "BMP", "PPM")
_EXPECTED = "expected a JPEG, PNG, WebP, GIF, TIFF, BMP or PPM image, or an .npy array"
_STARTS = (
    (b"\xff\xd8\xff", "JPEG"),
    (b"\x89PNG", "PNG"),
    (b"GIF8", "GIF"),
    (b"RIFF", "WebP"),
    (b"II*\0", "TIFF"),
    (b"MM\0*", "TIFF"),
    (b"II+\0", "TIFF"),
    (b"MM\0+", "TIFF"),
    (b"BM", "BMP"),
)
_RAW_SUFFIXES = {".arw", ".cr2", ".dng", ".nef", ".nrw", ".orf", ".pef", ".rw2", ".srw"}
_TIFF_DNG_VERSION = 50706

# warnings.catch_warnings is not safe across threads: two at once can leave filters behind.
_WARNINGS_LOCK = threading.RLock()


def read_image(source: ImageSource, *, page: int | None = None) -> Image.Image:
    """Read one image as 8-bit RGB, the way an image viewer shows it.

    The EXIF orientation is applied; transparent pixels are laid over white; CMYK, YCbCr, LAB and
    palettes are converted, and grey is repeated.  Embedded colour profiles are not applied.  Grey
    of 16 bits is scaled from 0..65535 (12-bit TIFF: 0..4095), floats from [0, 1].

    Args:
        source: a path; a PIL image; the bytes of an image file; a file opened in binary mode,
            read from where it is to its end and left open; or a numpy array (H, W), (H, W, 1),
            (H, W, 3) or (H, W, 4) of dtype uint8, uint16, bool, or float in [0, 1].
        page: which page or frame, from 0, of a file that has several; of a PIL image the one that
            it is at is taken. None: there must be one only.

    Returns:
        A new image in mode RGB without metadata, independent of the source.

    Raises:
        ImageError: the source cannot be read right; the message is one line.

    Example:
        >>> read_image(np.array([[0, 65535]], dtype=np.uint16)).getpixel((1, 0))
        (255, 255, 255)
    """
    return in_bytes(_read(source, 3, page, rgb_of_image))


def read_pixels(
    source: ImageSource, channels: int | None = None, *, page: int | None = None
) -> np.ndarray:
    """Read one image with all its bands, at its own depth.

    Args:
        source: as in `read_image`; also a multi-band TIFF, a ``.npy`` file, and an array (H, W, C)
            of any number of bands.
        channels: how many are wanted: 1 makes grey of colours, 3 repeats grey, and any other
            number must be there. None: as many as there are.
        page: as in `read_image`.

    Returns:
        (H, W, C): uint8 where the source has 8 bits a band, else float32 in [0, 1].

    Raises:
        ImageError: the source cannot be read right, or has other bands.

    Example:
        >>> read_pixels(np.array([[0, 1, 65535]], dtype=np.uint16)).shape
        (1, 3, 1)
        >>> read_pixels(Image.new("RGB", (2, 2), "red"), channels=1)[0, 0]
        array([76], dtype=uint8)
    """
    return np.array(_read(source, channels, page, pixels_of_image))


def count_pages(content: FileContent) -> int:
    """Return how many pages or frames a file has, of which `read_image` takes one.

    Raises:
        ImageError: it is no image.
    """
    name = repr(content)
    _check_bytes(name, len(content))
    head = _head(content[:512], name)
    if head.startswith(NPY):
        return 1
    file = io.BytesIO(content)
    bounded: Any = BoundedFile(file, name)
    image = _opened(bounded, head, name)
    if image is not None and image.format == "MPO":  # a photograph with its preview
        return 1
    bounded.header_read(len(content), steps=0)
    return len(_pages(file, image)) or 1


def read_channels(source: ImageSource, channels: int) -> Pixels:
    """Read an image for a network of so many channels; see `read_pixels`."""
    return _read(source, channels, None, pixels_of_image)


def read_by(reader: Reader, source: Any, channels: int) -> Pixels:
    """Let a user's function read an image for a network of so many channels.

    Raises:
        ImageError: the function fails, or gives no array (H, W, channels) that can be a picture.
    """
    name = repr(os.fspath(source)) if isinstance(source, (str, os.PathLike)) else "the image given"
    try:
        array = reader(source)
    except Exception as error:  # a user's function may raise whatever it likes
        reason = f"{type(error).__name__}: {first_line(error)}"
        raise ImageError(f"{name} cannot be read by the model's reader: {reason}") from error
    if not isinstance(array, np.ndarray):
        raise ImageError(
            f"the model's reader made {type(array).__name__} of {name}; expected a numpy array "
            "(H, W, C): convert it in the reader"
        )
    return _pixels_of(array, f"the array that the model's reader made of {name}", channels)


class FileContent(bytes):
    """The bytes of an image's file, to be decoded later, or where the file is not.

    Attributes:
        path: the file's, which errors name.
    """

    path: Path

    def __repr__(self) -> str:
        return repr(str(self.path))


def read_content(path: Path) -> FileContent:
    """Return the bytes of an image's file.

    Raises:
        ImageError: it is missing, or cannot be opened, or is too large.
    """
    with _opening(path) as name:
        _check_bytes(name, regular_file_size(path))
        content = FileContent(path.read_bytes())
    content.path = path
    return content


_Convert: TypeAlias = Callable[[Image.Image, str, "int | None"], Pixels]
"""Makes pixels of a decoded image, its name, and the number of channels wanted."""


class _Wanted(NamedTuple):
    """What is to be read of a file.

    Attributes:
        channels: how many; None: as many as there are.
        page: which of several; None: there must be one only.
        convert: makes these of a decoded image.
    """

    channels: int | None
    page: int | None
    convert: _Convert


def _read(source: Any, channels: int | None, page: int | None, convert: _Convert) -> Pixels:
    if page is not None and (type(page) is not int or page < 0):
        raise UsageError(f"expected a whole number from 0 as page, got {page!r}")
    wanted = _Wanted(channels, page, convert)
    if isinstance(source, (str, os.PathLike)):
        return _read_path(Path(source), wanted)
    if isinstance(source, Image.Image):
        filename = getattr(source, "filename", "")
        name = f"the PIL image {str(filename)!r}" if filename else "the PIL image"
        return _decode(source, name, wanted)
    if isinstance(source, np.ndarray):
        return _pixels_of(source, "the array", channels)
    if isinstance(source, FileContent):
        suffix = source.path.suffix.lower()
        return _decode_file(io.BytesIO(source), repr(source), suffix, len(source), wanted)
    if isinstance(source, (bytes, bytearray, memoryview)):
        return _read_bytes(bytes(source), "the content given", wanted)
    if hasattr(source, "read"):
        filename = getattr(source, "name", "")
        name = f"the open file {filename!r}" if isinstance(filename, str) else "the open file"
        try:
            content = source.read(MAX_BYTES + 1)
        except (OSError, ValueError) as error:
            raise ImageError(f"{name} cannot be read: {_one_line(error)}") from error
        if not isinstance(content, bytes):
            raise ImageError(f"{name} gives {type(content).__name__}; open it in mode 'rb'")
        return _read_bytes(content, name, wanted)
    raise ImageError(
        "expected a path, PIL image, numpy array, bytes or binary file as image; "
        f"got {type(source).__name__}: convert it (a tensor with afmi.transforms.to_image)"
    )


def _pixels_of(
    array: np.ndarray, name: str, channels: int | None, *, alpha: bool = True
) -> np.ndarray:
    if array.ndim in (2, 3) and array.size:
        _check_size(name, array.shape[1], array.shape[0])
        _check_count(name, array.size)
    return pixels_of_array(array, name, channels, alpha=alpha)


def _check_count(name: str, count: int) -> None:
    if count > _MAX_BANDS * MAX_PIXELS:
        raise ImageError(
            f"{name} holds {count} numbers; expected at most {_MAX_BANDS * MAX_PIXELS}: scale it "
            "down, or raise afmi.images.MAX_PIXELS if you trust it"
        )


def _check_bytes(name: str, size: int) -> None:
    if size > MAX_BYTES:
        raise ImageError(
            f"{name} has more than {MAX_BYTES} bytes; expected at most so many: scale it down, or "
            "raise afmi.images.MAX_BYTES if you trust it"
        )


def _one_line(error: BaseException) -> str:
    text = getattr(error, "strerror", None) or str(error)
    return " ".join(text.split()) or type(error).__name__


def _read_path(path: Path, wanted: _Wanted) -> Pixels:
    with _opening(path) as name:
        size = regular_file_size(path)
        with path.open("rb") as file:
            return _decode_file(file, name, path.suffix.lower(), size, wanted)


@contextmanager
def _opening(path: Path) -> Iterator[str]:
    """Give the name of a file, and name it in what is raised where it cannot be opened."""
    name = repr(str(path))  # repr keeps odd names (newlines, undecodable bytes) on one line
    try:
        yield name
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


def _read_bytes(content: bytes, name: str, wanted: _Wanted) -> Pixels:
    return _decode_file(io.BytesIO(content), name, "", len(content), wanted)


def _decode_file(file: BinaryIO, name: str, suffix: str, size: int, wanted: _Wanted) -> Pixels:
    _check_bytes(name, size)
    head = _head(file.read(512), name)
    if head.startswith(NPY):
        file.seek(0)
        return _pixels_of(read_npy(file, name, size), name, wanted.channels, alpha=False)
    is_tiff = head.startswith(tiff.STARTS)
    if is_tiff and suffix in _RAW_SUFFIXES:
        raise _camera_raw(name)
    bounded: Any = BoundedFile(file, name)
    image = _opened(bounded, head, name)
    if image is None or (is_tiff and _needs_bands(image, name)):
        return _bands_of_tiff(file, name, size, wanted)
    bounded.header_read(size, steps=_BMP_STEPS if image.format == "BMP" else 0)
    if image.format == "JPEG":
        _watch_end(file, image, bounded)
    elif re.match(rb"P[123]\s", head):
        _check_comments(file, name)
    _turn_to_page(file, image, name, wanted.page)
    _mend_transparent_colour(image)
    return _decode(image, name, wanted)


def _opened(bounded: Any, head: bytes, name: str) -> Image.Image | None:
    """Open a file with Pillow; None: a TIFF file of other bands, perhaps, than Pillow knows."""
    with _WARNINGS_LOCK, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what Pillow warns of is refused below, or harmless
        try:
            return _open(bounded, head)
        except ImageError:
            raise
        except Image.DecompressionBombError as error:
            raise ImageError(f"{_too_large(name)} ({_one_line(error)})") from error
        except Exception as error:  # on hostile bytes decoders raise errors of many types
            start = next((kind for magic, kind in _STARTS if head.startswith(magic)), "")
            if start == "TIFF" and isinstance(error, UnidentifiedImageError):
                return None
            if start:
                raise ImageError(_damaged(name, start, error)) from error
            raise ImageError(
                f"{name} is not an image that can be read (it holds {_looks_like(head)}); "
                f"{_EXPECTED}: convert it"
            ) from error


def _needs_bands(image: Image.Image, name: str) -> bool:
    """Say whether a TIFF file has bands that Pillow would drop or cut; refuse camera raw files."""
    tags: Any = getattr(image, "tag_v2", {})
    if _TIFF_DNG_VERSION in tags:  # Pillow would read the small preview that leads such files
        raise _camera_raw(name)
    return tiff.has_more_bands(tags) or tiff.is_cut(tags)


def _bands_of_tiff(file: BinaryIO, name: str, size: int, wanted: _Wanted) -> Pixels:
    page = _chosen(tiff.full_pages(file), "pages", name, wanted.page)
    try:
        array = tiff.read_bands(file, name, page, size, _MAX_BANDS * MAX_PIXELS)
    except ImageError:
        raise
    except Exception as error:  # on hostile bytes decoders raise errors of many types
        raise ImageError(_damaged(name, "TIFF", error)) from error
    return _pixels_of(array, name, wanted.channels, alpha=False)


def _head(head: bytes, name: str) -> bytes:
    if not head:
        raise ImageError(f"{name} is empty; {_EXPECTED}: get the file again (or rewind it)")
    return head


def _turn_to_page(file: BinaryIO, image: Any, name: str, page: int | None) -> None:
    """Turn an opened file to the page or frame wanted, and refuse several where none is named."""
    noun = "pages" if image.format == "TIFF" else "frames"
    # Behind the photograph of an MPO, which is a JPEG file, lie its preview or depth.
    one = image.format == "MPO" and page is None
    chosen = _chosen([0] if one else _pages(file, image), noun, name, page)
    if chosen != image.tell():
        image.seek(chosen)


def _pages(file: BinaryIO, image: Any) -> Sequence[int]:
    """Return the pages or frames of a file; no image: a TIFF file that Pillow cannot open."""
    if image is None or image.format == "TIFF":
        return tiff.full_pages(file)
    return range(getattr(image, "n_frames", 1))


def _chosen(pages: Sequence[int], noun: str, name: str, page: int | None) -> int:
    count = len(pages)
    if page is None and count > 1:
        several = f"{count} or more" if count >= tiff.MOST_PAGES else str(count)
        raise ImageError(
            f"{name} has {several} {noun}; expected one picture: save the one that you mean by "
            "itself, or give afmi.images.read_pixels(…, page=0), or numpy.dstack of several that "
            "are bands"
        )
    if (page or 0) >= max(count, 1):
        raise ImageError(
            f"{name} has {count} {noun}, and page={page} is none of them; expected 0 to {count - 1}"
        )
    return pages[page or 0] if pages else 0


def _camera_raw(name: str) -> ImageError:
    return ImageError(f"{name} is a camera raw file; {_EXPECTED}: export it as one of these")


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


def _decode(image: Image.Image, name: str, wanted: _Wanted) -> Pixels:
    """Return the pixels of an opened image."""
    _check_size(name, *image.size)
    with _WARNINGS_LOCK, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            _load(image)
            return wanted.convert(image, name, wanted.channels)
        except ImageError:
            raise
        except Exception as error:  # on hostile bytes decoders raise errors of many types
            raise ImageError(_damaged(name, image.format, error)) from error


def _check_size(name: str, width: int, height: int) -> None:
    if width < 1 or height < 1:
        raise ImageError(f"{name} has {width} x {height} pixels; expected at least 1 x 1")
    if width * height > MAX_PIXELS:
        raise ImageError(_too_large(name, (width, height)))
    if max(width, height) > MAX_SIDE:
        raise ImageError(
            f"{name} has {width} x {height} pixels; expected at most {MAX_SIDE} a side: cut it up, "
            "or raise afmi.images.MAX_SIDE if you trust it"
        )


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
