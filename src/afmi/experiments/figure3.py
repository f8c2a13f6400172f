"""Figure 3: does the choice of the reference image change the explanation?"""

from __future__ import annotations

from afmi.experiments.shared.base import Experiment, Request, Result
from afmi.experiments.shared.reference_maps import FINDING, METHODS, reference_figure

__all__ = ["Figure3"]


class Figure3(Experiment):
    """Show maps against black, white and random references.

    Paper: Figure 3, Section 4.2: among others a white dog before a dark background, and green
    apples before a white one; the classes here are chosen to fit.
    """

    name = "figure3"
    shows = "maps against black, white and random references"
    section = "Figure 3, Section 4.2"
    finding = FINDING
    methods = METHODS
    data = "pictures"
    classes = ("Samoyed", "Granny Smith")

    def _run(self, request: Request) -> Result:
        return reference_figure(self, request, self.classes)
