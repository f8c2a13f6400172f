"""A folder that a run writes into: new, or of the same run, and changed by one process at once."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from filelock import FileLock

from afmi.errors import AfmiError, UsageError
from afmi.evaluation.manifest import differences
from afmi.files import Location

__all__ = [
    "check_belongs",
    "check_same_run",
    "check_usable",
    "locked",
    "manifest_bytes",
    "storable",
    "sweep",
]

_LOCK = ".afmi.lock"
_PATIENCE = 60
"""Seconds to wait for the lock: a manifest is changed in milliseconds, so its holder hangs."""

_PARTIAL = ".afmi-*.part"
_STALE = 3600
"""Seconds after which an unfinished file is one that a killed run left behind."""


def check_usable(path: Location, manifest: Location) -> None:
    """Raise unless a folder holds a run, or nothing but what a run killed at once left.

    Args:
        path: the folder.
        manifest: the file in it that says what was run.
    """
    if manifest.exists() or not path.exists():
        return
    problem = "it is a file"
    if path.is_dir():
        names = {p.name for p in path.iterdir() if not fnmatch(p.name, _PARTIAL)}
        if manifest.name in names or names <= {_LOCK}:
            return
        problem = "it holds other files"
    raise UsageError(
        f"expected {str(path)!r} to be a new or empty folder, or results of this run; "
        f"{problem}; choose another"
    )


@contextmanager
def locked(path: Location) -> Iterator[None]:
    """Keep other processes out of this block while one is in it, where the system can lock."""
    if not isinstance(path, Path):
        yield
        return
    lock = FileLock(path / _LOCK, timeout=_PATIENCE)
    # A problem with the folder is better reported when something is written into it.
    with suppress(OSError, NotImplementedError):  # a timeout is an OSError
        path.mkdir(parents=True, exist_ok=True)
        lock.acquire()  # the system releases it when the process ends, however it ends
    try:
        yield
    finally:
        lock.release()


def sweep(path: Location) -> None:
    """Remove what a killed run was writing, and leave what another run may be writing now."""
    if not isinstance(path, Path):
        return
    now = time.time()
    for partial in path.rglob(_PARTIAL):
        with suppress(OSError):
            if now - partial.stat().st_mtime > _STALE:
                partial.unlink()


def check_same_run(path: Location, before: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Raise unless two runs are the same; only the data's name, a path often, may differ."""
    different = differences(before, now)
    if different:
        raise UsageError(
            f"{str(path)!r} holds results of another run ({different}); choose another --out, or "
            "delete the folder to begin anew"
        )


def check_belongs(path: Location, about: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
    """Raise unless a table is what it must be in its place.

    Args:
        path: of the table.
        about: what it says of itself.
        wanted: what it must say.

    Raises:
        AfmiError: it says something else.
    """
    wrong = next((part for part in wanted if about.get(part) != wanted[part]), None)
    if wrong is None:
        return
    words = {
        "run": "another run than the manifest's (in network, data, metrics or version)",
        "pictures": "other pictures",
        "settings": f"{about.get('method')} with other settings, {about.get('settings')}",
    }
    holds = words.get(wrong, f"{wrong} {about.get(wrong)!r}, not {wanted[wrong]!r}")
    raise AfmiError(
        f"'{path}' belongs elsewhere: it is of {holds}; move it away, and run afmi evaluate "
        "into this folder again"
    )


def storable(key: str) -> str:
    """Return a key without the lone surrogates that stand for bytes that are no UTF-8."""
    return key.encode(errors="backslashreplace").decode()


def manifest_bytes(manifest: Any) -> bytes:
    """Return a manifest as a JSON file holds it."""
    text = json.dumps(manifest, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    return text.encode(errors="backslashreplace")
