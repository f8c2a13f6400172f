"""Object stores and other places behind the URLs of fsspec: opening them, and paths in them."""

from __future__ import annotations

import importlib
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any, TypeVar

from afmi.errors import MissingPackageError, SourceError, UsageError, one_line
from afmi.packages import imported

__all__ = ["RemotePath", "file_system", "is_remote", "shown"]

_Value = TypeVar("_Value")


def is_remote(text: str) -> bool:
    """Tell whether a text is a URL of fsspec, or a chain of them.

    Example:
        >>> is_remote("s3://bucket/val"), is_remote("zip://val::a.zip"), is_remote("mnist:data")
        (True, True, False)
    """
    return "://" in text or "::" in text


def shown(url: str) -> str:
    """Return a URL without what may be secret in it: passwords, and the query of the web.

    Example:
        >>> shown("https://me:secret@host/x.tar?signature=1")
        'https://host/x.tar'
    """
    url = re.sub(r"://[^/@:]*(:[^/@]*)?@", "://", url)
    return re.sub(r"(https?://[^?:]*(?::\d+[^?:]*)?)\?[^:]*", r"\1", url)


def file_system(url: str, **options: Any) -> tuple[Any, str]:
    """Return the file system of fsspec that a URL names, and the path in it.

    Args:
        url: such as ``s3://bucket/folder``, or a chain.
        options: of the file system.

    Raises:
        UsageError: fsspec does not know the URL.
        MissingPackageError: it, or a package that it needs for the URL, is not installed.
    """
    fsspec = imported("fsspec", f"{shown(url)!r}")
    try:
        return fsspec.core.url_to_fs(url, **options)
    except ImportError as error:
        raise MissingPackageError(
            f"{shown(url)!r} needs a package that is not installed ({one_line(error)}); "
            f"{_install(url)}"
        ) from error
    except Exception as error:
        raise UsageError(
            f"{shown(url)!r} cannot be opened ({shown(one_line(error))}); expected a URL that "
            "fsspec knows, such as s3://bucket/folder or https://host/shard-{000..010}.tar"
        ) from error


def _install(url: str) -> str:
    """Return what to install for the first scheme of a URL whose package is not there."""
    known = importlib.import_module("fsspec.registry").known_implementations
    for scheme in re.findall(r"(\w+)://", url):
        package = known.get(scheme, {}).get("class", "").partition(".")[0]
        packages = ["aiohttp", "requests"] if scheme in ("http", "https") else [package]
        try:
            for package in packages:
                importlib.import_module(package)
        except ImportError:
            return f"pip install {' '.join(packages)}"
    return "install it"


@dataclass(frozen=True)
class RemotePath:
    """A path in a store, for those who take a `pathlib.Path`, as far as stores allow it.

    An object is read and written as a whole, and appears in one step. Folders are but the first
    parts of objects' names: they need not be made. What is asked is asked of the store, each time:
    an answer kept from before could hide what another process wrote.

    Each method raises a `SourceError` where the store cannot be reached or refuses; that is never
    taken for an object that is not there.

    Args:
        files: the file system of fsspec, without a cache of listings.
        path: in it.
        url: the same as the user wrote it, but for what may be secret.
    """

    files: Any
    path: str
    url: str

    @classmethod
    def of(cls, url: str) -> RemotePath:
        """Return what a URL names.

        Raises:
            UsageError: see `file_system`.
        """
        files, path = file_system(url, use_listings_cache=False)
        return cls(files, path.rstrip("/"), shown(url))

    def __str__(self) -> str:
        return self.url

    def __truediv__(self, name: str) -> RemotePath:
        # In a chain such as zip://results::s3://bucket/a.zip the first is the place in the others.
        first, chain, others = self.url.partition("::")
        slash = "" if first.endswith("/") else "/"
        url = f"{first}{slash}{name}{chain}{others}"
        return RemotePath(self.files, f"{self.path}/{name}" if self.path else name, url)

    def __lt__(self, other: RemotePath) -> bool:
        return self.path < other.path

    @property
    def name(self) -> str:
        """The last part of the path."""
        return self.path.rpartition("/")[2]

    @property
    def stem(self) -> str:
        """The name without its suffix."""
        return self.name.rpartition(".")[0] or self.name

    def exists(self) -> bool:
        """Tell whether there is an object, or are objects in a folder, of this name."""
        return self._kind() is not None

    def is_file(self) -> bool:
        """Tell whether there is an object of this name."""
        return self._kind() == "file"

    def is_dir(self) -> bool:
        """Tell whether there are objects in a folder of this name."""
        return self._kind() == "directory"

    def read_bytes(self) -> bytes:
        """Return what an object holds.

        Raises:
            FileNotFoundError: there is none.
        """
        return self._asked(lambda: self.files.cat_file(self.path), "read")

    def write_bytes(self, content: bytes) -> None:
        """Put an object in the place of what was there, in one step."""
        try:
            self._asked(lambda: self.files.pipe_file(self.path, content), "written")
        except FileNotFoundError as error:  # no such bucket
            raise self._problem(error, "written") from error

    def unlink(self, missing_ok: bool = False) -> None:
        """Remove an object.

        Raises:
            FileNotFoundError: there is none, unless that is allowed.
        """
        try:
            self._asked(lambda: self.files.rm_file(self.path), "removed")
        except FileNotFoundError:
            if not missing_ok:
                raise

    def iterdir(self) -> Iterator[RemotePath]:
        """Yield what lies in a folder, in order; nothing where there is no folder."""
        try:
            found = self._asked(lambda: self.files.ls(self.path, detail=False), "listed")
        except (FileNotFoundError, NotADirectoryError):
            return
        own = self.path.strip("/")  # of an object, or of an empty one that stands for the folder
        names = {path.strip("/") for path in found} - {own}
        yield from (self / name.rpartition("/")[2] for name in sorted(names))

    def glob(self, pattern: str) -> Iterator[RemotePath]:
        """Yield what fits a pattern such as ``pieces/*/*.parquet``; one listing for each folder."""
        head, _, rest = pattern.partition("/")
        if any(character in head for character in "*?["):
            found = [path for path in self.iterdir() if fnmatchcase(path.name, head)]
        else:
            found = [self / head]
        for path in found:
            if rest:
                yield from path.glob(rest)
            else:
                yield path

    def _kind(self) -> str | None:
        try:
            return self._asked(lambda: self.files.info(self.path), "reached")["type"]
        except FileNotFoundError:
            return None

    def _asked(self, ask: Callable[[], _Value], done: str) -> _Value:
        """Return what the store answers."""
        try:
            return ask()
        except (FileNotFoundError, NotADirectoryError):
            raise
        except Exception as error:  # of a network there are many
            raise self._problem(error, done) from error

    def _problem(self, error: Exception, done: str) -> SourceError:
        return SourceError(
            f"'{self}' cannot be {done} ({shown(one_line(error))}); check the address and the "
            "rights to it; what was finished is kept: the same command resumes"
        )
