"""Explain data sets of any size into tables that resume, and read the explanations back."""

from afmi.datasets.reading import Explanations, open_explanations
from afmi.datasets.run import explain_dataset

__all__ = ["Explanations", "explain_dataset", "open_explanations"]
