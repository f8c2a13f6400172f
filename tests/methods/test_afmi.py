"""A-FMI: closed forms, exactness of its variants, several classes and references, Captum."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
import torchvision
from completeness import photographs, torchvision_classifier
from networks import TINY, build, images
from torch import Tensor, nn

import afmi
from afmi.errors import CompletenessWarning, LayerError, TargetError
from afmi.gradients import modified_gradient
from afmi.methods import AFMI
from afmi.network.layers import resolve_layer
from afmi.pictures.maps import upsample
from afmi.pictures.references import Black, Image, Random, Several, White
from afmi.targets import Difference

# Closed forms are those of networks with one output.
pytestmark = pytest.mark.filterwarnings("ignore:the network returns one number")

LAYERS = {"vgg": "features.5", "resnet": "layer1", "functional": "conv2"}


class OneUnit(nn.Module):
    """One feature map of 1×2 pixels, y = tanh(a₁ + 2·a₂)."""

    def forward(self, x: Tensor) -> Tensor:
        a = self.maps(x)
        return torch.tanh(a[:, 0, :, 0] + 2 * a[:, 0, :, 1])

    def __init__(self) -> None:
        super().__init__()
        self.maps = nn.Identity()


def test_closed_form() -> None:
    """Black: the chord of tanh from 0 to 1 + 2·2 = 5 is tanh(5)/5, so FMI = 1.5·tanh(5)/5."""
    method = AFMI(OneUnit(), layer="maps")
    x = torch.tensor([[[[1.0, 2.0]]]], dtype=torch.float64)
    chord = np.tanh(5) / 5
    assert method.feature_map_importance(x, 0).item() == pytest.approx(1.5 * chord, rel=1e-12)
    assert method.attribute(x, 0).flatten().tolist() == pytest.approx([1.5 * chord, 3 * chord])
    exact = AFMI(OneUnit(), layer="maps", averaged=False).attribute(x, 0)
    assert exact.flatten().tolist() == pytest.approx([chord, 4 * chord], rel=1e-12)


@pytest.mark.parametrize("network", TINY)
def test_without_averaging_the_map_sums_to_the_change_of_the_logit(network: str) -> None:
    model, x = build(network, torch.float64), images().double()
    for reference in (Black(), White(), Random(samples=2)):
        method = AFMI(model, layer=LAYERS[network], reference=reference, averaged=False)
        residual = method.attribution(x).residual
        assert residual is not None
        assert residual.abs().max() < 1e-9


def test_sum_of_the_map_at_the_layers_size() -> None:
    model, x = build("vgg", torch.float64), images().double()
    gradient = modified_gradient(
        model, x, layer=resolve_layer(model, "features.5", x), reference=Black()
    )
    targets = torch.tensor([[0, 1, 2]])
    maps = (gradient.gradients(targets)[0] * gradient.change()).sum(1)
    with torch.no_grad():
        change = model(x) - model(torch.zeros_like(x))
    torch.testing.assert_close(maps.sum((1, 2)), change.gather(1, targets.T)[:, 0])


def test_global_average_pooling_and_a_linear_head_leave_no_residual() -> None:
    residual = AFMI(build("resnet", torch.float64)).attribution(images().double()).residual
    assert residual is not None
    assert residual.abs().max() < 1e-10


def test_other_heads_leave_a_residual_that_is_reported() -> None:
    attribution = AFMI(build("vgg", torch.float64), layer="features.5").attribution(
        images().double()
    )
    assert attribution.residual is not None
    assert attribution.residual.shape == (3,)
    assert attribution.residual.abs().max() > 1e-3


@pytest.mark.parametrize("network", TINY)
def test_importance_weights_the_change_of_the_maps(network: str) -> None:
    """Eq. 6 and 7 put together from the parts."""
    model, x = build(network, torch.float64), images().double()
    method = AFMI(model, layer=LAYERS[network])
    importance = method.feature_map_importance(x, 2)
    gradient = modified_gradient(model, x, layer=method.resolved_layer(x), reference=Black())
    assert importance.shape == gradient.run.features.shape[:2]
    modified = gradient.gradients(torch.full((1, 3), 2))[0]
    torch.testing.assert_close(importance, modified.mean((2, 3)))
    maps = (importance[:, :, None, None] * gradient.change()).sum(1, keepdim=True)
    torch.testing.assert_close(method.attribute(x, 2), upsample(maps, (20, 20)))


@pytest.mark.parametrize("averaged", [True, False])
@pytest.mark.parametrize("network", TINY)
def test_several_classes_equal_each(network: str, averaged: bool) -> None:
    model, x = build(network, torch.float64), images().double()
    method = AFMI(model, layer=LAYERS[network], reference=Random(samples=2), averaged=averaged)
    targets = torch.tensor([[0, 1, 2], [4, 4, 3], [2, 0, 1]])
    expected = torch.stack([method.attribute(x, row) for row in targets])
    torch.testing.assert_close(
        method.attribute_classes(x, targets), expected, rtol=1e-10, atol=1e-12
    )
    assert method.attribute_classes(x, range(5)).shape == (5, 3, 1, 20, 20)


def test_several_classes_out_of_range() -> None:
    with pytest.raises(TargetError, match="0 to 4, got 5"):
        AFMI(build("vgg")).attribute_classes(images(), [0, 5])
    with pytest.raises(TargetError, match="T classes"):
        AFMI(build("vgg")).attribute_classes(images(), [])


@pytest.mark.parametrize("averaged", [True, False])
def test_several_references_are_averaged(averaged: bool) -> None:
    model, x = build("functional", torch.float64), images().double()

    def maps(reference: object) -> Tensor:
        method = AFMI(model, layer="conv2", reference=reference, averaged=averaged)  # type: ignore[arg-type]
        return method.attribute(x, 1)

    given = Image(images(1, seed=9)[0])
    together = maps(Several([Black(), White(), given]))
    torch.testing.assert_close(together, (maps(Black()) + maps(White()) + maps(given)) / 3)


def test_image_equal_to_its_reference_has_a_map_of_zeros() -> None:
    model, x = build("vgg"), images(1)
    with pytest.warns(UserWarning, match="the same everywhere"):
        maps = AFMI(model, layer="features.5", reference=Image(x)).attribute(x)
    assert maps.abs().max() == 0


class Shortcut(nn.Module):
    """A way around the layer, so that its maps cannot explain the logits."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 3, padding=1)
        self.head = nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head((self.conv(x) + x).relu().mean((2, 3)))


