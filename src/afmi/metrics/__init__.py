"""Every metric, found by existing: one file each.

`CATALOGUE` lists the classes by name; each is also an attribute here, such as
``afmi.metrics.Insertion``. `FMIPrototypes` is here too, but measures a network and its training
images instead of a method's maps, so it is no `Metric` and not in the catalogue.
"""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from typing import TYPE_CHECKING

from afmi.errors import UsageError, near_matches
from afmi.metrics.base import Case, Metric
from afmi.metrics.fmi_prototypes import FMIPrototypes

if TYPE_CHECKING:
    from afmi.metrics.class_discriminability import ClassDiscriminability
    from afmi.metrics.completeness import Completeness
    from afmi.metrics.cost import Cost
    from afmi.metrics.deletion import Deletion
    from afmi.metrics.grid_pointing import GridPointing
    from afmi.metrics.insertion import Insertion
    from afmi.metrics.parameter_randomisation import ParameterRandomisation
    from afmi.metrics.reference_reliability import ReferenceReliability


def _find() -> dict[str, type]:
    found: dict[str, type] = {}
    for module in pkgutil.iter_modules(__path__, __name__ + "."):
        for name, thing in vars(importlib.import_module(module.name)).items():
            if (
                inspect.isclass(thing)
                and issubclass(thing, Metric)
                and not inspect.isabstract(thing)
                and thing.__module__ == module.name
            ):
                found[name] = thing
    order = sorted(found, key=lambda n: (not found[n].standard, n != "Insertion", n))
    return {name: found[name] for name in order}


CATALOGUE: dict[str, type[Metric]] = _find()
"""Every metric's class by its name; those measured unless told otherwise come first."""

globals().update(CATALOGUE)


def metric_named(text: str) -> type[Metric]:
    """Return the metric that a user named: ``grid-pointing``, ``GridPointing`` alike.

    Raises:
        UsageError: when there is none; near matches are listed.
    """
    by_key = {_key(name): cls for name, cls in CATALOGUE.items()}
    by_key |= {_key(cls.name): cls for cls in CATALOGUE.values()}
    found = by_key.get(_key(text))
    if found is None:
        near = near_matches(_key(text), by_key) or f"; there are {', '.join(CATALOGUE)}"
        raise UsageError(f"no metric is called {text!r}{near}")
    return found


def _key(name: str) -> str:
    return "".join(c for c in name.casefold() if c.isalnum())


__all__ = [
    "CATALOGUE",
    "Case",
    "ClassDiscriminability",
    "Completeness",
    "Cost",
    "Deletion",
    "FMIPrototypes",
    "GridPointing",
    "Insertion",
    "Metric",
    "ParameterRandomisation",
    "ReferenceReliability",
    "metric_named",
]
