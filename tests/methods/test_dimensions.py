"""Methods, metrics and records of signals (N, C, L) and volumes (N, C, D, H, W)."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from dimensional import SIZES, images, network
from PIL import Image
from settings import UNTRAINED
from torch import Tensor, nn

import afmi
from afmi.errors import ShapeError, UsageError
from afmi.methods import CATALOGUE
from afmi.metrics import GridPointing, Insertion, ReferenceReliability
from afmi.metrics.base import Case
from afmi.network.layers import find_layer
from afmi.pictures.superpixels import Grid, Quickshift, Slic, superpixels

FEW: dict[str, dict[str, Any]] = {
    "RISE": {"masks": 40},
    "LIME": {"samples": 40},
    "KernelSHAP": {"samples": 40},
    "MeaningfulPerturbation": {"iterations": 3},
    "ExtremalPerturbation": {"iterations": 3},
    "PredictionDifference": {"samples": 1, "window": 4, "stride": 4, "padding": 1},
    "IntegratedGradients": {"steps": 8},
    "SmoothGrad": {"samples": 3},
    "GradientSHAP": {"samples": 3},
}
quiet = pytest.mark.filterwarnings("ignore::UserWarning")


def method(name: str, model: nn.Module) -> afmi.methods.Method:
    return CATALOGUE[name](model, **FEW.get(name, {}))


@quiet
@pytest.mark.parametrize("sides", [1, 3])
@pytest.mark.parametrize("name", CATALOGUE)
def test_every_method_explains_them_or_says_which_do(name: str, sides: int) -> None:
    x = images(sides)
    for model in (network(sides), afmi.Classifier(network(sides), mean=[0.4, 0.5], std=[0.2, 0.3])):
        explaining = method(name, model)
        if sides not in explaining.sides:
            with pytest.raises(ShapeError, match=r"take a method .* Integrated Gradients.* RISE"):
                explaining.attribute(x, 1)
            continue
        maps = explaining.attribute(x, [1, 2])
        assert maps.shape == (2, 1, *SIZES[sides])
        assert bool(maps.isfinite().all())
        alone = explaining.attribute(x[1:], 2)
        torch.testing.assert_close(maps[1:], alone, rtol=1e-3, atol=1e-4)


def flattened(model: nn.Sequential, sides: int) -> nn.Sequential:
    """Return the picture network that sees a signal as one row, or a volume as its only slice."""
    added = -2 if sides == 1 else 2
    twin = network(2)
    for module, like in zip(twin, model, strict=True):
        for (_, own), (_, other) in zip(
            module.named_parameters(), like.named_parameters(), strict=True
        ):
            value = other.detach()
            if sides == 1 and value.dim() == 3:
                value = value.unsqueeze(added)
            if sides == 3 and value.dim() == 5:
                value = value[:, :, 1]
            own.data = value.clone()
        if isinstance(module, nn.Conv2d) and sides == 1:
            module.kernel_size, module.padding = (1, 3), (0, 1)
    if sides == 1:
        twin[3] = nn.MaxPool2d((1, 2))
    return twin


@quiet
@pytest.mark.parametrize("sides", [1, 3])
@pytest.mark.parametrize(
    "name",
    [n for n in UNTRAINED if n not in ("LIME", "KernelSHAP", "XRAI", "RISE") and "Pert" not in n],
)
def test_a_flat_picture_has_the_same_map(name: str, sides: int) -> None:
    """A signal is a picture of one row, a picture a volume of one slice, for the same weights."""
    if name == "PredictionDifference":
        pytest.skip("its windows have another shape")
    if (name, sides) == ("MultiscaleAFMI", 1):
        pytest.skip("its blur is a share of the shorter side, which is the row's height")
    model = network(sides)
    if sides == 3:
        model[3] = nn.MaxPool3d((1, 2, 2))
    twin = flattened(model, sides).double()
    model = copy.deepcopy(model).double()
    if sides == 1:
        x = images(1).double()
        flat, expected = x[:, :, None], method(name, twin).attribute(x[:, :, None], [1, 2])
        assert flat.shape == (2, 2, 1, 48)
        expected = expected[:, :, 0]
    else:
        flat = images(2).double()
        x, expected = flat[:, :, None], method(name, twin).attribute(flat, [1, 2])[:, :, None]
    maps = method(name, model).attribute(x, [1, 2])
    torch.testing.assert_close(maps, expected)


class Transformer(nn.Module):
    """Patches, a class token, two blocks: of a signal or a volume."""

    def __init__(self, sides: int, *, token: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        size = SIZES[sides]
        patch = {1: 4, 3: 2}[sides]
        convolution = {1: nn.Conv1d, 3: nn.Conv3d}[sides]
        self.patches = convolution(2, 8, patch, patch)
        self.token = nn.Parameter(torch.randn(1, 1, 8)) if token else None
        count = int(np.prod([n // patch for n in size])) + token
        self.position = nn.Parameter(torch.randn(1, count, 8))
        self.blocks = nn.Sequential(
            *(nn.TransformerEncoderLayer(8, 2, 16, batch_first=True) for _ in range(2))
        )
        self.norm = nn.LayerNorm(8)
        self.head = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x).flatten(2).mT
        if self.token is not None:
            x = torch.cat([self.token.expand(len(x), -1, -1), x], 1)
        x = self.blocks(x + self.position)
        return self.head(self.norm(x)[:, 0] if self.token is not None else self.norm(x).mean(1))


@quiet
@pytest.mark.parametrize("token", [True, False])
@pytest.mark.parametrize("sides", [1, 3])
def test_tokens_of_signals_and_volumes_are_feature_maps(sides: int, token: bool) -> None:
    model = Transformer(sides, token=token).eval()
    layer = find_layer(model, images(sides))
    layout = layer.token_layout
    assert layout is not None
    assert layout.extra == int(token)
    maps = afmi.AFMI(model).attribute(images(sides), 1)
    assert maps.shape == (2, 1, *SIZES[sides])
    assert float(maps.std()) > 0


@pytest.mark.parametrize(
    ("sides", "image", "advice"),
    [
        (1, torch.rand(2, 48), r"\(N, C, L\), got \(2, 48\).*add a batch dimension"),
        (3, torch.rand(2, 6, 10, 12), r"\(N, C, D, H, W\).*add a batch dimension"),
        (1, torch.rand(1, 1, 2, 48), r"reshape them to \(N, C, L\)"),
        (1, torch.rand(2, 3, 48), r"expected images of 2 channels, \(N, 2, L\)"),
        (3, torch.rand(2, 3, 6, 10, 12), r"expected images of 2 channels, \(N, 2, D, H, W\)"),
        (3, torch.rand(2, 2, 48), "cannot run images of shape"),
    ],
)
def test_images_of_other_dimensions(sides: int, image: Tensor, advice: str) -> None:
    with pytest.raises(ShapeError, match=advice):
        afmi.methods.Gradient(network(sides)).attribute(image, 1)


@pytest.mark.parametrize("sides", [1, 3])
def test_metrics(sides: int) -> None:
    model, x = network(sides), images(sides)
    explaining = afmi.methods.DeepLIFT(model)
    attribution = explaining.attribution(x, [1, 2])
    case = Case(explaining, x, torch.tensor([1, 2]), attribution, model(x).detach())
    curves = Insertion(fractions=(0.5, 1)).curves(model, x, torch.tensor([1, 2]), attribution.maps)
    kept = int(np.prod(SIZES[sides])) // 2
    order = attribution.maps.flatten(1).argsort(dim=1, descending=True, stable=True)[:, :kept]
    mask = (
        torch.zeros(2, int(np.prod(SIZES[sides]))).scatter_(1, order, 1).view(2, 1, *SIZES[sides])
    )
    expected = model(x * mask).double().softmax(1)[[0, 1], [1, 2]]
    torch.testing.assert_close(curves.probability[:, 0], expected.detach(), rtol=1e-4, atol=1e-5)
    values = ReferenceReliability().measure(case)
    assert bool(values["rank_correlation"].isfinite().all())
    with pytest.raises(ShapeError, match="leave this metric out"):
        GridPointing().canvases(x, x[:, None].expand(-1, 3, *x.shape[1:]))


@pytest.mark.parametrize("sides", [1, 3])
def test_superpixels_are_intervals_and_supervoxels(sides: int) -> None:
    image = images(sides)[0]
    for segmentation in (Quickshift(), Slic(), Grid(3)):
        labels = superpixels(segmentation, image)
        assert labels.shape == SIZES[sides]
        assert labels.unique().tolist() == list(range(int(labels.max()) + 1))
        assert int(labels.max()) > 1
    assert int(superpixels(Grid(3), image).max()) + 1 == 3**sides


@quiet
@pytest.mark.parametrize("sides", [1, 3])
def test_explanations_draw_and_save_themselves(sides: int, tmp_path: Path) -> None:
    labels = ["a", "b", "c", "d"]
    model = afmi.Classifier(network(sides), mean=[0.0] * 2, std=[1.0] * 2, labels=labels)
    image = 5 * images(sides)[0] - 2  # signals and volumes come in their own units
    one = afmi.explain(model, image, "c", method="deeplift")
    for same in (image[None], image.numpy(), image.double().numpy()):
        assert torch.equal(afmi.explain(model, same, "c", method="deeplift").map, one.map)
    assert one.map.shape == SIZES[sides]
    assert torch.equal(one.image, image)
    saved = one.save(tmp_path)
    assert np.load(saved["map"]).shape == SIZES[sides]
    record = json.loads(saved["record"].read_text())["image"]
    names = {1: ["length"], 3: ["depth", "height", "width"]}[sides]
    assert [record[name] for name in names] == list(SIZES[sides])
    assert "×".join(map(str, reversed(SIZES[sides]))) in repr(one)
    for picture in (one.original(), one.overlay(), one.heatmap(), one.insertion(0.3)):
        assert len(picture.getcolors(2**24) or ()) > 3
    assert Image.open(saved["figure"]).width > 500


def test_a_volume_is_shown_by_the_slices_with_most_of_the_map(tmp_path: Path) -> None:
    from afmi.pictures.views import view_of

    map_ = torch.zeros(20, 8, 8)
    for strength, index in enumerate((17, 3, 9, 12, 5, 11), start=1):
        map_[index] = strength * (-1) ** strength
    map_[0] = 0.5
    view: Any = view_of(torch.rand(1, 20, 8, 8), map_, signed=True)
    assert view.slices == [3, 5, 9, 11, 12, 17]
    assert view._labels()[0] == "slice 4 of 20"
    map_[[0, 3, 12]] = 0  # which leaves four
    assert view_of(view.image, map_, signed=True).slices == [5, 9, 11, 17]
    assert len(view_of(view.image, 0 * map_, signed=True).slices) == 6


def test_a_signal_has_channels() -> None:
    with pytest.raises(ShapeError, match=r"got \(40,\).*a signal is image\[None\]"):
        afmi.explain(network(1), torch.rand(40), 1)


def test_a_volume_that_could_be_a_picture_needs_its_batch_dimension() -> None:
    pool = nn.Sequential(nn.AdaptiveMaxPool3d(1), nn.Flatten())
    model = afmi.Classifier(pool, mean=[0], std=[1], output="value")
    volume = torch.rand(1, 4, 6, 8)
    with pytest.raises(ShapeError, match=r"says that it is a volume, so pass image\[None\]"):
        afmi.explain(model, volume, method="gradient")
    assert afmi.explain(model, volume[None], method="gradient").map.shape == (4, 6, 8)


def test_files_are_not_taken_for_signals() -> None:
    with pytest.raises(UsageError, match=r"expected one volume \(C, D, H, W\).*afmi.volumes"):
        afmi.explain(network(3), "scan.nii.gz", 1)
