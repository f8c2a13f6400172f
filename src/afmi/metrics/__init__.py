"""Every metric, found by existing: one file each.

`CATALOGUE` lists the classes by name; each is also an attribute here, such as
``afmi.metrics.Insertion``. `FMIPrototypes` is here too, but measures a network and its training
images instead of a method's maps, so it is no `Metric` and not in the catalogue.
"""

from __future__ import annotations

from collections.abc import Sequence

from afmi import specs
from afmi.metrics.base import Case as Case
from afmi.metrics.base import Metric
from afmi.metrics.fmi_prototypes import FMIPrototypes as FMIPrototypes
from afmi.specs import Catalogue

_NAMES = (
    "CATALOGUE",
    "Case",
    "FMIPrototypes",
    "Metric",
    "MetricsLike",
    "chosen_metrics",
    "metric_named",
)


def _order(cls: type[Metric]) -> tuple[bool, bool, str]:
    return not cls.standard, cls.name != "Insertion", cls.__name__


CATALOGUE: Catalogue[Metric] = Catalogue(Metric, __name__, _order, _NAMES)
"""Every metric's class by its name; those measured unless told otherwise come first."""

__getattr__ = CATALOGUE.attribute
__dir__ = CATALOGUE.names

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
    if metrics is None:
        metrics = [cls for cls in CATALOGUE.values() if cls.standard]
    chosen = specs.choose(metrics, Metric)
    return {specs.row_key(metric): metric for metric in chosen.values()}


def metric_named(text: str) -> type[Metric]:
    """Return the metric that a user named: ``grid-pointing``, ``GridPointing`` alike.

    Raises:
        UsageError: when there is none; near matches are listed.
    """
    return specs.named(text, CATALOGUE, "metric")