def test_a_way_around_the_layer_warns() -> None:
    with pytest.warns(CompletenessWarning, match="around the layer"):
        AFMI(Shortcut(), layer="conv").attribute(images())


def test_layer_without_maps() -> None:
    with pytest.raises(LayerError, match=r"but gives \(., 16\)"):
        AFMI(build("vgg"), layer="classifier.0").attribute(images())


def captums(
    model: nn.Module, layer: nn.Module, x: Tensor, reference: Tensor, target: int
) -> Tensor:
    """Return Captum's modified gradient (DeepLIFT's) at the layer's output."""
    attr = pytest.importorskip("captum.attr")
    method = attr.LayerDeepLift(model, layer, multiply_by_inputs=False)
    return method.attribute(x, reference, target=target).detach()


# Captum needs modules that write nothing in place, and none that runs twice.
PLAIN = {"vgg11": "features.19", "squeezenet1_1": "features"}


@pytest.mark.filterwarnings("ignore:Setting forward")
@pytest.mark.parametrize(("name", "layer"), [*PLAIN.items(), ("vgg11", "features.20")])
def test_modified_gradients_equal_captums(name: str, layer: str) -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = _narrow_vgg() if name == "vgg11" else torchvision.models.get_model(name)
    network = network.double().eval()
    for module in network.modules():
        if isinstance(module, nn.ReLU):
            module.inplace = False
    x = photographs(64)[:2].double()
    reference = torch.zeros_like(x)
    place = resolve_layer(network, layer, x)
    gradient = modified_gradient(network, x, layer=place, reference=Black())
    for target in (0, 3):
        gradients = gradient.gradients(torch.full((1, 2), target))[0]
        expected = captums(network, place[0], x, reference, target)
        scale = expected.abs().max()
        if layer == "features.19":  # before the last pooling
            # Captum returns the plain derivative where Δin = 0, position by position.
            changed = gradient.change() != 0
            gradients, expected = gradients * changed, expected * changed
        assert (gradients - expected).abs().max() <= 1e-9 * scale


