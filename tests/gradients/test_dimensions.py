"""The engine on signals and volumes: sums to the change, and agrees with other implementations."""

from __future__ import annotations

import copy
from collections.abc import Callable

import captum.attr
import pytest
import torch
import torch.nn.functional as F
from dimensional import SIZES, images, network, of
from torch import Tensor, nn

from afmi.gradients import modified_gradient
from afmi.methods import (
    AFMI,
    DeepLIFT,
    GradCAM,
    Gradient,
    InputXGradient,
    IntegratedGradients,
)
from afmi.methods.base import BlankMapWarning
from afmi.pictures.references import Black, Random

SIDES = (1, 3)

# What stands between two convolutions: pooling and normalisation of all kinds.
LAYERS: dict[str, Callable[[int], nn.Module]] = {
    "max pool": lambda d: of("MaxPool", d)(3, stride=2, padding=1),
    "max pool, ceiled": lambda d: of("MaxPool", d)(2, ceil_mode=True),
    "average pool": lambda d: of("AvgPool", d)(2),
    "power pool": lambda d: of("LPPool", d)(2, 2),
    "adaptive max pool": lambda d: of("AdaptiveMaxPool", d)(3),
    "adaptive average pool": lambda d: of("AdaptiveAvgPool", d)(3),
    "batch norm": lambda d: of("BatchNorm", d)(6),
    "instance norm": lambda d: of("InstanceNorm", d)(6, affine=True),
    "group norm": lambda d: nn.GroupNorm(3, 6),
    "strided": lambda d: of("Conv", d)(6, 6, 3, stride=2),
    "dilated": lambda d: of("Conv", d)(6, 6, 2, dilation=2),
    "depthwise": lambda d: of("Conv", d)(6, 6, 3, groups=6),
    "transposed": lambda d: of("ConvTranspose", d)(6, 6, 2, stride=2),
    "upsampled": lambda d: nn.Upsample(scale_factor=2),
    "interpolated": lambda d: nn.Upsample(
        scale_factor=2, mode={1: "linear", 3: "trilinear"}[d], align_corners=False
    ),
    "padded": lambda d: of("ConstantPad", d)(1, 0.3),
    "dropout": lambda d: of("Dropout", d)(),
    "gelu": lambda d: nn.GELU(),
}


def stack(sides: int, kind: str) -> nn.Module:
    torch.manual_seed(7)
    model = nn.Sequential(
        of("Conv", sides)(2, 6, 3, padding=1),
        nn.SiLU(),
        LAYERS[kind](sides),
        of("Conv", sides)(6, 8, 1),
        nn.ReLU(),
        of("AdaptiveMaxPool", sides)(1),
        nn.Flatten(),
        nn.Linear(8, 4),
    ).eval()
    for module in model.modules():
        if getattr(module, "running_mean", None) is not None:
            nn.init.uniform_(module.running_mean, -0.5, 0.5)  # type: ignore[arg-type]
            nn.init.uniform_(module.running_var, 0.5, 2)  # type: ignore[arg-type]
    return model


def residual(model: nn.Module, x: Tensor) -> float:
    """Return |Σ m·Δx − Δy| relative to the logits' size, against random images."""
    run = modified_gradient(model, x, layer=None, reference=Random(2))
    classes = torch.tensor([[1, 2]])
    worst = 0.0
    for r in range(2):
        explained = (run.gradients(classes, r) * run.change(r)).flatten(2).sum(2)
        error = (explained - run.output_change(classes, r)).abs()
        worst = max(worst, float((error / run.run.logits.abs().max()).max()))
    return worst


@pytest.mark.parametrize("kind", LAYERS)
@pytest.mark.parametrize("sides", SIDES)
def test_sums_to_the_change_of_the_score(sides: int, kind: str) -> None:
    model, x = stack(sides, kind), images(sides)
    assert residual(model, x) <= 1e-5
    assert residual(model.double(), x.double()) <= 1e-12


