"""Packages that only some parts of afmi need, each imported where its part begins."""

from __future__ import annotations

import importlib
from types import ModuleType

from afmi.errors import MissingPackageError, first_line

__all__ = ["imported"]


def imported(package: str, what: str, install: str | None = None) -> ModuleType:
    """Import a package that not every installation has, or that takes long to import.

    Args:
        package: its name, or that of a module in it.
        what: needs it, in words.
        install: what pip is asked for, such as ``afmi[audit]``; None: the package.

    Raises:
        MissingPackageError: it is not installed, or broken; says how to install it.

    Example:
        >>> imported("math", "a square root").sqrt(4)
        2.0
    """
    try:
        return importlib.import_module(package)
    except ImportError as error:
        top = package.partition(".")[0]
        raise MissingPackageError(
            f"{what} needs the package {top!r}, which cannot be imported here "
            f"({first_line(error)}); install it with pip install {_quoted(install or top)}"
        ) from error


def _quoted(install: str) -> str:
    return f"'{install}'" if "[" in install else install  # shells take brackets for a pattern
