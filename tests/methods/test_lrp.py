"""LRP: closed form, Eq. 58 by hand, parity with Captum, conservation, every rule."""

from __future__ import annotations

import networks
import pytest
import torch
import torch.nn.functional as F
import torchvision
from pixel_networks import assert_like_any_method, forward_layers, photo_like, plain, transposed
from torch import Tensor, nn

from afmi.errors import OperationError, UsageError
from afmi.methods.pixels.input_x_gradient import InputXGradient
from afmi.methods.pixels.lrp import LRP
from afmi.network.classifier import Classifier
from afmi.pictures.references import Black, Blurred, Mean, Reference

# Closed forms are those of networks with one output.
pytestmark = pytest.mark.filterwarnings("ignore:the network returns one number")


def test_closed_form() -> None:
    # z = (x1 + x2, x1 − x2) = (4, 2), y = 1·4 + 3·2 = 10. R_z = (4, 6); with ε = 0:
    # R_x1 = 3/4·4 + 3/2·6 = 12 and R_x2 = 1/4·4 − 1/2·6 = −2.
    network = nn.Sequential(
        nn.Flatten(), nn.Linear(2, 2, bias=False), nn.ReLU(), nn.Linear(2, 1, bias=False)
    )
    network[1].weight.data = torch.tensor([[1.0, 1.0], [1.0, -1.0]])
    network[3].weight.data = torch.tensor([[1.0, 3.0]])
    image = torch.tensor([3.0, 1.0]).view(1, 1, 1, 2)
    assert LRP(network, epsilon=0).attribute(image).flatten().tolist() == pytest.approx([12, -2])
    # With ε = ½: y = 10 is one output, so 10/(10 + 5); rms z = √10, so 4/(4 + √10/2), ….
    half = [2 / 3 * 4 * 4 / (4 + 2.5**0.5), 2 / 3 * 6 * 2 / (2 + 2.5**0.5)]
    expected = [3 / 4 * half[0] + 3 / 2 * half[1], 1 / 4 * half[0] - 1 / 2 * half[1]]
    maps = LRP(network, epsilon=0.5).attribute(image)
    assert maps.flatten().tolist() == pytest.approx(expected)


def by_hand(network: nn.Module, images: Tensor, target: int, epsilon: float) -> Tensor:
    """Bach et al., Eq. 58, layer by layer, on the relevance itself."""
    activations = forward_layers(network, images)
    relevance = torch.zeros_like(activations[-1])
    relevance[:, target] = activations[-1][:, target]
    layers = list(network.children())
    for i in reversed(range(len(layers))):
        layer, a, z = layers[i], activations[i], activations[i + 1]
        if isinstance(layer, nn.ReLU):
            continue
        if isinstance(layer, (nn.Conv2d, nn.Linear)):
            rms = z.flatten(1).square().mean(1).sqrt().view(-1, *[1] * (z.dim() - 1))
            sign = torch.where(z >= 0, 1.0, -1.0)
            relevance = a * transposed(layer, a, relevance / (z + epsilon * rms * sign))
        else:
            relevance = transposed(layer, a, relevance)
    return relevance.sum(1, keepdim=True)


@pytest.mark.parametrize("epsilon", [1e-9, 0.01, 0.25, 2.0])
def test_the_papers_equation(epsilon: float) -> None:
    model, images = plain(), networks.images(3, 12).double()
    maps = LRP(model, epsilon=epsilon).attribute(images, 3)
    torch.testing.assert_close(maps, by_hand(model, images, 3, epsilon).detach())


