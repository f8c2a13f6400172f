"""Completeness: do the maps add up to what they explain?"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from afmi.metrics.base import Case, Metric
from afmi.metrics.columns import Column

__all__ = ["Completeness"]


@dataclass(frozen=True)
class Completeness(Metric):
    """Tell how far a map is from summing to the change of the score.

    residual = |Σ_ij S_ij − Δy| / |Δy| with Δy = y(x) − y(x̄), at the map's own size, before it is
    upsampled; y is the score of the class, or of another target. Methods whose maps promise no such
    sum have no value.

    Paper: *A-FMI*, ICLR 2021 submission, Section 3 (local faithfulness). Differs: the paper asks
    for the sum without a number; the relative residual is that number.
    Cost: nothing; the method computed it.

    Example:
        >>> from afmi.methods import Attribution, IntegratedGradients
        >>> model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(12, 2))
        >>> method, image = IntegratedGradients(model, steps=1), torch.rand(1, 3, 2, 2)
        >>> attribution = method.attribution(image, target=1)
        >>> case = Case(method, image, attribution.target, attribution, model(image))
        >>> bool(Completeness().measure(case)["residual"] < 1e-3)
        True
    """

    name = "Completeness"
    columns = (
        Column(
            "median_residual",
            "Residual",
            "how far the map is from summing to the change of the score, relative to it: "
            "|Σ map − Δy| / |Δy|; 0 is exact, and methods that promise no such sum have none",
            higher_is_better=False,
            value="residual",
            aggregate="median size",
        ),
    )
    paper = "A-FMI: Learning Attributions from Deep Networks via Feature Map Importance, 2021"
    standard = True

    def measure(self, case: Case) -> dict[str, Tensor]:
        """Return ``residual``; NaN where the score did not change."""
        signed = case.attribution.residual
        if signed is None:
            return {}
        residual = signed.detach().to("cpu", torch.float64).abs()
        return {"residual": residual.where(residual.isfinite(), torch.nan)}
