"""Models come by name, from local files of weights and from users' factories; nothing downloads."""

from __future__ import annotations

import os
import pickle
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
from networks import TinyVGG, images
from PIL import Image
from safetensors.torch import save_file
from torch import nn
from torchvision.models import SqueezeNet1_1_Weights

from afmi.errors import LayerError, ModelError, UsageError
from afmi.models import describe_models, load_model, model_names
from afmi.models.weights import read_weights
from afmi.network.classifier import Classifier
from afmi.pictures.images import read_image

TINY = "squeezenet1_1"


@pytest.fixture(scope="module")
def network() -> nn.Module:
    return torchvision.models.get_model(TINY, weights=None).eval()


def same(model: nn.Module, other: nn.Module, size: int = 64) -> bool:
    with torch.no_grad():
        return torch.allclose(model(images(1, size)), other(images(1, size)), atol=1e-5)


# --- by name --------------------------------------------------------------------------------


def test_embedded_network() -> None:
    model = load_model("photos")
    assert (model.name, model.resize, model.crop, model.training) == ("photos", 144, 128, False)
    assert model.labels[3] == "cat"
    assert next(model.parameters()).dtype == torch.float32
    assert model(images(1, 128)).shape == (1, 11)


def test_embedded_network_knows_photographs(photos11: Path) -> None:
    model = load_model("photos")
    right = 0
    for folder in sorted((photos11 / "val").iterdir()):
        batch = [model.prepare(read_image(path)) for path in sorted(folder.iterdir())[:5]]
        with torch.no_grad():
            index = model(torch.cat(batch)).argmax(1)
        right += int((index == model.labels.index(folder.name.replace("_", " "))).sum())
    assert right >= 40  # of 55


def test_embedded_network_with_weights_of_ones_own(tmp_path: Path) -> None:
    torch.manual_seed(0)
    random = load_model("photos", weights=None)
    save_file(random.network.state_dict(), tmp_path / "own.safetensors")
    again = load_model("photos", weights=tmp_path / "own.safetensors")
    assert same(random, again, 128)
    assert again.labels == random.labels
    torch.save(load_model("photos", weights=None, num_classes=4).network.state_dict(),
               tmp_path / "four.pth")  # fmt: skip
    four = load_model("photos", weights=tmp_path / "four.pth")
    assert four(images(1, 128)).shape == (1, 4)
    assert four.labels == ()


def test_random_weights_come_with_transform_and_labels() -> None:
    model = load_model(TINY, weights=None)
    assert (model.name, model.resize, model.crop, len(model.labels)) == (TINY, 256, 224, 1000)
    assert model.interpolation is Image.Resampling.BILINEAR
    assert model.mean.flatten().tolist() == pytest.approx([0.485, 0.456, 0.406])
    assert not any(module.training for module in model.modules())
    assert model(images(1, 64)).shape == (1, 1000)


@pytest.mark.parametrize("name", ["googlenet", "inception_v3"])
def test_auxiliary_heads_and_input_transform(name: str, tmp_path: Path) -> None:
    model = load_model(name, weights=None)
    assert not model.network.aux_logits
    state = model.network.state_dict()
    head = "AuxLogits.fc.weight" if name == "inception_v3" else "aux1.fc2.weight"
    torch.save(state, tmp_path / "without.pth")
    torch.save({"module." + k: v for k, v in {**state, head: torch.ones(2)}.items()},
               tmp_path / "with.pth")  # fmt: skip
    for file in ("without.pth", "with.pth"):
        loaded = load_model(name, weights=tmp_path / file)
        assert loaded.network.transform_input  # as torchvision's own weights have it
    plain = load_model(name, weights=tmp_path / "without.pth", transform_input=False)
    assert same(plain, model, 96)


def test_names_are_found_in_any_case_and_unknown_ones_have_near_matches() -> None:
    assert load_model("SqueezeNet1_1", weights=None).name == TINY
    with pytest.raises(ModelError, match="no model is called 'resnet55'; did you mean 'resnet50'"):
        load_model("resnet55")
    with pytest.raises(ModelError, match=r"no model is called 'zzz'; `afmi models` lists them"):
        load_model("zzz")
    with pytest.raises(ModelError, match="weights="):
        load_model("some/file.pth")
    with pytest.raises(ModelError, match=r"afmi\.Classifier\(network"):
        load_model(nn.Identity())  # type: ignore[arg-type]


