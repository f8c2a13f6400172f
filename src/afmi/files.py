"""Write files and objects of stores atomically, and records as strict JSON."""

from __future__ import annotations

import errno
import io
import json
import math
import os
import re
import secrets
import stat
import unicodedata
from collections.abc import Callable, Mapping
from contextlib import suppress
from itertools import count
from pathlib import Path
from types import TracebackType
from typing import IO, Any

from afmi.errors import AfmiError
from afmi.stores import RemotePath, is_remote

__all__ = [
    "LONGEST_NAME",
    "Location",
    "as_json",
    "check_length",
    "file_size",
    "location",
    "parse_json",
    "read_text_file",
    "regular_file_size",
    "save_record",
    "slug",
    "write_files",
]

Content = bytes | Callable[[IO[bytes]], object]
"""The bytes of a file, or what writes them to an open binary file."""

Location = Path | RemotePath
"""A path on this machine, or in a store."""

LONGEST_NAME = 200
"""Bytes: no name that `save_record` gives to names of `slug` is longer."""


_TEXT_BYTES = 2**24

# Within a text of JSON there is no line break, so this matches lists alone.
_NUMBERS = re.compile(r"(?<=\[)\n(?:\s*(?:-?\d[\d.eE+-]*|null),?\n)+\s*(?=\])")


def location(place: str | os.PathLike[str] | RemotePath) -> Location:
    """Return where a user wants something to be: a path, or what a URL of fsspec names.

    Args:
        place: ``"results"``, ``"s3://bucket/results"``, or what this function returned.

    Raises:
        UsageError: fsspec does not know the URL, or needs a package that is not installed.

    Example:
        >>> print(location("memory://results") / "manifest.json")
        memory://results/manifest.json
    """
    if isinstance(place, str) and is_remote(place):
        remote = RemotePath.of(place)
        # file:// is a folder of this machine, where files are locked and renamed.
        local = "file" in (remote.files.protocol, *remote.files.protocol)
        return Path(remote.path) if local else remote
    return place if isinstance(place, RemotePath) else Path(place)


def regular_file_size(path: Path) -> int:
    """Return how many bytes a file holds, before it is opened.

    Raises:
        OSError: it is missing or no regular file. A pipe would block, and a device never end.
    """
    info = path.stat()
    if stat.S_ISDIR(info.st_mode):
        raise IsADirectoryError(errno.EISDIR, "it is a folder", str(path))
    if not stat.S_ISREG(info.st_mode):
        why = "it is a pipe, socket or device, and not a regular file"
        raise OSError(errno.EINVAL, why, str(path))
    return info.st_size


def file_size(path: Path) -> int:
    """Return how many bytes a file holds; -1: there is none that can be asked."""
    try:
        return path.stat().st_size
    except (OSError, ValueError):  # ValueError: a null byte in the path
        return -1


def read_text_file(path: Path) -> str:
    """Return the text, in UTF-8, of a file of at most 16 MiB.

    Raises:
        OSError: it is missing, no regular file, or larger.
        UnicodeDecodeError: it is no text.
    """
    if regular_file_size(path) > _TEXT_BYTES:
        why = f"it has more than {_TEXT_BYTES} bytes, too many for a text of this kind"
        raise OSError(errno.EFBIG, why, str(path))
    return path.read_text(encoding="utf-8-sig")


def parse_json(text: str | bytes, *, constants: bool = True) -> Any:
    """Return what JSON says.

    Args:
        text: as text, or in UTF-8.
        constants: whether NaN and infinity, which are no JSON, are taken.

    Raises:
        ValueError: it is no JSON, or is nested too deeply.
    """

    def refuse(constant: str) -> None:
        raise ValueError(f"{constant} is no JSON")

    try:
        return json.loads(text, parse_constant=None if constants else refuse)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def write_files(contents: Mapping[Location, Content]) -> None:
    """Write several files, all or (until the last moment) none.

    Each is written whole to a hidden file in its own folder; only when all are there do they take
    their names, in the order given. Folders are created where missing. An object of a store is made
    in memory and put whole, in the same order: a store needs no other name for it.

    Args:
        contents: for each path its content.

    Raises:
        AfmiError: when a folder or file cannot be written, or the disk is full; then no file has
            changed, unless taking the names itself failed part of the way.
        SourceError: when an object cannot be put; those before it were.
    """
    with _Staging() as staging:
        partials = {
            path: staging.write(path, content)
            for path, content in contents.items()
            if isinstance(path, Path)
        }
        objects = {
            path: _in_memory(content)
            for path, content in contents.items()
            if isinstance(path, RemotePath)
        }
        for path, partial in partials.items():
            staging.move(partial, path)
        for path, content in objects.items():
            path.write_bytes(content)


def _in_memory(content: Content) -> bytes:
    if isinstance(content, bytes):
        return content
    content(buffer := io.BytesIO())
    return buffer.getvalue()


