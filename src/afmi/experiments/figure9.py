"""Figure 9: softmax ratio on VGG-19, accuracy and softmax ratio on VGG-16."""

from __future__ import annotations

from afmi.experiments.shared.base import Experiment, Request, Result
from afmi.experiments.shared.measured import INSERTED, curves_figure, curves_panel, measured

__all__ = ["Figure9"]


class Figure9(Experiment):
    """Draw the curves of the mean softmax ratio, and accuracy for all networks but the first.

    Paper: Figure 9, Appendix D.
    """

    name = "figure9"
    shows = "softmax ratio against the share of the pixels inserted, by method"
    section = "Figure 9, Appendix D"
    finding = "A-FMI and Grad-CAM lead in the softmax ratio, too, and on VGG-16 as on VGG-19"
    models = ("vgg19", "vgg16")
    methods = INSERTED
    data = "ImageNet"
    on_engines = True

    def _run(self, request: Request) -> Result:
        networks = measured(self, request)
        curves = [(one, curve) for one in networks for curve in ("accuracy", "softmax_ratio_mean")]
        panels = [curves_panel(one, curve) for one, curve in curves[1:]]
        return curves_figure(self, request, networks, panels)
