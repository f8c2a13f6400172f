"""Figure 13: figure 10 with another picture."""

from __future__ import annotations

from afmi.experiments.shared.base import Experiment, Request, Result
from afmi.experiments.shared.insertions import (
    ALL_FINDING,
    ALL_METHODS,
    ALL_SHOWS,
    all_methods_figure,
)

__all__ = ["Figure13"]


class Figure13(Experiment):
    """Show the top 5 % to 50 % of the pixels by all methods, against black and white references.

    Paper: Figure 13, Appendix D. It does not name its picture; the class here is chosen for it.
    """

    name = "figure13"
    shows = ALL_SHOWS
    section = "Figure 13, Appendix D"
    finding = ALL_FINDING
    methods = ALL_METHODS
    data = "pictures"
    classes = ("golf ball",)

    def _run(self, request: Request) -> Result:
        return all_methods_figure(self, request, self.classes)
