"""Every table and figure of the paper, and what else it argues by, one file each.

A new file is listed by itself.

`CATALOGUE` lists the classes by the names that ``afmi reproduce`` takes, in the paper's order of
tables and figures.
"""

from __future__ import annotations

import re

from afmi.experiments.shared.base import Experiment, Request, Result
from afmi.specs import Catalogue, named

__all__ = ["CATALOGUE", "Experiment", "Request", "Result", "experiment_named"]


def _order(cls: type[Experiment]) -> tuple[str, int]:
    """Sort by the word, then by the number: figure 9 before figure 10."""
    digits = re.search(r"\d+", cls.name)
    return re.sub(r"\d+", "", cls.name), int(digits[0]) if digits else 0


CATALOGUE: dict[str, type[Experiment]] = {
    cls.name: cls for cls in Catalogue(lambda: Experiment, __name__, _order).values()
}
"""Every experiment's class by its name."""


def experiment_named(text: str) -> type[Experiment]:
    """Return the experiment that a user named: ``figure4``, ``Figure 4`` and ``figure-4`` alike.

    Raises:
        UsageError: when there is none; near matches are listed.
    """
    return named(text, CATALOGUE, "experiment")
