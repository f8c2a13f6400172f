"""Figure 8: Figure 3 with more pictures."""

from __future__ import annotations

from afmi.experiments.shared.base import Experiment, Request, Result
from afmi.experiments.shared.reference_maps import FINDING, METHODS, reference_figure

__all__ = ["Figure8"]


class Figure8(Experiment):
    """Show maps of more pictures against black, white and random references.

    Paper: Figure 8, Appendix C: among others one with snow, one with a branch and grass, one with
    a black background and one with a person; the classes here are chosen to fit.
    """

    name = "figure8"
    shows = "maps against black, white and random references, more pictures"
    section = "Figure 8, Appendix C"
    finding = FINDING
    methods = METHODS
    data = "pictures"
    classes = ("dogsled", "house finch", "Siamese cat", "tench")

    def _run(self, request: Request) -> Result:
        return reference_figure(self, request, self.classes)
