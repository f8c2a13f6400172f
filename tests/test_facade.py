"""The façade: names load when they are used, none before, and type checkers see them all."""

from __future__ import annotations

import ast
import importlib
import json
import subprocess
import sys
from pathlib import Path

import pytest

import afmi
from tools import stubs

ROOT = Path(__file__).parents[1]
HOMES: dict[str, str] = vars(afmi)["_HOMES"]


def run(code: str) -> str:
    """Return what a fresh process prints."""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_importing_takes_no_time_and_loads_no_module():
    seconds, *modules = run(
        "import importlib, sys, time, typing\n"
        "seconds = []\n"
        "for _ in range(9):\n"
        "    for name in [n for n in sys.modules if n.startswith('afmi')]:\n"
        "        del sys.modules[name]\n"
        "    start = time.perf_counter()\n"
        "    import afmi\n"
        "    seconds.append(time.perf_counter() - start)\n"
        "dir(afmi)\n"
        "print(min(seconds), *(n for n in sys.modules if n.startswith('afmi.')))\n"
        "assert not {'torch', 'numpy', 'PIL'} & set(sys.modules), 'heavy imports'\n"
    ).split()
    assert float(seconds) < 0.03
    assert modules == ["afmi._version"]


def test_a_report_needs_no_torch():
    modules = run("import sys, afmi.report\nprint(*sys.modules)").split()
    assert "numpy" in modules and not {"torch", "torchvision"} & set(modules)


@pytest.mark.parametrize("name", HOMES)
def test_every_name_is_there(name: str) -> None:
    module = importlib.import_module(HOMES[name])
    public = getattr(afmi, name)
    assert public is (module if HOMES[name].endswith(f".{name}") else getattr(module, name))


def test_names_are_listed() -> None:
    assert set(afmi.__all__) == set(HOMES)
    assert {*HOMES, "__version__"} <= set(dir(afmi))
    with pytest.raises(AttributeError, match="no attribute 'expalin'"):
        _ = afmi.expalin  # type: ignore[attr-defined]


@pytest.mark.parametrize("package", stubs.PACKAGES)
def test_the_stub_is_what_the_package_says(package: str) -> None:
    assert stubs.path_of(package).read_text("utf-8") == stubs.stub(package), "run `make format`"


@pytest.mark.parametrize("package", stubs.PACKAGES)
def test_the_stub_holds_every_name_and_no_other(package: str) -> None:
    module = importlib.import_module(package)
    names = set()
    for node in ast.parse(stubs.path_of(package).read_text("utf-8")).body:
        if isinstance(node, ast.ImportFrom):
            assert node.module is not None
            (alias,) = node.names
            assert alias.asname == alias.name  # as a stub exports it
            names.add(alias.name)
            home = importlib.import_module(node.module)
            assert hasattr(home, alias.name) or importlib.import_module(
                f"{node.module}.{alias.name}"
            )
        elif isinstance(node, ast.FunctionDef):
            names.add(node.name)
        elif isinstance(node, (ast.Assign, ast.AnnAssign)):
            names |= {n.id for n in ast.walk(node) if isinstance(n, ast.Name)}
    assert {*module.__all__} <= names
    assert {*module.__all__} <= {*dir(module)}
    assert all(hasattr(module, name) for name in module.__all__)


def test_a_name_loads_no_other_method() -> None:
    """Names of the façade first, then of a method in any spelling, in one process."""
    facade, chosen = run(
        "import afmi, sys\n"
        "afmi.AFMI, afmi.Explanation, afmi.compare, afmi.explain\nprint(*sys.modules)\n"
        "from afmi.methods import chosen_methods\n"
        "chosen_methods(None, 'grad-cam++')\nprint(*sys.modules)"
    ).splitlines()
    modules = facade.split()
    files = {"afmi.methods.random", "afmi.methods.pixels.lrp", "afmi.methods.regions.rise"}
    assert not files & set(modules)
    loaded = [m for m in modules if m.startswith(("afmi.methods.feature_maps.", "afmi.metrics"))]
    assert set(loaded) == {"afmi.methods.feature_maps.afmi"}
    assert not {"matplotlib", "skimage", "pandas", "pyarrow"} & set(modules)
    more = {name for name in set(chosen.split()) - set(modules) if name.startswith("afmi.methods.")}
    assert {name for name in more if ".feature_maps." in name or ".pixels." in name} == {
        "afmi.methods.feature_maps.grad_cam_plus_plus"
    }


def test_all_names_of_a_package_by_star() -> None:
    names: dict[str, object] = {}
    exec("from afmi.methods import *", names)
    assert {*afmi.methods.CATALOGUE, "Attribution", "chosen_methods"} <= {*names}


def test_a_type_checker_sees_the_names(tmp_path: Path) -> None:
    (tmp_path / "snippet.py").write_text(
        "import afmi\n"
        "model = afmi.load_model('photos')\n"
        "reveal_type(model)\n"
        "reveal_type(afmi.AFMI(model))\n"
        "afmi.explian\n",
        encoding="utf-8",
    )
    settings = {"extraPaths": [str(ROOT / "src")], "pythonVersion": "3.10"}
    (tmp_path / "pyrightconfig.json").write_text(json.dumps(settings), encoding="utf-8")
    command = [sys.executable, "-m", "pyright", "--outputjson", "--pythonpath", sys.executable]
    done = subprocess.run([*command, "-p", str(tmp_path)], capture_output=True, text=True)
    messages = [entry["message"] for entry in json.loads(done.stdout)["generalDiagnostics"]]
    assert messages[:2] == [
        'Type of "model" is "Classifier"',
        'Type of "afmi.AFMI(model)" is "AFMI"',
    ]
    assert any('"explian" is not a known attribute' in message for message in messages[2:])
