"""Read images of every common kind into RGB, and turn them into tensors and back.

What cannot be read right is refused with an `ImageError` of one line that names the file and
says what was expected, what came, and what to do.  Nothing here changes Pillow's settings.
"""

from __future__ import annotations

import glob
import io
import math
import os
import stat
import threading
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO, TypeAlias

import numpy as np
import torch
from PIL import Image, ImageOps

from afmi.errors import ImageError, ShapeError, UsageError, near_matches

__all__ = [
    "IMAGE_SUFFIXES",
    "MAX_PIXELS",
    "ImageSource",
    "Unreadable",
    "find_images",
    "read_image",
    "read_images",
    "resize_and_crop",
    "to_image",
    "to_tensor",
]

IMAGE_SUFFIXES = (
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".gif", ".tif", ".tiff", ".bmp"),
    *(".pgm", ".ppm", ".pnm"),
)
"""Suffixes (lower case) of the files that `find_images` takes from folders and globs."""

MAX_PIXELS = 89_478_485
"""Images of more pixels are refused before they are decoded; assign to it to change the limit."""

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


@dataclass(frozen=True)
class Unreadable:
    """A file of a batch that could not be read.

    Attributes:
        path: the file.
        reason: one line that names the file and says what is wrong with it.
    """

    path: Path
    reason: str


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
            content = source.read()
        except (OSError, ValueError) as error:
            raise ImageError(f"{name} cannot be read: {_one_line(error)}") from error
        if not isinstance(content, bytes):
            raise ImageError(f"{name} gives {type(content).__name__}; open it in mode 'rb'")
        return _read_bytes(content, name)
    raise ImageError(
        "expected a path, PIL image, numpy array, bytes or binary file as image; "
        f"got {type(source).__name__}: convert it (a tensor with afmi.images.to_image)"
    )


def _one_line(error: BaseException) -> str:
    text = getattr(error, "strerror", None) or str(error)
    return " ".join(text.split()) or type(error).__name__


def _read_path(path: Path) -> Image.Image:
    name = repr(str(path))  # repr keeps odd names (newlines, undecodable bytes) on one line
    try:
        info = path.stat()
        # A FIFO or a device would block or never end, so only regular files are opened.
        if stat.S_ISDIR(info.st_mode):
            raise ImageError(f"{name} is a folder; expected a file: name an image inside it")
        if not stat.S_ISREG(info.st_mode):
            raise ImageError(
                f"{name} is a pipe, socket or device; expected a regular file: copy it to one"
            )
        with path.open("rb") as file:
            return _decode_file(file, name, path.suffix.lower())
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
    return _decode_file(io.BytesIO(content), name, "")


def _decode_file(file: BinaryIO, name: str, suffix: str) -> Image.Image:
    head = file.read(512)
    if not head:
        raise ImageError(f"{name} is empty; {_EXPECTED}: get the file again (or rewind it)")
    with _WARNINGS_LOCK, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what Pillow warns of is refused below, or harmless
        try:
            image = Image.open(file, formats=_FORMATS)
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
    tags = getattr(image, "tag_v2", {})
    if image.format == "TIFF" and (suffix in _RAW_SUFFIXES or _TIFF_DNG_VERSION in tags):
        # Pillow would read the small preview that leads such files.
        raise ImageError(f"{name} is a camera raw file; {_EXPECTED}: export it as one of these")
    _mend_transparent_colour(image)
    return _decode(image, name)


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
    came = f"{size[0]} x {size[1]} = {size[0] * size[1]} pixels" if size else "too many pixels"
    return (
        f"{name} has {came}; expected at most {MAX_PIXELS}: "
        "scale it down, or raise afmi.images.MAX_PIXELS if you trust it"
    )


def _damaged(name: str, kind: str | None, error: BaseException) -> str:
    what = f"a {kind} image that is" if kind else "an image that is"
    return f"{name} is {what} cut short or damaged ({_one_line(error)}); get the file again"


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
    with _WARNINGS_LOCK, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            image.load()
            return _to_rgb(image, name)
        except ImageError:
            raise
        except Exception as error:  # on hostile bytes decoders raise errors of many types
            raise ImageError(_damaged(name, image.format, error)) from error


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
    came = f"got shape {array.shape}, dtype {array.dtype}"
    if array.ndim not in (2, 3) or array.size == 0 or array.shape[2:] not in ((), (1,), (3,), (4,)):
        raise ImageError(
            "expected an array of shape (H, W) or (H, W, C) with 1, 3 or 4 channels; "
            f"{came}: move the channels last, e.g. array.transpose(1, 2, 0)"
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
            f"expected an array of dtype uint8, uint16, bool, or float in [0, 1]; {came}: "
            "convert it, e.g. array.astype(numpy.uint8)"
        )
    return Image.fromarray(
        np.ascontiguousarray(array[..., 0] if array.shape[2:] == (1,) else array)
    )


