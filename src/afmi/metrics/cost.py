"""Cost: seconds and memory that an explanation takes."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from afmi.metrics.base import Case, Metric
from afmi.metrics.columns import Column

__all__ = ["Cost"]


@dataclass(frozen=True)
class Cost(Metric):
    """Tell what the explanation of an image took.

    Both were measured while the batch was explained (see `Case`): seconds per image, and the
    memory that the whole batch needed beyond what was in use before it, in MiB = 2²⁰ bytes. All
    images of a batch therefore have the same numbers.

    Paper: *A-FMI*, ICLR 2021 submission, Table 1 (seconds per image). Differs: memory is added.
    Cost: nothing.

    Example:
        >>> from afmi.methods import Random
        >>> model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(12, 2))
        >>> method, images = Random(model), torch.rand(2, 3, 2, 2)
        >>> attribution = method.attribution(images)
        >>> case = Case(
        ...     method, images, attribution.target, attribution, attribution.logits,
        ...     seconds=0.25, peak_bytes=3 * 2**20,
        ... )
        >>> {name: value.tolist() for name, value in Cost().measure(case).items()}
        {'seconds': [0.25, 0.25], 'peak_mib': [3.0, 3.0]}
    """

    name = "Cost"
    columns = (
        Column(
            "seconds",
            "Seconds",
            "seconds that the explanation of an image takes",
            higher_is_better=False,
            # Not the mean: the first image of a run also pays for what is made once.
            aggregate="median",
            note="per picture",
            unit="s",
            multiples=True,
        ),
        Column(
            "peak_mib",
            "Memory",
            "memory that the explanation of a batch needs beyond what was in use before it",
            higher_is_better=False,
            aggregate="median",
            unit="MiB",
        ),
    )
    paper = "A-FMI: Learning Attributions from Deep Networks via Feature Map Importance, 2021"
    standard = True

    def measure(self, case: Case) -> dict[str, Tensor]:
        """Return ``seconds`` of an image and ``peak_mib`` of its batch; NaN where not measured."""
        values = {"seconds": case.seconds, "peak_mib": case.peak_bytes / 2**20}
        count = case.inputs.shape[0]
        return {
            name: torch.full((count,), value, dtype=torch.float64, device="cpu")
            for name, value in values.items()
        }