class Split(nn.Module):
    """A sequential network that flattens by a function: Captum has no rule for `nn.Flatten`."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.features, self.head = network[:5], network[6:]

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.flatten(self.features(x), 1))


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_captum() -> None:
    captum_attr = pytest.importorskip("captum.attr")
    model, images = Split(plain()), networks.images(3, 12).double()
    theirs = captum_attr.LRP(model).attribute(images.clone().requires_grad_(), target=1)
    maps = LRP(model, epsilon=1e-10).attribute(images, 1)
    expected = theirs.sum(1, keepdim=True).detach()
    torch.testing.assert_close(maps, expected, rtol=1e-5, atol=1e-8)


def without_biases(network: nn.Module) -> nn.Module:
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.zero_()
            module.bias.data.zero_()
        elif getattr(module, "bias", None) is not None:
            module.bias.data.zero_()
    return network


@pytest.mark.parametrize("name", ["vgg", "resnet"])
def test_without_biases(name: str) -> None:
    model = without_biases(networks.build(name, torch.float64))
    images = networks.images().double()
    attribution = LRP(model, epsilon=1e-9).attribution(images)
    assert attribution.logits is not None
    torch.testing.assert_close(
        attribution.maps, InputXGradient(model).attribute(images), rtol=1e-6, atol=1e-8
    )
    logits = attribution.logits.gather(1, attribution.target[:, None])[:, 0]
    torch.testing.assert_close(attribution.maps.sum((1, 2, 3)), logits, rtol=1e-6, atol=1e-8)


def test_squeeze_and_excite_conserves() -> None:
    # All relevance goes to the signal; hardswish and SiLU pass it on unchanged.
    model = without_biases(networks.build("functional", torch.float64))
    attribution = LRP(model, epsilon=1e-10).attribution(networks.images().double())
    assert attribution.logits is not None
    logits = attribution.logits.gather(1, attribution.target[:, None])[:, 0]
    torch.testing.assert_close(attribution.maps.sum((1, 2, 3)), logits, rtol=1e-6, atol=1e-8)


class Product(nn.Module):
    """A network that is one product, written in one of several ways."""

    def __init__(self, way: str) -> None:
        super().__init__()
        self.way = way

    def forward(self, x: Tensor) -> Tensor:
        a, b = x[:, :1], x[:, 1:]
        y = {
            "silu": lambda: x * torch.sigmoid(x),
            "silu, gate first": lambda: torch.sigmoid(x) * x,
            "silu, in place": lambda: (x + 0).mul_(torch.sigmoid(x)),
            "gated": lambda: a * torch.sigmoid(b).view(-1, 1, 2, 2).expand_as(a),
            "broadcast": lambda: x * F.relu6(x.mean((2, 3), keepdim=True)),
            "square": lambda: x * x,
            "matrices": lambda: a @ b,
        }[self.way]()
        return y.flatten(1).sum(1, keepdim=True)


WAYS = ("silu", "silu, gate first", "silu, in place", "gated", "broadcast", "square", "matrices")


@pytest.mark.parametrize("way", WAYS)
def test_products_conserve(way: str) -> None:
    torch.manual_seed(0)
    image = torch.rand(1, 2, 2, 2, dtype=torch.float64) + 0.1
    model = Product(way)
    maps = LRP(model, epsilon=0).attribute(image)
    torch.testing.assert_close(maps.sum(), model(image)[0, 0])
    if way == "gated":
        gated = image[:, :1] * torch.sigmoid(image[:, 1:])
        torch.testing.assert_close(maps, gated)


ACTIVATIONS = [nn.ReLU6, nn.LeakyReLU, nn.ELU, nn.SiLU, nn.GELU, nn.Mish, nn.Hardswish, nn.Tanh]


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_activations_pass_relevance_on(activation: type[nn.Module]) -> None:
    model = plain(bias=False, activation=activation)
    attribution = LRP(model, epsilon=1e-12).attribution(networks.images(3, 12).double())
    assert attribution.logits is not None
    logits = attribution.logits.gather(1, attribution.target[:, None])[:, 0]
    torch.testing.assert_close(attribution.maps.sum((1, 2, 3)), logits, rtol=1e-6, atol=1e-8)


def test_sigmoid_absorbs_its_half() -> None:
    network = nn.Sequential(nn.Flatten(), nn.Sigmoid())
    network = Classifier(network, mean=[0], std=[1], output="value").double()
    image = torch.tensor([0.7], dtype=torch.float64).view(1, 1, 1, 1)
    maps = LRP(network, epsilon=0).attribute(image).item()
    assert maps == pytest.approx(float(torch.sigmoid(image)) - 0.5)


@pytest.mark.parametrize("norm", [nn.LayerNorm((6, 12, 12)), nn.GroupNorm(2, 6)])
def test_normalisations_keep_the_output(norm: nn.Module) -> None:
    torch.manual_seed(0)
    nn.init.uniform_(norm.weight)
    nn.init.uniform_(norm.bias)
    head = plain()
    model = nn.Sequential(head[0], norm, *list(head)[1:]).double()
    images = networks.images(3, 12).double()
    attribution = LRP(model).attribution(images)
    assert attribution.logits is not None
    torch.testing.assert_close(attribution.logits, model(images).detach())


def test_batch_norm_is_one_layer_with_its_convolution() -> None:
    torch.manual_seed(0)
    conv, norm = nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6)
    norm.running_mean.uniform_(-1, 1)
    norm.running_var.uniform_(0.5, 2)
    norm.weight.data.uniform_(0.5, 2)
    norm.bias.data.uniform_(-1, 1)
    rest = (nn.ReLU(), nn.Flatten(), nn.Linear(216, 5))
    apart = nn.Sequential(conv, norm, *rest).double().eval()
    merged = nn.Sequential(nn.utils.fuse_conv_bn_eval(conv, norm), *rest).eval()
    images = networks.images(3, 8).double()
    torch.testing.assert_close(LRP(apart).attribute(images), LRP(merged).attribute(images))


def test_relevance_of_normalised_pixels() -> None:
    network, images = plain(), networks.images(3, 12).double()
    mean, std = torch.tensor([[[0.4]], [[0.5]], [[0.6]]]), torch.tensor([[[0.2]], [[0.3]], [[0.4]]])
    model = Classifier(network, mean=mean.flatten().tolist(), std=std.flatten().tolist())
    expected = LRP(network).attribute((images - model.mean) / model.std, 1)
    torch.testing.assert_close(LRP(model).attribute(images, 1), expected)


@pytest.mark.parametrize("reference", [None, Black(), Mean((0.2, 0.9, 0.4)), Blurred()])
def test_without_epsilon_it_is_input_times_gradient_with_the_same_zero(
    reference: Reference | None,
) -> None:
    network, images = plain(), networks.images(3, 12).double()
    model = Classifier(network, mean=[0.4, 0.5, 0.6], std=[0.2, 0.3, 0.4]).double()
    relevance = LRP(model, epsilon=0, reference=reference).attribute(images, 1)
    expected = InputXGradient(model, reference=reference).attribute(images, 1)
    torch.testing.assert_close(relevance, expected)


@pytest.mark.filterwarnings("ignore::afmi.methods.BlankMapWarning")
def test_the_zero_itself_gets_nothing() -> None:
    model = Classifier(plain(), mean=[0.4, 0.5, 0.6], std=[0.2, 0.3, 0.4]).double()
    image = networks.images(1, 12).double()
    for reference, zero in (
        (None, model.mean.expand_as(image)),
        (Black(), torch.zeros_like(image)),
    ):
        method = LRP(model, reference=reference)
        assert method.attribute(image, 1).abs().max() > 1e-6
        assert not method.attribute(zero, 1).any()


def test_biases_and_epsilon_absorb_relevance() -> None:
    # y = relu(x − 1) at x = 3: ρ = (2 − 0)/2 · 1, and R = 3 · 1 of the score 2; with ε as large as
    # the layer's one output all the factors halve: the score's, and the activation's.
    network = nn.Sequential(nn.Flatten(), nn.Linear(1, 1), nn.ReLU(), nn.Linear(1, 1))
    for i, weight, bias in ((1, 1.0, -1.0), (3, 1.0, 0.0)):
        network[i].weight.data.fill_(weight)
        network[i].bias.data.fill_(bias)
    x = torch.full((1, 1, 1, 1), 3.0)
    assert LRP(network, epsilon=0).attribute(x).item() == pytest.approx(3.0)
    assert LRP(network, epsilon=1).attribute(x).item() == pytest.approx(3.0 / 4)


REAL = ("resnet18", "mobilenet_v2", "efficientnet_b0")
SLOW = ("resnet50", "densenet121")


@pytest.mark.parametrize(
    "name", [*REAL, *(pytest.param(name, marks=pytest.mark.slow) for name in SLOW)]
)
def test_does_not_blow_up(name: str) -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = getattr(torchvision.models, name)(weights=None)
    images = networks.images(4, 64)
    photo_like(network, images)
    attribution = LRP(network).attribution(images)
    assert attribution.logits is not None
    logits = attribution.logits.gather(1, attribution.target[:, None])[:, 0]
    assert (attribution.maps.sum((1, 2, 3)) / logits).abs().max() < 2
    if name not in ("efficientnet_b0", "mobilenet_v2"):
        # Rectifiers alone: near ε = 0 nothing can be larger than input × gradient.
        near = LRP(network, epsilon=1e-9).attribute(images)
        expected = InputXGradient(network).attribute(images)
        scale = float(expected.abs().max())
        torch.testing.assert_close(near, expected, rtol=1e-3, atol=1e-3 * scale)


def test_bad_settings() -> None:
    for bad in (-1.0, float("nan"), float("inf")):
        with pytest.raises(UsageError, match="epsilon"):
            LRP(nn.Flatten(), epsilon=bad)


def test_operations_without_a_rule_raise() -> None:
    class Softmax(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return 2 * x.flatten(1).softmax(1)

    class Quotient(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return (x / x.mean((1, 2, 3), keepdim=True)).flatten(1)

    for network, named in ((Softmax(), "softmax"), (Quotient(), "division")):
        with pytest.raises(OperationError, match=f"{named}.* no rule for LRP's backward pass"):
            LRP(network).attribute(torch.rand(1, 3, 4, 4))


@pytest.mark.parametrize("name", networks.TINY)
def test_contract(name: str) -> None:
    assert_like_any_method(LRP(networks.build(name)), networks.images())
    assert_like_any_method(LRP(networks.build(name, torch.float64)), networks.images().double())
