"""Run the notebooks of the documentation: offline, on one thread, in a folder that is thrown away.

The pages of the documentation and the tests run them by the same lines.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from nbformat import NotebookNode

__all__ = ["NOTEBOOKS", "executed"]

ROOT = Path(__file__).parents[1]
NOTEBOOKS = ROOT / "docs" / "notebooks"
LONGEST = 300
"""Seconds that a cell may take."""


def executed(notebook: Path, folder: Path) -> NotebookNode:
    """Return a notebook with what its cells print and draw.

    Args:
        notebook: the file, which stays as it is.
        folder: where the cells run, and where they leave what they leave.

    Raises:
        nbclient.exceptions.CellExecutionError: when a cell raises.
    """
    import nbformat
    from nbclient import NotebookClient

    content = nbformat.read(notebook, as_version=4)
    client = NotebookClient(
        content,
        timeout=LONGEST,
        extra_arguments=["--log-level=ERROR"],  # of the kernel itself, not of what runs in it
        resources={"metadata": {"path": folder}},
    )
    return client.execute(env=_surroundings(folder))


def _surroundings(folder: Path) -> dict[str, str]:
    ours = {
        "HF_HUB_OFFLINE": "1",
        "IPYTHONDIR": str(folder / ".ipython"),
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": str(ROOT / "src"),
        # Said by timm's progress bar wherever ipywidgets are missing.
        "PYTHONWARNINGS": "ignore:IProgress not found",
    }
    return {**os.environ, **ours}