def test_entries_need_no_network() -> None:
    entries = {entry.name: entry for entry in describe_models()}
    assert list(entries) == model_names()
    assert model_names()[3] == "photos"
    resnet = entries["resnet50"]
    assert resnet.parameters == pytest.approx(25.557, abs=1e-3)
    assert resnet.top1 == pytest.approx(80.858)
    assert (resnet.input_size, resnet.weights_file) == (224, "resnet50-11ad3fa6.pth")
    built = sum(p.numel() for p in load_model("photos", weights=None).parameters())
    assert entries["photos"].parameters == built / 1e6


# --- downloads ------------------------------------------------------------------------------


@pytest.mark.parametrize("weights", ["default", "IMAGENET1K_V1", SqueezeNet1_1_Weights.DEFAULT])
def test_a_failed_download_says_what_to_pass(weights: Any) -> None:
    with pytest.raises(ModelError) as caught:
        load_model(TINY, weights=weights)
    text = str(caught.value)
    assert "squeezenet1_1-b8a52dc0.pth" in text
    assert "Name or service not known" in text
    assert "weights= a local file, or weights=None" in text
    assert "\n" not in text


def test_downloaded_weights_are_used(network: nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        SqueezeNet1_1_Weights, "get_state_dict", lambda *_, **__: network.state_dict()
    )
    model = load_model(TINY)
    assert same(model.network, network)
    assert same(load_model(TINY, weights="SqueezeNet1_1_Weights.IMAGENET1K_V1"), model)


def test_a_damaged_download_says_where_it_lies(tmp_path: Path) -> None:
    folder = tmp_path / "torch_home" / "hub" / "checkpoints"
    folder.mkdir(parents=True)
    (folder / "squeezenet1_1-b8a52dc0.pth").write_bytes(b"PK\x03\x04 cut short")
    with pytest.raises(ModelError, match=r"cannot be loaded .* remove the file from .*torch_home"):
        load_model(TINY)


def test_unknown_weights_have_near_matches() -> None:
    with pytest.raises(ModelError, match="did you mean 'IMAGENET1K_V1'"):
        load_model(TINY, weights="IMAGENET1K_V3")
    with pytest.raises(ModelError, match="it has default, IMAGENET1K_V1, DEFAULT"):
        load_model(TINY, weights="zzz")
    with pytest.raises(ModelError, match="'default', None, a file"):
        load_model(TINY, weights=3)


# --- local files ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "wrap",
    [
        lambda state: state,
        lambda state: {"state_dict": state, "epoch": 3},
        lambda state: {"model": {f"module.{k}": v for k, v in state.items()}},
        lambda state: {f"model._orig_mod.{k}": v for k, v in state.items()},
    ],
    ids=["plain", "nested", "nested with prefix", "prefixes"],
)
def test_pickled_weights_round_trip(wrap: Any, network: nn.Module, tmp_path: Path) -> None:
    torch.save(wrap(network.state_dict()), tmp_path / "w.pth")
    model = load_model(TINY, weights=tmp_path / "w.pth")
    assert same(model.network, network)
    assert len(model.labels) == 1000


def test_safetensors_round_trip_in_half_precision(network: nn.Module, tmp_path: Path) -> None:
    state = {f"network.{k}": v.half() for k, v in network.state_dict().items()}
    save_file(state, tmp_path / "w.any")  # the content decides the kind
    model = load_model(TINY, weights=str(tmp_path / "w.any"))
    assert next(model.parameters()).dtype == torch.float32
    parameters = dict(model.network.named_parameters())
    assert all(torch.allclose(parameters[k], p, atol=1e-3) for k, p in network.named_parameters())


def test_weights_for_other_classes(tmp_path: Path) -> None:
    seven = torchvision.models.get_model(TINY, weights=None, num_classes=7).eval()
    file = tmp_path / "seven.pth"
    torch.save(seven.state_dict(), file)
    model = load_model(TINY, weights=file)
    assert same(model.network, seven)
    assert model.labels == ()
    assert load_model(TINY, weights=file, labels=["g"] * 7).labels == (("g",) * 7)
    with pytest.raises(ModelError, match="is for 7 classes, but the network has 9"):
        load_model(TINY, weights=file, num_classes=9)


def test_weights_of_another_architecture_are_refused(network: nn.Module, tmp_path: Path) -> None:
    file = tmp_path / "w.pth"
    torch.save(network.state_dict(), file)
    with pytest.raises(ModelError) as caught:
        load_model("resnet18", weights=file)
    text = str(caught.value)
    assert "does not fit the network ResNet" in text
    assert "missing (conv1.weight, bn1.weight, " in text
    assert "unexpected (features.0.weight, " in text
    state = network.state_dict()
    del state["features.0.bias"]
    torch.save(state, file)
    with pytest.raises(ModelError, match=r"1 missing \(features\.0\.bias\)"):
        load_model(TINY, weights=file)


