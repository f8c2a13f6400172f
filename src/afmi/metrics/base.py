"""Metric, the one abstraction of every measurement: a method's maps in, numbers per image out."""

from __future__ import annotations

import warnings
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import ClassVar

from torch import Tensor, nn

from afmi import specs
from afmi.errors import TargetError
from afmi.methods.base import Attribution, BlankMapWarning, Method
from afmi.methods.work import Work
from afmi.metrics.columns import Column, MetricFacts
from afmi.network.outputs import check_outputs
from afmi.targets import Target

__all__ = ["Case", "Metric", "MetricsLike", "blank_maps_allowed", "chosen_metrics"]


@dataclass(frozen=True)
class Case:
    """How one method explained a batch of images: all that a metric may look at.

    Attributes:
        method: that gave the maps; its ``model`` is the network explained.
        inputs: images (N, C, *spatial), as the model takes them ([0, 1] for a `Classifier`).
        targets: the class explained, int64 (N,): the ground truth in the paper's protocols; or
            what else is explained of each image, with all that the image itself decides.
        attribution: the maps (N, 1, *spatial), the logits and the residuals.
        logits: of the images, (N, K); where no class is explained, the scores (N, 1).
        seconds: that the explanation of one of these images took.
        peak_bytes: memory that the explanation of the batch needed beyond what was in use before
            it; NaN where it is unknown.
        companions: for each image M images of other classes, (N, M, C, H, W), as many as the metric
            needs; None where it needs none.

    Raises:
        AfmiError: when the logits of an image stand for no probabilities.
    """

    method: Method
    inputs: Tensor
    targets: Tensor | tuple[Target, ...]
    attribution: Attribution
    logits: Tensor
    seconds: float = float("nan")
    peak_bytes: float = float("nan")
    companions: Tensor | None = None

    def __post_init__(self) -> None:
        check_outputs(self.logits)

    def only(self, image: int) -> Case:
        """Return the case of one image of the batch, by its position in it."""
        row = slice(image, image + 1)
        whole = self.attribution
        return replace(
            self,
            inputs=self.inputs[row],
            targets=self.targets[row],
            attribution=replace(
                whole,
                maps=whole.maps[row],
                target=None if whole.target is None else whole.target[row],
                scores=None if whole.scores is None else whole.scores[row],
                targets=whole.targets and whole.targets[row],
                logits=None if whole.logits is None else whole.logits[row],
                residual=None if whole.residual is None else whole.residual[row],
                agreement=None if whole.agreement is None else whole.agreement[row],
                coarse=None if whole.coarse is None else whole.coarse[row],
                vectors={name: each[row] for name, each in whole.vectors.items()},
            ),
            logits=self.logits[row],
            companions=None if self.companions is None else self.companions[row],
        )

    @property
    def classes(self) -> Tensor:
        """The class explained, int64 (N,).

        Raises:
            TargetError: when something else is.
        """
        if not isinstance(self.targets, Tensor):
            raise TargetError(
                f"expected a class to be explained, got {specs.text(self.targets[0])}; use "
                "value-insertion, completeness or cost, which take any target"
            )
        return self.targets

    @property
    def model(self) -> nn.Module:
        """The network explained."""
        return self.method.model

    @property
    def maps(self) -> Tensor:
        """The saliency maps, (N, 1, *spatial)."""
        return self.attribution.maps


@dataclass(frozen=True)
class Metric(ABC):
    """Measure something of a method's maps, image by image.

    A subclass is a frozen dataclass whose fields are the protocol's parameters, with the paper's
    values; `afmi.metrics` lists every subclass in its folder. It declares how its values are
    averaged and shown; the report averages them, with their uncertainty.
    """

    name: ClassVar[str]
    """What tables call it."""
    columns: ClassVar[tuple[Column, ...]]
    """What tables, charts and CSV files show of its values; methods are ranked by the first."""
    paper: ClassVar[str]
    """Authors, title, venue and year."""
    standard: ClassVar[bool] = False
    """Whether an evaluation measures it by default."""
    ranks: ClassVar[bool] = False
    """Whether methods are ranked by its first column in preference to other metrics'."""
    needs_class: ClassVar[bool] = False
    """Whether it can only be measured where a class is explained."""
    instead: ClassVar[str] = ""
    """What measures the like where none is; a metric's name."""
    companions: ClassVar[int] = 0
    """How many images of other classes it needs beside each image."""

    @abstractmethod
    def measure(self, case: Case) -> dict[str, Tensor]:
        """Return each value's name with its numbers, float64 (N,) on the CPU.

        NaN stands where a value is undefined. A metric that does not apply to a method
        (completeness to one that does not promise it) returns an empty dictionary.
        """

    def work(self, method: Method, inputs: Tensor) -> Work:
        """Return how often one image of (N, C, *spatial) goes through the network."""
        return Work()

    @property
    def about(self) -> str:
        """What a reader of the report has to know besides the columns."""
        return ""

    def facts(self) -> MetricFacts:
        """Return what a report has to know of the metric; curves lie over its ``fractions``."""
        return MetricFacts(
            name=self.name,
            about=self.about,
            standard=self.standard,
            ranks=self.ranks,
            fractions=tuple(getattr(self, "fractions", ())),
            columns=self.columns,
        )


@contextmanager
def blank_maps_allowed() -> Iterator[None]:
    """Let a method give a map that is the same everywhere without a `BlankMapWarning`.

    For metrics that explain again and return NaN for such a map.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", BlankMapWarning)
        yield


def _catalogue() -> Mapping[str, type[Metric]]:
    from afmi.metrics import CATALOGUE

    return CATALOGUE


specs.register(Metric, "metric", _catalogue)

MetricsLike = str | Sequence[str | type[Metric] | Metric]


def chosen_metrics(metrics: MetricsLike | None, *, classes: bool = True) -> dict[str, Metric]:
    """Return the metrics chosen, by the key with which the names of their values begin.

    Args:
        metrics: ``"all"``, specs joined by commas (``"insertion,insertion:canvas=mean"``), or a
            sequence of specs, classes or instances; None: those that are standard.
        classes: whether classes are explained; the standard ones fit what is.

    Raises:
        UsageError: as for `afmi.methods.chosen_methods`.

    Example:
        >>> list(chosen_metrics("Insertion,insertion:canvas=mean"))
        ['insertion', 'insertion(canvas=mean)']
    """
    if metrics is None:
        standard = [cls for cls in _catalogue().values() if cls.standard]
        unfit = [] if classes else [cls for cls in standard if cls.needs_class]
        instead = [cls.instead for cls in unfit if cls.instead]
        metrics = [*instead, *(cls for cls in standard if cls not in unfit)]
    chosen = specs.choose(metrics, Metric)
    return {specs.row_key(metric): metric for metric in chosen.values()}
