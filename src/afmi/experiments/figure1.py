"""Figure 1: the granularities of attribution, on the photograph of a dogsled."""

from __future__ import annotations

from afmi.experiments.shared.base import Experiment, Request, Result
from afmi.experiments.shared.insertions import insertion_figure

__all__ = ["Figure1"]


class Figure1(Experiment):
    """Show the top 10 % of the pixels by methods of each granularity.

    Paper: Figure 1, Section 1: class "dogsled", black references.
    """

    name = "figure1"
    shows = "methods of each granularity on a dogsled, 10 % of the pixels inserted"
    section = "Figure 1, Section 1"
    finding = (
        "pixel-wise methods also pick snow and persons; feature-map methods keep to compact "
        "regions of interest"
    )
    methods = (
        "DeepLIFT",
        "Integrated Gradients",
        "LRP",
        "XRAI",
        "RISE",
        "Grad-CAM",
        "A-FMI",
    )
    data = "pictures"
    classes = ("dogsled",)

    def _run(self, request: Request) -> Result:
        return insertion_figure(self, request, self.classes, (0.1,))
