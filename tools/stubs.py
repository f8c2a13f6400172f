"""Write ``__init__.pyi`` of the package, whose names are loaded when they are first used.

    python -m tools.stubs

Editors and type checkers cannot run the table of names in ``afmi/__init__.py``; a stub imports the
same names from the same modules.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

SOURCES = Path(__file__).parents[1] / "src"
sys.path.insert(0, str(SOURCES))  # the names of this copy, whichever is installed

import afmi  # noqa: E402

__all__ = ["PATH", "stub"]

PATH = SOURCES / "afmi" / "__init__.pyi"


def stub() -> str:
    """Return the stub's text, as the formatter leaves it."""
    lines = ["# Written by `make format` from the table of names in __init__.py.", ""]
    for name, home in {"__version__": "afmi._version", **vars(afmi)["_HOMES"]}.items():
        module = home.removesuffix(f".{name}")
        lines.append(f"from {module} import {name} as {name}")
    lines += ["", f"__all__ = {sorted(afmi.__all__)!r}"]
    return _formatted("\n".join(lines) + "\n")


def _formatted(text: str) -> str:
    for command in (["check", "--select=I,RUF022", "--fix", "--quiet"], ["format", "--quiet"]):
        ruff = [sys.executable, "-m", "ruff", *command, f"--stdin-filename={PATH}", "-"]
        text = subprocess.run(ruff, input=text, capture_output=True, text=True, check=True).stdout
    return text


if __name__ == "__main__":
    PATH.write_text(stub(), encoding="utf-8")
