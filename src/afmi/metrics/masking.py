"""What insertion and deletion share: images whose top pixels by the map are kept or removed."""

from __future__ import annotations

import itertools
import math
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import partial

import torch
from torch import Tensor, nn

from afmi.errors import ShapeError, TargetError, UsageError
from afmi.gradients.passes import BatchRunner
from afmi.methods.base import Method
from afmi.methods.work import Work
from afmi.metrics.base import Case, Metric
from afmi.metrics.columns import Column, percent, point
from afmi.network.classifier import classify
from afmi.network.guards import evaluation_mode
from afmi.network.outputs import Meaning, check_outputs, responses
from afmi.network.trial import meaning_of
from afmi.pictures.dimensions import ANY_FORM, beside
from afmi.pictures.maps import rank_pixels
from afmi.pictures.references import Black, Reference, reference_of

__all__ = ["FRACTIONS", "ClassMaskedMetric", "Curves", "MaskedMetric", "masking_columns"]

FRACTIONS = tuple(percent / 100 for percent in range(5, 101, 5))
"""PI of the paper's Appendix A.3: 5 %, 10 %, …, 100 %."""


@dataclass(frozen=True)
class Curves:
    """How a network classifies images as more and more of their pixels are kept (or removed).

    The areas are trapezoids over ``fractions`` as they are. The paper's begin at 5 %, and nothing
    is added before them, so an area there is at most 0.95.

    Attributes:
        fractions: the shares of the pixels (PI), float64 (P,).
        correct: whether the masked picture's arg-max is its class, bool (N, P).
        probability: softmax probability p̂_c of the class in the masked picture, float64 (N, P).
        original_correct: the same of the whole picture, bool (N,).
        original_probability: p_c of the whole picture, float64 (N,).
    """

    fractions: Tensor
    correct: Tensor
    probability: Tensor
    original_correct: Tensor
    original_probability: Tensor

    @property
    def accuracy(self) -> Tensor:
        """Classification Accuracy@PI (Eq. 8): share of the pictures, (P,)."""
        return self.correct.to("cpu", torch.float64).mean(0)

    @property
    def ratios(self) -> Tensor:
        """p̂_c / p_c of each picture, (N, P)."""
        return self.probability / self.original_probability[:, None]

    @property
    def softmax_ratio(self) -> Tensor:
        """Softmax Ratio@PI (Eq. 9): mean of p̂_c / p_c, (P,).

        One picture whose p_c is tiny can dominate it; the two below are not so.
        """
        return self.ratios.mean(0)

    @property
    def softmax_ratio_median(self) -> Tensor:
        """Median of p̂_c / p_c, (P,)."""
        return self.ratios.quantile(0.5, 0)

    @property
    def ratio_of_means(self) -> Tensor:
        """Mean of p̂_c over the pictures / mean of p_c, (P,)."""
        return self.probability.mean(0) / self.original_probability.mean()

    @property
    def accuracy_auc(self) -> float:
        """Accuracy-AUC: area under `accuracy`."""
        return float(torch.trapezoid(self.accuracy, self.fractions))

    @property
    def softmax_auc(self) -> float:
        """Softmax-AUC: area under `softmax_ratio`."""
        return float(torch.trapezoid(self.softmax_ratio, self.fractions))

    @property
    def accuracy_areas(self) -> Tensor:
        """Each picture's own area, whose mean is `accuracy_auc`, (N,)."""
        return torch.trapezoid(self.correct.to("cpu", torch.float64), self.fractions)

    @property
    def softmax_areas(self) -> Tensor:
        """Each picture's own area, whose mean is `softmax_auc`, (N,)."""
        return torch.trapezoid(self.ratios, self.fractions)

    def among(self, chosen: Tensor) -> Curves:
        """Return the curves of some pictures only.

        Args:
            chosen: bool (N,), such as ``curves.original_correct``, or indices.
        """
        return replace(
            self,
            correct=self.correct[chosen],
            probability=self.probability[chosen],
            original_correct=self.original_correct[chosen],
            original_probability=self.original_probability[chosen],
        )

    def values(self) -> dict[str, Tensor]:
        """Return the numbers of each picture by name, float64 (N,)."""
        values = {"accuracy_auc": self.accuracy_areas, "softmax_ratio_auc": self.softmax_areas}
        for i, fraction in enumerate(self.fractions.tolist()):
            values[point("correct", fraction)] = self.correct[:, i].to("cpu", torch.float64)
            values[point("probability", fraction)] = self.probability[:, i]
        values["original_correct"] = self.original_correct.to("cpu", torch.float64)
        values["original_probability"] = self.original_probability
        return values


