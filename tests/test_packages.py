"""The wheel and the source distribution hold what they must, and say what they are."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
import tarfile
import venv
import zipfile
from pathlib import Path

import pytest
from packaging.metadata import Metadata

import afmi

ROOT = Path(__file__).parents[1]
NAME = f"afmi-{afmi.__version__}"


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Both, built by the backend that is installed: without isolation nothing is downloaded."""
    if importlib.util.find_spec("hatchling") is None:
        pytest.skip("hatchling, which builds the packages, is not installed")
    out = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "hatchling", "build", "-d", str(out)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return out


@pytest.fixture(scope="module")
def wheel(built: Path) -> Path:
    return built / f"{NAME}-py3-none-any.whl"


def test_the_wheel_holds_the_package_and_nothing_else(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    sources = ROOT / "src"
    wanted = {
        path.relative_to(sources).as_posix()
        for path in (sources / "afmi").rglob("*")
        if path.is_file() and path.suffix not in (".pyc", ".pyo")
    }
    inside = {name for name in names if name.startswith("afmi/")}
    assert inside == wanted
    for name in ("py.typed", "__init__.pyi", "explanation.schema.json"):
        assert f"afmi/{name}" in inside
    assert {"afmi/models/photo_vgg.safetensors", "afmi/data/imagenet_wnids.txt"} <= inside
    assert any(re.fullmatch(r"afmi/report/templates/.*\.html", name) for name in inside)
    rest = {name.partition("/")[2] for name in names - inside}
    assert {name for name in names if not name.startswith(("afmi/", f"{NAME}.dist-info/"))} == set()
    assert {"METADATA", "RECORD", "WHEEL", "entry_points.txt"} <= rest
    assert {"licenses/LICENSE", "licenses/NOTICE"} <= rest
    assert wheel.stat().st_size < 20e6


def test_the_wheel_says_what_it_is(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        content = archive.read(f"{NAME}.dist-info/METADATA")
        commands = archive.read(f"{NAME}.dist-info/entry_points.txt").decode()
    about = Metadata.from_email(content, validate=True)  # an index refuses what is not valid
    assert (about.name, str(about.version)) == ("afmi", afmi.__version__)
    assert about.description_content_type == "text/markdown"
    assert (about.description or "").strip() == (ROOT / "README.md").read_text("utf-8").strip()
    assert about.license_expression == "Apache-2.0"
    assert "afmi = afmi.__main__:main" in commands


def test_an_index_would_take_both(built: Path) -> None:
    pytest.importorskip("twine", reason="twine, which checks them, is not installed")
    command = [sys.executable, "-m", "twine", "check", "--strict", *map(str, built.iterdir())]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
    assert done.stdout.count("PASSED") == 2


def test_the_source_distribution_builds_and_tests_itself(built: Path) -> None:
    with tarfile.open(built / f"{NAME}.tar.gz") as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    for wanted in (
        *("pyproject.toml", "README.md", "LICENSE", "NOTICE", "constraints.txt", "conftest.py"),
        *("src/afmi/__init__.py", "tests/test_packages.py", "docs/index.md", "Makefile"),
    ):
        assert wanted in names
    assert not [name for name in names if "__pycache__" in name or name.startswith(".venv")]


@pytest.mark.slow
def test_the_wheel_explains_an_image_in_another_environment(wheel: Path, tmp_path: Path) -> None:
    """Its code and data come from the wheel alone, its dependencies from this environment."""
    venv.create(tmp_path / "env", with_pip=True)
    folder = "Scripts" if os.name == "nt" else "bin"
    python = tmp_path / "env" / folder / "python"
    install = [python, "-m", "pip", "install", "--no-index", "--no-deps", "-q", wheel]
    subprocess.run(install, check=True)
    for path in (tmp_path / "env").rglob("site-packages"):
        (path / "dependencies.pth").write_text("\n".join(p for p in sys.path if "packages" in p))
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    code = (
        "import afmi, sys, pathlib, numpy as np\n"
        "assert pathlib.Path(afmi.__file__).is_relative_to(sys.prefix), afmi.__file__\n"
        "one = afmi.explain(afmi.load_model('photos'), np.zeros((128, 128, 3), 'uint8') + 90)\n"
        "one.save('out')\n"
        "assert afmi.Explanation.load('out').label == one.label\n"
        "heavy = {'pyarrow', 'scipy', 'skimage', 'timm', 'torchvision', 'tifffile', 'ray'}\n"
        "print(sorted(heavy & set(sys.modules)))\n"
    )
    done = subprocess.run(
        [python, "-W", "ignore", "-c", code],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "[]"
