"""GuidedBackprop: closed form, the paper's equation by hand, parity with Captum, every rule."""

from __future__ import annotations

import networks
import pytest
import torch
import torch.nn.functional as F
import torchvision
from pixel_networks import assert_like_any_method, forward_layers, photo_like, plain, transposed
from torch import Tensor, nn

from afmi.errors import OperationError
from afmi.methods.pixels.gradient import Gradient
from afmi.methods.pixels.guided_backprop import GuidedBackprop

# Closed forms are those of networks with one output.
pytestmark = pytest.mark.filterwarnings("ignore:the network returns one number")


def test_closed_form() -> None:
    # y = −ReLU(x) + 2 ReLU(3x): the first path's signal −1 is stopped, the second's is 2 · 3.
    network = nn.Sequential(
        nn.Flatten(), nn.Linear(1, 2, bias=False), nn.ReLU(), nn.Linear(2, 1, bias=False)
    )
    network[1].weight.data = torch.tensor([[1.0], [3.0]])
    network[3].weight.data = torch.tensor([[-1.0, 2.0]])
    method = GuidedBackprop(network)
    assert method.attribute(torch.full((1, 1, 1, 1), 0.5)).item() == 6
    assert method.attribute(torch.full((1, 1, 1, 1), -0.5)).item() == 0


def by_hand(network: nn.Module, images: Tensor, target: int) -> Tensor:
    """Springenberg et al., R_l = [f_l > 0] · [R_{l+1} > 0] · R_{l+1}, layer by layer."""
    activations = forward_layers(network, images)
    signal = F.one_hot(torch.full((len(images),), target), activations[-1].shape[1]).double()
    for layer, x in reversed(list(zip(network.children(), activations[:-1], strict=True))):
        if isinstance(layer, nn.ReLU):
            signal = (x > 0).double() * (signal > 0).double() * signal
        else:
            signal = transposed(layer, x, signal)
    return signal.abs().amax(1, keepdim=True)


def test_the_papers_equation() -> None:
    model, images = plain(), networks.images(3, 12).double()
    maps = GuidedBackprop(model).attribute(images, 3)
    torch.testing.assert_close(maps, by_hand(model, images, 3).detach())


@pytest.mark.filterwarnings("ignore:Setting backward hooks")
def test_captum() -> None:
    captum_attr = pytest.importorskip("captum.attr")
    model, images = plain(), networks.images(3, 12).double()
    theirs = captum_attr.GuidedBackprop(model).attribute(images.clone().requires_grad_(), target=1)
    maps = GuidedBackprop(model).attribute(images, 1)
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
    expected = GuidedBackprop(model).attribute(images, 3)
    torch.testing.assert_close(GuidedBackprop(Ways(model, way)).attribute(images, 3), expected)


@pytest.mark.parametrize(
    "activation",
    [nn.ReLU6, nn.LeakyReLU, nn.ELU, nn.SiLU, nn.GELU, nn.Hardswish, nn.Tanh, nn.Sigmoid],
)
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
        signal = (signal.clamp(min=0) * slope) @ network[i - 1].weight
    maps = GuidedBackprop(network).attribute(image, 1)
    torch.testing.assert_close(maps.flatten(), signal.abs().flatten().detach())


@pytest.mark.parametrize("name", ["mobilenet_v2", "efficientnet_b0"])
def test_is_not_the_gradient(name: str) -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = getattr(torchvision.models, name)(weights=None)
    images = networks.images(2, 64)
    photo_like(model, images)
    both = torch.stack([m(model).attribute(images).flatten() for m in (GuidedBackprop, Gradient)])
    assert torch.corrcoef(both)[0, 1] < 0.9


def test_hidden_rectifier_raises() -> None:
    class Hidden(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return (x * (x > 0)).flatten(1)

    with pytest.raises(OperationError, match="compares"):
        GuidedBackprop(Hidden()).attribute(torch.rand(1, 1, 2, 2))


def test_unknown_operation_raises() -> None:
    class Unknown(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.sort(-1).values.flatten(1)

    named = r"sort.* no rule for Guided Backprop's backward pass;"
    with pytest.raises(OperationError, match=named):
        GuidedBackprop(Unknown()).attribute(torch.rand(1, 1, 2, 2))


@pytest.mark.parametrize("name", networks.TINY)
def test_contract(name: str) -> None:
    assert_like_any_method(GuidedBackprop(networks.build(name)), networks.images())
    double = GuidedBackprop(networks.build(name, torch.float64))
    assert_like_any_method(double, networks.images().double())
