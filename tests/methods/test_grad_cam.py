"""Grad-CAM: its equation on a tiny network, and Captum's."""

from __future__ import annotations

import pytest
import torch
from networks import build, images
from torch import Tensor, nn

from afmi.methods import GradCAM
from afmi.pictures.maps import upsample


class Head(nn.Module):
    """Two maps of 1×2 pixels; y₀ = Σ A⁰² − Σ A¹, y₁ = −y₀."""

    def __init__(self) -> None:
        super().__init__()
        self.maps = nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        a = self.maps(x)
        y = a[:, 0].square().sum((1, 2)) - a[:, 1].sum((1, 2))
        return torch.stack([y, -y], 1)


def test_closed_form() -> None:
    """α₀ = mean(2·A⁰) = 4 and α₁ = −1, so S = ReLU(4·A⁰ − A¹)."""
    x = torch.tensor([[[[1.0, 3.0]], [[6.0, 2.0]]]])
    assert GradCAM(Head(), layer="maps").attribute(x, 0).flatten().tolist() == [0.0, 10.0]
    assert GradCAM(Head(), layer="maps").attribute(x, 1).flatten().tolist() == [2.0, 0.0]


@pytest.mark.filterwarnings("ignore::afmi.methods.BlankMapWarning")
@pytest.mark.parametrize("layer", ["features.5", "features.3"])
def test_equals_captum(layer: str) -> None:
    attr = pytest.importorskip("captum.attr")
    model, x = build("vgg", torch.float64), images().double()
    for module in model.modules():
        if isinstance(module, nn.ReLU):
            module.inplace = False
    targets = torch.tensor([0, 2, 4])
    theirs = attr.LayerGradCam(model, model.get_submodule(layer))
    expected = theirs.attribute(x, target=targets, relu_attributions=True).detach()
    maps = GradCAM(model, layer=layer).attribute(x, targets)
    torch.testing.assert_close(maps, upsample(expected, (20, 20)), rtol=1e-10, atol=1e-12)
