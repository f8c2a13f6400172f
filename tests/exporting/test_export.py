"""A file gives our maps in ONNX Runtime, of any number of images, or the network is refused."""

from __future__ import annotations

import io
import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from networks import TinyVGG
from torch import Tensor, nn

import afmi
from afmi.errors import AfmiError, ExportError, MissingPackageError, UsageError
from afmi.exporting import Exported, export
from afmi.exporting import export as exporting
from afmi.exporting.writing import _clouds, _computation, _verified
from afmi.methods import AFMI
from afmi.methods.base import BlankMapWarning
from afmi.network.classifier import Classifier
from afmi.network.fingerprint import fingerprint_of
from afmi.network.randomness import generator_of
from afmi.pictures.references import reference_of

onnx = pytest.importorskip("onnx", reason="the extra export is not installed")
runtime = pytest.importorskip("onnxruntime", reason="the extra export is not installed")
pytest.importorskip("onnxscript", reason="the extra export is not installed")

LABELS = ["ant", "bee", "cat", "dog", "eel"]


def _classifier() -> Classifier:
    torch.manual_seed(0)
    return Classifier(
        TinyVGG(), mean=[0.5] * 3, std=[0.25] * 3, labels=LABELS, resize=18, crop=16, name="tiny"
    )


def _images(count: int) -> Tensor:
    return torch.rand(count, 3, 16, 16, generator=torch.Generator().manual_seed(3))


def _run(path: Path, **inputs: Tensor) -> dict[str, np.ndarray]:
    session = runtime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    given = {name: value.numpy() for name, value in inputs.items()}
    return dict(zip(names, session.run(names, given), strict=True))


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Exported:
    model = _classifier()
    return export(model, tmp_path_factory.mktemp("files") / "tiny.onnx", layer="features.4")


@pytest.mark.parametrize("count", [1, 2, 9])
def test_maps_are_ours_for_any_number_of_images(exported: Exported, count: int) -> None:
    images, classes = _images(count), torch.arange(count) % 5
    results = _run(exported.path, images=images, **{"class": classes})
    method = AFMI(_classifier().eval(), layer="features.4")
    ours = method.attribution(images, classes)
    assert ours.logits is not None
    assert ours.residual is not None
    largest = float(ours.maps.abs().max())
    np.testing.assert_allclose(results["map"], ours.maps.numpy(), atol=1e-5 * largest, rtol=0)
    np.testing.assert_allclose(results["outputs"], ours.logits.numpy(), atol=1e-5)
    np.testing.assert_array_equal(results["target"][:, 0], classes.numpy())
    np.testing.assert_allclose(results["residual"][:, 0], ours.residual.numpy(), atol=1e-3)
    assert float(results["completeness_error"].max()) < 1e-5


def test_minus_one_is_the_predicted_class(exported: Exported) -> None:
    images = _images(3)
    results = _run(exported.path, images=images, **{"class": torch.tensor([-1, 2, -1])})
    predicted = results["outputs"].argmax(1)
    assert results["target"][:, 0].tolist() == [predicted[0], 2, predicted[2]]


def test_a_number_that_is_no_class_gives_no_map_and_harms_no_other(exported: Exported) -> None:
    images = _images(4)
    right = _run(exported.path, images=images, **{"class": torch.tensor([0, 1, 2, 4])})
    results = _run(exported.path, images=images, **{"class": torch.tensor([5, 1, -2, 4])})
    assert results["target"][:, 0].tolist() == [-1, 1, -1, 4]
    for name in ("map", "residual", "completeness_error"):
        assert np.isnan(results[name][[0, 2]]).all()
        np.testing.assert_array_equal(results[name][[1, 3]], right[name][[1, 3]])
    np.testing.assert_array_equal(results["outputs"], right["outputs"])


def test_the_reference_itself_has_a_map_of_zeros(exported: Exported) -> None:
    images = torch.cat([torch.zeros(1, 3, 16, 16), _images(1)])
    results = _run(exported.path, images=images, **{"class": torch.tensor([1, 1])})
    assert not results["map"][0].any()
    assert np.isnan(results["residual"][0, 0])
    assert results["map"][1].any()


def test_the_file_holds_standard_operators_only(exported: Exported) -> None:
    model = onnx.load(exported.path)
    assert {one.domain for one in model.opset_import} <= {"", "ai.onnx"}
    assert not model.functions
    operators = {node.op_type for node in model.graph.node}
    assert not [name for name in operators if "Scatter" in name or name == "GatherND"]
    shape = model.graph.input[0].type.tensor_type.shape.dim
    assert [dim.dim_value for dim in shape][1:] == [3, 16, 16]
    assert shape[0].dim_param


