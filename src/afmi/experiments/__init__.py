"""Every table and figure of the paper, found by existing: one file each.

`CATALOGUE` lists the classes by the names that ``afmi reproduce`` takes, in the paper's order of
tables and figures.
"""

from __future__ import annotations

import importlib
import inspect
import pkgutil
import re

from afmi.errors import UsageError, near_matches
from afmi.experiments.base import Experiment, Request, Result

__all__ = ["CATALOGUE", "Experiment", "Request", "Result", "experiment_named"]


def _find() -> dict[str, type[Experiment]]:
    found: dict[str, type[Experiment]] = {}
    for module in pkgutil.iter_modules(__path__, __name__ + "."):
        for thing in vars(importlib.import_module(module.name)).values():
            if (
                inspect.isclass(thing)
                and issubclass(thing, Experiment)
                and not inspect.isabstract(thing)
                and thing.__module__ == module.name
            ):
                found[thing.name] = thing
    return {name: found[name] for name in sorted(found, key=_order)}


def _order(name: str) -> tuple[str, int]:
    """Sort by the word, then by the number: figure 9 before figure 10."""
    digits = re.search(r"\d+", name)
    return re.sub(r"\d+", "", name), int(digits[0]) if digits else 0


CATALOGUE: dict[str, type[Experiment]] = _find()
"""Every experiment's class by its name."""


def experiment_named(text: str) -> type[Experiment]:
    """Return the experiment that a user named: ``figure4``, ``Figure 4`` and ``figure-4`` alike.

    Raises:
        UsageError: when there is none; near matches are listed.
    """
    by_key = {_key(name): cls for name, cls in CATALOGUE.items()}
    found = by_key.get(_key(text))
    if found is None:
        near = near_matches(_key(text), by_key) or f"; there are {', '.join(CATALOGUE)}"
        raise UsageError(f"no experiment is called {text!r}{near}")
    return found


def _key(name: str) -> str:
    return "".join(c for c in name.casefold() if c.isalnum())
