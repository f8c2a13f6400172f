"""Labelled pictures in WebDataset's tar files, read in order; nothing is ever unpacked to a disk.

A sample is a run of members of one name but for the suffixes: ``0001.jpg`` and ``0001.cls``.
"""

from __future__ import annotations

import glob
import os
import re
import tarfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

from afmi.data.fields import ENCODED, Fields
from afmi.data.listing import Listing, changed, listed
from afmi.errors import ImageError, SourceError, UsageError, one_line
from afmi.files import file_size, regular_file_size
from afmi.pictures import images

__all__ = [
    "Sample",
    "TarMembers",
    "braces",
    "is_tar",
    "local_tars",
    "open_tars",
    "samples",
    "shard_names",
]

_LABEL_SUFFIXES = ("cls", "json")
_LONGEST_TEXT = 2**20
"""Bytes: labels and headers are shorter."""
_BLOCK = 512
_CHUNK = 2**20
_MOST_SHARDS = 100_000
_BRACES = re.compile(r"\{(?:(\d+)\.\.(\d+)|([^{}]*,[^{}]*))\}")
_COMPRESSED = (".tgz", ".tar.gz", ".tar.bz2", ".tar.xz", ".tar.zst")


def is_tar(text: str) -> bool:
    """Tell whether a path or pattern names tar files.

    Raises:
        UsageError: they are compressed.
    """
    lowered = text.lower()
    if lowered.endswith(_COMPRESSED):
        raise UsageError(
            f"{text!r} is compressed; expected plain tar files, whose pictures are compressed "
            "already: unpack it with gunzip or the like"
        )
    return lowered.endswith(".tar")


def braces(pattern: str) -> list[str]:
    """Return what a pattern with braces stands for, in order.

    Raises:
        UsageError: that is more than 100,000 names.

    Example:
        >>> braces("{a,b}-{08..10}.tar")
        ['a-08.tar', 'a-09.tar', 'a-10.tar', 'b-08.tar', 'b-09.tar', 'b-10.tar']
    """
    match = _BRACES.search(pattern)
    if match is None:
        return [pattern]
    first, last, names = match.groups()
    if names is not None:
        choices = names.split(",")
    elif int(last) - int(first) < _MOST_SHARDS:
        choices = [f"{n:0{len(first)}d}" for n in range(int(first), int(last) + 1)]
    else:
        choices = []
    before, after = pattern[: match.start()], pattern[match.end() :]
    rest = braces(after) if choices else []
    if not rest or len(choices) * len(rest) > _MOST_SHARDS:
        raise UsageError(
            f"expected 1 to {_MOST_SHARDS} files by the braces in {pattern!r}, such as "
            "{000..010} or {train,val}; correct them"
        )
    return [f"{before}{choice}{end}" for choice in choices for end in rest]


def local_tars(pattern: str) -> list[Path]:
    """Return the tar files that a path, a glob or a pattern with braces names, in order.

    Raises:
        ImageError: one of them does not exist.
    """
    paths: dict[str, Path] = {}
    names = [pattern] if os.path.exists(pattern) else braces(pattern)
    for name in names:
        wild = any(sign in name for sign in "*?[") and not os.path.exists(name)
        matches = sorted(glob.glob(name, recursive=True)) if wild else [name]
        if not all(map(os.path.isfile, matches)) or not matches:
            raise ImageError(f"there is no tar file {name!r}; check the path")
        paths |= {match: Path(os.path.abspath(match)) for match in matches}
    return list(paths.values())


@dataclass(frozen=True)
class Sample:
    """A sample of a tar file.

    Attributes:
        key: the file's name, a slash, and the sample's name.
        parts: by suffix in lower case the bytes of each, or where in the file they are, as offset
            and length. Parts that are neither picture nor label are None.
    """

    key: str
    parts: dict[str, Any]

    @property
    def has_picture_or_label(self) -> bool:
        """Whether it is a sample at all, and not another kind of file."""
        return any(part is not None for part in self.parts.values())


