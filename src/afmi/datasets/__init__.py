"""Explain data sets of any size into tables that resume, and read the explanations back."""

from afmi.packages import imported

# Before the modules that import it.
imported("pyarrow", "a table of explanations", "afmi[evaluation]")

from afmi.datasets.reading import Explanations, open_explanations  # noqa: E402
from afmi.datasets.run import explain_dataset  # noqa: E402

__all__ = ["Explanations", "explain_dataset", "open_explanations"]
