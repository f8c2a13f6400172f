"""DeconvNet: closed form, the paper's equation by hand, parity with Captum, every rule."""

from __future__ import annotations

import networks
import pytest
import torch
import torch.nn.functional as F
import torchvision
from pixel_networks import assert_like_any_method, forward_layers, photo_like, plain, transposed
from torch import Tensor, nn

from afmi.errors import ImageIndependenceWarning, OperationError
from afmi.methods.pixels.deconvnet import DeconvNet
from afmi.methods.pixels.gradient import Gradient

# Closed forms are those of networks with one output.
pytestmark = pytest.mark.filterwarnings("ignore:the network returns one number")

same_for_every_image = pytest.mark.filterwarnings("ignore::afmi.errors.ImageIndependenceWarning")


@same_for_every_image
def test_closed_form() -> None:
    # y = −ReLU(x) + 2 ReLU(3x): the first path's signal −1 is stopped, the second's is 2 · 3, also
    # where the rectifier was shut on the way forward.
    network = nn.Sequential(
        nn.Flatten(), nn.Linear(1, 2, bias=False), nn.ReLU(), nn.Linear(2, 1, bias=False)
    )
    network[1].weight.data = torch.tensor([[1.0], [3.0]])
    network[3].weight.data = torch.tensor([[-1.0, 2.0]])
    method = DeconvNet(network)
    assert method.attribute(torch.full((1, 1, 1, 1), 0.5)).item() == 6
    assert method.attribute(torch.full((1, 1, 1, 1), -0.5)).item() == 6


def by_hand(network: nn.Module, images: Tensor, target: int) -> Tensor:
    """Zeiler & Fergus: rectify the signal at each rectifier, transpose each filter, unpool."""
    activations = forward_layers(network, images)
    signal = F.one_hot(torch.full((len(images),), target), activations[-1].shape[1]).double()
    for layer, x in reversed(list(zip(network.children(), activations[:-1], strict=True))):
        if isinstance(layer, nn.ReLU):
            signal = (signal > 0).double() * signal
        else:
            signal = transposed(layer, x, signal)
    return signal.abs().amax(1, keepdim=True)


def test_the_papers_equation() -> None:
    model, images = plain(), networks.images(3, 12).double()
    maps = DeconvNet(model).attribute(images, 3)
    torch.testing.assert_close(maps, by_hand(model, images, 3).detach())


@pytest.mark.filterwarnings("ignore:Setting backward hooks")
def test_captum() -> None:
    captum_attr = pytest.importorskip("captum.attr")
    model, images = plain(), networks.images(3, 12).double()
    theirs = captum_attr.Deconvolution(model).attribute(images.clone().requires_grad_(), target=1)
    maps = DeconvNet(model).attribute(images, 1)
    torch.testing.assert_close(maps, theirs.abs().amax(1, keepdim=True).detach())


class Ways(nn.Module):
    """The same rectifiers as functions, in place, and one module twice."""

    def __init__(self, network: nn.Module, way: str) -> None:
        super().__init__()
        self.conv1, self.conv2, self.fc1, self.fc2 = (network[i] for i in (0, 2, 6, 8))
        relu = nn.ReLU(inplace=way == "reused in place")
        self.relu = {
            "functional": F.relu,
            "method": Tensor.relu,
            "in place": lambda x: x.relu_(),
            "in place, result ignored": self._ignoring,
            "clamp": lambda x: x.clamp(min=0),
            "reused": relu,
            "reused in place": relu,
        }[way]

    @staticmethod
    def _ignoring(x: Tensor) -> Tensor:
        F.relu(x, inplace=True)
        return x

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(self.relu(self.conv2(self.relu(self.conv1(x)))), 2)
        return self.fc2(self.relu(self.fc1(torch.flatten(x, 1))))


WAYS = ("functional", "method", "in place", "in place, result ignored", "clamp", "reused")


@pytest.mark.parametrize("way", [*WAYS, "reused in place"])
def test_however_the_rectifier_is_written(way: str) -> None:
    model, images = plain(), networks.images(2, 12).double()
    expected = DeconvNet(model).attribute(images, 3)
    torch.testing.assert_close(DeconvNet(Ways(model, way)).attribute(images, 3), expected)


