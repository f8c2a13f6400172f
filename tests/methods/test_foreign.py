"""Networks and images of every make are explained rightly, or refused with advice that fits."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from networks import images
from settings import UNTRAINED, crossed, method
from torch import Tensor, nn

from afmi.errors import AfmiError, LayerError, ModelError, OperationError, ShapeError
from afmi.methods import CATALOGUE
from afmi.methods.base import LayerMethod
from afmi.methods.regions import xrai
from afmi.metrics import CATALOGUE as METRICS
from afmi.metrics import Insertion
from afmi.network.classifier import Classifier, classify
from afmi.network.layers import find_layer

pytestmark = pytest.mark.filterwarnings(
    "ignore::afmi.methods.BlankMapWarning",
    "ignore::DeprecationWarning",
    "ignore::FutureWarning",
    "ignore::UserWarning",
)

OF_OUTPUTS = {"Random", "KernelSHAP", "LIME", "Occlusion", "PredictionDifference", "RISE"}
OF_MAPS = {"AblationCAM", "EigenCAM", "ScoreCAM"}  # without gradients
OF_RULES = {"DeconvNet", "DeepLIFT", "FullGrad", "GuidedBackprop", "LRP"}
OF_LAYERS = sorted(
    name
    for name, kind in CATALOGUE.items()
    # Multiscale A-FMI begins at the pixels.
    if issubclass(kind, LayerMethod) and name != "MultiscaleAFMI"
)


def network(channels: int = 3) -> nn.Sequential:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        layers = (nn.Conv2d(channels, 5, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
        return nn.Sequential(*layers, nn.Linear(5, 4)).eval()


class Wrapped(nn.Module):
    """A network whose logits become something else."""

    def __init__(self, change: Callable[[Tensor], Any], inner: nn.Module | None = None) -> None:
        super().__init__()
        self.inner = network() if inner is None else inner
        self.change = change
        self.eval()

    def forward(self, x: Tensor) -> Any:
        return self.change(self.inner(x))


class Two(Wrapped):
    def forward(self, x: Tensor, mask: Tensor, *, scale: float = 1.0) -> Tensor:
        return self.inner(x * mask) * scale


class Scriptable(nn.Module):
    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        return x * mask


class Nothing(nn.Module):
    def forward(self) -> Tensor:
        return torch.zeros(1, 3)


def lazy() -> nn.Module:
    layers = (nn.LazyConv2d(5, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    return nn.Sequential(*layers, nn.LazyLinear(4)).eval()


def spread() -> nn.Module:
    model = network()
    model[4].to("meta")
    return model


MODELS: dict[str, tuple[Callable[[], Any], type[AfmiError], str]] = {
    "lazy": (lazy, ModelError, r"'0.weight', '0.bias', '4.weight', … are not initialised.*one im"),
    "lazy in a classifier": (lambda: Classifier(lazy()), ModelError, "not initialised yet"),
    "meta": (lambda: network().to("meta"), ModelError, "on the device 'meta'.*load_state_dict"),
    "partly meta": (spread, ModelError, "'4.weight', '4.bias' are on the device 'meta'"),
    "two inputs": (
        lambda: Two(nn.Identity()), ModelError, "images alone .*'mask'.*forward_arguments"
    ),
    "two in a classifier": (lambda: Classifier(Two(nn.Identity())), ModelError, "'mask'"),
    "scripted with two": (
        lambda: torch.jit.script(Scriptable()), ModelError, "images alone .*'mask'"
    ),
    "no input": (Nothing, ModelError, "images alone .*takes 1 positional argument"),
    "four channels": (lambda: network(4), ShapeError, "images of 4 channels.*got 3 channels"),
    "one channel": (lambda: network(1), ShapeError, "images of 1 channels.*got 3 channels"),
    "double": (lambda: network().double(), ShapeError, r"dtype torch.float64.*images.to\("),
    "half": (lambda: network().half(), ShapeError, "dtype torch.float16, got torch.float32"),
    "another size": (
        lambda: nn.Sequential(nn.Flatten(), nn.Linear(12, 2)), ShapeError, r"of shape \(\d, 3, 20"
    ),
    "asserting": (
        lambda: Wrapped(lambda y: torch._assert(y.shape[1] == 9, "Wrong size!")),
        ShapeError, r"cannot run images of shape .*Wrong size!",
    ),
    "exported program": (
        lambda: torch.export.export(network(), (images(2),)), ModelError, "ExportedProgram; its mod"
    ),
    "none": (lambda: Wrapped(lambda y: None), ModelError, "returned NoneType"),
    "dict": (lambda: Wrapped(lambda y: {"a": y, "b": y}), ModelError, "a dict of 'a'.*output_key"),
    "text": (lambda: Wrapped(lambda y: "cat"), ModelError, "returned str"),
    "classes": (lambda: Wrapped(lambda y: y.argmax(1)), ModelError, r"\(\d,\) torch.int64"),
    "ints": (lambda: Wrapped(lambda y: y.int()), ModelError, r"\(\d, 4\) torch.int32"),
    "complex": (
        lambda: Wrapped(lambda y: y.cfloat()), AfmiError, r"\(\d, 4\) torch.complex64|no rule for"
    ),
    "no class": (lambda: Wrapped(lambda y: y[:, :0]), ModelError, r"\(\d, 0\) torch.float32"),
    "too few rows": (lambda: Wrapped(lambda y: y.mean(0, True)), ModelError, "1 for [2-9]"),
    "too many rows": (lambda: Wrapped(lambda y: y.repeat(2, 1)), ModelError, "one row of logits"),
}  # fmt: skip


@pytest.mark.parametrize(("name", "kind"), crossed(CATALOGUE, MODELS))
def test_networks_that_cannot_be_explained(name: str, kind: str) -> None:
    make, error, message = MODELS[kind]
    with pytest.raises(error, match=message):
        method(name, make()).attribute(images(2), 1)


@pytest.mark.parametrize("kind", MODELS)
def test_networks_that_cannot_be_run(kind: str) -> None:
    make, error, message = MODELS[kind]
    model, x = make(), images(2)
    with pytest.raises(error, match=message):
        classify(model, x)
    with pytest.raises(error, match=message):
        Insertion().curves(model, x, torch.tensor([0, 1]), x[:, :1])


def test_lazy_networks_stay_as_they_are() -> None:
    model = lazy()
    for run in (lambda: find_layer(model, images(1)), lambda: classify(model, images(1))):
        with pytest.raises(ModelError, match="not initialised"):
            run()
    assert nn.parameter.is_lazy(model[0].weight)
    Classifier(model)(images(1))  # whoever runs it by himself initialises it
    assert str(find_layer(model, images(1))) == "1"


INPUTS: dict[str, tuple[Callable[[Tensor], Any], str]] = {
    "three dimensions": (lambda x: x[0], r"\(3, 20, 20\) torch.float32; add a batch dimension"),
    "five dimensions": (lambda x: x[None], r"\(1, 2, 3, 20, 20\).*reshape them to \(N, C, H, W\)"),
    "no image": (lambda x: x[:0], r"\(0, 3, 20, 20\).*give one image or more"),
    "bytes": (lambda x: x.byte(), "torch.uint8; divide bytes by 255"),
    "bool": (lambda x: x > 0, r"torch.bool; convert them with images.float\(\)"),
    "complex": (lambda x: x.cfloat(), "torch.complex64"),
    "eight bits": (lambda x: x.to(torch.float8_e4m3fn), "torch.float8_e4m3fn; convert"),
    "quantised": (
        lambda x: torch.quantize_per_tensor(x, 0.01, 0, torch.quint8), r"images.dequantize\(\)"
    ),
    "sparse": (lambda x: x.to_sparse(), r"got a torch.sparse_coo one; use images.to_dense\(\)"),
    "nested": (lambda x: torch.nested.nested_tensor(list(x)), "got a nested one; torch.stack"),
    "meta": (lambda x: x.to("meta"), "on the device 'meta', which holds none"),
    "list": (list, r"got list; .* torch.stack\(images\)"),
    "array": (lambda x: x.numpy(), r"got ndarray; .* torch.from_numpy\(images\)"),
    "none": (lambda x: None, "got NoneType"),
}  # fmt: skip


@pytest.mark.parametrize(("name", "kind"), crossed(CATALOGUE, INPUTS))
def test_images_that_cannot_be_explained(name: str, kind: str) -> None:
    make, message = INPUTS[kind]
    with pytest.raises(ShapeError, match=message):
        method(name, network()).attribute(make(images(2)), 1)


@pytest.mark.parametrize("name", CATALOGUE)
def test_images_that_record_gradients_are_ordinary_images(name: str) -> None:
    x, of = images(2), method(name, network())
    recorded = x.clone().requires_grad_()
    maps = of.attribute((recorded * 1.0), 1)
    assert torch.equal(maps, of.attribute(x, 1))
    assert not maps.requires_grad
    assert recorded.grad is None


OUTPUTS = [lambda y: [y, 1], lambda y: {"logits": y, "loss": None}]


@pytest.mark.parametrize(("name", "change"), crossed(CATALOGUE, OUTPUTS))
def test_logits_among_other_outputs(name: str, change: Callable[[Tensor], Any]) -> None:
    x = images(2)
    expected = method(name, network(), layer="1").attribute(x, 1)
    maps = method(name, Wrapped(change), layer="inner.1").attribute(x, 1)
    torch.testing.assert_close(maps, expected)


def exported(model: nn.Module) -> nn.Module:
    any_number = ({0: torch.export.Dim("count", min=1, max=1024)},)
    return torch.export.export(model, (images(2),), dynamic_shapes=any_number).module()


HIDDEN: dict[str, Callable[[], nn.Module]] = {
    "scripted": lambda: torch.jit.script(network()),
    "traced": lambda: torch.jit.trace(network(), images(2)),
    "frozen": lambda: torch.jit.freeze(torch.jit.script(network())),
    "exported": lambda: exported(network()),
    "in a classifier": lambda: Classifier(torch.jit.script(network())),
    "in a module": lambda: Wrapped(lambda y: y * 1.0, torch.jit.script(network())),
}


@pytest.fixture(scope="module")
def hidden() -> dict[str, nn.Module]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return {name: make() for name, make in HIDDEN.items()}


@pytest.mark.parametrize(("name", "kind"), crossed(UNTRAINED, HIDDEN))
def test_networks_whose_parts_are_hidden(
    name: str, kind: str, hidden: dict[str, nn.Module]
) -> None:
    x, of = images(2), method(name, hidden[kind])
    if name in OF_RULES or issubclass(CATALOGUE[name], LayerMethod):
        what = "an exported graph" if kind == "exported" else "TorchScript"
        with pytest.raises((LayerError, OperationError), match=f"{what}.*explain the network befo"):
            of.attribute(x, 1)
    else:
        expected = method(name, network()).attribute(x, 1)
        torch.testing.assert_close(of.attribute(x, 1), expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", OF_LAYERS)
def test_layers_inside_hidden_networks(name: str, hidden: dict[str, nn.Module]) -> None:
    for kind, layer in (("scripted", "1"), ("exported", "0"), ("in a module", "inner.1")):
        with pytest.raises((LayerError, OperationError), match="explain the network before that"):
            method(name, hidden[kind], layer=layer).attribute(images(2), 1)


@pytest.mark.parametrize("parts", [1, 2])
@pytest.mark.parametrize("name", OF_LAYERS)
def test_what_is_behind_a_hidden_part_is_in_sight(name: str, parts: int) -> None:
    model, x = network(), images(2)
    scripted = nn.Sequential(torch.jit.script(model[:parts]), *model[parts:]).eval()
    with pytest.raises(LayerError, match=f"layer='{2 - parts}'"):
        find_layer(scripted, x)
    expected = method(name, model, layer="1").attribute(x, 1)
    maps = method(name, scripted, layer=str(2 - parts)).attribute(x, 1)
    torch.testing.assert_close(maps, expected)


def test_a_graph_of_one_batch_size_only() -> None:
    model = torch.export.export(network(), (images(2),)).module()
    assert method("Gradient", model).attribute(images(2), 1).shape == (2, 1, 20, 20)
    with pytest.raises(ModelError, match=r"exported for images of another shape.*dynamic_shapes"):
        method("Gradient", model).attribute(images(3), 1)


def quantised(static: bool) -> nn.Module:
    from torch.ao import quantization

    if not static:
        return quantization.quantize_dynamic(network(), {nn.Linear})
    ends = quantization.QuantStub(), quantization.DeQuantStub()
    model = nn.Sequential(ends[0], *network(), ends[1]).eval()
    model.qconfig = quantization.get_default_qconfig(torch.backends.quantized.engine)
    quantization.prepare(model, inplace=True)(images(4))
    return quantization.convert(model)


@pytest.mark.parametrize("static", [False, True])
@pytest.mark.parametrize("name", UNTRAINED)
def test_quantised_networks(name: str, static: bool) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            model = quantised(static)
        except (ImportError, RuntimeError) as error:  # no engine for them on this machine
            pytest.skip(str(error))
    x, of = images(2), method(name, model)
    if name in OF_OUTPUTS or (name in OF_MAPS and not static):  # whose maps are no integers
        assert of.attribute(x, 1).shape == (2, 1, 20, 20)
    else:
        with pytest.raises((LayerError, OperationError), match=r"is quantised .*KernelSHAP, LIME"):
            of.attribute(x, 1)


@pytest.mark.parametrize("name", sorted({*UNTRAINED} - OF_OUTPUTS))
def test_networks_without_gradients(name: str) -> None:
    with pytest.raises(OperationError, match=r"do not depend on the layer|detach"):
        method(name, Wrapped(lambda y: y.detach()), layer="inner.1").attribute(images(2), 1)


LAYERS: list[tuple[Any, str]] = [
    (["0", "1"], r"got \['0', '1'\]; explain with each by itself"),
    (("1",), "explain with each by itself"),
    (5, "got 5; name it by a text"),
    (1.0, r"got 1\.0"),
    (nn.ReLU, "got <class"),
    (torch.zeros(1), "got tensor"),
]


@pytest.mark.parametrize(("layer", "message"), LAYERS)
@pytest.mark.parametrize("name", OF_LAYERS)
def test_what_names_no_layer(name: str, layer: Any, message: str) -> None:
    with pytest.raises(LayerError, match=f"expected one layer.*{message}"):
        CATALOGUE[name](network(), layer=layer)


@pytest.mark.parametrize(("name", "dtype"), crossed(CATALOGUE, [torch.bfloat16, torch.float16]))
def test_under_autocast(name: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    """The network runs in 16 bits, as the user wants; what a method does of its own does not."""
    monkeypatch.setattr(xrai, "_SIDE", 224)  # among few segments rounding may change the order
    of, x = method(name, network()), images(2)
    expected = of.attribute(x, 1)
    with torch.autocast("cpu", dtype):
        maps = of.attribute(x, 1)
        logits = classify(of.model, x)
    assert logits.dtype == dtype
    assert maps.dtype == torch.float32
    assert torch.isfinite(maps).all()
    if name not in (
        "LIME",
        "Occlusion",
        "PredictionDifference",
    ):  # of small changes of a probability
        assert (maps - expected).abs().max() <= 0.3 * expected.abs().max()


@pytest.mark.parametrize("name", METRICS)
def test_metrics_name_what_cannot_be_run(name: str) -> None:
    from cases import case_of, companions_for

    x = images(2)
    case = case_of(method("Gradient", network()), x, torch.tensor([0, 1]))
    broken = type(case)(**{**vars(case), "method": method("Gradient", network().to("meta")),
                           "logits": case.logits, "companions": companions_for(x)})  # fmt: skip
    # These run nothing of the network, the last one without prototypes.
    if name in ("Completeness", "Cost", "ReferenceReliability", "FMIAgreement"):
        METRICS[name]().measure(broken)
    else:
        with pytest.raises(ModelError, match="on the device 'meta'"):
            METRICS[name]().measure(broken)
