"""Labelled pictures behind the URLs of fsspec: folders and tar files in a store, on the web, in a
zip file.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

from afmi.data.fields import Fields
from afmi.data.folders import SPLITS, path_labels
from afmi.data.listing import Listing
from afmi.data.tars import Sample, braces, is_tar, samples, shard_names
from afmi.errors import ImageError, SourceError, one_line
from afmi.pictures import images
from afmi.pictures.finding import IMAGE_SUFFIXES
from afmi.stores import file_system, shown

__all__ = ["RemoteFiles", "RemoteTars", "open_remote"]

_WAITS = (0.5, 2.0)
"""Seconds before a picture is asked for again, when the store cannot be reached."""
_OF_THE_FILE = (FileNotFoundError, PermissionError, IsADirectoryError, NotADirectoryError)
"""What is wrong with one file, and not with the connection."""

_Value = TypeVar("_Value")


@dataclass(frozen=True)
class RemoteFiles:
    """Pictures in a folder of a store; a key is a path relative to the folder.

    Attributes:
        files: the file system of fsspec.
        root: the folder's path in it.
        name: of the folder, for errors.
    """

    files: Any
    root: str
    name: str

    def where(self, key: str) -> str:
        return repr(f"{self.name.rstrip('/')}/{key}")

    def picture(self, key: str) -> bytes:
        """Return a file's bytes.

        Raises:
            ImageError: the file is missing or too large.
            SourceError: the store cannot be reached.
        """
        path = self._path(key)
        content = _reached(lambda: self._content(path), self.where(key))
        if len(content) > images.MAX_BYTES:
            raise ImageError(
                f"{self.where(key)} has more than {images.MAX_BYTES} bytes; expected at most so "
                "many: scale it down"
            )
        return content

    def size(self, key: str) -> int:
        """Return the bytes that a file has now; -1: there is none; 0: the store does not say.

        Raises:
            SourceError: the store cannot be reached, or does not answer.
        """
        path = self._path(key)
        self.files.invalidate_cache()  # of what it had when it was listed
        try:
            return _reached(lambda: self._size(path), self.where(key))
        except ImageError as error:
            raise SourceError(
                f"the store does not say whether it has a picture ({one_line(error)}); what was "
                "finished is kept: the same command resumes"
            ) from error

    def _path(self, key: str) -> str:
        return f"{self.root.rstrip('/')}/{key}" if self.root else key

    def _size(self, path: str) -> int:
        try:
            return int(self.files.info(path).get("size") or 0)
        except FileNotFoundError:
            return -1

    def _content(self, path: str) -> bytes:
        with self.files.open(path, "rb") as file:
            return file.read(images.MAX_BYTES + 1)


def _reached(read: Callable[[], _Value], where: str) -> _Value:
    """Return what is read from a store, which is asked again where it cannot be reached."""
    for wait in (*_WAITS, None):
        try:
            return read()
        except _OF_THE_FILE as error:
            raise ImageError(f"{where} cannot be read: {one_line(error)}") from error
        except (OSError, TimeoutError) as error:
            if wait is None:
                raise SourceError(
                    f"{where} cannot be reached ({one_line(error)}); what was finished is kept: "
                    "the same command resumes"
                ) from error
            time.sleep(wait)
        except Exception as error:  # of a file that is damaged, such as a part of a zip file
            raise ImageError(f"{where} cannot be read: {one_line(error)}") from error
    raise AssertionError


@dataclass(frozen=True)
class RemoteTars:
    """Tar files of a store, whose samples are read one after the other.

    Attributes:
        places: file system and path of each.
        name: what was opened.
        fields: suffixes of picture and label.
    """

    places: tuple[tuple[Any, str], ...]
    name: str
    fields: Fields

    def __iter__(self) -> Iterator[Sample]:
        names = shard_names([path for _, path in self.places])
        for (files, path), name in zip(self.places, names, strict=True):
            with _opened(files, path, name) as file:
                for sample in samples(file, shown(name), self.fields, located=False):
                    if sample.has_picture_or_label:
                        yield sample


def _opened(files: Any, path: str, name: str) -> Any:
    try:
        return files.open(path, "rb")
    except Exception as error:  # of a network there are many
        raise SourceError(f"{shown(name)!r} cannot be opened: {one_line(error)}") from error


def open_remote(url: str, fields: Fields, *, labelled: bool = True) -> Listing | RemoteTars:
    """List the pictures in a folder, or find the tar files, that a URL names.

    Args:
        url: of fsspec.
        fields: suffixes of picture and label in tar files.
        labelled: False: pictures may lie in the folder as they like.

    Raises:
        UsageError: fsspec, or a package that it needs for the URL, is not installed.
        ImageError: there is nothing of the kind.
        AfmiError: the place cannot be reached.
    """
    # Of a chain, such as simplecache::s3://…, the first part with a place in it is what is opened;
    # a web address may have a query after its name.
    place = next((part for part in url.split("::") if "://" in part), url)
    name = re.sub(r"^(https?://[^?]*)\?.*", r"\1", place)
    if is_tar(name):
        places = [place for one in braces(url) for place in _tars(one)]
        return RemoteTars(tuple(places), shown(url), fields)
    fields.refuse(repr(shown(url)))
    files, root = file_system(url)
    return _folder(files, root, shown(url), labelled=labelled)


def _tars(url: str) -> list[tuple[Any, str]]:
    files, path = file_system(url)
    if "*" not in path:
        return [(files, path)]
    found = _asked(lambda: sorted(files.glob(path)), shown(url))
    if not found:
        raise ImageError(f"there is no tar file {shown(url)!r}; check the address")
    return [(files, one) for one in found]


def _asked(ask: Callable[[], _Value], name: str) -> _Value:
    """Return what a store answers."""
    try:
        return ask()
    except Exception as error:
        raise SourceError(f"{name!r} cannot be listed: {one_line(error)}") from error


def _folder(files: Any, root: str, name: str, *, labelled: bool) -> Listing:
    """List the pictures of a folder in a store by the rules of `open_folder`."""
    found = _asked(lambda: files.find(root, detail=True), name)
    prefix = root.rstrip("/") + "/" if root else ""
    sizes = {
        path.removeprefix(prefix).lstrip("/"): int(info.get("size") or 0)
        for path, info in found.items()
    }
    pictures = [
        path
        for path in sorted(sizes)
        if path.lower().endswith(IMAGE_SUFFIXES)
        and not any(part.startswith(".") for part in path.split("/"))
    ]
    if not pictures:
        raise ImageError(
            f"no image in {name!r}: none of its {len(found)} files has a suffix among "
            f"{' '.join(IMAGE_SUFFIXES)}; expected a folder of pictures, or a tar file"
        )
    if not labelled:
        keys, sizes_of = tuple(pictures), tuple(sizes[key] for key in pictures)
        source = RemoteFiles(files, root, name)
        return Listing(name, source, keys, (None,) * len(keys), "label", sizes_of)
    inside, other = _split(pictures)
    half = f" ({inside.rstrip('/')}{f', not {other}' if other else ''})" if inside else ""
    below = [path.removeprefix(inside) for path in pictures if path.startswith(inside)]
    labels, noun = path_labels(below, name + half)
    keys = tuple(inside + path for path in sorted(labels))
    return Listing(
        name + half,
        RemoteFiles(files, root, name),
        keys,
        tuple(labels[key.removeprefix(inside)] for key in keys),
        noun,
        tuple(sizes[key] for key in keys),
    )


def _split(pictures: list[str]) -> tuple[str, str]:
    """Return the folder that the class folders are in, and which other half was left out."""
    tops = {path.split("/")[0] for path in pictures if "/" in path}
    direct = {path.split("/")[0] for path in pictures if path.count("/") == 1}
    splits = [split for split in SPLITS if split in tops]
    if not splits or direct - set(SPLITS):
        return "", ""
    return f"{splits[0]}/", " or ".join(splits[1:])