def samples(file: BinaryIO, name: str, fields: Fields, *, located: bool) -> Iterator[Sample]:
    """Yield the samples of an open tar file, which is read once from its start to its end.

    Links, devices and hidden files in it are passed over.

    Args:
        file: where its pictures are found by their place, it is one that can seek.
        name: that keys begin with.
        fields: suffixes of picture and label, where they are not the usual ones.
        located: whether pictures are given by their place, and not by their bytes.

    Raises:
        ImageError: the file is no tar, is cut short or damaged, or a part of it is too large.
    """
    texts = {*_LABEL_SUFFIXES, *filter(None, [fields.label])}
    pictures = {*ENCODED, *filter(None, [fields.image])}
    reader = _Reader(file, name)
    sample = Sample("", {})
    for member in _members(reader, name):
        folder, slash, last = member.name.removeprefix("./").rpartition("/")
        stem, _, suffix = last.partition(".")
        if not member.isreg() or member.issparse() or not stem:
            continue
        if member.size < 0:
            raise _damaged(name, ValueError(f"a part of {member.size} bytes"))
        key = f"{name}/{folder}{slash}{stem}"
        suffix = suffix.lower()
        if key != sample.key or suffix in sample.parts:
            yield sample
            sample = Sample(key, {})
        part = None
        if suffix in pictures and located:
            part = (member.offset_data, member.size)
        elif suffix in pictures or suffix in texts:
            largest = images.MAX_BYTES if suffix in pictures else _LONGEST_TEXT
            part = reader.content(member, largest)
        sample.parts[suffix] = part
    yield sample


def _members(reader: _Reader, name: str) -> Iterator[tarfile.TarInfo]:
    """Yield the headers, and notice where the file ends without an end mark."""
    try:
        archive = tarfile.TarFile(fileobj=reader, encoding="utf-8")  # type: ignore[arg-type]
        member = archive.next()
        while member is not None:
            yield member
            reader.seek(archive.offset)
            member = tarfile.TarInfo.fromtarfile(archive)
    except tarfile.HeaderError as error:
        if reader.last == bytes(_BLOCK):  # the end mark
            return
        raise _damaged(name, error) from error
    except (tarfile.TarError, EOFError, OverflowError) as error:
        raise _damaged(name, error) from error


def _damaged(name: str, error: Exception) -> ImageError:
    why = " ".join(str(error).split()) or "it ends without an end mark"
    return ImageError(f"{name!r} is no tar file, or cut short or damaged ({why}); get it again")


class _Reader:
    """What `tarfile` reads from: forwards only, and no header that is longer than any should be.

    Args:
        file: to read from its present place on.
        name: for errors.
    """

    def __init__(self, file: BinaryIO, name: str) -> None:
        self._file = file
        self._name = name
        self._place = 0
        self.last = b""

    def tell(self) -> int:
        return self._place

    def seek(self, place: int) -> int:
        """Pass over what is before a place, which for a file on a network is read."""
        left = place - self._place
        if left < 0:
            raise _damaged(self._name, ValueError("a member begins before the end of another"))
        while left:
            passed = len(self._read(min(left, _CHUNK)))
            if not passed:
                raise _damaged(self._name, EOFError("its end is missing"))
            left -= passed
        return place

    def read(self, size: int) -> bytes:
        """Read a header, or a part of one."""
        if not 0 <= size <= _LONGEST_TEXT:
            raise _damaged(self._name, ValueError(f"a header of {size} bytes"))
        self.last = self._whole(size)
        return self.last

    def content(self, member: tarfile.TarInfo, largest: int) -> bytes | ImageError:
        """Return a member's bytes, or why they are not read; one that is too large is passed over.

        Raises:
            ImageError: the file ends in it.
        """
        if member.size > largest:
            return ImageError(
                f"{member.name!r} in {self._name!r} has {member.size} bytes; expected at most "
                f"{largest}: scale it down"
            )
        content = self._whole(member.size)
        if len(content) < member.size:
            raise _damaged(self._name, EOFError(f"{member.name!r} ends early"))
        return content

    def _whole(self, size: int) -> bytes:
        parts = []
        while size and (part := self._read(min(size, _CHUNK))):
            parts.append(part)
            size -= len(part)
        return b"".join(parts)

    def _read(self, size: int) -> bytes:
        try:
            part = self._file.read(size)
        except Exception as error:  # of a network there are many
            raise SourceError(
                f"{self._name!r} cannot be read on from byte {self._place} ({one_line(error)}); "
                "what was finished is kept: the same command resumes"
            ) from error
        self._place += len(part)
        return part


