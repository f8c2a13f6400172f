"""Figure 10: all methods on one picture, at 5 % to 50 % of the pixels."""

from __future__ import annotations

from afmi.experiments.shared.base import Experiment, Request, Result
from afmi.experiments.shared.insertions import (
    ALL_FINDING,
    ALL_METHODS,
    ALL_SHOWS,
    all_methods_figure,
)

__all__ = ["Figure10"]


class Figure10(Experiment):
    """Show the top 5 % to 50 % of the pixels by all methods, against black and white references.

    Paper: Figure 10, Appendix D. It does not name its picture; the class here is chosen for it.
    """

    name = "figure10"
    shows = ALL_SHOWS
    section = "Figure 10, Appendix D"
    finding = ALL_FINDING
    methods = ALL_METHODS
    data = "pictures"
    classes = ("English springer",)

    def _run(self, request: Request) -> Result:
        return all_methods_figure(self, request, self.classes)
