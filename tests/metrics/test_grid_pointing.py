"""Grid pointing: canvases and shares by hand; networks that refuse larger inputs."""

from __future__ import annotations

from dataclasses import dataclass, replace

import pytest
import torch
from cases import case_of, companions_for
from networks import MNISTNet, build, images
from torch import Tensor, nn

from afmi.errors import AfmiError, LayerError, ModelError, ShapeError, UsageError
from afmi.methods import AFMI, CAM, GradCAM, Gradient, InputXGradient, Method
from afmi.methods.base import Attribution
from afmi.methods.work import Work
from afmi.metrics import GridPointing
from afmi.network.classifier import classify
from afmi.targets import Columns


@dataclass(frozen=True)
class Brightness(Method):
    """The image's mean over its channels is the map, less a number."""

    less: float = 0.0

    def work(self, inputs: Tensor) -> Work:
        return Work(1)

    def _attribute(self, inputs: Tensor, columns: Columns) -> Attribution:
        logits = classify(self.model, inputs)
        return Attribution(inputs.mean(1, keepdim=True) - self.less, columns.of(logits), logits)


Brightness.name = "Brightness"


def _flat(*values: float) -> Tensor:
    return torch.stack([torch.full((3, 4, 6), v) for v in values])


def test_share_by_hand() -> None:
    # Brightness 0.6 among 0.1, 0.2, 0.3: a half; and above 0.2 it is 0.4 of 0.4 + 0.1.
    x, others = _flat(0.6, 0.6), torch.stack([_flat(0.1, 0.2, 0.3), _flat(0.0, 0.0, 0.0)])
    x[:, :, 0, :2] += torch.tensor([0.1, -0.1])  # a flat map would be warned of
    made = replace(case_of(Brightness(build("resnet")), x), companions=others)
    assert GridPointing().measure(made)["own_share"].tolist() == pytest.approx([0.5, 1.0])
    less = replace(made, method=Brightness(build("resnet"), 0.2))
    assert GridPointing().measure(less)["own_share"].tolist() == pytest.approx([0.8, 1.0])
    none = replace(made, method=Brightness(build("resnet"), 0.8))
    assert torch.isnan(GridPointing().measure(none)["own_share"]).all()


def test_canvases_hold_each_image_in_its_quadrant() -> None:
    x = images(16)[:, :, :4, :6]
    others = companions_for(x)
    canvases, quadrants = GridPointing().canvases(x, others)
    assert canvases.shape == (16, 3, 8, 12)
    assert set(quadrants.tolist()) == {0, 1, 2, 3}
    for canvas, image, three, quadrant in zip(canvases, x, others, quadrants, strict=True):
        cells = [canvas[:, i : i + 4, j : j + 6] for i in (0, 4) for j in (0, 6)]
        assert torch.equal(cells.pop(int(quadrant)), image)
        assert torch.equal(torch.stack(cells), three)
    _, alone = GridPointing().canvases(x[5:6], others[5:6])
    assert alone.item() == quadrants[5].item()
    _, other = GridPointing(seed=1).canvases(x, others)
    assert not torch.equal(other, quadrants)
    more = torch.cat([others, others], 1)
    assert torch.equal(GridPointing().canvases(x, more)[0], canvases)


def test_against_a_loop_over_pixels() -> None:
    model, x = build("resnet"), images(5)
    case = case_of(InputXGradient(model), x, companions=companions_for(x))
    measured = GridPointing().measure(case)["own_share"]
    canvases, quadrants = GridPointing().canvases(x, case.companions)
    for i in range(5):
        maps = InputXGradient(model).attribute(canvases[i : i + 1], int(case.targets[i]))[0, 0]
        inside = total = 0.0
        for row, values in enumerate(maps.tolist()):
            for column, value in enumerate(values):
                if value > 0:
                    total += value
                    inside += value if row // 20 * 2 + column // 20 == quadrants[i] else 0.0
        assert measured[i].item() == pytest.approx(inside / total, rel=1e-5)


def test_a_local_network_points_to_its_image_alone() -> None:
    # Each class is one colour; the image has the colour of its class, the companions the others.
    model = nn.Sequential(nn.Conv2d(3, 3, 1, bias=False), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    with torch.no_grad():
        model[0].weight.copy_(torch.eye(3)[:, :, None, None])
    x = torch.zeros(1, 3, 4, 4)
    x[:, 0] = torch.rand(4, 4) + 0.1
    others = torch.zeros(1, 3, 3, 4, 4)
    others[:, :, 1:] = 1.0
    case = case_of(GradCAM(model, layer="0"), x, torch.tensor([0]), companions=others)
    # Upsampling is none here: the maps have the canvas's size.
    assert GridPointing().measure(case)["own_share"].item() == 1.0


def test_keeps_the_layer_of_the_images() -> None:
    recorded = []

    class Noting(AFMI):
        def attribution(self, inputs, target=None):  # type: ignore[no-untyped-def]
            recorded.append(self.layer)
            return super().attribution(inputs, target)

    x = images(1)
    case = case_of(Noting(build("resnet")), x, companions=companions_for(x))
    GridPointing().measure(case)
    assert recorded == [None, case.attribution.layer]


class Fixed(nn.Module):
    """Takes images of 28×28 pixels only."""

    def __init__(self) -> None:
        super().__init__()
        self.network = MNISTNet()

    def forward(self, x: Tensor) -> Tensor:
        return self.network(x)


@pytest.mark.parametrize("kind", [Gradient, AFMI, Brightness])
def test_a_network_that_cannot_take_it(kind: type[Method]) -> None:
    x = images(2, size=28, channels=1)
    case = case_of(kind(Fixed()), x, companions=companions_for(x))
    with pytest.raises(ModelError, match=r"Grid pointing.*56×56.*leave this metric out"):
        GridPointing().measure(case)


def test_an_error_of_the_method_itself_is_not_covered_up() -> None:
    x = images(1)
    case = case_of(Gradient(build("vgg")), x, companions=companions_for(x))
    refusing = replace(case, method=CAM(build("vgg"), layer="features.5"))
    with pytest.raises(LayerError, match="CAM needs global average pooling"):
        GridPointing().measure(refusing)


def test_nan_for_the_tiled_images_is_no_share() -> None:
    class NaNWhereWide(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.mean((2, 3)) / (x.shape[-1] < 10)

    x = torch.rand(1, 3, 6, 6)
    case = replace(case_of(Brightness(NaNWhereWide()), x), companions=companions_for(x))
    with pytest.raises(AfmiError, match="the network gives infinity instead of logits"):
        GridPointing().measure(case)


def test_companions_are_needed() -> None:
    x = images(2)
    case = case_of(Gradient(build("resnet")), x)
    with pytest.raises(UsageError, match="3 images of other classes"):
        GridPointing().measure(case)
    for bad in (companions_for(x, 2), companions_for(x[:1]), companions_for(x[:, :, :9])):
        with pytest.raises(ShapeError, match="companions"):
            GridPointing().measure(replace(case, companions=bad))
