"""Every method and reference on networks that take one channel, or four."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from settings import method
from torch import Tensor, nn
from torchvision.models import squeezenet1_0

from afmi.api import explain
from afmi.errors import LayerError, ShapeError
from afmi.methods import CATALOGUE
from afmi.network.classifier import Classifier
from afmi.pictures.references import REFERENCES, Mean, reference_of

pytestmark = pytest.mark.filterwarnings(
    "ignore::afmi.methods.BlankMapWarning", "ignore::afmi.errors.CompletenessWarning"
)

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)

# They take magnitudes of the channels, or draw numbers for each channel or from the
# image, so that one channel and three equal ones do not give one map.
_BY_CHANNEL = {
    *("DeconvNet", "Gradient", "GuidedBackprop", "SmoothGrad", "Random", "GradientSHAP"),
    *("FullGrad", "KernelSHAP", "LIME", "PredictionDifference", "XRAI"),
}


class Fires(nn.Module):
    """SqueezeNet in small, in double precision."""

    def __init__(self, first: nn.Conv2d) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(5)
        self.features = nn.Sequential(
            first, nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(8, 12, 3, padding=1), nn.ReLU()
        )
        self.head = nn.Sequential(nn.Conv2d(12, 6, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1))
        for convolution in (self.features[3], self.head[0]):
            weight: Any = convolution.weight
            drawn = torch.randn(weight.shape, generator=generator) / weight[0].numel() ** 0.5
            weight.data.copy_(drawn * 2)
            convolution.bias.data.zero_()  # type: ignore[union-attr]

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.features(x)).flatten(1)


def first_layer(channels: int, like: nn.Conv2d, *, mean: Any, std: Any) -> nn.Conv2d:
    """Return the layer behind its normalisation as one that takes pixels of other channels.

    One channel stands for three equal ones; a fourth one counts for nothing.
    """
    std = torch.tensor(std, dtype=like.weight.dtype).view(3, 1, 1)
    mean = torch.tensor(mean, dtype=like.weight.dtype).view(3, 1, 1)
    weight = like.weight.detach() / std
    assert like.bias is not None
    bias = like.bias.detach() - (weight * mean).sum((1, 2, 3))
    if channels == 1:
        weight = weight.sum(1, keepdim=True)
    elif channels == 4:
        weight = torch.cat([weight, torch.zeros_like(weight[:, :1])], 1)
    made = nn.Conv2d(channels, *weight.shape[:1], weight.shape[-1], like.stride, like.padding)
    made.weight.data, made.bias.data = weight, bias  # type: ignore[union-attr]
    return made


@pytest.fixture(scope="module")
def small() -> Callable[[int], Classifier]:
    generator = torch.Generator().manual_seed(1)
    like = nn.Conv2d(3, 8, 3, padding=1).double()
    like.weight.data.copy_(torch.randn(like.weight.shape, generator=generator) / 4)
    like.bias.data.zero_()  # type: ignore[union-attr]

    def build(channels: int) -> Classifier:
        first = first_layer(channels, like, mean=MEAN, std=STD)
        return Classifier(Fires(first).double().eval(), layer="features.4")

    return build


def picture(channels: int, side: int = 20) -> Tensor:
    drawn = torch.rand(1, channels, side, side, generator=torch.Generator().manual_seed(3))
    return drawn.double()


@pytest.mark.parametrize("name", CATALOGUE)
def test_methods_on_one_channel_give_the_map_of_three_equal_ones(
    name: str, small: Callable[[int], Classifier]
) -> None:
    image = picture(1)
    try:
        grey = method(name, small(1)).attribute(image, 2)
    except LayerError as error:
        pytest.skip(f"refuses this network: {error}")
    assert grey.shape == (1, 1, 20, 20) and grey.abs().max() > 0
    if name not in _BY_CHANNEL:
        colour = method(name, small(3)).attribute(image.expand(-1, 3, -1, -1), 2)
        assert torch.allclose(grey, colour, rtol=1e-6, atol=1e-9 * float(colour.abs().max()))


@pytest.mark.parametrize("name", CATALOGUE)
def test_methods_on_four_bands(name: str, small: Callable[[int], Classifier]) -> None:
    image = picture(4)
    try:
        four = method(name, small(4)).attribute(image, 2)
    except LayerError as error:
        pytest.skip(f"refuses this network: {error}")
    assert four.shape == (1, 1, 20, 20) and four.isfinite().all() and four.abs().max() > 0
    if CATALOGUE[name].family != "region" and name not in _BY_CHANNEL:
        three = method(name, small(3)).attribute(image[:, :3], 2)
        assert torch.allclose(four, three, rtol=1e-6, atol=1e-9 * float(three.abs().max()))


@pytest.mark.parametrize("channels", [1, 4])
@pytest.mark.parametrize("name", REFERENCES)
def test_references(
    name: str, channels: int, small: Callable[[int], Classifier], tmp_path: Path
) -> None:
    model, image = small(channels), picture(channels)
    bands = np.random.default_rng(0).integers(0, 256, (30, 26, channels), dtype=np.uint8)
    if name == "Image":
        np.save(tmp_path / "reference.npy", bands)
        references = [reference_of(tmp_path / "reference.npy"), reference_of(bands)]
        if channels == 1:
            Image.fromarray(bands[..., 0]).save(tmp_path / "grey.png")
            references.append(reference_of(str(tmp_path / "grey.png")))
        made = [reference(image) for reference in references]
        assert all(torch.equal(one, made[0]) for one in made)
        assert made[0].shape == image.shape and made[0].std() > 0.1
    else:
        references = [Mean((0.4,) * channels) if name == "Mean" else REFERENCES[name]()]
    for reference in references:
        explanation = explain(model, image, 2, method="deeplift", reference=reference)
        assert abs(explanation.residual or 0) < 1e-9
        assert explanation.map.abs().max() > 0


def test_references_of_other_channels_are_refused(small: Callable[[int], Classifier]) -> None:
    with pytest.raises(ShapeError, match="expected 4 numbers, one for each channel, got 3"):
        explain(small(4), picture(4), 2, reference="mean")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["a-fmi", "grad-cam", "deeplift"])
def test_squeezenet_sees_grey_as_it_sees_equal_colours(
    name: str, squeezenet_weights: Path, photographs: Path, tmp_path: Path
) -> None:
    def squeezenet(channels: int) -> Classifier:
        network = squeezenet1_0()
        network.load_state_dict(load_file(squeezenet_weights))
        features: Any = network.double().features
        features[0] = first_layer(channels, features[0], mean=MEAN, std=STD)
        return Classifier(network.eval(), resize=256, crop=224)

    photograph = Image.open(photographs / "0284_n02123597_Siamese_cat.jpg").resize((300, 400))
    photograph.convert("L").save(tmp_path / "grey.png")
    photograph.convert("RGB").save(tmp_path / "colour.png")
    np.save(tmp_path / "four.npy", np.dstack([photograph, photograph.convert("L")]))
    for channels, file, twin in ((1, "grey.png", "grey.png"), (4, "four.npy", "colour.png")):
        one = explain(squeezenet(channels), tmp_path / file, 284, method=name)
        three = explain(squeezenet(3), tmp_path / twin, 284, method=name)
        assert torch.equal(one.image, three.image)
        assert one.probability == pytest.approx(three.probability, rel=1e-9)
        assert (one.map - three.map).abs().max() < 1e-6 * three.map.abs().max()
