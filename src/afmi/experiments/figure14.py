"""Figure 14: figure 10 with another picture."""

from __future__ import annotations

from afmi.experiments.shared.base import Experiment, Request, Result
from afmi.experiments.shared.insertions import (
    ALL_FINDING,
    ALL_METHODS,
    ALL_SHOWS,
    all_methods_figure,
)

__all__ = ["Figure14"]


class Figure14(Experiment):
    """Show the top 5 % to 50 % of the pixels by all methods, against black and white references.

    Paper: Figure 14, Appendix D. It does not name its picture; the class here is chosen for it.
    """

    name = "figure14"
    shows = ALL_SHOWS
    section = "Figure 14, Appendix D"
    finding = ALL_FINDING
    methods = ALL_METHODS
    data = "pictures"
    classes = ("parachute",)

    def _run(self, request: Request) -> Result:
        return all_methods_figure(self, request, self.classes)
