"""The identity of a run: what makes it another network, metric or method, and what does not."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import MethodType, SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import afmi
from afmi.errors import UsageError
from afmi.evaluation import evaluate
from afmi.evaluation.code import CodeReader
from afmi.evaluation.identity import _network, code_of
from afmi.evaluation.manifest import differences
from afmi.methods import AFMI
from afmi.metrics import Cost
from afmi.pictures.references import Reference

FACTORY = """
import functools
import helper
import torch
from dataclasses import dataclass
from torch import nn
from torch.nn import functional as F

LIMIT = 6.0
SHIFT = torch.tensor([0.5])

def half(x):
    return 0.5 * x

@dataclass
class Settings:
    gain: float = 1.5

def scaled(factor):
    def inner(x):
        return factor * x
    return inner

class Net(nn.Module):
    power = 2
    settings = Settings()

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.conv = nn.Conv2d(3, 4, 3)
        self.norm = nn.BatchNorm2d(4, eps=1e-3)
        self.head = nn.Linear(4, 3)
        self.scale = 0.7
        self.act = F.relu
        self.outer = functools.partial(torch.mul, other=3.0)
        self.closed = scaled(2.0)
        self.hidden = [nn.Linear(3, 3)]
        self.register_buffer("offset", torch.tensor([0.25]), persistent=False)

    @property
    def gain(self):
        return self.settings.gain

    def forward(self, x):
        y = F.relu(self.norm(self.conv(x)))  # rectified
        y = self.act(y.clamp(max=LIMIT) * self.scale + self.offset + SHIFT)
        y = self.closed(self.outer(half(y))) ** self.power * self.gain
        return self.hidden[0](helper.last(self.head(y.mean((2, 3)))))

def build():
    return Net()
"""
HELPER = """
def last(x):
    return x - 0.1