def test_old_names_of_densenet(tmp_path: Path) -> None:
    new = torchvision.models.densenet121(weights=None).eval()
    old = {
        k.replace(".norm1.", ".norm.1.").replace(".conv2.", ".conv.2."): v
        for k, v in new.state_dict().items()
    }
    torch.save(old, tmp_path / "old.pth")
    assert same(load_model("densenet121", weights=tmp_path / "old.pth").network, new)


def test_mnasnet_without_its_version(tmp_path: Path) -> None:
    small = torchvision.models.mnasnet0_5(weights=None).eval()
    save_file(small.state_dict(), tmp_path / "w.safetensors")
    assert same(load_model("mnasnet0_5", weights=tmp_path / "w.safetensors").network, small)


def test_a_file_named_like_torchvisions_brings_its_transform(tmp_path: Path) -> None:
    other = torchvision.models.mobilenet_v2(weights=None).state_dict()
    torch.save(other, tmp_path / "mobilenet_v2-b0353104.pth")
    assert load_model("mobilenet_v2", weights=tmp_path / "mobilenet_v2-b0353104.pth").resize == 256
    torch.save(other, tmp_path / "mine.pth")
    assert load_model("mobilenet_v2", weights=tmp_path / "mine.pth").resize == 232


class Malicious:
    """Write a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self.path,))


@pytest.mark.parametrize("kind", ["zip", "pickle"])
def test_a_pickle_that_runs_code_is_refused_and_not_run(kind: str, tmp_path: Path) -> None:
    file, trace = tmp_path / "w.pth", tmp_path / "executed"
    if kind == "zip":
        torch.save({"state_dict": Malicious(trace)}, file)
    else:
        file.write_bytes(pickle.dumps(Malicious(trace)))
    with pytest.raises(ModelError):
        load_model(TINY, weights=file)
    assert not trace.exists()


def test_a_pickled_network_is_refused(tmp_path: Path) -> None:
    torch.save(TinyVGG(), tmp_path / "w.pth")
    with pytest.raises(ModelError, match=r"would run code .* torch\.save\(model\.state_dict\(\)"):
        read_weights(tmp_path / "w.pth")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "an empty file"),
        (b"<!DOCTYPE html><html>", "a web page"),
        (b"version https://git-lfs.github.com/spec/v1", "git lfs pull"),
        (b"hello, these are no weights", "no file of weights"),
        (b"PK\x03\x04 damaged", "cut short or damaged"),
        (b"\x40\x00\x00\x00\x00\x00\x00\x00{ damaged", "cut short or damaged"),
    ],
)
def test_other_files_are_refused(content: bytes, message: str, tmp_path: Path) -> None:
    file = tmp_path / "w.pth"
    file.write_bytes(content)
    with pytest.raises(ModelError, match=message) as caught:
        load_model(TINY, weights=file)
    assert "\n" not in str(caught.value)


def test_missing_files_and_folders_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"none\.pth' cannot be read: No such file"):
        load_model(TINY, weights=tmp_path / "none.pth")
    with pytest.raises(ModelError, match="cannot be read: it is a folder"):
        load_model(TINY, weights=tmp_path)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs POSIX files")
@pytest.mark.parametrize("what", ["weights", "labels"])
def test_pipes_and_devices_are_refused_without_blocking(what: str, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", Path("/dev/zero"), tmp_path / "nu\0ll"):
        with pytest.raises(ModelError, match="cannot be read"):
            load_model(TINY, **({"weights": None} | {what: path}))


def _deflated(tmp_path: Path) -> Path:
    torch.save({"weight": torch.zeros(2**22)}, tmp_path / "plain.pth")
    with (
        zipfile.ZipFile(tmp_path / "plain.pth") as plain,
        zipfile.ZipFile(tmp_path / "w.pth", "w", zipfile.ZIP_DEFLATED) as packed,
    ):
        for entry in plain.infolist():
            packed.writestr(entry.filename, plain.read(entry))
    return tmp_path / "w.pth"


def test_weights_that_unpack_to_much_more_are_refused(tmp_path: Path) -> None:
    file = _deflated(tmp_path)
    assert file.stat().st_size < 100_000
    with pytest.raises(ModelError, match=r"but unpack to 167\d{5}; expected an archive as"):
        read_weights(file)
    assert read_weights(tmp_path / "plain.pth")["weight"].shape == (2**22,)


@pytest.mark.parametrize("dtype", [torch.complex64, torch.int8])
def test_numbers_that_would_lose_their_meaning_are_refused(
    network: nn.Module, dtype: torch.dtype, tmp_path: Path
) -> None:
    state = network.state_dict()
    name = next(iter(state))
    torch.save(state | {name: state[name].to(dtype)}, tmp_path / "w.pth")
    with pytest.raises(ModelError, match=rf"holds {name!r} as {dtype}, but \w+ as torch.float32"):
        load_model(TINY, weights=tmp_path / "w.pth")


@pytest.mark.parametrize("content", [[1, 2], {}, {"epoch": 1}, torch.zeros(3)])
def test_pickles_without_weights_are_refused(content: object, tmp_path: Path) -> None:
    torch.save(content, tmp_path / "w.pth")
    with pytest.raises(ModelError, match="expected tensors by name"):
        read_weights(tmp_path / "w.pth")


def test_real_weights_know_photographs(squeezenet_weights: Path, photographs: Path) -> None:
    model = load_model("squeezenet1_0", weights=squeezenet_weights)
    right = 0
    for path in sorted(photographs.glob("*.jpg"))[::10][:20]:
        with torch.no_grad():
            predicted = int(model(model.prepare(read_image(path))).argmax())
        index = int(path.name[:4])
        right += predicted == index
        name = path.stem.split("_", 2)[2].replace("_", " ")
        assert name.split()[0].casefold() in model.labels[index].casefold()
    assert right > 10


# --- factories ------------------------------------------------------------------------------

FACTORY = """
from torch import nn
from afmi import Classifier

