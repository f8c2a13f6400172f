"""A network in hand is prepared as its library prepares pictures for it, or an error asks how."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torchvision
from networks import build, images
from PIL import Image
from skimage.data import chelsea
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel
from torch.testing import assert_close

import afmi
from afmi.errors import ModelError
from afmi.network.classifier import Classifier
from afmi.network.in_hand import BlueFirst

timm: Any = pytest.importorskip("timm")
transformers: Any = pytest.importorskip("transformers")

IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


@pytest.fixture(scope="module")
def photograph() -> Image.Image:
    """A cat, 451 pixels wide and 300 high."""
    return Image.fromarray(chelsea())


def normalised(model: Classifier, picture: Image.Image) -> Tensor:
    """Return what the network within sees of a picture."""
    return (model.prepare(picture) - model.mean) / model.std


def vit(**options: Any) -> Any:
    torch.manual_seed(0)
    small = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = transformers.ViTConfig(
        image_size=32, patch_size=8, intermediate_size=16, **small, **options
    )
    return transformers.ViTForImageClassification(config).eval()


def vit_processor(**options: Any) -> Any:
    # The one of Pillow, where there are two.
    kind = getattr(transformers, "ViTImageProcessorPil", transformers.ViTImageProcessor)
    return kind(size={"height": 32, "width": 32}, **options)


class TestOfTimm:
    """Networks with a ``pretrained_cfg``."""

    @pytest.mark.parametrize("name", ["resnet10t", "test_vit", "tf_efficientnet_lite0"])
    def test_what_timm_s_own_evaluation_does(self, name: str, photograph: Image.Image) -> None:
        network = timm.create_model(name, pretrained=False).eval()
        model = Classifier.of(network)
        config = timm.data.resolve_data_config({}, model=network)
        expected = timm.data.create_transform(**config)(photograph)[None]
        assert normalised(model, photograph).shape == expected.shape
        assert (normalised(model, photograph) - expected).abs().mean() < 0.03
        assert model.network is network and model.name == name
        assert len(model.labels) == 1000 and model.labels[285] == "Egyptian cat"

    def test_it_is_what_load_model_gives(self) -> None:
        loaded = afmi.load_model("timm:resnet10t", weights=None)
        model = Classifier.of(loaded.network)
        for key in ("labels", "resize", "crop", "interpolation"):
            assert getattr(model, key) == getattr(loaded, key)
        assert_close(model.mean, loaded.mean)
        assert_close(model.std, loaded.std)

    def test_the_size_is_the_one_that_the_network_was_built_for(self) -> None:
        network = timm.create_model("vit_tiny_patch16_224", img_size=64, pretrained=False)
        assert Classifier.of(network).crop == 64

    def test_other_classes_have_no_labels_and_other_channels_no_mean(self) -> None:
        network = timm.create_model("resnet10t", num_classes=3, pretrained=False)
        assert Classifier.of(network).labels == ()
        assert Classifier.of(network, labels=["a", "b", "c"]).labels == ("a", "b", "c")
        with pytest.raises(ModelError, match="has 3 classes, but got 2 labels"):
            Classifier.of(network, labels=["a", "b"])
        grey = timm.create_model("resnet10t", in_chans=1, pretrained=False)
        with pytest.raises(ModelError, match=r"takes 1 channels, .* pass mean=, std="):
            Classifier.of(grey)
        assert Classifier.of(grey, mean=[0.4], std=[0.2]).mean.shape == (1, 1, 1)

    def test_what_is_given_goes_before_what_was_found(self) -> None:
        network = timm.create_model("resnet10t", pretrained=False)
        model = Classifier.of(
            network, mean=[0.1] * 3, resize=None, crop=50, layer="layer3", name="mine"
        )
        assert model.mean.flatten().tolist() == pytest.approx([0.1] * 3)
        assert model.std.flatten().tolist() == pytest.approx(IMAGENET[1])
        assert (model.resize, model.crop, model.layer, model.name) == (None, 50, "layer3", "mine")

    def test_wrappers_are_looked_through_and_averages_kept(self) -> None:
        network = timm.create_model("resnet10t", pretrained=False).eval()
        averaged = AveragedModel(network)
        with torch.no_grad():
            network.fc.bias.add_(5)
        model = Classifier.of(nn.DataParallel(averaged))
        assert model.crop == 176 and model.network is averaged.module
        compiled = torch.compile(network, backend="eager")
        assert Classifier.of(compiled).network is compiled
        assert Classifier.of(compiled).labels == Classifier.of(network).labels


class TestOfTransformers:
    """Networks with an image processor, and pipelines."""

    def test_a_processor_says_how(self, photograph: Image.Image) -> None:
        network = vit(id2label={0: "cat", 1: "dog", 2: "owl"})
        processor = vit_processor(image_mean=[0.2, 0.3, 0.4], image_std=[0.6, 0.7, 0.8])
        model = Classifier.of(network, processor=processor)
        assert model.labels == ("cat", "dog", "owl")
        expected = processor(photograph, return_tensors="pt")["pixel_values"]
        assert (normalised(model, photograph) - expected).abs().max() < 0.03
        assert afmi.explain(model, photograph, "owl", method="gradient").label == "owl"

    def test_the_processor_in_the_folder_that_it_was_loaded_from(self, tmp_path: Path) -> None:
        vit(id2label={0: "cat", 1: "dog"}).save_pretrained(tmp_path / "mine")
        loaded = transformers.ViTForImageClassification.from_pretrained(tmp_path / "mine")
        with pytest.raises(ModelError, match=r"mine has no image processor in .*processor="):
            Classifier.of(loaded)
        vit_processor(image_mean=[0.2, 0.3, 0.4]).save_pretrained(tmp_path / "mine")
        model = Classifier.of(loaded)
        assert model.mean.flatten().tolist() == pytest.approx([0.2, 0.3, 0.4])
        assert model.name == "mine" and model.labels == ("cat", "dog")

    def test_a_pipeline_has_both(self, photograph: Image.Image) -> None:
        pipeline = transformers.pipeline(
            "image-classification",
            model=vit(id2label={0: "cat", 1: "dog", 2: "owl"}),
            image_processor=vit_processor(image_mean=[0.2, 0.3, 0.4]),
        )
        model = Classifier.of(pipeline)
        answers = {answer["label"]: answer["score"] for answer in pipeline(photograph)}
        for label, score in answers.items():
            explanation = afmi.explain(model, photograph, label, method="random")
            assert explanation.probability == pytest.approx(score, abs=2e-3)
        pipeline.task = "image-to-text"
        with pytest.raises(ModelError, match="got one for 'image-to-text'"):
            Classifier.of(pipeline)

    def test_one_without_a_processor_asks_for_it(self) -> None:
        with pytest.raises(ModelError, match=r"made without an image processor.* processor="):
            Classifier.of(vit())
        every = {"mean": [0.5] * 3, "std": [0.5] * 3, "resize": None, "crop": 32}
        assert Classifier.of(vit(), **every).crop == 32
        with pytest.raises(ModelError, match=r"expected an image processor .* got int"):
            Classifier.of(vit(), processor=3)

    def test_one_whose_name_is_on_the_hub_is_not_asked_for_there(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        network = vit()
        network.config._name_or_path = "nobody/nothing-of-this-name"
        network.name_or_path = "nobody/nothing-of-this-name"

        def reached(*_: object, **__: object) -> None:
            raise AssertionError("the Hub was asked")

        monkeypatch.setattr("huggingface_hub.file_download.http_get", reached)
        monkeypatch.setattr("huggingface_hub.HfApi.model_info", reached)
        with pytest.raises(ModelError, match="nothing-of-this-name has no image processor"):
            Classifier.of(network)

    def test_labels_that_hold_each_by_itself_have_sigmoids(self) -> None:
        several = vit(problem_type="multi_label_classification")
        assert Classifier.of(several, processor=vit_processor()).output == "sigmoid"
        assert Classifier.of(vit(), processor=vit_processor()).output is None
        given = Classifier.of(
            several, processor=vit_processor(), output="value", output_key="logits"
        )
        assert (given.output, given.output_key) == ("value", "logits")
        kept = Classifier.of(given, crop=8)
        assert (kept.output, kept.output_key, kept.crop) == ("value", "logits", 8)

    def test_blue_comes_first_where_the_processor_says_so(self) -> None:
        class Flipping:
            def to_dict(self) -> dict[str, Any]:
                return {
                    "do_flip_channel_order": True,
                    "do_rescale": True,
                    "rescale_factor": 1 / 255,
                }

        network = vit()
        model = Classifier.of(network, processor=Flipping())
        assert isinstance(model.network, BlueFirst)
        x = images(1, size=32)
        assert_close(model(x), network(x.flip(1)).logits)

    def test_a_processor_of_images_and_text(self) -> None:
        both = SimpleNamespace(image_processor=vit_processor(image_mean=[0.2, 0.3, 0.4]))
        model = Classifier.of(vit(), processor=both)
        assert model.mean.flatten().tolist() == pytest.approx([0.2, 0.3, 0.4])


class TestOfTorchvision:
    """Networks whose weights' entry is named."""

    @pytest.mark.parametrize("named", [False, True])
    def test_the_weights_say_how(self, named: bool, photograph: Image.Image) -> None:
        entry = torchvision.models.ResNet18_Weights.IMAGENET1K_V1
        network = torchvision.models.resnet18(weights=None)
        model = Classifier.of(network, weights=str(entry) if named else entry)
        expected = entry.transforms()(photograph)[None]
        assert (normalised(model, photograph) - expected).abs().mean() < 0.03
        assert model.labels == tuple(entry.meta["categories"]) and model.name == "resnet18"

    def test_other_classes_have_no_labels(self) -> None:
        network = torchvision.models.squeezenet1_1(num_classes=4)
        model = Classifier.of(network, weights="SqueezeNet1_1_Weights.DEFAULT")
        assert model.labels == () and model.crop == 224

    def test_segmentation_and_detection(self) -> None:
        models = torchvision.models
        segments = models.segmentation.lraspp_mobilenet_v3_large(
            weights=None, weights_backbone=None
        )
        entry: Any = models.segmentation.LRASPP_MobileNet_V3_Large_Weights.DEFAULT
        model = Classifier.of(segments, weights=entry)
        assert (model.resize, model.crop, len(model.labels)) == (520, None, 21)
        assert model.mean.flatten().tolist() == pytest.approx(IMAGENET[0])
        detects = models.detection.ssdlite320_mobilenet_v3_large(
            weights=None, weights_backbone=None
        )
        entry = models.detection.SSDLite320_MobileNet_V3_Large_Weights.DEFAULT
        model = Classifier.of(detects, weights=entry)
        assert (model.resize, len(model.labels)) == (None, 91)
        assert model.mean.abs().max() == 0  # it normalises inside

    @pytest.mark.parametrize("weights", ["IMAGENET1K_V1", "best", 3, nn.Identity()])
    def test_other_weights_are_refused(self, weights: Any) -> None:
        network = torchvision.models.squeezenet1_1(weights=None)
        with pytest.raises(ModelError, match=r"such as ResNet50_Weights.IMAGENET1K_V2"):
            Classifier.of(network, weights=weights)

    def test_without_weights_it_asks_for_them(self) -> None:
        network = torchvision.models.squeezenet1_1(weights=None)
        with pytest.raises(ModelError, match=r"pass weights=.* mean=, std=, resize=, crop="):
            Classifier.of(network)