def masking_columns(measures: str, *, higher_is_better: bool, over: str) -> tuple[Column, ...]:
    """Return the columns of a metric whose values are `Curves.values`.

    Args:
        measures: what the first column, Accuracy-AUC, says.
        higher_is_better: of all columns.
        over: what PI is.
    """
    column = partial(Column, higher_is_better=higher_is_better, over=over)
    softmax = partial(column, title="Softmax-AUC", value="softmax_ratio_auc")
    ratio = partial(
        column, kind="curve", value="probability", per="original_probability", measures="p̂ / p"
    )
    return (
        column("accuracy_auc", "Accuracy-AUC", measures),
        column(
            "accuracy_auc_of_correct",
            "Correct ones",
            "Accuracy-AUC over only those images that the network gets right as a whole: an "
            "explanation of a mistake cannot help the network",
            value="accuracy_auc",
            among="original_correct",
            note="Accuracy-AUC",
        ),
        softmax(
            "softmax_auc_mean",
            measures="the area under p̂ / p of each image, where p̂ is the network's probability of "
            "the class from the pixels left and p that from the whole image; it may exceed 1, "
            "where the network is surer of the part than of the whole",
        ),
        softmax(
            "softmax_auc_median",
            measures="the mean is the published measure, but a few images with a tiny p can "
            "dominate it, for p̂ / p is then in the hundreds; the median cannot be dominated",
            aggregate="median",
        ),
        softmax(
            "softmax_auc_ratio_of_means",
            measures="nor can the ratio of means, mean p̂ over mean p",
            kind="area",
            value="probability",
            aggregate="ratio of means",
            per="original_probability",
        ),
        column(
            "accuracy",
            "Accuracy",
            "share of the images classified as labelled",
            kind="curve",
            value="correct",
            area="accuracy_auc",
        ),
        ratio("softmax_ratio_mean", "Softmax ratio", area="softmax_auc_mean"),
        ratio(
            "softmax_ratio_median",
            "Softmax ratio",
            aggregate="median",
            area="softmax_auc_median",
        ),
        ratio(
            "softmax_ratio_of_means",
            "Softmax ratio",
            aggregate="ratio of means",
            area="softmax_auc_ratio_of_means",
        ),
    )


@dataclass(frozen=True)
class MaskedMetric(Metric):
    """What insertion and deletion share: images of which the top pixels are kept or removed."""

    fractions: Sequence[float] = FRACTIONS
    canvas: Reference = field(default_factory=Black)
    batch_size: int | None = field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        object.__setattr__(self, "canvas", reference_of(self.canvas))
        shares = self.fractions
        rising = all(a < b for a, b in itertools.pairwise(shares))
        if len(shares) < 2 or not rising or not 0 <= shares[0] <= shares[-1] <= 1:
            raise UsageError(
                "expected two or more fractions that rise within 0 to 1, such as (0.05, 0.1, 1), "
                f"got {tuple(shares)}"
            )

    @property
    @abstractmethod
    def keep_top(self) -> bool:
        """Whether the top of the map is kept, or removed."""

    def masked_outputs(
        self,
        model: nn.Module,
        images: Tensor,
        maps: Tensor,
        logits: Tensor,
        fractions: Sequence[float] | None = None,
    ) -> Tensor:
        """Return the outputs for the images with the top of each map kept (or removed).

        Masked images that are the same (as a digit's are, once only its black ground is missing)
        go through the network once; one that is the whole image takes its outputs.

        Args:
            model: a network that returns (N, K).
            images: (N, C, H, W).
            maps: (N, 1, H, W), at the images' size; equal pixels rank in reading order.
            logits: (N, K) of the images.
            fractions: P of them; None: the metric's.

        Returns:
            (N, P, K).
        """
        return _masked_outputs(self, fractions or self.fractions, model, images, maps, logits)

    def grounds(self, images: Tensor) -> Tensor:
        """Return the canvas of each image, (N, C, H, W).

        Raises:
            UsageError: when there are several.
        """
        grounds = self.canvas(images)
        if grounds.shape[0] != 1 and not self.canvas.per_image:
            raise UsageError(
                f"expected a canvas of one picture, got {grounds.shape[0]} from {self.canvas!r}; "
                "measure each of them by itself"
            )
        return grounds.expand_as(images)