def test_the_file_says_what_it_is(exported: Exported) -> None:
    session = runtime.InferenceSession(str(exported.path), providers=["CPUExecutionProvider"])
    held = session.get_modelmeta().custom_metadata_map
    assert held == exported.metadata
    assert held["afmi_version"] == afmi.__version__
    assert held["fingerprint"] == fingerprint_of(_classifier())
    assert held["layer"] == "features.4"
    assert held["reference"] == "black"
    assert json.loads(held["labels"]) == LABELS
    assert json.loads(held["preprocessing"])["crop"] == 16
    assert exported.difference < 1e-5


def test_no_path_of_this_machine_goes_along(exported: Exported) -> None:
    assert b"site-packages" not in exported.path.read_bytes()
    assert b".py" not in exported.path.read_bytes()


def test_pt2_of_several_classes(tmp_path: Path) -> None:
    """The second format, with a map of each class."""
    torch.manual_seed(0)
    head = [nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 5)]
    network = nn.Sequential(nn.Conv2d(3, 4, 3), *head)
    model = Classifier(network, labels=LABELS, crop=10, name="tiny")
    file = export(model, tmp_path / "t.pt2", classes=["cat", 0], reference="white", averaged=False)
    assert file.inputs == ("images",)
    images = _images(4)[..., :10, :10]
    extra = {"afmi.json": ""}
    program = torch.export.load(io.BytesIO(file.path.read_bytes()), extra_files=extra)
    results = dict(zip(file.outputs, program.module()(images), strict=True))
    method = AFMI(model, reference="white", averaged=False)  # type: ignore[arg-type]
    ours = torch.cat(list(method.attribute_classes(images, [2, 0])), 1)
    torch.testing.assert_close(results["map"], ours, rtol=0, atol=1e-5 * float(ours.abs().max()))
    assert results["target"].tolist() == [[2, 0]] * 4
    assert float(results["residual"].abs().max()) < 1e-3
    assert json.loads(extra["afmi.json"])["model"] == "tiny"


@pytest.mark.parametrize("averaged", [True, False])
def test_what_is_recorded_is_what_the_method_gives(averaged: bool) -> None:
    """Several classes against several references, without being recorded."""
    model = _classifier().double().eval()
    images = _images(3).double()
    references = reference_of(["black", "white"])
    method = AFMI(model, reference=references, averaged=averaged)
    compute = _computation(method, images, (3, 1))
    outputs, maps, target, residual, error = compute(images)
    for t, ours in enumerate(method.attributions(images, [3, 1])):
        torch.testing.assert_close(maps[:, t], ours.maps[:, 0])
        torch.testing.assert_close(residual[:, t], ours.residual)
        torch.testing.assert_close(outputs, ours.logits)
    assert target.tolist() == [[3, 1]] * 3
    assert float(error.max()) < 1e-12


