"""The house: versions are pinned, documents and commands exist, examples in documents run."""

from __future__ import annotations

import ast
import doctest
import importlib
import re
import stat
import sys
from pathlib import Path

import pytest
import torch
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import afmi

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).parents[1]
PYTHONS = ("3.10", "3.11", "3.12", "3.13", "3.14")
REPOSITORY = "https://github.com/afmi/afmi"


def _read(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def _project() -> dict:
    return tomllib.loads(_read("pyproject.toml"))


def _pins() -> list[Requirement]:
    lines = [line for line in _read("constraints.txt").splitlines() if not line.startswith("#")]
    return [Requirement(line) for line in lines]


def _targets() -> set[str]:
    return set(re.findall(r"^([a-z]+):", _read("Makefile"), re.MULTILINE))


@pytest.mark.parametrize("python", PYTHONS)
def test_every_dependency_has_exactly_one_version(python: str) -> None:
    environment = {"python_version": python, "python_full_version": f"{python}.0"}
    here = [p for p in _pins() if p.marker is None or p.marker.evaluate(environment)]
    names = [canonicalize_name(p.name) for p in here]
    assert sorted(names) == sorted(set(names))
    assert all(re.fullmatch(r"==[0-9a-z.]+", str(p.specifier)) for p in here)
    project = _project()["project"]
    wanted = [*project["dependencies"], *_project()["build-system"]["requires"]]
    for extra in project["optional-dependencies"].values():
        wanted += extra
    pins = dict(zip(names, here, strict=True))
    for requirement in map(Requirement, wanted):
        if requirement.name == "afmi":
            continue
        version = str(pins[canonicalize_name(requirement.name)].specifier).removeprefix("==")
        assert requirement.specifier.contains(version), f"{requirement} against {version}"


def test_constraints_hold_names_and_versions_only() -> None:
    assert not re.search(r"://|@|--|\.whl|sha256|file:", _read("constraints.txt"))


def test_changelog_tells_of_this_version() -> None:
    first = re.search(r"^## \[(\d[^\]]*)\]", _read("CHANGELOG.md"), re.MULTILINE)
    assert first is not None
    assert first[1] == afmi.__version__


def test_license_is_the_one_declared() -> None:
    assert _project()["project"]["license"] == "Apache-2.0"
    text = _read("LICENSE")
    assert "Apache License" in text
    assert "END OF TERMS AND CONDITIONS" in text


def test_pages_of_the_documentation_exist() -> None:
    named = set(re.findall(r"([\w/-]+\.md)", _read("mkdocs.yml").partition("nav:")[2]))
    docs = ROOT / "docs"
    pages = {str(p.relative_to(docs)) for p in docs.rglob("*.md")}
    pages |= {str(p.relative_to(docs).with_suffix(".md")) for p in docs.rglob("*.ipynb")}
    assert named == pages


def _links(name: str) -> list[str]:
    text = re.sub(r"<!--.*?-->", "", _read(name), flags=re.S)
    return re.findall(r"\]\(([^)#]+)", text)


def test_links_lead_to_files() -> None:
    for target in _links("CONTRIBUTING.md"):
        assert target.startswith("https://") or (ROOT / target).exists(), target


def test_links_of_the_readme_work_on_any_page() -> None:
    """The package index shows the README too, where relative links lead nowhere."""
    raw = "https://raw.githubusercontent.com/afmi/afmi/main/"
    inside = []
    for target in _links("README.md"):
        assert target.startswith("https://"), target
        for start in (f"{REPOSITORY}/blob/main/", raw):
            if target.startswith(start):
                inside.append(target.removeprefix(start))
    assert len(inside) > 5
    assert all((ROOT / path).exists() for path in inside)


def _workflow(name: str) -> dict:
    return yaml.safe_load(_read(f".github/workflows/{name}.yml"))


def test_workflows_run_the_tests_as_make_does() -> None:
    recipe = re.search(r"^test:.*\n\t@\$\(PY\) (.*) \$\(ARGS\)$", _read("Makefile"), re.MULTILINE)
    workers = re.search(r"^WORKERS \?= (\d+)$", _read("Makefile"), re.MULTILINE)
    assert recipe and workers
    commands = [step.get("run") for step in _workflow("check")["jobs"]["test"]["steps"]]
    assert f"python {recipe[1].replace('$(WORKERS)', workers[1])}" in commands


def test_only_a_tested_release_is_published() -> None:
    jobs = _workflow("release")["jobs"]
    assert jobs["check"]["uses"] == "./.github/workflows/check.yml"
    assert set(jobs["publish"]["needs"]) == {"check", "build"}
    assert jobs["publish"]["permissions"] == {"id-token": "write"}
    for name in ("check", "release"):
        assert _workflow(name)["permissions"] == {"contents": "read"}


def test_the_model_card_is_that_of_the_network() -> None:
    from afmi.models import photos

    card, network = _read("docs/model-card.md"), photos.PhotoVGG()
    assert f"exclusive classes: {', '.join(photos.LABELS)} |" in card
    assert f"{sum(p.numel() for p in network.parameters()) / 1e6:.1f} million parameters" in card
    size = (ROOT / "src/afmi/models/photo_vgg.safetensors").stat().st_size
    assert f"{size / 1e6:.1f} MB" in card


def test_classifiers_and_workflows_name_the_tested_pythons() -> None:
    start = "Programming Language :: Python :: 3."
    listed = [c for c in _project()["project"]["classifiers"] if c.startswith(start)]
    assert tuple(c.rpartition(" ")[2] for c in listed) == PYTHONS
    matrix = _workflow("check")["jobs"]["test"]["strategy"]["matrix"]
    assert tuple(matrix["python"]) == PYTHONS
    assert {os.partition("-")[0] for os in matrix["os"]} == {"ubuntu", "macos", "windows"}
    urls = _project()["project"]["urls"].values()
    assert all(url.startswith(REPOSITORY) for url in urls)


@pytest.mark.parametrize(
    "path",
    [*sorted((ROOT / ".github").rglob("*.yml")), ROOT / "CITATION.cff"],
    ids=lambda p: p.name,
)
def test_forms_and_workflows_can_be_read(path: Path) -> None:
    content = yaml.safe_load(path.read_text(encoding="utf-8"))
    assert content
    for job in content.get("jobs", {}).values():
        assert "timeout-minutes" in job or "uses" in job
        for step in job.get("steps", ()):
            command = step.get("run", "")
            assert set(re.findall(r"^make ([a-z]+)", command, re.MULTILINE)) <= _targets()


def test_the_citation_names_this_version() -> None:
    assert yaml.safe_load(_read("CITATION.cff"))["version"] == afmi.__version__


def test_the_architecture_is_as_drawn() -> None:
    text, source = _read("docs/architecture.md"), ROOT / "src" / "afmi"
    drawing = text.partition("```text")[2].partition("```")[0]
    names = re.findall(r"(?<![\w/])(\w+(?:/(?!\w)|\.py))", drawing)
    drawn = set(names) - {"afmi/"}
    there = {f"{p.name}/" for p in source.iterdir() if (p / "__init__.py").exists()}
    there |= {p.name for p in source.glob("*.py") if not p.name.startswith("_")}
    assert drawn - {"pixels/", "regions/", "feature_maps/", "rules/"} == there
    # From top to bottom as the contract of imports has it.
    layers = _project()["tool"]["importlinter"]["contracts"][0]["layers"]
    floors = {
        name.strip(" ()"): floor for floor, row in enumerate(layers) for name in row.split("|")
    }
    order = [
        floors[stem] for stem in (n.rstrip("/").removesuffix(".py") for n in names if n in there)
    ]
    assert order == sorted(order)
    for path in re.findall(r"`([\w/]+/\w*(?:\.py)?)`", text):
        assert (source / path).exists(), path


@pytest.mark.parametrize("name", ["README.md", "CONTRIBUTING.md", ".ci/run", "docs/index.md"])
def test_make_commands_exist(name: str) -> None:
    text = _read(name)
    targets = re.findall(r"(?:^\$ |`)make (?:--[\w-]+ )*([a-z]+)", text, re.MULTILINE)
    targets += re.findall(r"^make (?:--[\w-]+ )*([a-z]+)", text, re.MULTILINE)
    assert targets
    assert set(targets) <= _targets()


def test_afmi_commands_exist() -> None:
    from afmi.cli import cli

    texts = [_read("README.md"), *(p.read_text("utf-8") for p in (ROOT / "docs").glob("*.md"))]
    named = {
        word for text in texts for word in re.findall(r"^\$ afmi ([a-z]+)", text, re.MULTILINE)
    }
    assert named
    assert named <= set(cli.commands)
    for text in texts:
        for line in re.findall(r"^\$ afmi ([a-z]+ .*)", text, re.MULTILINE):
            command, *words = line.partition(" #")[0].split()
            known = {o for p in cli.commands[command].params for o in p.opts} | {"--help"}
            assert {w for w in words if w.startswith("--")} <= known, line


SCRIPTS = sorted([*(ROOT / "benchmarks").rglob("*.py"), *(ROOT / "training").rglob("*.py")])


SOURCES = sorted((ROOT / "src" / "afmi").rglob("*.py"))


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_scripts_import_what_there_is(path: Path) -> None:
    """They take minutes to run, so nothing else notices when a name of the package is removed."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "afmi":
            module = importlib.import_module(str(node.module))
            for alias in node.names:
                if not hasattr(module, alias.name):
                    importlib.import_module(f"{node.module}.{alias.name}")


# What makes tensors in the default dtype and on the default device unless it is told otherwise.
DRAWN = {"rand", "randn", "zeros", "ones", "empty", "full", "eye", "linspace", "logspace", "tensor"}
PLACED = DRAWN | {"arange", "randint", "randperm", "as_tensor", "scalar_tensor", "Generator"}


def _said(node: ast.Call) -> set[str]:
    """Return what a call that makes a tensor says of it."""
    device = {"device"} if ast.unparse(node.func) == "torch.Generator" and node.args else set()
    return device | {str(keyword.arg) for keyword in node.keywords}


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_tensors_are_made_in_a_stated_dtype_on_a_stated_device(path: Path) -> None:
    """So that nothing depends on defaults, which belong to the user's program."""
    calls = [n for n in ast.walk(ast.parse(path.read_text("utf-8"))) if isinstance(n, ast.Call)]
    for node in calls:
        owner, _, name = ast.unparse(node.func).rpartition(".")
        if owner == "torch" and name in PLACED:
            wanted = {"device"} | ({"dtype"} if name in DRAWN else set())
            assert wanted <= _said(node), ast.unparse(node)


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_double_precision_is_for_the_cpu(path: Path) -> None:
    """Apple's GPUs have none: numbers move to the CPU first, or the code asks for the device."""
    text = path.read_text("utf-8")
    asks = 'device.type == "mps"' in text
    for node in ast.walk(ast.parse(text)):
        if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute) or asks:
            continue
        call = ast.unparse(node)
        if node.func.attr == "double":
            assert ast.unparse(node.func.value).endswith(".cpu()"), call
        elif node.func.attr == "to" and "torch.float64" in map(ast.unparse, node.args):
            assert "'cpu'" in map(ast.unparse, node.args), call