RECTIFIERS = [nn.ReLU6, nn.LeakyReLU, nn.ELU, nn.SiLU, nn.GELU, nn.Hardswish, nn.Hardtanh]


@same_for_every_image
@pytest.mark.parametrize("activation", [*RECTIFIERS, nn.Tanh, nn.Sigmoid, nn.Hardsigmoid])
def test_other_activations(activation: type[nn.Module]) -> None:
    torch.manual_seed(1)
    network = nn.Sequential(
        nn.Flatten(), nn.Linear(4, 9), activation(), nn.Linear(9, 9), activation(), nn.Linear(9, 2)
    ).double()
    image = torch.rand(1, 1, 2, 2, dtype=torch.float64) * 4 - 2
    activations = forward_layers(network, image)
    signal = network[5].weight[1][None]
    for i in (4, 2):
        (slope,) = torch.autograd.grad(network[i](x := activations[i].requires_grad_()).sum(), x)
        slope = torch.ones_like(slope) if activation in RECTIFIERS else slope
        signal = (signal.clamp(min=0) * slope) @ network[i - 1].weight
    maps = DeconvNet(network).attribute(image, 1)
    torch.testing.assert_close(maps.flatten(), signal.abs().flatten().detach())


@same_for_every_image
@pytest.mark.parametrize("name", ["mobilenet_v2", "efficientnet_b0"])
def test_is_not_the_gradient(name: str) -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = getattr(torchvision.models, name)(weights=None)
    images = networks.images(2, 64)
    photo_like(model, images)
    both = torch.stack([m(model).attribute(images).flatten() for m in (DeconvNet, Gradient)])
    assert torch.corrcoef(both)[0, 1] < 0.9


class Fixed(nn.Module):
    """Convolutions, a rectifier, residual sums, constant products and average pooling."""

    def __init__(self, head: nn.Module | None = None) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.head = head or nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu6(self.norm(self.conv(2 * x - 1)))
        x = x + F.leaky_relu(self.norm(x)) / 3
        return self.fc(self.head(x).flatten(1)[:, :8])


class Gate(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.mean((2, 3), keepdim=True) * x.mean((2, 3), keepdim=True)


HEADS = {
    "max pooling": nn.AdaptiveMaxPool2d(1),
    "product": Gate(),
    "sigmoid": nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Sigmoid()),
    "layer norm": nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.LayerNorm([8, 1, 1])),
}


def test_says_where_every_image_has_the_same_map() -> None:
    torch.manual_seed(0)
    method, images = DeconvNet(Fixed().eval()), torch.rand(3, 3, 8, 8)
    images[1] = 0
    with pytest.warns(ImageIndependenceWarning, match="the same for every image"):
        first, second, third = method.attribute(images, 1)
    assert torch.equal(first, second)
    assert torch.equal(first, third)
    assert first.any()


@pytest.mark.parametrize("head", HEADS)
def test_a_switch_or_a_gate_tells_images_apart(head: str) -> None:
    torch.manual_seed(0)
    first, second = DeconvNet(Fixed(HEADS[head]).eval()).attribute(torch.rand(2, 3, 8, 8), 1)
    assert not torch.allclose(first, second)


def test_hidden_rectifier_raises() -> None:
    class Hidden(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return (x * (x > 0)).flatten(1)

    with pytest.raises(OperationError, match="compares"):
        DeconvNet(Hidden()).attribute(torch.rand(1, 1, 2, 2))


def test_unknown_operation_raises() -> None:
    class Unknown(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.sort(-1).values.flatten(1)

    with pytest.raises(OperationError, match=r"sort.* no rule for DeconvNet's backward pass;"):
        DeconvNet(Unknown()).attribute(torch.rand(1, 1, 2, 2))


@pytest.mark.parametrize("name", networks.TINY)
def test_contract(name: str) -> None:
    assert_like_any_method(DeconvNet(networks.build(name)), networks.images())
    double = DeconvNet(networks.build(name, torch.float64))
    assert_like_any_method(double, networks.images().double())
