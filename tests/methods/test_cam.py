"""CAM: the closed form, and a clear error wherever the head is another."""

from __future__ import annotations

import pytest
import torch
from networks import build, images
from torch import nn

from afmi.errors import LayerError
from afmi.methods import AFMI, CAM, GradCAM
from afmi.pictures.maps import upsample


def network(classes: int = 4) -> nn.Sequential:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Sequential(
            nn.Conv2d(3, 5, 3),
            nn.ReLU(inplace=True),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Dropout(),
            nn.Linear(5, classes),
        ).double()


def _at_layer(model: nn.Sequential, x: torch.Tensor, c: int) -> torch.Tensor:
    """Return the map at the layer's own size."""
    return (model[5].weight[c].detach().view(1, -1, 1, 1) * model[:2](x).detach()).sum(
        1, keepdim=True
    )


def test_is_the_weighted_sum_of_the_maps() -> None:
    model, x = network(), images().double()
    maps = model[:2](x).detach()
    weights = model[5].weight.detach()
    expected = torch.zeros(3, 1, *maps.shape[2:], dtype=torch.float64)
    for n, c in enumerate([1, 3, 0]):
        for k in range(5):
            expected[n, 0] += weights[c, k] * maps[n, k]
    attributed = CAM(model).attribute(x, torch.tensor([1, 3, 0]))
    torch.testing.assert_close(attributed, upsample(expected, (20, 20)), rtol=1e-12, atol=1e-12)


def test_its_mean_and_the_bias_make_the_logit() -> None:
    model, x = network().eval(), images(size=18).double()
    # Maps of the inputs' own size, so that nothing is upsampled.
    model[0] = nn.Conv2d(3, 5, 3, padding=1).double()
    attribution = CAM(model).attribution(x, 2)
    torch.testing.assert_close(
        attribution.maps.mean((1, 2, 3)) + model[5].bias[2].detach(), model(x)[:, 2].detach()
    )
    assert str(attribution.layer) == "1"


def test_mean_over_places_and_a_scaled_head_are_such_heads_too() -> None:
    class Head(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = network()
            self.scale = nn.Parameter(torch.tensor(3.0, dtype=torch.float64))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.body[5](self.body[:2](x).mean((2, 3)) * self.scale) / 2

    model, x = Head(), images().double()
    torch.testing.assert_close(
        CAM(model, layer="body.1").attribute(x, 1),
        1.5 * CAM(model.body).attribute(x, 1),
    )


def test_agrees_with_grad_cam_and_afmi_where_they_coincide() -> None:
    # The weights of a linear head are its gradients, and its modified gradients.
    model, x = build("resnet", torch.float64), images().double()
    area = 11 * 11
    for c in (1, 2):
        cam = CAM(model).attribute(x, c)
        zero = CAM(model).attribute(torch.zeros_like(x), c)
        torch.testing.assert_close((cam - zero) / area, AFMI(model).attribute(x, c))
    rectified = upsample(_at_layer(network(), x, 1).relu(), (20, 20))
    torch.testing.assert_close(GradCAM(network()).attribute(x, 1) * 18 * 18, rectified)


@pytest.mark.parametrize("name", ["vgg", "functional"])
def test_refuses_other_heads(name: str) -> None:
    with pytest.raises(LayerError, match="global average pooling and one linear layer"):
        CAM(build(name)).attribute(images())


def test_refuses_a_linear_head_that_tells_places_apart() -> None:
    model = nn.Sequential(nn.Conv2d(3, 2, 3), nn.Flatten(), nn.Linear(2 * 36, 3))
    with pytest.raises(LayerError, match="tell places apart"):
        CAM(model, layer="0").attribute(images(1, 8))


def test_refuses_a_division_by_the_maps() -> None:
    class Dividing(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return 1 / (3 + self.conv(x).mean((2, 3)))

    with pytest.raises(LayerError, match="not all linear"):
        CAM(Dividing(), layer="conv").attribute(images(1, 8))