def test_ci_can_be_run() -> None:
    assert (ROOT / ".ci" / "run").stat().st_mode & stat.S_IXUSR


def test_the_example_method_is_a_method(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pattern = r"<!-- example: src/(\S+)\.py -->\n```python\n(.*?)```"
    match = re.search(pattern, _read("CONTRIBUTING.md"), re.DOTALL)
    assert match is not None
    package, _, name = match[1].replace("/", ".").rpartition(".")
    (tmp_path / f"{name}.py").write_text(match[2], encoding="utf-8")
    # As if the file lay in its folder: it is listed, and its docstring's example runs.
    folder = importlib.import_module(package)
    monkeypatch.setattr(folder, "__path__", [*folder.__path__, str(tmp_path)])
    try:
        cls = afmi.methods.CATALOGUE["Tiles"]
        module = importlib.import_module(f"{package}.{name}")
        assert doctest.testmod(module).attempted > 0
        assert doctest.testmod(module).failed == 0
        # One pixel counts, so covering its tile is all that changes the score.
        network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(16, 2, bias=False))
        with torch.no_grad():
            network[1].weight.zero_()[1, 5] = 2.0
        maps = cls(network, tile=2).attribute(torch.full((1, 1, 4, 4), 0.5), target=1)
        expected = torch.zeros(1, 1, 4, 4)
        expected[..., :2, :2] = 1.0
        assert torch.equal(maps, expected)
        with pytest.raises(afmi.errors.UsageError, match="at least 1"):
            cls(network, tile=0)
    finally:
        sys.modules.pop(f"{package}.{name}", None)
        vars(folder).pop(name, None)


def test_commands_print_through_one_place() -> None:
    """What is printed raw could hold a name that rewrites the terminal."""
    allowed = {"terminal.py", "__init__.py"}  # the place itself; click's own help and version
    for path in (ROOT / "src" / "afmi" / "cli").glob("*.py"):
        printing = re.findall(r"click\.echo\(|click\.secho\(|\bprint\(", path.read_text())
        assert path.name in allowed or not printing, path