def to_tensor(image: Image.Image) -> torch.Tensor:
    """Turn an image into a tensor.

    Args:
        image: a PIL image; one that is not RGB goes through `read_image` first.

    Returns:
        Float32, shape (3, H, W), values in [0, 1], on the CPU.

    Raises:
        ImageError: the image cannot be read as RGB.

    Example:
        >>> to_tensor(Image.new("RGB", (2, 1), (255, 0, 51)))[:, 0, 0]
        tensor([1.0000, 0.0000, 0.2000])
    """
    if image.mode != "RGB":
        image = read_image(image)
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous().float() / 255


def to_image(tensor: torch.Tensor) -> Image.Image:
    """Turn a tensor into an image; the inverse of `to_tensor` up to rounding to 8 bits.

    Args:
        tensor: floating point, shape (3, H, W) or (1, H, W), values in [0, 1], any device.

    Returns:
        An image in mode RGB, or L for one channel.

    Raises:
        ShapeError: the shape or dtype is another.
        ImageError: a value lies outside [0, 1] by more than 0.001, or is NaN.

    Example:
        >>> to_image(torch.ones(1, 2, 3)).size
        (3, 2)
    """
    shape = tuple(tensor.shape)
    if len(shape) != 3 or shape[0] not in (1, 3) or 0 in shape or not tensor.is_floating_point():
        raise ShapeError(
            f"expected a floating point tensor (3, H, W) or (1, H, W); got {shape}, "
            f"{tensor.dtype}: give one image at a time, without the batch axis"
        )
    values = tensor.detach().to("cpu", torch.float32)
    low, high = values.min().item(), values.max().item()
    if not (low >= -1e-3 and high <= 1 + 1e-3):  # NaN too
        raise ImageError(
            f"expected values in [0, 1]; got {low:g} to {high:g}: undo the normalisation, or clamp"
        )
    array = values.clamp(0, 1).mul(255).round().to(torch.uint8).permute(1, 2, 0).numpy()
    return Image.fromarray(np.ascontiguousarray(array[..., 0] if shape[0] == 1 else array))


def resize_and_crop(
    image: Image.Image,
    resize: int | tuple[int, int] | None,
    crop: int | tuple[int, int] | None,
    interpolation: Image.Resampling | str = "bilinear",
) -> Image.Image:
    """Resize with antialiasing, then crop at the centre, as torchvision's classifiers expect.

    Where the resized image would be much larger than both the source and the crop, only what the
    crop keeps is resized, so that a picture of one pixel by thousands costs no more than others.

    Args:
        image: a PIL image; one that is not RGB goes through `read_image` first.
        resize: length of the short side in pixels (the aspect ratio is kept), or the exact
            (height, width), or None to leave the size.
        crop: side of a square in pixels, or (height, width), or None not to crop.  Where the
            resized image is smaller than the crop it is padded with black.
        interpolation: "nearest", "box", "bilinear", "hamming", "bicubic" or "lanczos", or
            Pillow's constant.

    Returns:
        A new image in mode RGB.

    Raises:
        UsageError: a size is not positive, the interpolation is unknown, or the result would
            have more than `MAX_PIXELS` pixels.
        ImageError: the image cannot be read as RGB.

    Example:
        >>> resize_and_crop(Image.new("RGB", (640, 480)), 256, 224).size
        (224, 224)
    """
    if image.mode != "RGB":
        image = read_image(image)
    resample = _resampling(interpolation)
    width, height = image.size
    if isinstance(resize, int):
        _pair("resize", resize)
        short = min(width, height)
        full_height, full_width = (int(resize * side / short) for side in (height, width))
    else:
        full_height, full_width = _pair("resize", resize) or (height, width)
    out_height, out_width = _pair("crop", crop) or (full_height, full_width)
    if out_width * out_height > MAX_PIXELS:
        raise UsageError(
            f"a result of {out_width} x {out_height} pixels exceeds the limit of {MAX_PIXELS}: "
            "give a smaller size, or a crop"
        )
    x, pad_x, keep_width = _centre(full_width, out_width)
    y, pad_y, keep_height = _centre(full_height, out_height)
    if (full_width, full_height) == (width, height):
        piece = image.crop((x, y, x + keep_width, y + keep_height))
    elif full_width * full_height <= max(width * height, 16 * out_width * out_height):
        whole = image.resize((full_width, full_height), resample)  # torchvision's result, exactly
        piece = whole.crop((x, y, x + keep_width, y + keep_height))
    else:
        # Pillow keeps the box in single precision: cutting near it first keeps that exact.
        left, right, x0, x1 = _source_span(x, keep_width, width, full_width)
        top, bottom, y0, y1 = _source_span(y, keep_height, height, full_height)
        near = image.crop((left, top, right, bottom))
        piece = near.resize((keep_width, keep_height), resample, (x0, y0, x1, y1))
    if piece.size == (out_width, out_height):
        return piece
    canvas = Image.new("RGB", (out_width, out_height))
    canvas.paste(piece, (pad_x, pad_y))
    return canvas


