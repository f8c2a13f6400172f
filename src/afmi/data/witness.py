"""See that another process, perhaps on another machine, reads the data that were listed here."""

from __future__ import annotations

import os
import platform
import secrets
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from afmi.data.labelled import LabelledImages
from afmi.data.listing import ADVICE, Files
from afmi.data.remote import RemoteFiles
from afmi.data.streams import picture_digest
from afmi.data.tars import TarMembers
from afmi.errors import AfmiError, SourceError, one_line
from afmi.network.memory import check_memory

__all__ = ["Witness"]

_START = secrets.token_hex(8)
"""Is another in each process, but for those that are forked."""


@dataclass(frozen=True)
class _Look:
    """What is seen of an image; None: nothing, or something else each time.

    Attributes:
        content: hex digest (BLAKE2b) of its file's bytes, which are the same whatever decodes them.
        form: shape and type of an image that a data set gives decoded.
        pixels: hex digest of them.
    """

    content: str | None = None
    form: str | None = None
    pixels: str | None = None

    @classmethod
    def at(cls, images: LabelledImages, number: int) -> _Look:
        """Look at an image, which is decoded only where no file's bytes can be had."""
        picture: Any = images.source.picture(images.keys[number])
        if isinstance(picture, (str, os.PathLike)):
            path = Path(picture)  # a reader of the user's may take folders, too
            picture = images.read(number) if path.is_dir() else path.read_bytes()
        if isinstance(picture, (bytes, bytearray, memoryview)):
            return cls(content=picture_digest(picture))
        return cls(form=_form(picture), pixels=picture_digest(picture))

    def shared(self, other: _Look) -> _Look:
        """Return what both show."""
        pairs = zip(_parts(self), _parts(other), strict=True)
        return _Look(*(mine if mine == theirs else None for mine, theirs in pairs))


def _parts(look: _Look) -> tuple[str | None, ...]:
    return look.content, look.form, look.pixels


def _form(picture: Any) -> str:
    """Return shape and type of a decoded image."""
    if isinstance(picture, Tensor) or hasattr(picture, "dtype"):
        return f"{tuple(picture.shape)} of {picture.dtype}"
    return f"{getattr(picture, 'size', '')} of {getattr(picture, 'mode', type(picture).__name__)}"


@dataclass(frozen=True)
class Witness:
    """The first image of the data that could be read where they were listed.

    It can be sent to other processes. One that cannot read it, or reads another, lacks the data, or
    has lost them: there, no image is to blame for what it fails at.

    Attributes:
        number: of the image in the data.
        look: what was seen of it.
        process: that listed the data. Decoded images are compared in others alone: a data set that
            draws them anew, flipped or not, may show the same twice and then another.
    """

    number: int
    look: _Look
    process: str

    @classmethod
    def of(cls, images: LabelledImages) -> Witness:
        """Choose the image, which is read twice.

        Raises:
            SourceError: when the place that the images come from cannot be reached.
            AfmiError: when none can be read.
        """
        reason: Exception | None = None
        for number in range(len(images)):
            try:
                images.read(number)
                look = _Look.at(images, number).shared(_Look.at(images, number))
            except SourceError:
                raise
            except Exception as error:
                reason = reason or error
                continue
            return cls(number, look, _process())
        raise AfmiError(
            f"none of the {len(images)} images can be read"
            + ("" if reason is None else f"; the first: {one_line(reason)}")
        )

    def check(self, images: LabelledImages) -> None:
        """See that this process reads the same data, and can decode them.

        Raises:
            SourceError: it does not.
            MemoryError: memory ran out.
        """
        self._check(images, decoded=True)

    def check_unread(self, images: LabelledImages, number: int) -> None:
        """See that an image that cannot be read is itself to blame.

        Raises:
            SourceError: it is not: this machine lost the data, or its file is not the one listed.
            MemoryError: memory ran out.
        """
        source = images.source
        if isinstance(source, (Files, TarMembers, RemoteFiles)):
            size = source.size(images.keys[number])
            images.check_size(number, size)
            if size < 0:  # as when it was listed
                return
        self._check(images, decoded=False)

    def _check(self, images: LabelledImages, *, decoded: bool) -> None:
        where = images.source.where(images.keys[self.number])
        try:
            if decoded:
                images.read(self.number)
            look = _Look.at(images, self.number)
        except Exception as error:
            check_memory(error)
            if isinstance(error, SourceError):
                raise
            raise SourceError(
                f"{platform.node()} cannot read {where} ({one_line(error)}), which the machine "
                f"that listed the data can; {ADVICE}"
            ) from error
        self._compare(look, where)

    def _compare(self, look: _Look, where: str) -> None:
        then = self.look
        if then.content not in (None, look.content):
            raise SourceError(
                f"{platform.node()} reads another image as {where} than the machine that listed "
                f"the data; {ADVICE}"
            )
        if self.process == _process():
            return
        if then.form not in (None, look.form):
            raise SourceError(
                f"{platform.node()} reads another image as {where} ({look.form}) than the machine "
                f"that listed the data ({then.form}); {ADVICE}. A data set that draws the sizes of "
                "its images anew can be used in one process only"
            )
        if then.pixels not in (None, look.pixels):
            warnings.warn(
                f"{platform.node()} reads other pixels as {where} than the machine that listed the "
                "data: either the data set draws its images anew, or other packages decode them, "
                "or it is another data set, whose results are not those of yours",
                stacklevel=3,
            )


def _process() -> str:
    return f"{_START}/{os.getpid()}"
