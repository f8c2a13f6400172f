"""Find classes by their existing in a package, and by the names that users give them."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from collections.abc import Iterable, Mapping
from typing import TypeVar

from afmi.errors import UsageError, near_matches

__all__ = ["named", "subclasses"]

T = TypeVar("T")


def subclasses(package: str, path: Iterable[str], base: type[T]) -> dict[str, type[T]]:
    """Return every class of a package's modules, at any depth, that is a complete ``base``.

    Args:
        package: its dotted name.
        path: its ``__path__``.
        base: an abstract class.

    Returns:
        The classes by their own names, in no particular order.
    """
    found: dict[str, type[T]] = {}
    for module in pkgutil.walk_packages(path, package + "."):
        for name, thing in vars(importlib.import_module(module.name)).items():
            if (
                inspect.isclass(thing)
                and issubclass(thing, base)
                and not inspect.isabstract(thing)
                and thing.__module__ == module.name
            ):
                found[name] = thing
    return found


def named(text: str, catalogue: Mapping[str, type[T]], kind: str) -> type[T]:
    """Return the class that a user named: ``grad-cam``, ``Grad-CAM`` and ``GradCAM`` alike.

    Args:
        text: what the user typed.
        catalogue: classes by name; their ``name`` attribute is known, too.
        kind: what they are, for the error: ``method``.

    Raises:
        UsageError: when there is none; near matches are listed.
    """
    by_key = {_key(name): cls for name, cls in catalogue.items()}
    by_key |= {_key(str(getattr(cls, "name", name))): cls for name, cls in catalogue.items()}
    found = by_key.get(_key(text))
    if found is None:
        near = near_matches(_key(text), by_key) or f"; there are {', '.join(catalogue)}"
        raise UsageError(f"no {kind} is called {text!r}{near}")
    return found


def _key(name: str) -> str:
    folded = name.casefold().replace("+", "plus").replace("×", "x")
    return "".join(c for c in folded if c.isalnum())