@pytest.mark.parametrize("kind", LAYERS)
@pytest.mark.parametrize("sides", SIDES)
def test_agrees_with_its_float64_twin(sides: int, kind: str) -> None:
    model, x = stack(sides, kind), images(sides)
    twin = copy.deepcopy(model).double()
    maps = DeepLIFT(model).attribute(x, 1)
    expected = DeepLIFT(twin).attribute(x.double(), 1)
    torch.testing.assert_close(maps.double(), expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("sides", SIDES)
def test_maps_of_features_sum_to_the_change(sides: int) -> None:
    model = network(sides).double()
    attribution = AFMI(model, averaged=False).attribution(images(sides).double(), [1, 2])
    assert str(attribution.layer) == "6"
    assert attribution.residual is not None
    assert attribution.residual.abs().max() <= 1e-12
    assert attribution.maps.shape == (2, 1, *SIZES[sides])


def simple(sides: int) -> nn.Sequential:
    """Return a network whose every rule Captum's DeepLIFT has, too."""
    torch.manual_seed(3)
    return nn.Sequential(
        of("Conv", sides)(2, 6, 3, padding=1),
        nn.ReLU(),
        of("Conv", sides)(6, 8, 3, stride=2),
        of("BatchNorm", sides)(8),
        nn.ReLU(),
        nn.Flatten(),
        nn.LazyLinear(4),
    ).eval()


def ready(sides: int) -> tuple[nn.Sequential, Tensor]:
    model, x = simple(sides), images(sides)
    model(x)  # initialises the linear layer
    return model.double(), x.double()


@pytest.mark.filterwarnings("ignore::afmi.errors.CompletenessWarning")
@pytest.mark.parametrize("sides", SIDES)
def test_pixel_methods_agree_with_captum(sides: int) -> None:
    model, x = ready(sides)
    target = torch.tensor([1, 2])
    zero = torch.zeros_like(x)

    saliency = captum.attr.Saliency(model).attribute(x.clone().requires_grad_(), target)
    torch.testing.assert_close(
        Gradient(model).attribute(x, target), saliency.abs().amax(1, keepdim=True)
    )
    product = captum.attr.InputXGradient(model).attribute(x.clone().requires_grad_(), target)
    torch.testing.assert_close(
        InputXGradient(model).attribute(x, target), product.sum(1, keepdim=True).detach()
    )
    integrated = captum.attr.IntegratedGradients(model).attribute(
        x, zero, target, n_steps=25, method="riemann_middle"
    )
    torch.testing.assert_close(
        IntegratedGradients(model, steps=25).attribute(x, target),
        integrated.sum(1, keepdim=True).detach(),
    )


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("sides", SIDES)
def test_deeplift_agrees_with_captum(sides: int) -> None:
    model, x = ready(sides)
    target = torch.tensor([1, 2])
    maps = DeepLIFT(model, reference=Black()).attribute(x, target)
    theirs = captum.attr.DeepLift(model).attribute(x, torch.zeros_like(x), target)
    torch.testing.assert_close(maps, theirs.sum(1, keepdim=True).detach())


@pytest.mark.parametrize("sides", SIDES)
def test_grad_cam_agrees_with_captum(sides: int) -> None:
    model, x = network(sides).double(), images(sides).double()
    target = torch.tensor([1, 2])
    theirs = captum.attr.LayerGradCam(model, model[6]).attribute(x, target, relu_attributions=True)
    mode = {1: "linear", 3: "trilinear"}[sides]
    expected = F.interpolate(theirs.detach(), SIZES[sides], mode=mode, align_corners=False)
    torch.testing.assert_close(GradCAM(model).attribute(x, target), expected)
    torch.testing.assert_close(GradCAM(model, layer="6").attribute(x, target), expected)


def test_a_blank_map_is_told_of_signals_too() -> None:
    model = nn.Sequential(nn.Conv1d(2, 3, 3), nn.AdaptiveAvgPool1d(1), nn.Flatten())
    nn.init.zeros_(model[0].weight)
    with pytest.warns(BlankMapWarning, match="the same everywhere"):
        Gradient(model).attribute(images(1), 1)


@pytest.mark.slow
def test_the_three_dimensional_densenet_of_monai() -> None:
    """The network is real, and every map sums to the change of its score."""
    nets = pytest.importorskip("monai.networks.nets")
    torch.manual_seed(0)
    model = nets.DenseNet121(spatial_dims=3, in_channels=1, out_channels=3).eval()
    x = torch.rand(1, 1, 48, 64, 64, generator=torch.Generator("cpu").manual_seed(0))
    attribution = AFMI(model, averaged=False).attribution(x, 1)
    assert attribution.residual is not None
    assert str(attribution.layer) == "class_layers.relu"
    assert attribution.residual.abs().max() <= 1e-5
    assert attribution.maps.shape == x.shape
