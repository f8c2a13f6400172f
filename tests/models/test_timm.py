"""timm's networks: named, prepared, labelled and loaded as by timm; nothing is downloaded."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from networks import images
from PIL import Image
from safetensors.torch import save_file
from timm.data import create_transform, resolve_data_config
from torch import nn

from afmi.errors import MissingPackageError, ModelError
from afmi.models import describe_models, load_model
from afmi.network.classifier import Classifier, find_class
from afmi.network.in_hand import of_timm_config

RESNET = "timm:resnet10t"  # the smallest that has the classes of ImageNet
VIT = "timm:vit_tiny_patch16_224"

CONFIGURATIONS = [
    "resnet18.a1_in1k",
    "vit_tiny_patch16_224.augreg_in21k",
    "mobilenetv3_small_050.lamb_in1k",
    "efficientnet_b0.ra_in1k",
    "tf_efficientnet_b0.ns_jft_in1k",
    "inception_v3.tv_in1k",
    "coat_lite_medium_384.in1k",
    "convnext_nano.in12k_ft_in1k",
    "swin_tiny_patch4_window7_224.ms_in1k",
    "edgenext_small.usi_in1k",
    "vit_small_patch16_384.augreg_in1k",
    "levit_128s.fb_dist_in1k",
]


@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_pictures_are_prepared_as_timm_does(name: str, photograph: Image.Image) -> None:
    config = timm.get_pretrained_cfg(name)
    assert config is not None
    data_config = resolve_data_config(pretrained_cfg=config.to_dict())
    preprocessing = of_timm_config(data_config)
    assert not preprocessing.unknown
    model = Classifier(
        nn.Identity(),
        mean=preprocessing.mean,
        std=preprocessing.std,
        resize=preprocessing.resize,
        crop=preprocessing.crop,
        interpolation=preprocessing.interpolation,
    )
    ours = (model.prepare(photograph) - model.mean) / model.std
    theirs: Any = create_transform(**data_config, is_training=False)
    torch.testing.assert_close(ours[0], theirs(photograph), atol=1e-5, rtol=0)


def test_a_network_with_random_weights() -> None:
    model = load_model(f"{RESNET}.c3_in1k", weights=None)
    assert (model.name, model.resize, model.crop) == (f"{RESNET}.c3_in1k", 201, 176)
    assert model.interpolation is Image.Resampling.BICUBIC
    assert not any(module.training for module in model.modules())
    assert model(images(1, 64)).shape == (1, 1000)
    assert model.labels == load_model("squeezenet1_1", weights=None).labels
    assert model.labels[find_class(model, "collie")] == "collie"
    torch.manual_seed(0)
    first = load_model(RESNET.upper().replace("TIMM", "timm"), weights=None)
    torch.manual_seed(0)
    again = load_model(RESNET, weights=None)
    assert first.name == again.name == RESNET
    assert torch.equal(first(images(1, 64)), again(images(1, 64)))


def test_options_reach_timm_and_the_preparation() -> None:
    model = load_model(VIT, weights=None, img_size=32, depth=1, num_classes=3)
    assert (model.crop, model.resize, model.labels) == (32, 35, ())
    assert model(images(1, 32)).shape == (1, 3)
    assert load_model(VIT, weights=None, img_size=32, depth=1, crop=30).crop == 30
    with pytest.raises(ModelError, match="unexpected keyword argument 'dept'"):
        load_model(VIT, weights=None, dept=1)
    with pytest.raises(ModelError, match=r"crop mode 'center' to 32 x 48\); pass resize=, crop="):
        load_model(VIT, weights=None, img_size=(32, 48), depth=1)
    wide = load_model(VIT, weights=None, img_size=(32, 48), depth=1, resize=(36, 54), crop=(32, 48))
    assert wide(images(1, 48)[..., :32, :]).shape == (1, 1000)


@pytest.mark.parametrize(
    ("tag", "classes", "label"),
    [
        ("augreg_in21k", 21843, "organism, being"),
        ("augreg_in21k_ft_in1k", 1000, "tench"),
    ],
)
def test_labels_are_those_of_the_weights(tag: str, classes: int, label: str) -> None:
    model = load_model(f"{VIT}.{tag}", weights=None, img_size=32, depth=1)
    assert (len(model.labels), model.labels[0]) == (classes, label)


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_weights_of_a_file(suffix: str, tmp_path: Path) -> None:
    file = tmp_path / f"weights{suffix}"
    seven = timm.create_model("resnet10t", num_classes=7).eval()
    save = save_file if suffix == ".safetensors" else torch.save
    save(seven.state_dict(), file)
    model = load_model(RESNET, weights=file)
    assert model.labels == ()
    x = images(1, 64)
    assert torch.allclose(model.network(x), seven(x))
    assert load_model(RESNET, weights=file, labels=[*"abcdefg"]).labels == tuple("abcdefg")
    with pytest.raises(ModelError, match="is for 7 classes, but the network has 9"):
        load_model(RESNET, weights=file, num_classes=9)
    with pytest.raises(ModelError, match="has 7 classes, but got 2 labels"):
        load_model(RESNET, weights=file, labels=["a", "b"])
    with pytest.raises(ModelError, match="does not fit the network VisionTransformer"):
        load_model(VIT, weights=file, img_size=32, depth=1)


def test_two_heads_follow_the_file(tmp_path: Path) -> None:
    name, options = "deit_tiny_distilled_patch16_224", {"img_size": 32, "depth": 1}
    five = timm.create_model(name, num_classes=5, **options).eval()
    torch.save({"state_dict": five.state_dict()}, tmp_path / "five.pth")
    model = load_model(f"timm:{name}", weights=tmp_path / "five.pth", **options)
    assert torch.allclose(model.network(images(1, 32)), five(images(1, 32)))


def test_networks_without_classes_are_refused() -> None:
    name, options = "timm:vit_small_patch14_dinov2", {"img_size": 28, "depth": 1}
    with pytest.raises(ModelError, match=r"has no classes; .* pass num_classes="):
        load_model(name, weights=None, **options)
    assert load_model(name, weights=None, num_classes=2, **options)(images(1, 28)).shape == (1, 2)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("resnet19", "timm has no model called 'resnet19'; did you mean 'resnet18'"),
        ("resnet18.a1_in2k", "did you mean 'resnet18.a1_in1k'"),
        ("", "`afmi models timm:` lists them"),
        ("hf-hub:timm/resnet18", "timm has no model called"),
    ],
)
def test_unknown_names(name: str, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        load_model(f"timm:{name}", weights=None)


def test_weights_that_cannot_be_had(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ModelError) as caught:
        load_model(RESNET)
    text = str(caught.value)
    assert "the weights of timm:resnet10t cannot be downloaded (Name or service not known)" in text
    assert "weights= a local file, or weights=None" in text and "\n" not in text
    with pytest.raises(ModelError, match="timm has no weights for 'coatnet_0_224'"):
        load_model("timm:coatnet_0_224")
    with pytest.raises(ModelError, match="are for 1000 classes, not 3"):
        load_model(RESNET, num_classes=3)
    with pytest.raises(ModelError, match="cannot be read: No such file"):
        load_model(RESNET, weights="none.pth")


def test_weights_of_timm_are_used(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    torch.manual_seed(1)
    theirs = timm.create_model("resnet10t").eval()
    monkeypatch.setattr(timm.models._builder, "load_state_dict_from_hf",
                        lambda *_, **__: theirs.state_dict())  # fmt: skip
    x = images(1, 64)
    assert torch.allclose(load_model(RESNET).network(x), theirs(x))


def test_without_timm(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(MissingPackageError, match="pip install timm"):
        load_model(RESNET)


def test_nothing_is_written_to_the_terminal(capfd: pytest.CaptureFixture[str]) -> None:
    load_model(RESNET, weights=None)
    assert capfd.readouterr() == ("", "")


def test_the_list_names_weights_and_networks_without() -> None:
    entries = {entry.name: entry for entry in describe_models("timm")}
    resnet = entries["timm:resnet18.a1_in1k"]
    assert (resnet.input_size, resnet.weights_file) == (224, "timm/resnet18.a1_in1k")
    assert entries["timm:coatnet_0_224"].weights_file is None
    assert "timm:resnet18" not in entries
