"""Find the image files that files, folders and globs name, and read many of them."""

from __future__ import annotations

import glob
import os
from collections.abc import Iterable, Iterator
from pathlib import Path

from PIL import Image

from afmi.errors import ImageError
from afmi.pictures.images import read_image

__all__ = ["IMAGE_SUFFIXES", "find_images", "read_images"]

IMAGE_SUFFIXES = (
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".gif", ".tif", ".tiff", ".bmp"),
    *(".pgm", ".ppm", ".pnm", ".npy"),
)
"""Suffixes (lower case) of the files that `find_images` takes from folders and globs."""


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
    paths: dict[str, Path] = {}
    for pattern in patterns:
        for path in _expand(os.fspath(pattern)):
            paths.setdefault(os.path.abspath(path), path)
    return list(paths.values())


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
