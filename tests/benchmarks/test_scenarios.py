"""Each scenario on a tiny network, the peers' calls, and the command."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from afmi import Classifier, methods
from benchmarks.speed import __main__ as command
from benchmarks.speed import bench as bench_module
from benchmarks.speed import feature_maps, growth, masked, options, peers, pixels
from benchmarks.speed.bare import best_batch, passes
from benchmarks.speed.bench import Bench
from benchmarks.speed.harness import CLOCKS, Plan
from benchmarks.speed.record import Row, read
from benchmarks.speed.settings import Setting
from benchmarks.speed.subjects import in_place_off, sharing_copy, views

SIDE = 32
CPU = Setting(torch.device("cpu"))


def tiny(name: str = "tiny") -> Classifier:
    """A network on which every peer is right, with twelve classes."""
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(3, 6, 3, 2),
        nn.ReLU(),
        nn.Conv2d(6, 8, 3, 2),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(8, 12),
    )
    return Classifier(network, resize=SIDE, crop=SIDE).eval()


@pytest.fixture(autouse=True)
def _tiny_everywhere(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (feature_maps, growth, masked, options, pixels):
        monkeypatch.setattr(module, "network", tiny)
    monkeypatch.setattr(bench_module, "versions", lambda: "versions")


@pytest.fixture
def bench() -> Bench:
    plan = Plan(0, least=1, most=1)
    return Bench(plan, level="quick", networks=("tiny",), batches=(2,), sizes=(SIDE,))


def _named(bench: Bench) -> dict[str, Row]:
    return {f"{row.what} / {row.against}".removesuffix(" / "): row for row in bench.rows}


@pytest.mark.filterwarnings("ignore")
def test_feature_maps(bench: Bench) -> None:
    feature_maps.by_network(bench)
    rows = _named(bench)
    assert rows["A-FMI / forward"].ratio > 0
    assert rows["A-FMI / forward"].target == 1.05
    assert rows["A-FMI, network promised unchanged / forward"].ratio > 0
    assert rows["A-FMI, ten classes / A-FMI"].target == 1.3
    assert {row.batch for row in bench.rows} == {2}
    pytest.importorskip("captum")
    assert rows["Grad-CAM / Captum's LayerGradCam"].agreement == pytest.approx(1)
    right = [row for row in bench.rows if row.target == 1.03]
    assert [row.note for row in right] == ["the fastest that is right"]


@pytest.mark.filterwarnings("ignore")
def test_a_peer_that_is_wrong_is_named_and_left_out(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    def backwards(model: Classifier, asked: peers.Asked) -> peers.Call:
        method = methods.GradCAM(model)
        return lambda: -method.attribute(asked.images, asked.target)

    def absent(model: Classifier, asked: peers.Asked) -> peers.Call:
        raise ImportError("no such package")

    makers = {"backwards": backwards, "absent": absent}
    monkeypatch.setattr(peers, "FEATURE_MAPS", makers)
    feature_maps.by_size(bench)
    rows = _named(bench)
    assert math.isnan(rows["backwards"].ratio)
    assert rows["backwards"].note == "wrong"
    assert rows["backwards"].agreement_min < 0
    assert rows["absent"].note.startswith("fails: ImportError: no such package")
    assert not any("backwards" in row.against for row in bench.rows)
    assert not [row for row in bench.rows if row.target == 1.03]


@pytest.mark.filterwarnings("ignore")
def test_pixels(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    captum = {
        name: {peer: make for peer, make in makers.items() if peer.startswith("Captum")}
        for name, makers in peers.PIXELS.items()
    }
    monkeypatch.setattr(peers, "PIXELS", captum)
    pixels.pixels(bench)
    rows = _named(bench)
    assert rows["DeepLIFT / Gradient"].target == 1.15
    assert rows["IntegratedGradients / 10 forwards + backwards"].target == 1.05
    assert rows["SmoothGrad / 10 forwards + backwards, channels last"].ratio > 0
    pytest.importorskip("captum")
    for ours, theirs in (
        ("Gradient", "Saliency"),
        ("GuidedBackprop", "GuidedBackprop"),
        ("DeepLIFT", "DeepLift"),
        ("IntegratedGradients", "IntegratedGradients"),
    ):
        row = rows[f"{ours} / Captum's {theirs}"]
        assert row.agreement == pytest.approx(1, abs=1e-4)
    assert "two seeds" in rows["SmoothGrad / Captum's NoiseTunnel of Saliency"].note


@pytest.mark.filterwarnings("ignore")
def test_masked(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    some = (
        masked._Spec("RISE", {"masks": 4}, target=1.05),
        masked._Spec("ExtremalPerturbation", {"iterations": 2}, at_once=4),
        masked._Spec("LIME", {"samples": 0}),
    )
    monkeypatch.setattr(masked, "_specs", lambda scale: some)
    masked.masked(bench)
    rows = _named(bench)
    assert rows["RISE / its 5 forwards"].target == 1.05
    assert rows["RISE / its 5 forwards, channels last"].ratio > 0
    assert "masks=4" in rows["RISE / its 5 forwards"].note
    assert rows["ExtremalPerturbation / its 9 forwards and 8 backwards"].ratio > 0
    assert rows["Insertion / its 76 forwards"].batch == 4
    assert "at least 2 samples" in rows["LIME"].note


def test_growth(bench: Bench) -> None:
    growth.growth(bench)
    by_scenario = {row.scenario: row for row in bench.rows}
    assert set(by_scenario) == {"growth: images", "growth: masks", "growth: classes"}
    assert [row.x for row in bench.rows if row.scenario == "growth: classes"] == [1, 10]
    first = next(row for row in bench.rows if row.scenario == "growth: images")
    assert first.ratio == pytest.approx(1)
    assert math.isnan(first.target)
    assert by_scenario["growth: images"].target == 1.05


def test_growth_over_stages(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(growth, "RESNET_STAGES", ("2", "0"))
    bench.networks = ("resnet of two stages",)
    growth.growth(bench)
    stages = [row for row in bench.rows if row.scenario == "growth: stages"]
    assert [(row.what, row.against, row.x) for row in stages] == [
        ("A-FMI at 2", "forward", 0),
        ("A-FMI at 0", "forward", 1),
    ]


@pytest.mark.filterwarnings("ignore")
def test_options(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuses(model: Classifier) -> nn.Module:
        raise RuntimeError("no compiler")

    chosen = {name: options.OPTIONS[name] for name in ("float32", "channels last", "float64")}
    chosen["torch.compile"] = options._Option(refuses)
    monkeypatch.setattr(options, "OPTIONS", chosen)
    options.options(bench)
    rows = _named(bench)
    assert rows["A-FMI, float64 / A-FMI, float32"].agreement_min > 0.999
    assert rows["forward, channels last / forward, float32"].ratio > 0
    assert math.isnan(rows["forward, float64 / forward, float32"].agreement)
    assert rows["DeepLIFT, torch.compile"].note == "fails: RuntimeError: no compiler"


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("package", "maker"),
    [
        ("captum", peers.FEATURE_MAPS["Captum's LayerGradCam"]),
        ("pytorch_grad_cam", peers.FEATURE_MAPS["grad-cam's GradCAM"]),
        ("torchcam", peers.FEATURE_MAPS["torchcam's GradCAM"]),
    ],
)
def test_peers_of_feature_maps_are_right_and_leave_no_trace(
    package: str, maker: peers.Maker
) -> None:
    pytest.importorskip(package)
    model = tiny()
    images = views(model, 2)
    method = methods.GradCAM(model)
    target = feature_maps.shown_class(model, images)
    layer = method.resolved_layer(images)[1].name
    did = peers.tried(
        maker, model, peers.Asked(images, target, layer), [method.attribute(images, target)]
    )
    assert did.right
    assert did.agreement is not None and did.agreement.least > 0.999
    assert all(parameter.grad is None for parameter in model.parameters())
    assert not any(module._forward_hooks for module in model.modules())


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", ["DeepLIFT", "GradientSHAP"])
def test_shap(name: str) -> None:
    pytest.importorskip("shap")
    model = tiny()
    images = views(model, 1)
    ((_, maker),) = [pair for pair in peers.PIXELS[name].items() if pair[0].startswith("shap")]
    maps = maker(model, peers.Asked(images, 3, "", 4, 2))()
    assert maps.shape == (1, 1, SIDE, SIDE)
    if name == "DeepLIFT":
        ours = methods.DeepLIFT(model).attribute(images, 3)
        assert torch.allclose(maps.float(), ours, atol=1e-5)


def test_xrai_of_its_authors() -> None:
    pytest.importorskip("saliency")
    model = tiny()
    images = views(model, 1)
    maps = peers.xrai(model, peers.Asked(images, 3, "", 2, 4))()
    assert maps.shape == (1, 1, SIDE, SIDE)


def test_sampled_maps_count_as_right_where_they_are_as_alike_as_two_draws() -> None:
    assert peers.least_alike(0.9999) == pytest.approx(0.9499)
    assert peers.least_alike(0.5) == pytest.approx(0.45)
    assert peers.least_alike(0.1) == math.inf


def test_copies_share_weights_and_nothing_else() -> None:
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(inplace=True), nn.BatchNorm2d(4))
    model = Classifier(network, resize=SIDE, crop=SIDE).eval()
    for copied in (sharing_copy(model), in_place_off(model)):
        assert all(a is b for a, b in zip(copied.parameters(), model.parameters(), strict=True))
        assert all(a is b for a, b in zip(copied.buffers(), model.buffers(), strict=True))
        assert not set(copied.modules()) & set(model.modules())
    assert network[1].inplace
    assert not in_place_off(model).network[1].inplace


class _Counting(nn.Module):
    """Counts images and calls, forwards and backwards."""

    def __init__(self) -> None:
        super().__init__()
        self.batches: list[int] = []
        self.backwards = 0

    def forward(self, images: Tensor) -> Tensor:
        self.batches.append(len(images))
        if images.requires_grad:
            images.register_hook(self._count)
        return images.flatten(1) * 2

    def _count(self, gradient: Tensor) -> None:
        self.backwards += len(gradient)


def test_bare_passes_are_as_many_as_the_work_says() -> None:
    model = _Counting()
    image = torch.rand(1, 3, 4, 4)
    passes(model, image, methods.base.Work(7, 5), 2, "channels-last")()
    assert model.batches == [2, 2, 1, 2]
    assert model.backwards == 5
    watch = CLOCKS["wall"](image.device)
    assert best_batch(model, image, "usual", watch, backward=True, most=1) == 1


def test_agreement_compares_maps_of_two_sizes() -> None:
    small = torch.rand(2, 1, 3, 3)
    large = nn.functional.interpolate(small, (9, 9), mode="bilinear")
    agreement = bench_module.agreement(small, large)
    assert agreement.least == pytest.approx(1)
    other = torch.cat([large[:1], -large[1:]])
    agreement = bench_module.agreement(small, other)
    assert (agreement.mean, agreement.least) == (pytest.approx(0, abs=1e-6), pytest.approx(-1))


@pytest.fixture
def _threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("_threads")
@pytest.mark.filterwarnings("ignore")
def test_the_command_writes_table_and_pictures_and_keeps_other_scenarios(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(peers, "FEATURE_MAPS", {})
    common = ["--quick", "--rounds", "2", "2", "--size", str(SIDE), "--networks", "tiny"]
    common += ["--device", "cpu", "--clock", "cpu", "--out", str(tmp_path)]
    command.main(["sizes", *common])
    command.main(["growth", *common, "--threads", "1"])
    table = read(tmp_path / "benchmarks.csv")
    assert {row.scenario for row in table} > {"sizes", "growth: classes"}
    assert all(row.machine and row.date and row.versions == "versions" for row in table)
    assert all(row.clock == "cpu" and row.rounds == 2 for row in table)
    assert (tmp_path / "benchmarks-sizes-cpu.png").exists()
    assert (tmp_path / "benchmarks-growth.png").exists()
    output = capsys.readouterr().out
    assert "| tiny | 1 | 32 | A-FMI / forward |" in output
    with pytest.raises(SystemExit):
        command.main(["unknown"])


def test_settings_are_every_combination() -> None:
    given = command.parser().parse_args(
        ["--device", "cpu", "--layout", "usual", "channels-last", "--precision", "float32", "bf16"]
    )
    settings = command.settings(given)
    assert [setting.name for setting in settings] == [
        "",
        "bf16 autocast",
        "channels-last",
        "channels-last, bf16 autocast",
    ]
    model = settings[3].model(tiny())
    images = settings[3].images(torch.rand(2, 3, SIDE, SIDE))
    assert images.is_contiguous(memory_format=torch.channels_last)
    assert model.network[2].weight.is_contiguous(memory_format=torch.channels_last)
    assert settings[3].under(lambda: model(images))().dtype == torch.bfloat16
    assert settings[0].under(lambda: tiny()(images))().dtype == torch.float32
