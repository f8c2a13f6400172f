"""Reference reliability: does the map stay the same when the reference image changes?"""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import combinations
from typing import Any

import torch
from torch import Tensor

from afmi.errors import UsageError
from afmi.methods.base import Method
from afmi.methods.work import Work
from afmi.metrics.base import Case, Metric, blank_maps_allowed
from afmi.metrics.columns import Column
from afmi.packages import imported
from afmi.pictures.dimensions import places
from afmi.pictures.maps import rank_correlation
from afmi.pictures.references import Black, Random, Reference, White, reference_of
from afmi.specs import text

__all__ = ["ReferenceReliability"]

_WINDOW = 7


@dataclass(frozen=True)
class ReferenceReliability(Metric):
    """Compare the maps of one image against several references, in pairs.

    For each pair Spearman's rank correlation and the structural similarity (SSIM, windows of 7
    pixels a side) of the two maps. For the latter each map is first stretched to [0, 1] by its own
    minimum and maximum, so that it compares patterns and not scales; the zero of a signed map may
    then lie elsewhere in each. Methods that compare the image with no reference have no value.

    Paper: *A-FMI*, ICLR 2021 submission, RQ2, with the same three references. Differs: the paper
    shows pictures; the numbers are those that Adebayo et al., *Sanity Checks for Saliency Maps*,
    NeurIPS 2018, compare maps by.
    Cost: the method once more for each reference that is not its own.

    Args:
        references: two or more, of different names.

    Example:
        >>> from afmi.methods import IntegratedGradients
        >>> model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(108, 2))
        >>> method, images = IntegratedGradients(model, steps=1), torch.rand(2, 3, 6, 6)
        >>> attribution = method.attribution(images)
        >>> case = Case(method, images, attribution.target, attribution, attribution.logits)
        >>> metric = ReferenceReliability(references=(Black(), White()))
        >>> sorted(metric.measure(case))
        ['rank_correlation', 'rank_correlation@black-white', 'ssim', 'ssim@black-white']
    """

    name = "Reference reliability"
    columns = (
        Column(
            "rank_correlation",
            "Rank correlation",
            "how alike the pixels are ranked against different reference images",
            higher_is_better=True,
        ),
        Column(
            "ssim",
            "SSIM",
            "structural similarity of the maps against different reference images",
            higher_is_better=True,
        ),
    )
    paper = "A-FMI: Learning Attributions from Deep Networks via Feature Map Importance, 2021"

    references: tuple[Reference, ...] = (Black(), White(), Random())

    def __post_init__(self) -> None:
        object.__setattr__(self, "references", tuple(map(reference_of, self.references)))
        names = [text(reference) for reference in self.references]
        if len(names) < 2 or len(set(names)) < len(names):
            raise UsageError(
                "expected two or more references of different names, got "
                f"{', '.join(names) or 'none'}"
            )

    def measure(self, case: Case) -> dict[str, Tensor]:
        """Return ``rank_correlation`` and ``ssim``, means over the pairs, and those of each pair.

        A pair goes by its references, such as ``ssim@black-white``. NaN where a map of the pair is
        the same everywhere.
        """
        if not _has_reference(case.method):
            return {}
        maps: dict[str, Tensor] = {}
        for reference, method in self._methods(case.method):
            if method is case.method:
                maps[text(reference)] = case.maps
                continue
            with blank_maps_allowed():
                maps[text(reference)] = method.attribute(case.inputs, case.targets)
        values: dict[str, Tensor] = {}
        for name, compare in (("rank_correlation", rank_correlation), ("ssim", _ssim)):
            pairs = {f"{name}@{a}-{b}": compare(maps[a], maps[b]) for a, b in combinations(maps, 2)}
            values |= {name: torch.stack(list(pairs.values())).mean(0)} | pairs
        return values

    def work(self, method: Method, inputs: Tensor) -> Work:
        """Return the passes of the method with each reference that is not its own."""
        if not _has_reference(method):
            return Work()
        others = (m.work(inputs) for _, m in self._methods(method) if m is not method)
        return sum(others, Work())

    def _methods(self, method: Method) -> list[tuple[Reference, Method]]:
        """Return the method with each reference; the method itself where the reference is its."""
        # That the field is there was checked; no type says so.
        changeable: Any = method
        current = changeable.reference
        return [
            (
                reference,
                method if reference == current else replace(changeable, reference=reference),
            )
            for reference in self.references
        ]


def _has_reference(method: Method) -> bool:
    # None stands for a method's own replacement of hidden pixels, or the network's own zero.
    return isinstance(getattr(method, "reference", None), Reference)


def _ssim(first: Tensor, second: Tensor) -> Tensor:
    """Return the structural similarity of each pair of maps (N, 1, *spatial): float64 (N,)."""
    side = min(first.shape[2:])
    window = min(_WINDOW, side - 1 + side % 2)  # odd, and no larger than the maps
    metrics: Any = imported("skimage.metrics", "structural similarity", "afmi[regions]")
    values = torch.full((first.shape[0],), torch.nan, dtype=torch.float64, device="cpu")
    for i, (one, other) in enumerate(zip(_stretched(first), _stretched(second), strict=True)):
        if window >= 3 and bool(torch.isfinite(one).all() and torch.isfinite(other).all()):
            similarity = metrics.structural_similarity(
                one.numpy(), other.numpy(), data_range=1.0, win_size=window
            )
            values[i] = float(similarity)
    return values


def _stretched(maps: Tensor) -> Tensor:
    """Return each map in [0, 1], float64 (N, *spatial); NaN where it is the same everywhere."""
    exact = maps.detach().to("cpu", torch.float64)[:, 0]
    sides = places(exact, 1)
    low, high = exact.amin(sides, keepdim=True), exact.amax(sides, keepdim=True)
    return (exact - low) / (high - low)
