"""Photographs that a visitor brings: what the network sees of them, and what is shown."""

from __future__ import annotations

import base64
import io
import os
import tempfile
from dataclasses import dataclass
from pathlib import Path, PureWindowsPath
from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor

from afmi.demo.photographs import scikit_image_photographs
from afmi.errors import ImageError
from afmi.network.classifier import Classifier
from afmi.pictures.finding import find_images
from afmi.pictures.images import FileContent, count_pages, read_content, read_image, read_pixels
from afmi.pictures.transforms import crop_box

__all__ = [
    "SHOWN_SIDE",
    "Example",
    "Photograph",
    "examples_of",
    "frame_content",
    "named_content",
    "uploaded_content",
]

SHOWN_SIDE = 1280
"""Longest side, in pixels, of the photograph that the page shows."""
_EXAMPLES = 12
_THUMBNAIL = 240
_LONGEST_NAME = 120
_FRAME = "data:image/png;base64,"
_SHOWN_CHANNELS = (1, 3)
_NO_BOX = (0.0, 0.0, 0.0, 0.0)


@dataclass(frozen=True, eq=False)
class Photograph:
    """A photograph, ready for a network.

    Attributes:
        name: of its file, without folders; what records call it.
        inputs: what the network sees, (1, C, H, W).
        pages: how many pages or frames the file has.
        page: which of them this is, from 0.
        content: the file, where it has several.
        shown: uint8 (H, W, 3), the whole photograph, no larger than `SHOWN_SIDE`; None where what
            the network sees is all that can be shown, as of other bands than red, green and blue.
        box: the left, upper, right and lower edge, in pixels of ``shown``, of what the network
            sees.
    """

    name: str
    inputs: Tensor
    pages: int
    page: int
    content: FileContent | None
    shown: np.ndarray | None
    box: tuple[float, float, float, float]

    @classmethod
    def of(cls, model: Classifier, content: FileContent, page: int = 0) -> Photograph:
        """Read one page of a file, and prepare it.

        Raises:
            ImageError: it cannot be read; the message names the file as the visitor does.
        """
        if model.reader is not None:  # which takes files of kinds of its own
            return cls(content.path.name, _by_reader(model, content), 1, 0, None, None, _NO_BOX)
        pages = count_pages(content)
        at = page if pages > 1 else None
        channels = model.mean.shape[0]
        inputs = model.prepare(read_pixels(content, channels, page=at))
        shown, box = None, _NO_BOX
        if channels in _SHOWN_CHANNELS:
            whole = read_image(content, page=at)
            small = _within(whole, SHOWN_SIDE)
            scale = small.width / whole.width
            left, top, right, bottom = crop_box(
                (whole.height, whole.width), model.resize, model.crop
            )
            shown = np.asarray(small)
            box = (left * scale, top * scale, right * scale, bottom * scale)
        kept = content if pages > 1 else None
        return cls(content.path.name, inputs, pages, page if pages > 1 else 0, kept, shown, box)

    def at_page(self, model: Classifier, page: int) -> Photograph:
        """Return another page of the same file."""
        if self.content is None:
            raise ImageError(f"{self.name!r} has one picture only; choose a file with several")
        return Photograph.of(model, self.content, page)

    def preview(self) -> Image.Image | None:
        """Return it as a picture, where it can be shown."""
        return None if self.shown is None else Image.fromarray(self.shown)


@dataclass(frozen=True)
class Example:
    """A picture that the page offers.

    Attributes:
        title: what it shows.
        credit: whose it is, and under which licence; "" where nobody said.
        thumbnail: RGB.
        content: its file.
    """

    title: str
    credit: str
    thumbnail: Image.Image
    content: FileContent


def examples_of(model: Classifier, folder: Path | None) -> list[Example]:
    """Return the pictures to offer: those of a folder, or some that come with scikit-image.

    The latter are none for a network that takes other pictures than photographs.

    Raises:
        ImageError: there are none in the folder, or the first ones cannot be read.
    """
    if folder is None:
        if model.reader is not None or model.mean.shape[0] not in _SHOWN_CHANNELS:
            return []
        return [
            Example(
                one.title,
                one.credit,
                _within(one.picture, _THUMBNAIL),
                named_content(_png(one.picture), one.name),
            )
            for one in scikit_image_photographs()
        ]
    examples = []
    for path in find_images(folder)[:_EXAMPLES]:
        content = named_content(read_content(path), path.name)
        page = 0 if count_pages(content) > 1 else None
        thumbnail = _within(read_image(content, page=page), _THUMBNAIL)
        examples.append(Example(path.stem.replace("_", " "), "", thumbnail, content))
    return examples


def named_content(content: bytes, name: str | None) -> FileContent:
    """Return a file's bytes under the name that a visitor gave it, without folders.

    Example:
        >>> named_content(b"", "C:\\\\scans\\\\dog.jpg").path.name
        'dog.jpg'
    """
    last = PureWindowsPath(name or "").name  # which takes slashes of both kinds
    clean = "".join(sign for sign in last if sign.isprintable())[-_LONGEST_NAME:]
    named = FileContent(content)
    named.path = Path(clean if clean.strip(". ") else "photograph")
    return named


def uploaded_content(upload: Any, folder: Path) -> FileContent:
    """Return a file that a visitor uploaded.

    Args:
        upload: Gradio's record of it, with its ``path`` and ``orig_name``, which a visitor can
            forge.
        folder: in which uploads lie, and nothing else is read.

    Raises:
        ImageError: it is no upload, or is there no longer.
    """
    record = upload if isinstance(upload, dict) else vars(upload)
    path, name = record.get("path"), record.get("orig_name")
    if isinstance(path, str):
        place = Path(os.path.realpath(path))
        if place.is_relative_to(os.path.realpath(folder)) and place.is_file():
            return named_content(read_content(place), name if isinstance(name, str) else None)
    raise ImageError(
        "expected an uploaded file, got none, or one that was deleted; upload it again"
    )


def frame_content(address: object, name: object) -> FileContent:
    """Return the frame of a video that the visitor's browser decoded, as a PNG file.

    Args:
        address: a ``data:`` address that holds it.
        name: of the video, with the time.

    Raises:
        ImageError: it holds no such frame.
    """
    if not (isinstance(address, str) and address.startswith(_FRAME)):
        raise ImageError("expected a frame of a video as PNG, got none; play the video first")
    try:
        content = base64.b64decode(address[len(_FRAME) :], validate=True)
    except ValueError as error:  # of which binascii's is one
        raise ImageError(f"the frame of the video came damaged ({error}); take it again") from error
    return named_content(content, f"{name if isinstance(name, str) else 'video'}.png")


def _by_reader(model: Classifier, content: FileContent) -> Tensor:
    """Let the network's own reader read a file, which it takes by its path."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, content.path.name)
        path.write_bytes(content)
        return model.prepare(path)


def _within(picture: Image.Image, side: int) -> Image.Image:
    small = picture.copy()
    small.thumbnail((side, side), Image.Resampling.LANCZOS)
    return small


def _png(picture: Image.Image) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    return buffer.getvalue()
