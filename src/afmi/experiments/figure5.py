"""Figure 5: what all methods put first, at 5 % and at 50 % of the pixels."""

from __future__ import annotations

from afmi.experiments.shared import published
from afmi.experiments.shared.base import Experiment, Request, Result
from afmi.experiments.shared.insertions import insertion_figure

__all__ = ["Figure5"]


class Figure5(Experiment):
    """Show the top 5 % and 50 % of the pixels by all methods.

    Paper: Figure 5, Section 4.4. It does not name its classes; those here are chosen for it.
    """

    name = "figure5"
    shows = "all methods, 5 % and 50 % of the pixels inserted"
    section = "Figure 5, Section 4.4"
    finding = (
        "A-FMI and Grad-CAM begin with the object's telling parts and grow outward; Gradient, "
        "DeepLIFT and IG scatter, LRP draws edges, region-level methods are unstable"
    )
    methods = published.METHODS
    data = "pictures"
    classes = ("golden retriever", "house finch")

    def _run(self, request: Request) -> Result:
        return insertion_figure(self, request, self.classes, (0.05, 0.5))