@dataclass(frozen=True)
class ClassMaskedMetric(MaskedMetric):
    """What insertion and deletion of classes share: all but which pixels stay."""

    needs_class = True
    instead = "value-insertion"

    @property
    def about(self) -> str:
        """See `Metric`; names the canvas, and the largest area that these fractions allow."""
        low, high = percent(self.fractions[0]), percent(self.fractions[-1])
        canvas = "black" if self.canvas == Black() else f"from the canvas {self.canvas}"
        shown = "Those ranked first are" if self.keep_top else "All but those ranked first are"
        good = "from few pixels" if self.keep_top else "no longer once few pixels are gone"
        return (
            f"The pixels are ranked by a method’s map, highest first. {shown} shown to the "
            f"network, the rest {canvas}. A good explanation lets the network recognise the class "
            f"{good}. PI, the share of the pixels, goes from {low:g} % to {high:g} % in "
            f"{len(self.fractions)} steps. Pixels of equal value are ranked in reading order (from "
            f"the top left, row by row), for every method alike. Areas are trapezoids over PI and "
            f"begin at {low:g} %, so the highest possible value is {(high - low) / 100:g}, not 1, "
            "where the network is right at every step."
        )

    def curves(
        self,
        model: nn.Module,
        images: Tensor,
        targets: Tensor,
        maps: Tensor,
        *,
        logits: Tensor | None = None,
    ) -> Curves:
        """Classify the images with the top of each map kept (or removed), for each fraction.

        Masked images that are the same (as a digit's are, once only its black ground is missing)
        are classified once; one that is the whole image takes its logits.

        Args:
            model: a `Classifier`, or any ``nn.Module`` from images to logits (N, K).
            images: (N, C, *spatial), in [0, 1] for a `Classifier`.
            targets: ground-truth classes, int64 (N,).
            maps: (N, 1, *spatial), at the images' size; equal pixels rank in reading order.
            logits: (N, K) of the images, where they are known; saves their pass.

        Raises:
            ShapeError: when maps or targets do not fit the images.
            TargetError: when the network has no such class.
            AfmiError: when the network gives NaN for an image or a masked one.
        """
        return _curves(self, model, images, targets, maps, logits)

    def measure(self, case: Case) -> dict[str, Tensor]:
        """Return ``accuracy_auc``, ``softmax_ratio_auc``, ``correct@PI``, ``probability@PI``, ….

        PI is written in percent, such as ``correct@5%``.
        """
        curves = self.curves(case.model, case.inputs, case.classes, case.maps, logits=case.logits)
        return curves.values()

    def work(self, method: Method, inputs: Tensor) -> Work:
        """Return the forwards for one image: those of masked pictures, at most."""
        whole = 1.0 if self.keep_top else 0.0
        return Work(sum(fraction != whole for fraction in self.fractions))


def _curves(
    metric: MaskedMetric,
    model: nn.Module,
    images: Tensor,
    targets: Tensor,
    maps: Tensor,
    logits: Tensor | None,
) -> Curves:
    _check_maps(images, maps)
    _check_targets(images, targets)
    if logits is None:
        logits = classify(model, images)
    meaning = meaning_of(model, images)
    _check_classes(metric, logits, meaning, targets)
    masked = metric.masked_outputs(model, images, maps, logits)
    where = targets.to("cpu")
    every = responses(masked.to("cpu", torch.float64), meaning)
    whole_image = responses(logits.to("cpu", torch.float64), meaning)
    return Curves(
        fractions=torch.tensor(list(metric.fractions), dtype=torch.float64, device="cpu"),
        correct=masked.argmax(2).cpu() == where[:, None],
        probability=every.gather(2, where[:, None, None].expand(-1, masked.shape[1], 1))[..., 0],
        original_correct=logits.argmax(1).cpu() == where,
        original_probability=whole_image.gather(1, where[:, None])[:, 0],
    )