def _narrow_vgg() -> nn.Module:
    """A VGG-11 whose fully connected layers are small enough for a test."""
    network = torchvision.models.vgg11(init_weights=False, num_classes=10)
    network.avgpool = nn.AdaptiveAvgPool2d(2)
    network.classifier = nn.Sequential(
        nn.Linear(2048, 64),
        nn.ReLU(),
        nn.Dropout(),
        nn.Linear(64, 32),
        nn.ReLU(),
        nn.Linear(32, 10),
    )
    return network


@pytest.mark.slow
@pytest.mark.parametrize("name", ["vgg16", "resnet50", "squeezenet1_0"])
def test_torchvision_networks(name: str) -> None:
    x = photographs(224)[:2]
    attribution = AFMI(torchvision_classifier(name, 224)).attribution(x)
    assert attribution.maps.shape == (2, 1, 224, 224)
    if name != "vgg16":
        assert attribution.residual is not None
        assert attribution.residual.abs().max() < 1e-3


class ReadsPositions(nn.Module):
    """y = 3·a₁ − a₂ and y = a₁ + a₂: a head that reads the two places by themselves, or alike."""

    def __init__(self) -> None:
        super().__init__()
        self.maps = nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        first, second = self.maps(x)[:, 0, 0].unbind(1)
        return torch.stack([3 * first - second, first + second], 1)


def test_agreement_of_the_averaged_and_the_exact_map() -> None:
    """a = (1, 2): averaged weights 1 give (1, 2), the exact ones (3, −2), in the other order."""
    x = torch.tensor([[[[1.0, 2.0]]]])
    both = AFMI(ReadsPositions(), layer="maps").attributions(x, [0, 1])
    assert [round(float(one.agreement)) for one in both if one.agreement is not None] == [-1, 1]
    exact = AFMI(ReadsPositions(), layer="maps", averaged=False)
    assert exact.attribution(x, 0).agreement is None
    hidden, shown = afmi.explain_classes(ReadsPositions(), x, [0, 1], layer="maps")
    text = "averaging hides evidence, see averaged=false (rank correlation −1.00)"
    assert text in str(hidden)
    assert hidden.to_dict()["agreement"] == pytest.approx(-1)
    assert "averaging" not in str(shown)


@pytest.mark.parametrize("averaged", [True, False])
def test_attributions_hold_vectors_and_maps_at_the_layers_size(averaged: bool) -> None:
    model, x = build("vgg", torch.float64), images().double()
    method = AFMI(model, layer=LAYERS["vgg"], reference=Several((Black(), White())))
    attribution = replace(method, averaged=averaged).attribution(x, 2)
    importance, contribution = (attribution.vectors[name] for name in AFMI.vectors)
    torch.testing.assert_close(importance, method.feature_map_importance(x, 2))
    references = [torch.zeros_like(x), torch.ones_like(x)]
    with torch.no_grad():
        change = model(x) - torch.stack([model(one) for one in references]).mean(0)
    torch.testing.assert_close(contribution.sum(1), change[:, 2])
    assert attribution.coarse is not None
    assert attribution.coarse.shape[2:] == (10, 10)
    torch.testing.assert_close(upsample(attribution.coarse, (20, 20)), attribution.maps)


def test_contribution_maps_sum_to_the_exact_map_and_to_the_vector() -> None:
    model, x = build("vgg", torch.float64), images().double()
    method = AFMI(model, layer=LAYERS["vgg"], reference=Several((Black(), White())), averaged=False)
    contributions = method.contribution_maps(x, 2)
    attribution = method.attribution(x, 2)
    assert attribution.coarse is not None
    torch.testing.assert_close(contributions.sum(1, keepdim=True), attribution.coarse)
    torch.testing.assert_close(contributions.sum((2, 3)), attribution.vectors["contribution"])
    difference = method.contribution_maps(x, Difference(2, 1))
    torch.testing.assert_close(difference, contributions - method.contribution_maps(x, 1))
