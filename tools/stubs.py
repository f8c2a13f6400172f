"""Write ``__init__.pyi`` of the packages whose names are loaded when they are first used.

    python -m tools.stubs

Editors and type checkers cannot run the table of names in ``afmi/__init__.py``, nor find the
classes of a catalogue; a stub imports the same names from the same modules, and declares what the
package defines itself.
"""

from __future__ import annotations

import ast
import importlib
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType

SOURCES = Path(__file__).parents[1] / "src"
sys.path.insert(0, str(SOURCES))  # the names of this copy, whichever is installed

__all__ = ["PACKAGES", "path_of", "stub"]

PACKAGES = ("afmi", "afmi.methods", "afmi.metrics")


def path_of(package: str) -> Path:
    """Return where a package's stub lies: beside the file that it describes."""
    return SOURCES.joinpath(*package.split("."), "__init__.pyi")


def stub(package: str) -> str:
    """Return the stub's text, as the formatter leaves it."""
    module = importlib.import_module(package)
    public = sorted(getattr(module, "__all__"))  # noqa: B009
    source = path_of(package).with_suffix(".py").read_text("utf-8")
    nodes = [_declared(node) for node in ast.parse(source).body]
    declared = "\n".join(ast.unparse(node) for node in nodes if _is_public(node, public))
    homes = [
        f"from {home.removesuffix(f'.{name}')} import {name} as {name}"
        for name, home in _homes(module).items()
    ]
    used = {node.id for node in ast.walk(ast.parse(declared)) if isinstance(node, ast.Name)}
    imports = [
        f"{_statement(node)} {alias.name} as {name}"
        for node in nodes
        if isinstance(node, (ast.Import, ast.ImportFrom))
        for alias in node.names
        for name in [alias.asname or alias.name]
        if name in {*public, *used, "__version__"}
    ]
    begin = "# Written by `make format` from __init__.py and the modules that it names."
    return _formatted("\n".join([begin, *imports, *homes, declared, f"__all__ = {public!r}\n"]))


def _homes(module: ModuleType) -> Mapping[str, str]:
    """Return the module of each name that is loaded when it is first used."""
    if hasattr(module, "CATALOGUE"):
        return module.CATALOGUE.homes()
    return vars(module)["_HOMES"]


def _declared(node: ast.stmt) -> ast.stmt:
    """Return a statement without what only running it needs."""
    if isinstance(node, ast.FunctionDef):
        node.body = [ast.Expr(ast.Constant(...))]
    elif isinstance(node, ast.AnnAssign):
        node.value = None
    return node


def _is_public(node: ast.stmt, public: list[str]) -> bool:
    if isinstance(node, ast.FunctionDef):
        return node.name in public
    target = node.targets[0] if isinstance(node, ast.Assign) else getattr(node, "target", None)
    return isinstance(target, ast.Name) and target.id in public


def _statement(node: ast.Import | ast.ImportFrom) -> str:
    return f"from {node.module} import" if isinstance(node, ast.ImportFrom) else "import"


def _formatted(text: str) -> str:
    for command in (["check", "--select=I,RUF022", "--fix"], ["format"]):
        ruff = [
            sys.executable,
            "-m",
            "ruff",
            *command,
            "--quiet",
            f"--stdin-filename={SOURCES / 'x.pyi'}",
            "-",
        ]
        text = subprocess.run(ruff, input=text, capture_output=True, text=True, check=True).stdout
    return text


if __name__ == "__main__":
    for name in PACKAGES:
        path_of(name).write_text(stub(name), encoding="utf-8")
