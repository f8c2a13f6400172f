"""Figure 1: the granularities of attribution, on the photograph of a dogsled."""

from __future__ import annotations

from afmi.experiments.shared.base import Experiment, Request, Result, networks
from afmi.experiments.shared.figures import methods_of
from afmi.experiments.shared.insertions import Row, compared, save_insertions
from afmi.experiments.shared.pictures import choose_photos

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
    fraction = 0.1

    def _run(self, request: Request) -> Result:
        (model,) = networks(self, request)
        photos = choose_photos(request, model, self.classes)
        methods = methods_of(self, request, model)
        comparisons = compared(self, request, methods, photos, (self.fraction,))
        rows = [
            Row(photo, comparison) for photo, comparison in zip(photos, comparisons, strict=True)
        ]
        return save_insertions(self, request, methods, rows)
