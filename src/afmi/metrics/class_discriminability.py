"""Class discriminability: does another class get another map?"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from afmi.methods.base import Method
from afmi.methods.work import Work
from afmi.metrics.base import Case, Metric, blank_maps_allowed
from afmi.metrics.columns import Column
from afmi.pictures.maps import rank_correlation

__all__ = ["ClassDiscriminability"]


@dataclass(frozen=True)
class ClassDiscriminability(Metric):
    """Compare the map of the class explained with those of two other classes.

    Spearman's rank correlation with the map of the most probable other class, and with that of
    the class of the lowest logit: 1 means that a class's map says nothing about that class, −1
    that what speaks for one class speaks against the other.

    Paper: *A-FMI*, ICLR 2021 submission, RQ3. Differs: the paper shows pictures of two classes
    that are both present and of the least activated one; the numbers are added.
    Cost: the maps of two more classes, from shared passes where the method has such.

    Example:
        >>> from afmi.methods import InputXGradient
        >>> model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(12, 3))
        >>> method, images = InputXGradient(model), torch.rand(2, 3, 2, 2)
        >>> attribution = method.attribution(images)
        >>> case = Case(method, images, attribution.target, attribution, model(images))
        >>> sorted(ClassDiscriminability().measure(case))
        ['rank_correlation@least', 'rank_correlation@second']
    """

    name = "Class discriminability"
    columns = (
        Column(
            "rank_correlation_second",
            "Same as second class",
            "how alike the pixels are ranked for the most probable other class",
            higher_is_better=False,
            value="rank_correlation@second",
        ),
        Column(
            "rank_correlation_least",
            "Same as least class",
            "how alike the pixels are ranked for the least probable class",
            higher_is_better=False,
            value="rank_correlation@least",
        ),
    )
    paper = "A-FMI: Learning Attributions from Deep Networks via Feature Map Importance, 2021"
    needs_class = True

    def measure(self, case: Case) -> dict[str, Tensor]:
        """Return ``rank_correlation@second`` and ``rank_correlation@least``.

        NaN where a map is the same everywhere, and where the network knows one class only.
        """
        names = ("rank_correlation@second", "rank_correlation@least")
        if case.logits.shape[1] < 2:
            nothing = torch.full(
                (case.inputs.shape[0],), torch.nan, dtype=torch.float64, device="cpu"
            )
            return {name: nothing.clone() for name in names}
        explained = case.classes.to(case.logits.device)[:, None]
        second = case.logits.scatter(1, explained, -torch.inf).argmax(1)
        least = case.logits.scatter(1, explained, torch.inf).argmin(1)
        with blank_maps_allowed():
            others = case.method.attribute_classes(case.inputs, torch.stack([second, least]))
        return {
            name: rank_correlation(case.maps, other)
            for name, other in zip(names, others, strict=True)
        }

    def work(self, method: Method, inputs: Tensor) -> Work:
        """Return the passes for two classes."""
        once = method.work(inputs)
        # A method that overrides this runs the network forwards once for all classes.
        shared = type(method)._attribute_classes is not Method._attribute_classes
        return replace(2 * once, forwards=once.forwards * (1 if shared else 2))