def save_record(
    folder: Path,
    base: str,
    contents: Mapping[str, tuple[str, Content]],
    record: Mapping[str, Any],
    identity: Callable[[Any], Any],
) -> dict[str, Path]:
    """Write files and a JSON record of them under a name that is free, or was theirs before.

    The name is ``base``, or ``base-2`` and so on where another record, or a file without one, has
    it. It is reserved in one step, so that of several threads or processes each gets its own. All
    is written aside first; then the files take their names, the record last: no file is ever half
    written, and where a record is, the others are too.

    Args:
        folder: where to; made where missing.
        base: of the names; see `slug`.
        contents: for each kind of file the ending of its name, and its content.
        record: what is recorded; the names by their kinds are added as ``files``.
        identity: takes from a record what it is of; where two are of the same, the new one
            replaces the old one.

    Returns:
        The paths by their kinds; ``record`` is the record's.

    Raises:
        AfmiError: when the files cannot be written, or a name is too long.
    """
    endings = {kind: ending for kind, (ending, _) in contents.items()} | {"record": ".json"}
    with _Staging() as staging:
        longest = folder / f"{base}-99{max(endings.values(), key=len)}"
        staging.make_folder(longest)
        check_length(longest)
        partials = {
            kind: staging.write(folder / f"{base}{ending}", content)
            for kind, (ending, content) in contents.items()
        }
        for number in count(1):
            name = base if number == 1 else f"{base}-{number}"
            paths = {kind: folder / f"{name}{ending}" for kind, ending in endings.items()}
            files = {kind: path.name for kind, path in paths.items()}
            text = as_json({**record, "files": files}, indent=2) + "\n"
            if _is_of(paths["record"], identity, json.loads(text)) or staging.reserve(paths):
                break
        partials["record"] = staging.write(paths["record"], text.encode())
        for kind, partial in partials.items():
            staging.move(partial, paths[kind])
    return paths


def slug(text: str, limit: int) -> str:
    """Return letters, digits, dots, and single dashes or underscores; ``limit`` bytes at most."""
    text = unicodedata.normalize("NFC", text).replace("++", "-plus-plus")
    text = re.sub(r"-{2,}", "-", re.sub(r"[^\w.]+", "-", text))
    return text.encode()[:limit].decode(errors="ignore").strip("-.")


def check_length(path: Location) -> None:
    """Raise unless the file system takes a name, or a path, of this length; a store says later.

    Raises:
        AfmiError: when it is too long.
    """
    if not isinstance(path, Path):
        return
    try:
        path.lstat()
    except OSError as error:
        if error.errno == errno.ENAMETOOLONG:
            raise AfmiError(
                f"'{path}' cannot be written: the name or the path is too long; choose a folder "
                "with a shorter path, or on another file system"
            ) from error


def _is_of(path: Path, identity: Callable[[Any], Any], record: Any) -> bool:
    """Tell whether a file is a record of the same as this one."""
    try:
        return identity(parse_json(read_text_file(path))) == identity(record)
    except (OSError, ValueError, LookupError, TypeError):
        return False


class _Staging:
    """Files that are written aside, and removed at the end unless they were given their names."""

    def __init__(self) -> None:
        self._path = Path()
        self._partials: list[Path] = []
        self._reserved: Path | None = None

    def __enter__(self) -> _Staging:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
    ) -> None:
        for partial in self._partials:
            with suppress(OSError):  # gone already where all went well
                partial.unlink()
        if self._reserved is not None:
            with suppress(OSError):
                if self._reserved.stat().st_size == 0:  # nothing took the name
                    self._reserved.unlink()
        if isinstance(error, OSError) and not isinstance(error, AfmiError):
            why = error.strerror or " ".join(str(error).split())
            raise AfmiError(
                f"'{self._path}' cannot be written: {why}; choose another folder, or make room in "
                "this one"
            ) from error

    def make_folder(self, path: Path) -> None:
        """Make the folder of a file."""
        self._path = path
        path.parent.mkdir(parents=True, exist_ok=True)

    def write(self, path: Path, content: Content) -> Path:
        """Write a file aside, and return where it lies."""
        self.make_folder(path)
        # Short, whatever the name is: the file system limits the length of names.
        partial = path.with_name(f".afmi-{secrets.token_hex(8)}.part")
        with partial.open("xb") as file:
            self._partials.append(partial)
            file.write(content) if isinstance(content, bytes) else content(file)
        return partial

    def reserve(self, paths: Mapping[str, Path]) -> bool:
        """Take the first of these names, in one step, unless any of them is taken."""
        self._path = first = next(iter(paths.values()))
        try:
            os.close(os.open(first, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
        except FileExistsError:
            return False
        self._reserved = first
        if any(os.path.lexists(path) for path in paths.values() if path != first):
            first.unlink()
            return False
        return True

    def move(self, partial: Path, path: Path) -> None:
        """Give a file that was written aside its name."""
        self._path = path
        os.replace(partial, path)


def as_json(value: Any, *, indent: int | None = None) -> str:
    """Return strict JSON: NaN and infinity, which it cannot hold, become null.

    Lists of numbers stay on one line.
    """
    text = json.dumps(_finite(value), indent=indent, ensure_ascii=False, allow_nan=False)
    return _NUMBERS.sub(lambda match: " ".join(match[0].split()), text) if indent else text


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {str(key): _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    # A lone surrogate stands for a byte of a file name that is no UTF-8; JSON cannot hold it.
    if value is None or isinstance(value, (bool, int)):
        return value
    return str(value).encode("utf-8", "backslashreplace").decode("utf-8")
