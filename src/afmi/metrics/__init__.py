"""Every metric, found by existing: one file each.

`CATALOGUE` lists the classes by name; each is also an attribute here, such as
``afmi.metrics.Insertion``. `FMIPrototypes` is here too, but measures a network and its training
images instead of a method's maps, so it is no `Metric` and not in the catalogue.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from afmi.catalogue import named, subclasses
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


def _find() -> dict[str, type[Metric]]:
    found: dict[str, type[Metric]] = subclasses(__name__, __path__, Metric)
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
    return named(text, CATALOGUE, "metric")


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
