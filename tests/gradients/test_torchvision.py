"""Summation to delta on unmodified torchvision networks, at the input and at the last stage.

Random weights, batch-norm statistics from real photographs. The errors are relative to the larger
of |Δy_c| and the largest |logit|: a deep random network may give image and reference nearly the
same logit, and then the difference has few digits, whoever computes it. In float64 the error
relative to |Δy_c| alone is held to a bound too.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torchvision
from completeness import errors, photographs, torchvision_classifier
from safetensors.torch import load_file

from afmi.network.classifier import Classifier
from afmi.pictures.references import Black, Image, Random, White

# The side of the pictures: as small as the network allows, to be quick.
SMALL = {
    "alexnet": 64,
    "convnext_tiny": 64,
    "densenet121": 64,
    "efficientnet_b0": 128,
    "googlenet": 64,
    "inception_v3": 128,
    "mnasnet1_0": 64,
    "mobilenet_v2": 64,
    "mobilenet_v3_large": 64,
    "regnet_y_400mf": 64,
    "resnet18": 64,
    "resnet50": 64,
    "shufflenet_v2_x1_0": 64,
    "squeezenet1_0": 64,
    "squeezenet1_1": 64,
    "swin_t": 64,
    "swin_v2_t": 64,
}
# Networks with random weights that are chaotic at small size against white or noise: there the
# logits themselves, in float32, have no right digit (Σ|m·Δin| is 10⁵ to 10⁸ logits), and
# another memory layout or processor gives another error. Float64 shows whether a rule is wrong.
CHAOTIC = {"efficientnet_b0": 5e-4, "regnet_y_400mf": 5e-4}
FULL = [
    *SMALL,
    "maxvit_t",
    "mobilenet_v3_small",
    "regnet_x_400mf",
    "resnet152",
    "resnext101_32x8d",
    "vgg16",
    "vgg19",
    "vgg19_bn",
    "vit_b_16",
    "wide_resnet50_2",
]


# What the default run combines: each reference, each precision, each place.
FEW = {
    *((torch.float64, "inputs", name) for name in ("black", "white", "random", "photograph")),
    *((torch.float64, None, "photograph"), (torch.float32, None, "white")),
    (torch.float32, "inputs", "black"),
}


def check(model: Classifier, size: int, float32: float = 1e-5, *, few: bool = False) -> None:
    model.requires_grad_(True)
    pictures = photographs(size)
    count = 2 if size >= 224 else 1
    references = {
        "black": Black(),
        "white": White(),
        "random": Random(),
        "photograph": Image(pictures[4]),
    }
    for dtype, bound in ((torch.float32, float32), (torch.float64, 1e-10)):
        model.to(dtype)
        for layer in ("inputs", None):
            for name, reference in references.items():
                if few and (dtype, layer, name) not in FEW:
                    continue
                error = errors(model, pictures[:count].to(dtype), reference, layer)
                print(f"{dtype} {layer or 'last stage'} {name}: {error}")  # noqa: T201
                assert error.of_logits <= bound, (dtype, layer, name, error)
                if dtype == torch.float64:
                    assert error.of_change <= bound, (dtype, layer, name, error)


# Built of the same operations as another one.
RELATIVES = {"mnasnet1_0", "mobilenet_v2", "resnet18", "squeezenet1_1"}


@pytest.mark.parametrize("name", sorted({*SMALL} - RELATIVES))
def test_sums_to_delta(name: str) -> None:
    model = torchvision_classifier(name, SMALL[name])
    check(model, SMALL[name], CHAOTIC.get(name, 1e-5), few=True)


@pytest.mark.slow
@pytest.mark.parametrize("name", SMALL)
def test_sums_to_delta_in_every_combination(name: str) -> None:
    check(torchvision_classifier(name, SMALL[name]), SMALL[name], CHAOTIC.get(name, 1e-5))


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("name", FULL)
def test_sums_to_delta_at_full_size(name: str) -> None:
    size = 299 if name == "inception_v3" else 224
    check(torchvision_classifier(name, size), size)


OTHERS = sorted(set(torchvision.models.list_models(module=torchvision.models)) - set(FULL))


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("name", OTHERS)
def test_every_other_network_sums_to_delta(name: str) -> None:
    transforms = torchvision.models.get_model_weights(name).DEFAULT.transforms()
    size = int(transforms.crop_size[0])
    model, picture = torchvision_classifier(name, size), photographs(size, 1)
    for layer in (None, "inputs"):
        error = errors(model, picture, Black(), layer)
        if error.of_logits > 1e-5:  # so deep that float32 leaves the logits few digits
            error = errors(model.double(), picture.double(), Black(), layer)
            model.float()
        assert error.of_logits <= 1e-5, layer


def test_sums_to_delta_with_trained_weights(squeezenet_weights: Path) -> None:
    network = torchvision.models.squeezenet1_0().eval()
    network.load_state_dict(load_file(squeezenet_weights))
    model = Classifier(network, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
    check(model, 128)
