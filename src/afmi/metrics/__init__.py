"""Every metric, found by existing: one file each.

`CATALOGUE` lists the classes by name; each is also an attribute here, such as
``afmi.metrics.Insertion``. `FMIPrototypes` is here too, but measures a network and its training
images instead of a method's maps, so it is no `Metric` and not in the catalogue.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from afmi import specs
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
    found: dict[str, type[Metric]] = specs.find_subclasses(__name__, __path__, Metric)
    order = sorted(found, key=lambda n: (not found[n].standard, n != "Insertion", n))
    return {name: found[name] for name in order}


CATALOGUE: dict[str, type[Metric]] = _find()
"""Every metric's class by its name; those measured unless told otherwise come first."""

globals().update(CATALOGUE)


specs.register(Metric, "metric", lambda: CATALOGUE)

MetricsLike = str | Sequence[str | type[Metric] | Metric]


def chosen_metrics(metrics: MetricsLike | None) -> dict[str, Metric]:
    """Return the metrics that were meant, by the key that begins their rows' names.

    Args:
        metrics: ``"all"``, specs joined by commas (``"insertion,insertion:canvas=mean"``), or a
            sequence of specs, classes or instances; None: those that are standard.

    Raises:
        UsageError: as for `afmi.methods.chosen_methods`.

    Example:
        >>> list(chosen_metrics("Insertion,insertion:canvas=mean"))
        ['insertion', 'insertion(canvas=mean)']
    """
    classes = list(CATALOGUE.values())
    if metrics is None:
        metrics = [cls for cls in classes if cls.standard]
    chosen = specs.choose(metrics, Metric, classes)
    return {specs.row_key(metric): metric for metric in chosen.values()}


def metric_named(text: str) -> type[Metric]:
    """Return the metric that a user named: ``grid-pointing``, ``GridPointing`` alike.

    Raises:
        UsageError: when there is none; near matches are listed.
    """
    return specs.named(text, CATALOGUE, "metric")


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
    "MetricsLike",
    "ParameterRandomisation",
    "ReferenceReliability",
    "chosen_metrics",
    "metric_named",
]
