"""Run the notebooks of the documentation: offline, on one thread, in folders that are thrown away.

The pages of the documentation and the tests run them by the same lines.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from nbformat import NotebookNode

__all__ = ["NOTEBOOKS", "executed"]

ROOT = Path(__file__).parents[1]
NOTEBOOKS = ROOT / "docs" / "notebooks"
LONGEST = 300
"""Seconds that a cell may take."""


def executed(notebooks: Iterable[Path], folder: Path) -> dict[str, NotebookNode]:
    """Return notebooks with what their cells print and draw, by the stems of their files.

    One process runs them one after the other, so that PyTorch is loaded once. Each finds no name
    that another defined, and an empty folder, so it stands alone.

    Args:
        notebooks: the files, which stay as they are.
        folder: gets a folder for each, where its cells run and leave what they leave.

    Raises:
        nbclient.exceptions.CellExecutionError: when a cell raises.
    """
    import nbformat
    from nbclient import NotebookClient
    from nbformat.v4 import new_code_cell, new_notebook

    contents = {file.stem: nbformat.read(file, as_version=4) for file in notebooks}
    together = new_notebook()
    for stem, content in contents.items():
        own = folder / stem
        own.mkdir()
        together.cells += [new_code_cell(f"%reset -f\n%cd -q {own}"), *content.cells]
    client = NotebookClient(
        together,
        timeout=LONGEST,
        extra_arguments=["--log-level=ERROR"],  # of the kernel itself, not of what runs in it
        resources={"metadata": {"path": folder}},
    )
    client.execute(env=_surroundings(folder))
    return contents


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