def _resampling(interpolation: Image.Resampling | str) -> Image.Resampling:
    names = {member.name.lower(): member for member in Image.Resampling}
    if isinstance(interpolation, Image.Resampling):
        return interpolation
    if interpolation not in names:
        raise UsageError(
            f"unknown interpolation {interpolation!r}; expected one of {', '.join(names)}"
            + near_matches(str(interpolation), names)
        )
    return names[interpolation]


def _pair(option: str, size: int | tuple[int, int] | None) -> tuple[int, int] | None:
    """Return (height, width) of a size option."""
    if size is None:
        return None
    pair = tuple(size) if isinstance(size, (tuple, list)) else (size, size)
    if len(pair) != 2 or not all(type(n) is int and n > 0 for n in pair):
        raise UsageError(f"{option} must be a positive whole number or two of them; got {size!r}")
    return pair


def _centre(full: int, out: int) -> tuple[int, int, int]:
    """Return, along one axis, where the crop starts, the padding before it, and what is kept."""
    if full < out:
        return 0, (out - full) // 2, full
    return round((full - out) / 2), 0, out


def _source_span(start: int, kept: int, source: int, full: int) -> tuple[int, int, float, float]:
    """Find which pixels of the source make `kept` of `full` resized ones, along one axis.

    Returns:
        The first and the last source pixel (exclusive) that the widest filter can reach, and
        the start and the end of the kept part, counted from that first pixel.
    """
    scale = source / full
    begin, end = start * scale, (start + kept) * scale
    margin = 5 * max(scale, 1.0) + 2  # no filter of Pillow reaches beyond five pixels
    first, last = max(0, math.floor(begin - margin)), min(source, math.ceil(end + margin))
    return first, last, begin - first, min(end - first, float(last - first))


def find_images(patterns: Iterable[str | os.PathLike[str]] | str | os.PathLike[str]) -> list[Path]:
    """List the image files that files, folders and globs name.

    Args:
        patterns: each is a folder (its images by suffix, in its subfolders too, sorted; hidden
            files and folders and linked folders are skipped), a glob (``**`` is any depth of
            folders; matches without an image suffix are skipped), or else a file, which is
            listed whatever its suffix and even if missing: reading it tells.

    Returns:
        The paths in the order given, each once.

    Raises:
        ImageError: a folder or a glob holds no image, or a folder cannot be listed.

    Example:
        >>> [path.name for path in find_images(["cat.jpg", "dog.png", "./cat.jpg"])]
        ['cat.jpg', 'dog.png']
    """
    if isinstance(patterns, (str, os.PathLike)):
        patterns = [patterns]
    found: dict[str, Path] = {}
    for pattern in patterns:
        for path in _expand(os.fspath(pattern)):
            found.setdefault(os.path.abspath(path), path)
    return list(found.values())


def _expand(pattern: str) -> list[Path]:
    if not pattern:
        raise ImageError("a path is empty; expected a file, a folder or a glob: name one")
    if os.path.isdir(pattern):
        what, names = "folder", _walk(pattern)
    elif any(sign in pattern for sign in "*?[") and not os.path.lexists(pattern):
        what, names = "glob", glob.glob(pattern, recursive=True)
    else:
        return [Path(pattern)]
    paths = sorted(Path(n) for n in names if n.lower().endswith(IMAGE_SUFFIXES))
    paths = [path for path in paths if not path.is_dir()]
    if not paths:
        others = f"none of its {len(names)} files has" if names else "it matches no file;"
        raise ImageError(
            f"no image in the {what} {pattern!r}: {others} expected a suffix among "
            f"{' '.join(IMAGE_SUFFIXES)}"
        )
    return paths


def _walk(folder: str) -> list[str]:
    def refuse(error: OSError) -> None:
        raise ImageError(
            f"the folder {str(error.filename)!r} cannot be listed: {error.strerror}; "
            "change its rights, or leave it out"
        ) from error

    names: list[str] = []
    for parent, folders, files in os.walk(folder, onerror=refuse):
        folders[:] = [name for name in folders if not name.startswith(".")]
        names += [os.path.join(parent, name) for name in files if not name.startswith(".")]
    return names


def read_images(
    paths: Iterable[str | os.PathLike[str]],
) -> Iterator[tuple[Path, Image.Image | ImageError]]:
    """Read many files one after the other; a bad one does not stop the rest.

    Args:
        paths: files, e.g. from `find_images`.

    Yields:
        Each path in order with its RGB image, or with the error that says why there is none.

    Example:
        >>> [(path.name, type(result).__name__) for path, result in read_images(["no.jpg"])]
        [('no.jpg', 'ImageError')]
    """
    for path in map(Path, paths):
        result: Image.Image | ImageError
        try:
            result = read_image(path)
        except ImageError as error:
            result = ImageError(str(error))  # without the traceback, which holds the pixels
        yield path, result
