"""DeepLIFT: closed form, the rescale rule by hand, parity with Captum, sums to delta."""

from __future__ import annotations

import networks
import pytest
import torch
import torchvision
from pixel_networks import assert_like_any_method, forward_layers, photo_like, plain, transposed
from torch import Tensor, nn

from afmi.methods.pixels.deeplift import DeepLIFT
from afmi.network.classifier import Classifier
from afmi.pictures.references import Black, Blurred, Image, Random, Reference, Several, White

# Closed forms are those of networks with one output.
pytestmark = pytest.mark.filterwarnings("ignore:the network returns one number")

BIG = ("vgg19", "resnet50", "densenet121", "efficientnet_b0")
SMALL = ("squeezenet1_0", "mobilenet_v2", "resnet18")


def test_closed_form() -> None:
    # y = ReLU(x − 0.2) from x̄ = 0: the slope of the chord at x = 1 is 0.8, the derivative is 1.
    network = nn.Sequential(nn.Flatten(), nn.Linear(1, 1), nn.ReLU())
    network[1].weight.data.fill_(1)
    network[1].bias.data.fill_(-0.2)
    attribution = DeepLIFT(network).attribution(torch.ones(1, 1, 1, 1))
    assert attribution.maps.item() == pytest.approx(0.8)
    assert attribution.residual is not None
    assert attribution.residual.item() == pytest.approx(0, abs=1e-6)


def by_hand(network: nn.Module, images: Tensor, start: Tensor, target: int) -> Tensor:
    """Modified gradients layer by layer, Shrikumar et al. 2017, Eq. 3 and the rescale rule."""
    layers = list(network.children())
    activations, reference = forward_layers(network, images), forward_layers(network, start)
    signal = torch.zeros_like(activations[-1])
    signal[:, target] = 1
    for i in reversed(range(len(layers))):
        if isinstance(layers[i], nn.ReLU):
            signal = (
                signal * (activations[i + 1] - reference[i + 1]) / (activations[i] - reference[i])
            )
        else:
            signal = transposed(layers[i], activations[i], signal)
    return (signal * (images - start)).sum(1, keepdim=True)


def unpooled() -> nn.Module:
    """Return a network without max pooling, for which the paper has no rule."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 6, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(6, 4, 2, stride=2),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(144, 5),
    ).double()


def test_the_papers_equation() -> None:
    model, images = unpooled(), networks.images(3, 12).double()
    start = torch.full_like(images, 0.3)
    maps = DeepLIFT(model, reference=Image(start[0])).attribute(images, 2)
    torch.testing.assert_close(maps, by_hand(model, images, start, 2).detach())


@pytest.mark.filterwarnings("ignore:Setting forward, backward hooks")
def test_captum() -> None:
    captum_attr = pytest.importorskip("captum.attr")
    model, images = unpooled(), networks.images(3, 12).double()
    theirs = captum_attr.DeepLift(model).attribute(images.clone().requires_grad_(), target=1)
    maps = DeepLIFT(model).attribute(images, 1)
    torch.testing.assert_close(maps, theirs.sum(1, keepdim=True).detach())


REFERENCES = (Black(), White(), Blurred(), Random(2), Several([Black(), White()]))


@pytest.mark.parametrize("reference", REFERENCES, ids=str)
@pytest.mark.parametrize("name", networks.TINY)
def test_sums_to_delta(name: str, reference: Reference) -> None:
    model, images = networks.build(name, torch.float64), networks.images().double()
    attribution = DeepLIFT(model, reference=reference).attribution(images)
    with torch.no_grad():
        start = torch.cat([model(x[None]) for x in reference(images)])
        start = start if reference.per_image else start.mean(0, keepdim=True).expand(3, -1)
        change = (model(images) - start).gather(1, attribution.target[:, None])[:, 0]
    torch.testing.assert_close(attribution.maps.sum((1, 2, 3)), change, rtol=1e-9, atol=1e-10)
    assert attribution.residual is not None
    assert attribution.residual.abs().max() < 1e-8


@pytest.mark.parametrize(
    "name", [*SMALL, *(pytest.param(name, marks=pytest.mark.slow) for name in BIG)]
)
def test_sums_to_delta_on_real_networks(name: str) -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = getattr(torchvision.models, name)(weights=None)
    model = Classifier(network, mean=[0.485, 0.456, 0.406], std=[0.229, 0.224, 0.225])
    images = networks.images(2, 64)
    photo_like(model, images)
    # In float64, since random weights on so small an image give maps that cancel a thousandfold.
    attribution = DeepLIFT(model.double()).attribution(images.double())
    assert attribution.residual is not None
    assert attribution.residual.abs().max() < 1e-8


def test_differs_from_gradient_where_saturated() -> None:
    # y = 1 − ReLU(1 − x): flat beyond x = 1, where the gradient sees nothing.
    network = nn.Sequential(nn.Flatten(), nn.Linear(1, 1), nn.ReLU(), nn.Linear(1, 1))
    network[1].weight.data.fill_(-1)
    network[1].bias.data.fill_(1)
    network[3].weight.data.fill_(-1)
    network[3].bias.data.fill_(1)
    assert DeepLIFT(network).attribute(torch.full((1, 1, 1, 1), 2.0)).item() == pytest.approx(1)


@pytest.mark.parametrize("name", networks.TINY)
def test_contract(name: str) -> None:
    assert_like_any_method(DeepLIFT(networks.build(name)), networks.images())


def test_plain_network_in_float64() -> None:
    assert_like_any_method(DeepLIFT(plain()), networks.images(3, 12).double())