"""

EDITS = {
    "F.relu(self.norm": "F.gelu(self.norm",
    "self.scale = 0.7": "self.scale = 0.8",
    "torch.tensor([0.25])": "torch.tensor([0.35])",
    "eps=1e-3": "eps=2e-3",
    "LIMIT = 6.0": "LIMIT = 7.0",  # which changes the outputs of few images
    "torch.tensor([0.5])": "torch.tensor([0.4])",
    "return 0.5 * x": "return 0.6 * x",
    "gain: float = 1.5": "gain: float = 1.4",
    "scaled(2.0)": "scaled(2.1)",
    "return factor * x": "return factor * x + 1e-7",
    "power = 2": "power = 3",
    "self.act = F.relu": "self.act = F.silu",
    "other=3.0": "other=3.1",
    "torch.mul,": "torch.add,",
    "[nn.Linear(3, 3)]": "[nn.Linear(3, 3, bias=False)]",
    "manual_seed(0)": "manual_seed(1)",
    "return x - 0.1": "return x - 0.2",
}
SAME = {
    "# rectified": "# rectified, as everyone does",
    "    power = 2\n": "\n\n    power = 2\n",
    "return 0.5 * x": "return (0.5 * x)",
}


@pytest.fixture
def factory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., nn.Module]]:
    """Load the network of the factory, edited."""
    monkeypatch.setattr(sys, "dont_write_bytecode", True)

    def load(old: str = "", new: str = "") -> nn.Module:
        sys.modules.pop("helper", None)
        (tmp_path / "net.py").write_text(FACTORY.replace(old, new) if old else FACTORY)
        (tmp_path / "helper.py").write_text(HELPER.replace(old, new) if old else HELPER)
        return afmi.load_model(f"{tmp_path}/net.py:build")

    yield load
    sys.modules.pop("helper", None)


def described(model: nn.Module) -> dict[str, Any]:
    return {"model": _network(model, torch.rand(1, 3, 12, 12))}


DATA = [
    (torch.rand(3, 12, 12, generator=torch.Generator().manual_seed(n)), n % 3) for n in range(4)
]


@pytest.mark.parametrize("old", EDITS)
def test_an_edited_factory_is_another_network(factory: Callable[..., nn.Module], old: str) -> None:
    assert differences(described(factory()), described(factory(old, EDITS[old])))


@pytest.mark.parametrize("old", SAME)
def test_what_changes_no_code_is_the_same(factory: Callable[..., nn.Module], old: str) -> None:
    assert not differences(described(factory()), described(factory(old, SAME[old])))


@pytest.mark.parametrize(
    ("old", "words"),
    [
        ("F.relu(self.norm", r"model: code: net\.Net\.forward has changed"),
        ("self.scale = 0.7", r"model: modules: network has changed; model: outputs differ by"),
        ("torch.tensor([0.25])", r"model: modules: network has changed; model: outputs differ by"),
        ("LIMIT = 6.0", r"model: code: net\.LIMIT was 6\.0, now 7\.0"),
        ("return x - 0.1", r"model: code: helper\.last has changed"),
    ],
)
def test_an_evaluation_is_not_continued_by_another_network(
    factory: Callable[..., nn.Module], tmp_path: Path, old: str, words: str
) -> None:
    out = tmp_path / "out"

    def run(model: nn.Module, methods: str) -> Any:
        return evaluate(model, DATA, out, methods=methods, metrics="cost", examples=0)

    run(factory(), "random")
    assert run(factory(), "random,gradient").methods == ("Random", "Gradient")
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    with pytest.raises(UsageError, match=words) as caught:
        run(factory(old, EDITS[old]), "random,gradient,inputxgradient")
    assert "holds results of another run" in str(caught.value)
    assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == before


def _hook(model: Any) -> None:
    model.network.conv.register_forward_hook(lambda *parts: parts[2] * 1.5)


def _pre_hook(model: Any) -> None:
    model.network.conv.register_forward_pre_hook(lambda _, inputs: (inputs[0] * 0.5,))


def _forward(model: Any) -> None:
    network = model.network
    network.forward = MethodType(lambda self, x: type(self).forward(self, x) * 2, network)


def _number(model: Any) -> None:
    model.network.conv.extra = 3


def _weight(model: Any) -> None:
    model.network.head.weight.data[0, 0] += 1e-6


def _hidden_weight(model: Any) -> None:
    model.network.hidden[0].weight.data[0, 0] += 1e-6


def _statistics(model: Any) -> None:
    model.network.norm.running_mean[2] += 1e-7


def _swapped_module(model: Any) -> None:
    model.network.norm = nn.Identity()


def _swapped_function(model: Any) -> None:
    vars(sys.modules["helper"])["last"] = lambda x: x


@pytest.mark.parametrize(
    "change",
    [
        *(_hook, _pre_hook, _forward, _number, _weight, _hidden_weight, _statistics),
        *(_swapped_module, _swapped_function),
    ],
)
def test_what_is_done_to_a_network_counts(
    factory: Callable[..., nn.Module], change: Callable[[Any], None]
) -> None:
    """Doors other than its code: each alone makes it another network."""
    model = factory()
    before = described(model)
    change(model)
    assert differences(before, described(model))


def test_outputs_alone_tell_what_no_code_shows(tmp_path: Path) -> None:
    """What a network reads elsewhere when it runs."""

    class Reader(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.mean((2, 3)) * float((tmp_path / "number").read_text())

    (tmp_path / "number").write_text("1.0")
    before = described(Reader())
    (tmp_path / "number").write_text("1.00001")  # within rounding
    assert not differences(before, described(Reader()))
    (tmp_path / "number").write_text("1.01")
    different = differences(before, described(Reader()))
    assert different == "model: outputs differ by 28.7 times what rounding explains"


class Busy(nn.Module):
    """Counts, keeps its activation and caches a grid, none of which changes what it computes."""

    calls = 0

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 2)
        self.seen: list[float] = []
        self.masks: dict[int, Tensor] = {}
        self.register_buffer("average", torch.zeros(3))

    def forward(self, x: Tensor) -> Tensor:
        global passes
        passes += 1
        type(self).calls += 1
        self.kept = x.mean((2, 3))
        self.seen.append(float(x.mean()))
        self.average = 0.5 * self.average + self.kept.mean(0)
        self.grid = torch.arange(x.shape[-1])
        self.masks[x.shape[-1]] = self.grid > 2
        return self.linear(self.kept)


passes = 0


def test_what_a_network_notes_while_it_runs_is_none_of_it() -> None:
    model = Busy()
    before = described(model)
    assert not differences(before, described(model))
    for size in (5, 9):
        model(torch.rand(2, 3, size, size))
    assert not differences(before, described(model))
    model.linear.weight.data *= 2
    assert differences(before, described(model))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_rounding_is_no_difference(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 64, 5), nn.ReLU(), nn.Flatten(), nn.Linear(64 * 64, 40))
    before = _network(network.to(dtype), torch.rand(1, 3, 12, 12, dtype=dtype))["outputs"]
    scale = max(map(abs, before["numbers"])) * torch.finfo(dtype).eps
    noise = torch.randn(len(before["numbers"]), generator=torch.Generator().manual_seed(1))
    shifted = [a + b * scale for a, b in zip(before["numbers"], noise.tolist(), strict=True)]
    after = {"tolerance": before["tolerance"], "numbers": shifted}
    assert len(shifted) == 2 * 32
    assert not differences({"model": {"outputs": before}}, {"model": {"outputs": after}})
    after["numbers"] = [1.2 * number for number in shifted]
    assert differences({"model": {"outputs": before}}, {"model": {"outputs": after}})


class Fails(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        raise RuntimeError(f"of {id(self)}")


class NaN(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.mean((2, 3)) * torch.nan


def test_networks_without_outputs() -> None:
    fails, nan = (described(network)["model"]["outputs"] for network in (Fails(), NaN()))
    assert fails["numbers"] == ["RuntimeError"] * 2 and nan["numbers"] == [None] * 6
    for one, other, same in ((fails, fails, True), (nan, nan, True), (fails, nan, False)):
        assert (not differences({"model": {"outputs": one}}, {"model": {"outputs": other}})) == same
    finite = {"tolerance": 1e-3, "numbers": [1.0] * 6}
    assert differences({"model": {"outputs": nan}}, {"model": {"outputs": finite}})


@pytest.mark.slow
def test_the_network_is_the_same_in_every_process(
    factory: Callable[..., nn.Module], tmp_path: Path
) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        "import json, sys, torch, afmi\n"
        "from afmi.evaluation.identity import _network\n"
        "model = afmi.load_model('net.py:build')\n"
        "print(json.dumps({'model': _network(model, torch.rand(1, 3, 12, 12))}))\n"
    )
    factory()  # writes the files

    def printed(seed: int) -> Any:
        environment = os.environ | {"PYTHONHASHSEED": str(seed), "OMP_NUM_THREADS": str(1 + seed)}
        arguments = [sys.executable, script.name]
        output = subprocess.check_output(arguments, cwd=tmp_path, env=environment, text=True)
        return json.loads(output)

    assert not differences(printed(0), printed(1))


def test_attributes_are_not_taken_for_global_variables() -> None:
    def function(x: Tensor) -> Tensor:
        return x.passes + len(DATA)  # type: ignore[attr-defined]

    reader = CodeReader()
    reader.read(function)
    assert f"{__name__}.DATA" in reader.code and f"{__name__}.passes" not in reader.code


def test_texts_are_alike_in_every_process() -> None:
    reader = CodeReader()
    assert reader.text({"b": {"y", "x"}, "a": SimpleNamespace(c=(1, None))}) == (
        "builtins.dict('b'=builtins.set(='x', ='y'), 'a'=types.SimpleNamespace("
        "'c'=builtins.tuple(=1, =None)))"
    )
    assert "0x" not in reader.text([object(), lambda: 0, torch.relu, torch.Generator()])
    assert reader.text(str(Path.cwd())) == reader.text("/elsewhere") == "a path"
    deep: list[Any] = []
    deep.append(deep)
    assert len(reader.text(deep)) < 200


class Own(Cost):
    def measure(self, case: Any) -> Any:
        return super().measure(case)


@dataclass(frozen=True)
class Grey(Reference):
    def __call__(self, images: Tensor) -> Tensor:
        return torch.full_like(images[:1], 0.5)


def test_code_of_own_metrics_and_references_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    method = AFMI(Busy(), reference=Grey())
    before = code_of(Own(), Cost(), method)
    assert {f"{__name__}.Own.measure", f"{__name__}.Grey.__call__"} <= set(before)
    assert not any("Busy" in name for name in before) and not code_of(Cost())
    monkeypatch.setattr(Own, "measure", lambda self, case: {})
    monkeypatch.setattr(Grey, "__call__", lambda self, images: images[:1])
    after = code_of(Own(), method)
    assert f"{__name__}.Own.measure" not in after
    assert after.get(f"{__name__}.Grey.__call__") != before[f"{__name__}.Grey.__call__"]


def test_modules_that_functions_import_count(factory: Callable[..., nn.Module]) -> None:
    lazily = "import helper; return self.hidden[0](helper.last"
    edited = ("return self.hidden[0](helper.last", lazily)
    before = described(factory(*edited))
    vars(sys.modules["helper"])["last"] = lambda x: x - 0.1 - 1e-9
    different = differences(before, described(factory(*edited)))
    assert not different  # loaded anew
    model = factory(*edited)
    vars(sys.modules["helper"])["last"] = lambda x: x - 0.1 - 1e-9
    assert "code" in differences(before, described(model))
