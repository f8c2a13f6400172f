"""See that another process, perhaps on another machine, reads the data that were listed here."""

from __future__ import annotations

import os
import platform
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from afmi.data.labelled import LabelledImages
from afmi.data.listing import Files
from afmi.data.streams import picture_digest
from afmi.data.tars import TarMembers
from afmi.errors import AfmiError, SourceError, one_line
from afmi.network.memory import from_lack_of_memory

__all__ = ["Witness"]

_ADVICE = (
    "see that each machine reads the same files under the same path, or give a URL; what was "
    "finished is kept: the same command resumes"
)


@dataclass(frozen=True)
class Witness:
    """The first image of the data that could be read where they were listed.

    It can be sent to other processes. One that cannot read it, or reads another, lacks the data, or
    has lost them: there, no image is to blame for what it fails at.

    Attributes:
        number: of the image in the data.
        digest: hex digest (BLAKE2b) of its file's bytes, which are the same whatever decodes them;
            where a data set gives decoded pixels, of these. None: it gives others each time.
    """

    number: int
    digest: str | None

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
                digest = _digest(images, number)
            except SourceError:
                raise
            except Exception as error:
                reason = reason or error
                continue
            return cls(number, digest if _digest(images, number) == digest else None)
        raise AfmiError(
            f"none of the {len(images)} images can be read"
            + ("" if reason is None else f"; the first: {one_line(reason)}")
        )

    def check(self, images: LabelledImages) -> None:
        """See that this process reads the same data.

        Raises:
            SourceError: it does not.
        """
        where = images.source.where(images.keys[self.number])
        try:
            digest = _digest(images, self.number)
        except Exception as error:
            if from_lack_of_memory(error):
                raise
            raise SourceError(
                f"{platform.node()} cannot read {where} ({one_line(error)}), which the machine "
                f"that listed the data can; {_ADVICE}"
            ) from error
        if self.digest not in (None, digest):
            raise SourceError(
                f"{platform.node()} reads another image as {where} than the machine that listed "
                f"the data, or decodes it by other packages; {_ADVICE}"
            )

    def check_unread(self, images: LabelledImages, number: int) -> None:
        """See that an image that cannot be read is itself to blame.

        Raises:
            SourceError: it is not: this machine lost the data, or its file is not the one listed.
        """
        listed, here = images.sizes[number], _size(images, number)
        if here is not None and here != listed:
            now = "is missing" if here < 0 else f"has {here} bytes"
            then = "was missing" if listed < 0 else f"had {listed} bytes"
            raise SourceError(
                f"{images.source.where(images.keys[number])} {now} on {platform.node()}, but "
                f"{then} when the data were listed; {_ADVICE}"
            )
        self.check(images)


def _digest(images: LabelledImages, number: int) -> str:
    """Return a digest of an image that can be read."""
    pixels = images.read(number)
    picture: Any = images.source.picture(images.keys[number])
    if isinstance(picture, (str, os.PathLike)):
        path = Path(picture)  # a reader of the user's may take folders, too
        picture = path.read_bytes() if path.is_file() else pixels
    return picture_digest(picture)


def _size(images: LabelledImages, number: int) -> int | None:
    """Return the bytes of an image's file: -1 where there is none; None: it comes from none."""
    source, key = images.source, images.keys[number]
    return source.size(key) if isinstance(source, (Files, TarMembers)) else None
