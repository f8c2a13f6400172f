"""transformers' image classifiers: from folders and types, prepared as their processors do."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import timm
import torch
import transformers
from networks import images
from PIL import Image
from torch import nn

from afmi.errors import MissingPackageError, ModelError
from afmi.methods import AFMI
from afmi.models import describe_models, load_model
from afmi.network.classifier import Classifier
from afmi.network.image_processors import at_size, preprocessing_of
from afmi.network.in_hand import BlueFirst

SMALL = {
    "image_size": 32,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 24,
}
BIRDS = {0: "wren", 1: "robin", 2: "crow"}


@pytest.fixture(autouse=True)
def _no_bars() -> None:
    transformers.utils.logging.disable_progress_bar()


def saved(folder: Path, processor: Any = None, **options: Any) -> nn.Module:
    """Save a small ViT with its processor into a folder, and return it."""
    config = transformers.ViTConfig(**{**SMALL, "id2label": BIRDS, **options})
    network = transformers.ViTForImageClassification(config).eval()
    network.save_pretrained(folder)
    if processor is not None:
        processor.save_pretrained(folder)
    return network


# --- preparation ----------------------------------------------------------------------------

PROCESSORS = [
    ("ViT", {}),
    ("ViT", {"size": {"height": 64, "width": 96}, "resample": 3}),
    ("ViT", {"do_rescale": False, "image_mean": [127.5] * 3, "image_std": [127.5] * 3}),
    ("ViT", {"do_normalize": False}),
    ("ConvNext", {"size": {"shortest_edge": 224}, "crop_pct": 0.875}),
    ("ConvNext", {"size": {"shortest_edge": 384}}),
    ("Bit", {}),
    ("Beit", {"do_center_crop": True}),
    ("DeiT", {}),
    ("Levit", {}),
    ("PoolFormer", {"crop_pct": 0.95}),
    ("EfficientNet", {}),
    ("EfficientNet", {"rescale_offset": True, "rescale_factor": 1 / 127.5, "include_top": False}),
    ("MobileNetV1", {}),
    ("MobileNetV2", {}),
    ("MobileViT", {"size": {"shortest_edge": 288}}),
    ("Pvt", {}),
    ("Segformer", {}),
]


@pytest.mark.parametrize(("family", "options"), PROCESSORS)
def test_pictures_are_prepared_as_the_processor_does(
    family: str, options: dict[str, Any], photograph: Image.Image
) -> None:
    kind: Any = getattr(transformers, f"{family}ImageProcessorPil")
    processor = kind(**options)
    settings = processor.to_dict()
    preprocessing = preprocessing_of(kind.__name__, settings)
    assert not preprocessing.unknown
    model = Classifier(
        nn.Identity(),
        mean=preprocessing.mean,
        std=preprocessing.std,
        resize=preprocessing.resize,
        crop=preprocessing.crop,
        interpolation=preprocessing.interpolation,
    )
    ours = ((model.prepare(photograph) - model.mean) / model.std)[0]
    ours = ours.flip(0) if settings.get("do_flip_channel_order") else ours
    theirs = torch.as_tensor(processor(photograph, return_tensors="np")["pixel_values"][0])
    assert ours.shape == theirs.shape
    # Where an odd number of pixels is cut away, the crop may lie one to the side.
    theirs = theirs.to(ours)
    moved = [theirs.roll(shift, axis) for axis in (1, 2) for shift in (-1, 0, 1)]
    inner = (slice(None), slice(1, -1), slice(1, -1))
    spread = float(theirs.max() - theirs.min())
    assert min(float((ours[inner] - m[inner]).abs().max()) for m in moved) < 0.01 * spread


def test_sizes_that_cannot_be_had_are_named() -> None:
    settings = {"do_resize": True, "size": {"longest_edge": 200}}
    preprocessing = preprocessing_of("OtherImageProcessor", settings)
    assert preprocessing.unknown == ("resize", "crop")
    assert "'longest_edge': 200" in preprocessing.why
    assert at_size(preprocessing, 64).unknown == ("resize", "crop")


def test_a_folder_brings_its_preparation_and_labels(
    tmp_path: Path, photograph: Image.Image
) -> None:
    processor = transformers.ViTImageProcessor(
        size={"height": 32, "width": 32}, image_mean=[0.4] * 3, image_std=[0.2] * 3, resample=3
    )
    network = saved(tmp_path / "birds", processor)
    model = load_model(f"hf:{tmp_path}/birds")
    assert (model.name, model.labels) == ("hf:birds", ("wren", "robin", "crow"))
    assert (model.resize, model.crop) == ((32, 32), None)
    assert not any(module.training for module in model.modules())
    x = model.prepare(photograph)
    theirs = processor(photograph, return_tensors="pt")
    # torchvision's resampling, which the processor uses, rounds other than Pillow's.
    torch.testing.assert_close(
        (x - model.mean) / model.std, theirs["pixel_values"], atol=0.06, rtol=0
    )
    torch.testing.assert_close(model(x), network((x - 0.4) / 0.2).logits)
    larger = load_model(f"hf:{tmp_path}/birds", weights=None, image_size=64)
    assert (larger.crop, larger.resize) == (64, (64, 64))
    assert load_model(f"hf:{tmp_path}/birds", weights=None, crop=16).crop == 16


def test_without_a_processor_the_types_own_is_taken(tmp_path: Path) -> None:
    saved(tmp_path)
    model = load_model(f"hf:{tmp_path}")
    assert (model.resize, model.crop) == ((32, 32), 32)
    assert model.mean.flatten().tolist() == [0.5] * 3
    assert model.interpolation is Image.Resampling.BILINEAR


def test_blue_comes_first_where_the_processor_says_so() -> None:
    torch.manual_seed(0)
    model = load_model("hf:mobilevit", weights=None, image_size=64, num_labels=4)
    assert isinstance(model.network, BlueFirst)
    x = images(2, 64)
    torch.testing.assert_close(model(x), model.network.network(x.flip(1)).logits)
    assert AFMI(model).attribute(x, target=1).shape == (2, 1, 64, 64)


# --- weights --------------------------------------------------------------------------------


def test_weights_of_a_file_and_its_number_of_classes(tmp_path: Path) -> None:
    network = saved(tmp_path / "birds")
    file = tmp_path / "birds" / "model.safetensors"
    x = images(1, 32)
    by_type = load_model("hf:vit", weights=file, **SMALL)
    torch.testing.assert_close(by_type.network(x).logits, network(x).logits)
    assert (by_type.name, by_type.labels) == ("hf:vit", ())
    torch.save(network.state_dict(), tmp_path / "names_of_today.pth")
    today = load_model(f"hf:{tmp_path}/birds", weights=tmp_path / "names_of_today.pth")
    torch.testing.assert_close(today.network(x).logits, network(x).logits)
    assert today.labels == tuple(BIRDS.values())
    five = saved(tmp_path / "five", id2label={i: f"LABEL_{i}" for i in range(5)})
    other = load_model(f"hf:{tmp_path}/birds", weights=tmp_path / "five" / "model.safetensors")
    torch.testing.assert_close(other.network(x).logits, five(x).logits)
    assert other.labels == ()
    with pytest.raises(ModelError, match="is for 3 classes, but the network has 4"):
        load_model("hf:vit", weights=file, num_labels=4, **SMALL)
    with pytest.raises(ModelError, match=r"does not fit the network ViT.*missing \(vit\.layers\.2"):
        load_model("hf:vit", weights=file, **{**SMALL, "num_hidden_layers": 3})


def test_names_that_files_have_and_networks_have_not(tmp_path: Path) -> None:
    options = {"image_size": 32, "embed_dim": 8, "depths": [1, 1], "num_heads": [2, 2],
               "window_size": 4, "num_labels": 3}  # fmt: skip
    network = transformers.SwinForImageClassification(transformers.SwinConfig(**options)).eval()
    network.save_pretrained(tmp_path)
    model = load_model("hf:swin", weights=tmp_path / "model.safetensors", **options)
    torch.testing.assert_close(model.network(images(1, 32)).logits, network(images(1, 32)).logits)


def test_random_weights_of_a_type() -> None:
    torch.manual_seed(0)
    model = load_model("hf:vit", weights=None, num_labels=3, **SMALL)
    torch.manual_seed(0)
    again = load_model("hf:vit", weights=None, num_labels=3, **SMALL)
    assert torch.equal(model(images(1, 32)), again(images(1, 32)))
    assert (model.name, model.labels, model.crop) == ("hf:vit", (), 32)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_attention_of_either_kind_is_explained(attention: str) -> None:
    model = load_model("hf:vit", weights=None, attn_implementation=attention, **SMALL)
    assert model.network.config._attn_implementation == attention
    assert AFMI(model, averaged=False).attribute(images(1, 32), target=1).shape == (1, 1, 32, 32)


def test_a_network_with_two_heads(tmp_path: Path) -> None:
    config = transformers.DeiTConfig(**SMALL, num_labels=3)
    network = transformers.DeiTForImageClassificationWithTeacher(config).eval()
    network.save_pretrained(tmp_path)
    model = load_model(f"hf:{tmp_path}")
    x = images(1, 32)
    torch.testing.assert_close(model.network(x).logits, network(x).logits)
    assert model(x).shape == (1, 3)


def test_networks_of_timms_come_with_timms_preparation(tmp_path: Path) -> None:
    pretrained = timm.get_pretrained_cfg("resnet10t.c3_in1k")
    assert pretrained is not None
    config = transformers.TimmWrapperConfig(
        architecture="resnet10t", pretrained_cfg=pretrained.to_dict(), num_labels=3
    )
    network = transformers.TimmWrapperForImageClassification(config).eval()
    network.save_pretrained(tmp_path)
    model = load_model(f"hf:{tmp_path}")
    assert (model.resize, model.crop, model.interpolation) == (201, 176, Image.Resampling.BICUBIC)
    torch.testing.assert_close(model.network(images(1, 64)).logits, network(images(1, 64)).logits)


def test_a_layer_by_name() -> None:
    model = load_model("hf:vit", weights=None, layer="vit.layers.0", **SMALL)
    assert model.layer == "vit.layers.0"


def test_half_precision_is_made_single(tmp_path: Path) -> None:
    saved(tmp_path).half().save_pretrained(tmp_path)
    assert next(load_model(f"hf:{tmp_path}").parameters()).dtype == torch.float32
    half = load_model(f"hf:{tmp_path}", dtype=torch.bfloat16)
    assert next(half.parameters()).dtype == torch.bfloat16


# --- errors ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("vitt", "there is no folder 'vitt', .* did you mean 'vit'"),
        ("", "there is no folder ''"),
        ("no/such/folder", "there is no folder 'no/such/folder'"),
        ("./folder", "expected hf: and a folder, a repository owner/name"),
        ("bert", "no type of image classifier is called so"),
    ],
)
def test_unknown_names(name: str, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        load_model(f"hf:{name}", weights=None)


def test_a_type_has_no_weights_of_its_own() -> None:
    with pytest.raises(ModelError, match="is a type of network and has no weights"):
        load_model("hf:vit")


def test_options_that_no_configuration_has(tmp_path: Path) -> None:
    saved(tmp_path)
    for name in ("vit", tmp_path):
        with pytest.raises(ModelError, match="has no 'image_sise'; did you mean 'image_size'"):
            load_model(f"hf:{name}", weights=None, image_sise=32)
    with pytest.raises(ModelError, match=r"is for 3 classes, but the network has 4"):
        load_model(f"hf:{tmp_path}", num_labels=4)


def test_folders_that_hold_no_classifier(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(ModelError, match="building hf:empty"):
        load_model(f"hf:{tmp_path}/empty")
    saved(tmp_path / "lacking")
    (tmp_path / "lacking" / "model.safetensors").unlink()
    with pytest.raises(ModelError, match="the weights of hf:lacking cannot be read"):
        load_model(f"hf:{tmp_path}/lacking")
    transformers.ViTModel(transformers.ViTConfig(**SMALL)).save_pretrained(tmp_path / "headless")
    with pytest.raises(ModelError, match=r"missing \(classifier\.bias, classifier\.weight\)"):
        load_model(f"hf:{tmp_path}/headless")
    config = {"model_type": "bert", "hidden_size": 8}
    (tmp_path / "empty" / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError, match="type 'bert', of which transformers has no image"):
        load_model(f"hf:{tmp_path}/empty")


def test_code_of_a_model_is_never_run(tmp_path: Path) -> None:
    saved(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config |= {"model_type": "own", "auto_map": {"AutoConfig": "own.OwnConfig"}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    trace = tmp_path / "executed"
    (tmp_path / "own.py").write_text(f"open({str(trace)!r}, 'w')\nclass OwnConfig: pass\n")
    with pytest.raises(ModelError):
        load_model(f"hf:{tmp_path}")
    assert not trace.exists()


@pytest.mark.parametrize("weights", ["default", None])
def test_without_a_network(weights: str | None) -> None:
    with pytest.raises(ModelError) as caught:
        load_model("hf:microsoft/resnet-18", weights=weights)
    text = str(caught.value)
    assert "cannot be downloaded (Name or service not known)" in text
    assert "hf:path/to/folder" in text and "\n" not in text


@pytest.mark.parametrize("processor", [True, False])
def test_without_a_network_the_cache_serves(
    processor: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    repository = tmp_path / "hub" / "models--someone--birds"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text("c0ffee")
    small = transformers.ViTImageProcessor(size={"height": 32, "width": 32})
    network = saved(repository / "snapshots" / "c0ffee", small if processor else None)
    monkeypatch.setattr(transformers.utils.hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    asked = {} if processor else {"mean": [0.5] * 3, "std": [0.5] * 3, "resize": 32, "crop": 32}
    model = load_model("hf:someone/birds", **asked)
    assert (model.name, model.labels) == ("hf:someone/birds", tuple(BIRDS.values()))
    torch.testing.assert_close(model.network(images(1, 32)).logits, network(images(1, 32)).logits)
    assert not huggingface_hub.constants.HF_HUB_OFFLINE
    if not processor:
        with pytest.raises(
            ModelError, match=r"the preprocessing of hf:someone/birds .*; pass mean=, std="
        ):
            load_model("hf:someone/birds")


def test_repositories_that_are_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    class NotFound(huggingface_hub.errors.RepositoryNotFoundError):
        def __init__(self) -> None:
            Exception.__init__(self, "404")

    def model_info(*_: object, **__: object) -> None:
        raise NotFound

    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", model_info)
    with pytest.raises(ModelError, match="no repository 'microsoft/resnet-19', or it is private"):
        load_model("hf:microsoft/resnet-19")


def test_without_transformers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(MissingPackageError, match=r"pip install 'afmi\[transformers\]'"):
        load_model("hf:vit", weights=None)


def test_nothing_is_written_and_bars_come_back(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    saved(tmp_path)
    transformers.utils.logging.enable_progress_bar()
    capfd.readouterr()
    load_model(f"hf:{tmp_path}")
    load_model("hf:vit", weights=None, **SMALL)
    assert capfd.readouterr() == ("", "")
    assert transformers.utils.logging.is_progress_bar_enabled()


def test_the_list_names_types() -> None:
    names = [entry.name for entry in describe_models("hf")]
    assert {"hf:vit", "hf:resnet", "hf:mobilevit"} < {*names}
    assert "hf:bert" not in names