def _masked_outputs(
    metric: MaskedMetric,
    fractions: Sequence[float],
    model: nn.Module,
    images: Tensor,
    maps: Tensor,
    logits: Tensor,
) -> Tensor:
    canvas, keep_top = metric.canvas, metric.keep_top
    _check_maps(images, maps)
    grounds = metric.grounds(images)
    order = rank_pixels(maps)
    count = order.shape[1]
    counts = [math.floor(fraction * count + 0.5) for fraction in fractions]
    rank = torch.empty_like(order, dtype=torch.int32)
    places = torch.arange(count, dtype=torch.int32, device=order.device)
    rank.scatter_(1, order, places.expand_as(order))
    rank = rank.view(maps.shape)

    # How many of the first pixels differ from the canvas says which masked pictures are the same.
    differs = (images != grounds).any(1).flatten(1).gather(1, order)
    revealed = torch.zeros_like(order[:, :1]).repeat(1, count + 1)
    revealed[:, 1:] = differs.cumsum(1)
    shown = revealed[:, counts]
    if not keep_top:
        shown = revealed[:, -1:] - shown
    whole = revealed[:, -1].tolist()

    shared = not canvas.per_image
    first: dict[tuple[int, int], tuple[int, int]] = {}
    same: list[list[tuple[int, int] | None]] = []
    for n, row in enumerate(shown.tolist()):
        same.append([])
        for p, pixels in enumerate(row):
            if pixels == whole[n]:
                same[n].append(None)
                continue
            key = (-1, 0) if shared and pixels == 0 else (n, pixels)
            same[n].append(first.setdefault(key, (n, p)))

    jobs = list(first.values())
    runner = BatchRunner(model, images, metric.batch_size)
    results: dict[tuple[int, int], Tensor] = {}
    within, beyond = (images, grounds) if keep_top else (grounds, images)
    with torch.inference_mode(False), torch.no_grad(), evaluation_mode(model):
        for start, stop in runner.ranges(len(jobs)):
            limits = torch.tensor(
                [counts[p] for _, p in jobs[start:stop]], dtype=rank.dtype, device=rank.device
            )
            limits = beside(limits, images)
            # Image by image, whose own pixels need no copies then.
            pictures = images.new_empty(stop - start, *images.shape[1:])
            for n, those in itertools.groupby(range(start, stop), lambda job: jobs[job][0]):
                jobs_of_image = list(those)
                part = slice(jobs_of_image[0] - start, jobs_of_image[-1] - start + 1)
                torch.where(rank[n] < limits[part], within[n], beyond[n], out=pictures[part])
            results.update(zip(jobs[start:stop], runner.logits(pictures), strict=True))

    masked = torch.stack(
        [
            torch.stack([logits[n] if job is None else results[job] for job in row])
            for n, row in enumerate(same)
        ]
    )
    _check_masked(masked, fractions, "kept" if keep_top else "removed")
    return masked


def _check_masked(masked: Tensor, fractions: Sequence[float], done: str) -> None:
    for logits, fraction in zip(masked.unbind(1), fractions, strict=True):
        check_outputs(logits, f"with {percent(fraction):g} % of the pixels {done} the network")


def _check_classes(metric: Metric, logits: Tensor, meaning: Meaning, targets: Tensor) -> None:
    check_outputs(logits)
    if meaning == "value":
        raise TargetError(
            f"{metric.name} asks which class the network recognises, and it returns values; use "
            "value-insertion, which asks how much of the value is left"
        )
    low, high = int(targets.min()), int(targets.max())
    if low < 0 or high >= logits.shape[1]:
        raise TargetError(
            f"expected classes from 0 to {logits.shape[1] - 1}, got {low if low < 0 else high}"
        )


def _check_maps(images: Tensor, maps: Tensor) -> None:
    if images.dim() not in (3, 4, 5) or 0 in images.shape:
        raise ShapeError(f"expected {ANY_FORM}, got {tuple(images.shape)}")
    wanted = (images.shape[0], 1, *images.shape[2:])
    if tuple(maps.shape) != wanted:
        raise ShapeError(
            f"expected a map of one channel for each image, {wanted}, got {tuple(maps.shape)}; "
            "Method.attribute gives maps at the images' size"
        )
    if not bool(torch.isfinite(maps).all()):
        raise UsageError("expected finite maps, got NaN or infinity, which have no rank")


def _check_targets(images: Tensor, targets: Tensor) -> None:
    if tuple(targets.shape) != (images.shape[0],) or targets.is_floating_point():
        raise ShapeError(
            f"expected one class for each of {images.shape[0]} images, int64, got "
            f"{tuple(targets.shape)} {targets.dtype}"
        )