class LightningModule(nn.Module):
    """As Lightning's, which is known by its name and its module's."""

    def __init__(self, *children: nn.Module) -> None:
        super().__init__()
        self.parts = nn.ModuleList()
        for index, child in enumerate(children):
            self.add_module(f"part_{index}", child)
        self.hparams = {"mean": 127, "labels": ["none"]}

    @property
    def trainer(self) -> object:
        raise RuntimeError("not attached to a trainer")

    def forward(self, x: Tensor) -> Tensor:
        return self.part_0(x)  # type: ignore[operator]


LightningModule.__module__ = "lightning.pytorch.core.module"


class TestOfOthers:
    """Lightning's, MONAI's, the user's own."""

    def test_a_lightning_module_is_prepared_as_the_network_inside(self) -> None:
        network = timm.create_model("resnet10t", num_classes=2, pretrained=False).eval()
        module = LightningModule(network, nn.CrossEntropyLoss()).eval()
        model = Classifier.of(module)
        assert model.network is module and model.crop == 176 and model.labels == ()
        x = images(1, size=32)
        assert_close(model(x), network((x - model.mean) / model.std))
        with pytest.raises(ModelError, match="the preprocessing of LightningModule is not known"):
            Classifier.of(LightningModule(build("vgg"), build("vgg")))
        with pytest.raises(ModelError, match="of LightningModule is not known"):
            Classifier.of(LightningModule(network, network.layer1, vit()))

    def test_any_other_network_asks_for_mean_and_deviation(self) -> None:
        network = build("vgg")
        with pytest.raises(
            ModelError, match=r"preprocessing of TinyVGG is not known.* mean=, std="
        ):
            Classifier.of(network)
        model = Classifier.of(network, mean=[0] * 3, std=[1] * 3, labels=list("abcde"))
        assert model.network is network and model.name == "TinyVGG" and len(model.labels) == 5

    def test_a_classifier_keeps_what_it_has(self) -> None:
        model = Classifier(build("vgg"), mean=IMAGENET[0], std=IMAGENET[1], crop=20, name="own")
        assert Classifier.of(model) is model
        other = Classifier.of(nn.DataParallel(model), labels=list("abcde"), layer="features.0")
        assert (other.crop, other.name, other.layer) == (20, "own", "features.0")
        assert_close(other.mean, model.mean)
        assert other.labels == tuple("abcde") and other.network is model.network

    @pytest.mark.parametrize("model", ["resnet18", torch.relu, np.zeros(3), None])
    def test_what_is_no_network_is_refused(self, model: Any) -> None:
        with pytest.raises(ModelError, match="expected a network, or a pipeline"):
            Classifier.of(model)

    def test_an_unknown_setting_is_an_error(self) -> None:
        with pytest.raises(TypeError, match="colour"):
            Classifier.of(build("vgg"), mean=[0] * 3, std=[1] * 3, colour=True)

    def test_no_library_is_imported_for_it_or_needed_for_other_networks(self) -> None:
        import subprocess

        code = (
            "import sys, torch, afmi\n"
            "model = afmi.Classifier.of(torch.nn.Flatten(), mean=[0] * 3, std=[1] * 3)\n"
            "assert not {'timm', 'transformers', 'torchvision.models'} & {*sys.modules}\n"
            "sys.modules['timm'] = sys.modules['transformers'] = None\n"
            "print(afmi.load_model('photos').name)\n"
        )
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
        assert (done.stdout, done.stderr) == ("photos\n", "")


@pytest.mark.parametrize(
    ("mean", "std"),
    [
        ((123.675, 116.28, 103.53), (58.395, 57.12, 57.375)),
        ((123.68, 116.779, 103.939), (1, 1, 1)),
        ((0, 0, 0), (255, 255, 255)),
        ((127.5,), (127.5,)),
        ((-1, 0, 0), (3, 1, 1)),
    ],
)
def test_numbers_for_pixels_up_to_255_are_noticed(mean: Any, std: Any) -> None:
    with pytest.raises(ModelError, match=r"pixels from 0 to 255; divide both by 255"):
        Classifier(nn.Flatten(), mean=mean, std=std)
    divided = [[number / 255 for number in numbers] for numbers in (mean, std)]
    Classifier(nn.Flatten(), mean=divided[0], std=divided[1])