def build(classes=5, width=4):
    return nn.Sequential(
        nn.Conv2d(3, width, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        nn.Linear(width, classes),
    )

def classifier():
    labels = list("vwxyz")
    return Classifier(build(), mean=[0.1] * 3, std=[0.2] * 3, labels=labels, crop=32, name="mine")

class Special(Classifier):
    pass

class Nets:
    @staticmethod
    def small():
        return build(2)

def special():
    return Special(build())

def text():
    return "no network"

def raises():
    raise RuntimeError("no such data\\nsecond line")

ready = build(3)
number = 3
"""


@pytest.fixture
def factory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    (tmp_path / "my_nets.py").write_text(FACTORY)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, "my_nets", raising=False)
    return "my_nets"


@pytest.mark.parametrize("home", ["my_nets", "my_nets.py", "./my_nets.py"])
def test_a_factory_by_module_or_file(home: str, factory: str) -> None:
    path = list(sys.path)
    model = load_model(f"{home}:build", mean=[0.5] * 3, std=[0.5] * 3, crop=64, classes=6)
    assert (model.name, model.crop, model.labels) == ("build", 64, ())
    assert model(images(1)).shape == (1, 6)
    assert sys.path == path
    assert load_model(f"{home}:Nets.small")(images(1)).shape == (1, 2)
    assert load_model(f"{home}:ready")(images(1)).shape == (1, 3)


def test_a_factory_that_returns_a_classifier(factory: str) -> None:
    model = load_model(f"{factory}:classifier")
    assert (model.name, model.crop, model.labels) == ("mine", 32, tuple("vwxyz"))
    other = load_model(f"{factory}:classifier", labels=["ab", "de", "x", "y", "z"], crop=16)
    assert other.labels == ("ab", "de", "x", "y", "z")
    assert (other.name, other.crop) == ("mine", 16)
    assert torch.equal(other.mean, model.mean)
    with pytest.raises(ModelError, match="returns a Special"):
        load_model(f"{factory}:special", crop=16)


def test_a_factory_with_weights(factory: str, tmp_path: Path) -> None:
    first = load_model(f"{factory}:build")
    save_file(first.network.state_dict(), tmp_path / "w.safetensors")
    assert same(load_model(f"{factory}:build", weights=tmp_path / "w.safetensors"), first)
    with pytest.raises(ModelError, match="is for 5 classes, but the network has 8"):
        load_model(f"{factory}:build", weights=tmp_path / "w.safetensors", classes=8)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("no_such_package.nets:build", "there is no module 'no_such_package'"),
        ("my_nets:biuld", "my_nets has no 'biuld'; did you mean 'build'"),
        ("my_nets:Nets.smal", "no 'smal'; did you mean 'small'"),
        ("my_nets:number", "is a int; expected a function"),
        ("my_nets:text", "returned a str"),
        ("my_nets:raises", r"raised RuntimeError: no such data$"),
        ("my_nets:", "expected package.module:function"),
        ("other.py:build", "there is no file 'other.py'"),
        ("broken:build", "importing broken raised ZeroDivisionError"),
        ("broken.py:build", "importing broken.py raised ZeroDivisionError"),
        (
            "lacking:build",
            "importing lacking raised ModuleNotFoundError: No module",
        ),
    ],
)
def test_factories_that_fail(name: str, message: str, factory: str, tmp_path: Path) -> None:
    (tmp_path / "broken.py").write_text("1 / 0")
    (tmp_path / "lacking.py").write_text("import nowhere")
    with pytest.raises(ModelError, match=message) as caught:
        load_model(name)
    assert "\n" not in str(caught.value)


def test_unknown_options_are_refused(factory: str) -> None:
    with pytest.raises(ModelError, match="unexpected keyword argument 'clases'"):
        load_model(f"{factory}:build", clases=3)
    with pytest.raises(ModelError, match="unexpected keyword argument 'weigths'"):
        load_model(TINY, weigths=None)


# --- labels, layer, device ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("tench\nhammer head \n\n", ("tench", "hammer head")),
        ("\ufefftench\r\ncat", ("tench", "cat")),
        ('["a", "b"]', ("a", "b")),
        ('{"1": ["n02", "b"], "0": ["n01", "a"]}', ("a", "b")),
        ('{"0": "a", "1": "b"}', ("a", "b")),
        ('{"b": 1, "a": 0}', ("a", "b")),
        ('{"id2label": {"0": "a", "1": "b"}, "hidden": 3}', ("a", "b")),
    ],
)
def test_label_files(content: str, expected: tuple[str, ...], tmp_path: Path) -> None:
    (tmp_path / "labels").write_text(content, encoding="utf-8")
    model = load_model(TINY, weights=None, num_classes=2, labels=str(tmp_path / "labels"))
    assert model.labels == expected


@pytest.mark.parametrize("content", ['{"0": "a", "2": "b"}', "[1, 2]", '["a"', "{}", "\x00\udcff"])
def test_label_files_that_are_none(content: str, tmp_path: Path) -> None:
    (tmp_path / "labels").write_bytes(content.encode(errors="surrogateescape"))
    with pytest.raises(ModelError, match="the labels"):
        load_model(TINY, weights=None, labels=tmp_path / "labels")


def test_labels_nested_too_deeply_and_too_large(tmp_path: Path) -> None:
    (tmp_path / "labels").write_text("[" * 200_000)
    with pytest.raises(ModelError, match="nested too deeply"):
        load_model(TINY, weights=None, labels=tmp_path / "labels")
    with (tmp_path / "labels").open("wb") as file:
        file.truncate(2**24 + 1)
    with pytest.raises(ModelError, match="more than 16777216 bytes"):
        load_model(TINY, weights=None, labels=tmp_path / "labels")


def test_missing_label_files_and_labels_that_do_not_fit(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="cannot be read"):
        load_model(TINY, weights=None, labels="no_such_labels.txt")
    with pytest.raises(ModelError, match="1000 classes, but got 2 labels"):
        load_model(TINY, weights=None, labels=["a", "b"])


def test_what_is_passed_wins(tmp_path: Path) -> None:
    model = load_model(
        TINY, weights=None, mean=[0.5] * 3, std=[0.25] * 3, resize=(80, 80), crop=72,
        layer="features.10", device="cpu",
    )  # fmt: skip
    assert model.std.flatten().tolist() == [0.25] * 3
    assert (model.resize, model.crop, model.layer) == ((80, 80), 72, "features.10")
    assert model.prepare(Image.new("RGB", (100, 50))).shape == (1, 3, 72, 72)


def test_unknown_layers_and_devices_are_refused() -> None:
    with pytest.raises(LayerError, match="did you mean 'features'"):
        load_model(TINY, weights=None, layer="feature")
    for device in ("cuda:77", "gpu", "meta"):
        with pytest.raises(UsageError, match=f"the device '{device}' cannot be used here"):
            load_model(TINY, weights=None, device=device)


@pytest.mark.parametrize(
    ("cuda", "mps", "chosen"),
    [(True, True, "cuda"), (False, True, "mps"), (False, False, "cpu")],
)
def test_auto_takes_a_gpu_where_there_is_one(
    cuda: bool, mps: bool, chosen: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)
    moved: list[torch.device] = []
    monkeypatch.setattr(Classifier, "to", lambda model, device: moved.append(device) or model)
    load_model(TINY, weights=None, device="auto")
    assert moved == [torch.device(chosen)]


def test_the_façade_gives_the_same() -> None:
    import afmi

    assert afmi.load_model is load_model
    assert afmi.Classifier is Classifier
