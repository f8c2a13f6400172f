"""Figure 6: accuracy against the share of the pixels inserted."""

from __future__ import annotations

from afmi.experiments.shared.base import Experiment, Request, Result
from afmi.experiments.shared.measured import INSERTED, curves_figure, curves_panel, measured

__all__ = ["Figure6"]


class Figure6(Experiment):
    """Draw the accuracy curves of all methods, one panel a network; measured as for Table 1.

    Paper: Figure 6, Section 4.4 (RQ4).
    """

    name = "figure6"
    shows = "accuracy against the share of the pixels inserted, by method"
    section = "Figure 6, Section 4.4"
    finding = "the curves of A-FMI and Grad-CAM rise first, well before those of other methods"
    models = ("vgg19", "resnet50")
    methods = INSERTED
    data = "ImageNet"
    on_engines = True

    def _run(self, request: Request) -> Result:
        networks = measured(self, request)
        panels = [curves_panel(one, "accuracy") for one in networks]
        return curves_figure(self, request, networks, panels)