def _other(results: dict[str, Tensor], name: str, change: Callable[[Tensor], Tensor]) -> Any:
    def run(content: bytes, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        count = len(inputs["images"])
        some = {key: value[:count] for key, value in results.items()}
        return some | {name: change(some[name])}

    return run


def test_a_file_with_other_numbers_is_not_taken() -> None:
    method = AFMI(_classifier().eval())
    images = _images(3)
    ours = method.attribution(images)
    assert ours.logits is not None
    assert ours.target is not None
    results = {"outputs": ours.logits, "map": ours.maps, "target": ours.target[:, None]}
    same = _other(results, "map", lambda x: x)
    assert _verified(same, b"", method, images, True) < 1e-5
    for name, change, text in (
        ("map", lambda x: x * 1.01, "maps are not ours"),
        ("map", lambda x: x * torch.nan, "maps are not ours"),
        ("outputs", lambda x: x * 1.01, "outputs are not"),
        ("target", lambda x: (x + 1) % 5, "class that it predicts"),
    ):
        with pytest.raises(ExportError, match=text):
            _verified(_other(results, name, change), b"", method, images, True)


def test_a_network_that_enlarges_rounding_is_blamed_for_it() -> None:
    """No runtime can give the numbers of one that answers otherwise after a change of digits."""

    class Steep(TinyVGG):
        def forward(self, x: Tensor) -> Tensor:
            return (1e6 * super().forward(x)).sin()

    images = _images(3)
    for network, blamed in ((Steep(), True), (TinyVGG(), False)):
        method = AFMI(network.eval(), layer="features.4")
        ours = method.attribution(images)
        results = {"outputs": ours.logits, "map": ours.maps, "target": ours.target[:, None]}
        run = _other(results, "outputs", lambda x: x * 1.01)
        with pytest.raises(ExportError, match="outputs are not") as caught:
            _verified(run, b"", method, images, True)
        assert ("enlarges rounding errors" in str(caught.value)) is blamed


def test_nothing_is_written_where_the_check_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried = []

    def fail(*given: Any) -> float:
        tried.append(given[3])
        raise ExportError("no")

    module = __import__("sys").modules["afmi.exporting.writing"]
    monkeypatch.setattr(module, "_verified", fail)
    monkeypatch.setattr(module, "exported_program", lambda *_, **__: None)
    monkeypatch.setattr(module, "_pt2_bytes", lambda *_: b"")
    (tmp_path / "t.pt2").write_bytes(b"before")
    with pytest.raises(ExportError, match="no"):
        exporting(_classifier(), tmp_path / "t.pt2")
    assert [path.read_bytes() for path in tmp_path.iterdir()] == [b"before"]
    (images,) = tried
    assert [bool(image.any()) for image in images] == [True, True, False]  # the last: the reference


def test_files_are_tried_with_images_as_smooth_as_photographs() -> None:
    images = _clouds((2, 3, 64, 48), generator_of(0))
    assert 0 <= float(images.min()) < float(images.max()) <= 1
    assert not torch.equal(*images)
    for side in (2, 3):  # of white noise neighbours differ by 1.4 times the deviation
        steps = images.diff(dim=side).std()
        assert 0.05 * images.std() < steps < 0.5 * images.std()


class _Behind(nn.Module):
    """A layer, and what a function makes of it."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.layer = nn.Conv2d(3, 4, 3)
        self.function = function
        self.head = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.function(self.layer(x)))


def _by_value(x: Tensor) -> Tensor:
    y = x.mean((2, 3))
    return y * 2 if float(y.detach().abs().max()) > -1 else y


def _batch_folded(x: Tensor) -> Tensor:
    rows = x.permute(0, 2, 3, 1).reshape(-1, 4).relu()
    return rows.reshape(x.shape[0], -1, 4).mean(1)


@pytest.mark.parametrize(
    ("function", "text"),
    [(_by_value, "decides by numbers"), (_batch_folded, "folds the images of a batch")],
)
def test_networks_that_have_no_such_form_are_refused(
    function: Callable[[Tensor], Tensor], text: str, tmp_path: Path
) -> None:
    with pytest.raises(ExportError, match=text):
        export(_Behind(function), tmp_path / "n.pt2", size=8, layer="layer")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("out", "given", "error", "text"),
    [
        ("net.txt", {}, UsageError, "ends in .onnx or .pt2"),
        ("net.pt2", {"reference": "blurred"}, ExportError, "same reference"),
        ("net.pt2", {"size": 0}, UsageError, "from 1 pixel"),
        ("net.pt2", {"size": True}, UsageError, "from 1 pixel, got size=True"),
        ("net.pt2", {"size": 16.0}, UsageError, "from 1 pixel, got size=16.0"),
        ("net.pt2", {"classes": []}, UsageError, r"or several by index or label, got \[\]"),
        ("net.pt2", {"classes": True}, UsageError, "or several by index or label, got True"),
        ("net.pt2", {"classes": [0, True]}, UsageError, r"index or label, got \[0, True\]"),
        ("net.pt2", {"classes": 1.0}, UsageError, "or several by index or label, got 1.0"),
        ("net.pt2", {"classes": [7]}, UsageError, "from 0 to 4"),
        ("net.pt2", {"classes": "cow"}, AfmiError, "no class is called"),
    ],
)
def test_arguments_that_cannot_be_used(
    out: str, given: dict[str, Any], error: type[Exception], text: str, tmp_path: Path
) -> None:
    with pytest.raises(error, match=text):
        export(_classifier(), tmp_path / out, **given)


def test_the_size_of_images_must_be_known(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="pass size=224"):
        export(TinyVGG(), tmp_path / "net.pt2")


def test_a_missing_package_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "onnxscript", None)
    with pytest.raises(MissingPackageError, match=r"'onnxscript'.*afmi\[export\]"):
        export(_classifier(), tmp_path / "net.onnx")


IMAGES = {
    "the reference": torch.zeros(3, 8, 8),
    "one pixel of another": torch.eye(8).where(torch.arange(8) == 3, 0).expand(3, 8, 8) / 2,
    "all but the reference": torch.full((3, 8, 8), 1e-6),
    "one level": torch.full((3, 8, 8), 0.5),
    "noise": torch.rand(3, 8, 8, generator=torch.Generator().manual_seed(1)),
    "huge": torch.rand(3, 8, 8, generator=torch.Generator().manual_seed(2)) * 200 - 100,
}


def _by_channels(module: nn.Module) -> Callable[[Tensor], Tensor]:
    return lambda x: module(x.movedim(1, -1)).movedim(-1, 1)


BEHIND: dict[str, Callable[[Tensor], Tensor]] = {
    "group norm": nn.GroupNorm(2, 4),
    "layer norm": nn.LayerNorm([4, 6, 6]),
    "layer norm of channels": _by_channels(nn.LayerNorm(4)),
    "rms norm": _by_channels(nn.RMSNorm(4)),
    "instance norm": nn.InstanceNorm2d(4),
    "batch norm": nn.BatchNorm2d(4).eval(),
    "relu": torch.relu,
    "relu6": F.relu6,
    "leaky relu": F.leaky_relu,
    "elu": F.elu,
    "silu": F.silu,
    "mish": F.mish,
    "gelu": F.gelu,
    "gelu by tanh": lambda x: F.gelu(x, approximate="tanh"),
    "hardswish": F.hardswish,
    "hardsigmoid": F.hardsigmoid,
    "softplus": F.softplus,
    "sigmoid": torch.sigmoid,
    "tanh": torch.tanh,
    "cos": torch.cos,
    "square": lambda x: x**2,
    "cube": lambda x: x**3,
    "root": lambda x: x.abs().sqrt(),
    "length": lambda x: F.normalize(x, dim=1),
    "spread": lambda x: x / (x.std((2, 3), keepdim=True) + 0.1),
    "softmax": lambda x: x.softmax(1),
    "log-softmax": lambda x: x.log_softmax(1),
    "product": lambda x: x * x.mean((2, 3), keepdim=True).sigmoid(),
    "quotient": lambda x: x / (1 + x.square().mean(1, keepdim=True)),
    "max pooling": lambda x: F.max_pool2d(x, 3, 2, 1),
    "maximum": lambda x: x - x.amax(1, keepdim=True),
}


class _Branches(nn.Module):
    """A layer, and behind it one function for each class."""

    def __init__(self, names: list[str]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.Conv2d(3, 4, 3)
        self.names = names
        self.heads = nn.ModuleList(nn.Conv2d(4, 2, 2) for _ in names)

    def forward(self, images: Tensor) -> Tensor:
        x = self.layer(images)
        rows = [
            head(BEHIND[name](x).to(x.dtype)).square().mean((1, 2, 3))
            for name, head in zip(self.names, self.heads, strict=True)
        ]
        return torch.stack(rows, 1)


@pytest.mark.parametrize(
    ("names", "reference"),
    [
        (["group norm", "silu", "mish"], "black"),
        *(
            pytest.param(list(BEHIND), reference, marks=pytest.mark.slow)
            for reference in ("black", "white")
        ),
    ],
)
def test_images_near_and_far_from_the_reference_have_our_maps(
    names: list[str], reference: str, tmp_path: Path
) -> None:
    """Also where 0 would be divided by 0, and in a batch with others."""
    network = _Branches(names).eval()
    file = export(network, tmp_path / "n.onnx", size=8, layer="layer", reference=reference)
    images = torch.stack(list(IMAGES.values()))
    method = AFMI(network, layer="layer", reference=reference)  # type: ignore[arg-type]
    for index, name in enumerate(names):
        classes = torch.full((len(images),), index)
        results = _run(file.path, images=images, **{"class": classes})
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", BlankMapWarning)
            ours = method.attribution(images, classes)
        assert ours.logits is not None
        maps, outputs = ours.maps.numpy(), ours.logits.numpy()[:, index, None, None]
        apart = np.abs(results["map"] - maps).max((2, 3))[:, 0]
        allowed = 1e-4 * np.abs(maps).max((1, 2, 3)) + 1e-6 * np.abs(outputs)[:, 0, 0]
        wrong = [image for image, right in zip(IMAGES, apart <= allowed, strict=True) if not right]
        assert not wrong, name


@pytest.mark.slow
def test_an_operation_that_onnx_lacks_is_named(tmp_path: Path) -> None:
    network = _Behind(lambda x: torch.special.i0(x.mean((2, 3))))
    with pytest.raises(ExportError, match=r"operation '\w+\.\w*i0'"):
        export(network, tmp_path / "net.onnx", size=8, layer="layer")


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    [
        *("photos", "imagenet", "squeezenet1_1", "resnet18", "vgg11", "densenet121"),
        *("mobilenet_v3_small", "convnext_tiny", "vit_b_16", "swin_t", "googlenet"),
    ],
)
def test_networks_of_all_kinds(name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    weights = "default" if name in ("photos", "imagenet") else None
    model = afmi.load_model(name, weights=weights, output="logits", device="cpu")
    exported = export(model, tmp_path / "net.onnx")
    assert exported.difference < 1e-5