@dataclass(frozen=True)
class TarMembers:
    """Pictures in tar files on a disk.

    Attributes:
        places: by key the file, and offset and length in it; None: there is no picture.
        files: the bytes of each file when it was listed.
    """

    places: dict[str, tuple[Path, int, int] | None] = field(repr=False)
    files: dict[Path, int] = field(repr=False)

    def where(self, key: str) -> str:
        return repr(key)

    def picture(self, key: str) -> bytes:
        place = self.places[key]
        if place is None:
            raise ImageError(f"{key!r} has no picture; expected one of {', '.join(ENCODED)} in it")
        path, offset, size = place
        if size > images.MAX_BYTES:
            raise ImageError(f"{key!r} has {size} bytes; expected at most {images.MAX_BYTES}")
        try:
            with path.open("rb") as file:
                file.seek(offset)
                content = file.read(size)
                whole = os.fstat(file.fileno()).st_size
        except OSError as error:
            raise ImageError(f"{key!r} cannot be read: {error.strerror}") from error
        if len(content) < size:
            raise ImageError(f"{key!r} is cut short: {str(path)!r} has changed; get it again")
        if whole != self.files[path]:  # others may lie at these places
            raise changed(repr(str(path)), self.files[path], whole)
        return content

    def size(self, key: str) -> int:
        """Return the bytes of a picture that its file still holds; -1: there is none."""
        place = self.places[key]
        if place is None:
            return -1
        path, offset, size = place
        return max(min(file_size(path) - offset, size), -1)


def open_tars(
    paths: Sequence[Path], name: str, fields: Fields, *, labelled: bool = True
) -> Listing:
    """List the samples of tar files on a disk, without reading their pictures."""
    places: dict[str, tuple[Path, int, int] | None] = {}
    files = {path: file_size(path) for path in paths}
    keys: list[str] = []
    labels: list[str | int | None] = []
    unlabelled: list[str] = []
    for path, shown in zip(paths, shard_names([str(path) for path in paths]), strict=True):
        for sample in _local_samples(path, shown, fields):
            place = _image_part(sample, fields)
            places[sample.key] = None if place is None else (path, *place)
            keys.append(sample.key)
            if not labelled:
                labels.append(None)
            elif any(suffix in sample.parts for suffix in (*_LABEL_SUFFIXES, fields.label)):
                labels.append(fields.label_value(sample.parts, repr(sample.key)))
            else:
                unlabelled.append(sample.key)
    if not keys:
        with_labels = " with labels: 0.jpg and 0.cls" if labelled else ", such as 0.jpg"
        raise ImageError(f"no samples in {name!r}; expected pictures{with_labels}")
    if unlabelled:
        raise ImageError(
            f"{len(unlabelled)} of {len(keys)} samples in {name!r} have no label "
            f"({listed(map(repr, unlabelled))}); expected a part cls or json beside each picture: "
            "name another one with label_key= (--label-key)"
        )
    sizes = tuple(-1 if (at := places[key]) is None else at[2] for key in keys)
    return Listing(name, TarMembers(places, files), tuple(keys), tuple(labels), "label", sizes)


def _local_samples(path: Path, shown: str, fields: Fields) -> Iterator[Sample]:
    try:
        regular_file_size(path)
        with path.open("rb") as file:
            for sample in samples(file, shown, fields, located=True):
                if sample.has_picture_or_label:
                    yield sample
    except OSError as error:
        raise ImageError(
            f"{str(path)!r} cannot be read: {error.strerror}; check path and rights"
        ) from error


def _image_part(sample: Sample, fields: Fields) -> tuple[int, int] | None:
    """Return where the picture is; None where the sample has none."""
    if not any(suffix in sample.parts for suffix in (*ENCODED, fields.image)):
        return None
    return sample.parts[fields.image_in(sample.parts, repr(sample.key))]


def shard_names(paths: Sequence[str]) -> list[str]:
    """Return short names of files: their last parts, or as much as sets them apart."""
    lasts = [path.rpartition("/")[2] for path in (p.replace(os.sep, "/") for p in paths)]
    return lasts if len(set(lasts)) == len(paths) else list(paths)
