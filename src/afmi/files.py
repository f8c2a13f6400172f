"""Write files atomically, and records as strict JSON."""

from __future__ import annotations

import errno
import json
import math
import os
import secrets
import stat
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

from afmi.errors import AfmiError

__all__ = ["as_json", "parse_json", "read_text_file", "regular_file_size", "write_files"]

_TEXT_BYTES = 2**24


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


def parse_json(text: str) -> Any:
    """Return what JSON says.

    Raises:
        ValueError: it is no JSON, or is nested too deeply.
    """
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def write_files(contents: Mapping[Path, bytes | Callable[[IO[bytes]], object]]) -> None:
    """Write several files, all or (until the last moment) none.

    Each is written whole to a hidden file in its own folder; only when all are there do they take
    their names, in the order given. Folders are created where missing.

    Args:
        contents: for each path its bytes, or what writes them to an open binary file.

    Raises:
        AfmiError: when a folder or file cannot be written, or the disk is full; then no file has
            changed, unless taking the names itself failed part of the way.
    """
    staged: dict[Path, Path] = {}
    path = Path()
    try:
        for path, content in contents.items():
            path.parent.mkdir(parents=True, exist_ok=True)
            # Short, whatever the name is: the file system limits the length of names.
            partial = path.with_name(f".afmi-{secrets.token_hex(8)}.part")
            with partial.open("xb") as file:
                staged[path] = partial
                file.write(content) if isinstance(content, bytes) else content(file)
        for path, partial in staged.items():
            os.replace(partial, path)
    except OSError as error:
        why = error.strerror or " ".join(str(error).split())
        raise AfmiError(
            f"'{path}' cannot be written: {why}; choose another folder, or make room in this one"
        ) from error
    finally:
        for partial in staged.values():
            with suppress(OSError):  # gone already where all went well
                partial.unlink()


def as_json(value: Any, *, indent: int | None = None) -> str:
    """Return strict JSON: NaN and infinity, which it cannot hold, become null."""
    return json.dumps(_finite(value), indent=indent, ensure_ascii=False, allow_nan=False)


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
