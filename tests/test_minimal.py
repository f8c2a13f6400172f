"""An installation without any extra explains images, and says what the rest needs."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from packaging.requirements import Requirement
from PIL import Image

tomllib = pytest.importorskip("tomllib", reason="Python 3.11 reads pyproject.toml by itself")

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
EXTRAS: dict[str, list[str]] = PROJECT["optional-dependencies"]
LEFT_OUT = {"pyarrow", "scipy", "skimage", "sklearn", "onnx", "onnxruntime", "ray", "gradio"}

# What is not installed, for a process: commands then run one after another, which saves imports.
CODE = f"""
import sys
from importlib.machinery import PathFinder
class LeftOut(PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        if name.partition(".")[0] in {LEFT_OUT!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
sys.meta_path.insert(0, LeftOut)
from afmi.__main__ import main
for line in sys.stdin.read().splitlines():
    sys.argv = ["afmi", *line.split()]
    try:
        main()
        code = 0
    except SystemExit as error:
        code = error.code
    print("CODE", code, flush=True)
"""


@pytest.fixture(scope="module")
def answers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[int, str]]:
    folder = tmp_path_factory.mktemp("minimal")
    (folder / "data" / "cat").mkdir(parents=True)
    Image.fromarray(np.full((130, 140, 3), 90, np.uint8)).save(folder / "data" / "cat" / "x.png")
    picture, photos = "data/cat/x.png", "--model photos"
    commands = {
        "doctor": "doctor --json",
        "methods": "methods",
        "metrics": "metrics",
        "explain": f"explain {picture} {photos} --quiet",
        "compare": f"compare {picture} {photos} --methods gradient,random --quiet",
        "xrai": f"explain {picture} {photos} --method xrai",
        "lime": f"explain {picture} {photos} --method lime",
        "evaluate": f"evaluate --data data {photos} --out results",
        "explain-dataset": f"explain-dataset data {photos} --out table",
        "report": "report results",
        "audit": f"audit --data data {photos} --out audit",
        "export": f"export {photos} --out x.onnx",
        "demo": "demo --out demo",
        "app": f"app {photos}",
    }
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", CODE],
        input="\n".join(commands.values()),
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    parts = re.split(r"^CODE (\d+)\n", done.stdout, flags=re.MULTILINE)
    assert len(parts) == 2 * len(commands) + 1, done.stdout
    return {
        name: (int(code), text)
        for name, text, code in zip(commands, parts[::2], parts[1::2], strict=False)
    }


@pytest.mark.parametrize("command", ["doctor", "methods", "metrics", "explain", "compare"])
def test_what_explains_images_works(command: str, answers: dict[str, tuple[int, str]]) -> None:
    code, text = answers[command]
    assert code == 0, text


@pytest.mark.parametrize(
    ("command", "package", "extra"),
    [
        ("xrai", "skimage", "regions"),
        ("lime", "skimage", "regions"),
        ("evaluate", "pyarrow", "evaluation"),
        ("explain-dataset", "pyarrow", "evaluation"),
        ("report", "pyarrow", "evaluation"),
        ("audit", "pyarrow", "evaluation"),
        ("export", "onnx", "export"),
        ("demo", "skimage", "demo"),
        ("app", "gradio", "app"),
    ],
)
def test_the_rest_says_what_to_install(
    command: str, package: str, extra: str, answers: dict[str, tuple[int, str]]
) -> None:
    code, text = answers[command]
    assert code != 0
    line = text.strip().splitlines()[-1]
    assert line.startswith("afmi: ")
    assert f"needs the package {package!r}" in line
    assert line.endswith(f"install it with pip install 'afmi[{extra}]'")
    assert "unexpected" not in line


def test_the_extras_that_advice_names_exist() -> None:
    named = {
        extra
        for path in (ROOT / "src").rglob("*.py")
        for extra in re.findall(r"afmi\[([\w,-]+)\]", path.read_text("utf-8"))
    }
    assert named
    assert named <= set(EXTRAS)


def test_all_holds_every_extra_that_users_have() -> None:
    (everything,) = EXTRAS["all"]
    assert Requirement(everything).extras == set(EXTRAS) - {"all", "bench", "demo", "dev", "docs"}
