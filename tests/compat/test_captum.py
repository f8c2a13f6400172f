"""Captum's call shapes give its numbers, where these are right, and the true ones elsewhere."""

from __future__ import annotations

import copy
import functools
import inspect
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import afmi
from afmi.compat import captum as ours
from afmi.errors import AfmiError, ModelError, ShapeError, TargetError, UsageError

captum = pytest.importorskip("captum.attr", reason="captum, the peer, is not installed")

# Captum says so whenever it is handed tensors as users have them, and of each hook on ReLU.
pytestmark = [
    pytest.mark.filterwarnings("ignore:Input Tensor 0 did not already require gradients"),
    pytest.mark.filterwarnings("ignore:Setting backward hooks on ReLU activations"),
    pytest.mark.filterwarnings("ignore:Setting forward, backward hooks and attributes"),
]

TARGETS = torch.tensor([0, 3, 2])


def _network() -> nn.Sequential:
    """Modules of which each is used once, and none pools: Captum is right on it."""
    torch.manual_seed(0)
    return nn.Sequential(
        *(nn.Conv2d(3, 6, 3, padding=1), nn.ReLU(), nn.Conv2d(6, 8, 3), nn.ReLU()),
        *(nn.Flatten(), nn.Linear(8 * 36, 10), nn.ReLU(), nn.Linear(10, 5)),
    ).eval()


def _images(seed: int, count: int = 3) -> Tensor:
    return torch.randn(count, 3, 8, 8, generator=torch.Generator().manual_seed(seed))


def _close(one: Tensor, other: Tensor) -> None:
    assert one.shape == other.shape
    assert one.dtype == other.dtype
    one, other = one.detach(), other.detach()
    assert float((one - other).abs().max()) <= 1e-5 * float(other.abs().max())


def _both(name: str, network: nn.Module, *args: Any, **kwargs: Any) -> tuple[Any, Any]:
    """Return what ours and Captum's give for the same call."""
    theirs = getattr(captum, name)(copy.deepcopy(network)).attribute(*args, **kwargs)
    return getattr(ours, name)(network).attribute(*args, **kwargs), theirs


CALLS: list[tuple[str, dict[str, Any]]] = [
    ("Saliency", {}),
    ("Saliency", {"abs": False}),
    ("InputXGradient", {}),
    ("DeepLift", {}),
    ("DeepLift", {"baselines": 0.5}),
    ("DeepLift", {"baselines": _images(2)}),
    ("DeepLiftShap", {"baselines": _images(2)[:2]}),
    ("IntegratedGradients", {}),
    ("IntegratedGradients", {"baselines": _images(2), "n_steps": 7, "internal_batch_size": 4}),
    ("IntegratedGradients", {"method": "riemann_left", "n_steps": 9}),
    ("IntegratedGradients", {"method": "riemann_middle", "n_steps": 9}),
    ("IntegratedGradients", {"method": "riemann_right", "n_steps": 9, "baselines": 0.3}),
    ("IntegratedGradients", {"method": "riemann_trapezoid", "n_steps": 9}),
    ("Occlusion", {"sliding_window_shapes": (3, 3, 3), "strides": (3, 2, 2)}),
    ("Occlusion", {"sliding_window_shapes": (3, 3, 2), "strides": 2, "baselines": _images(2)[:1]}),
]


@pytest.mark.parametrize(("name", "options"), CALLS)
def test_it_is_what_captum_gives(name: str, options: dict[str, Any]) -> None:
    mine, theirs = _both(name, _network(), _images(1), target=TARGETS, **options)
    _close(mine, theirs)


def _pooling(activation: nn.Module) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        *(nn.Conv2d(3, 6, 3), activation, nn.MaxPool2d(2)),
        *(nn.Flatten(), nn.Linear(54, 5)),
    ).eval()


@pytest.mark.parametrize("name", ["GuidedBackprop", "Deconvolution"])
def test_rectified_signals(name: str) -> None:
    mine, theirs = _both(name, _pooling(nn.ReLU()), _images(1), target=TARGETS)
    _close(mine, theirs)


@pytest.mark.parametrize("name", ["DeepLift", "DeepLiftShap", "IntegratedGradients"])
def test_the_delta_is_what_captum_gives(name: str) -> None:
    options: dict[str, Any] = {"baselines": _images(2)[:2]} if name == "DeepLiftShap" else {}
    options |= {"target": 1, "return_convergence_delta": True}
    (mine, delta), (theirs, expected) = _both(name, _network(), _images(1), **options)
    _close(mine, theirs)
    assert getattr(ours, name)(_network()).has_convergence_delta()
    assert delta.shape == expected.shape
    torch.testing.assert_close(delta, expected, atol=1e-6, rtol=1e-3)


@pytest.mark.parametrize("relu", [False, True])
def test_grad_cam_of_a_layer(relu: bool) -> None:
    network, images = _network(), _images(1)
    theirs = captum.LayerGradCam(network, network[3])
    expected = theirs.attribute(images, target=1, relu_attributions=relu)
    for layer in (network[3], "3"):
        mine = ours.LayerGradCam(network, layer)
        _close(mine.attribute(images, target=1, relu_attributions=relu), expected)
    _close(mine.interpolate(expected, (8, 8)), theirs.interpolate(expected, (8, 8)))


def test_a_map_of_a_layer_is_no_tuple() -> None:
    """However the inputs come, so that it can be interpolated."""
    network, images = _network(), _images(1)
    expected = captum.LayerGradCam(network, network[3]).attribute((images,), target=1)
    mine = ours.LayerGradCam(network, network[3]).attribute((images,), target=1)
    _close(ours.LayerAttribution.interpolate(mine, (8, 8)), nn.functional.interpolate(expected, 8))
    map_, delta = ours.LayerAFMI(network).attribute(
        (images,), target=1, return_convergence_delta=True
    )
    assert map_.shape == (3, 1, 6, 6) and delta.shape == (3,)


CLASSES = [name for name in ours.__all__ if name not in ("LayerAFMI", "LayerAttribution")]


@pytest.mark.parametrize("name", CLASSES)
@pytest.mark.parametrize("of", ["__init__", "attribute"])
def test_arguments_have_captum_s_names(name: str, of: str) -> None:
    """And its order and defaults; what is ours alone comes after them, by keyword."""
    theirs, mine = (
        [
            (parameter.name, parameter.default)
            for parameter in inspect.signature(
                getattr(getattr(package, name), of)
            ).parameters.values()
            if parameter.name != "seed"
        ]
        for package in (captum, ours)
    )
    assert mine == theirs


class _Drawn:
    """Functions of baselines that are no plain ones."""

    def method(self) -> Tensor:
        return _images(2)[:2]

    def __call__(self, inputs: Tensor) -> Tensor:
        return inputs[:2] * 0.5


DISTRIBUTIONS: list[tuple[str, Any]] = [
    ("method", _Drawn().method),
    ("object", _Drawn()),
    ("partial", functools.partial(lambda inputs, scale: scale * inputs[:2], scale=0.5)),
    ("tuple", lambda: (_images(2)[:2],)),
]


@pytest.mark.parametrize("draw", [pytest.param(draw, id=name) for name, draw in DISTRIBUTIONS])
def test_baselines_by_any_callable(draw: Any) -> None:
    _close(*_both("DeepLiftShap", _network(), _images(1), draw, target=1))


def test_a_function_of_baselines_gets_the_inputs_as_they_are() -> None:
    def draw(inputs: tuple[Tensor]) -> tuple[Tensor]:
        return (inputs[0][:2] * 0.5,)

    (mine,), (theirs,) = _both("DeepLiftShap", _network(), (_images(1),), draw, target=1)
    _close(mine, theirs)


def test_multiplied_by_the_inputs_or_not() -> None:
    network, images = _network(), _images(1)
    for name in ("IntegratedGradients", "DeepLift"):
        theirs = getattr(captum, name)(copy.deepcopy(network), multiply_by_inputs=False)
        mine = getattr(ours, name)(network, multiply_by_inputs=False)
        _close(mine.attribute(images, target=1), theirs.attribute(images, target=1))


@pytest.mark.parametrize(
    "target", [(1, 2, 3), [(1, 2, 3), (0, 0, 0), (2, 2, 2)], (1, 0, 5)], ids=str
)
def test_outputs_of_more_dimensions_are_indexed(target: Any) -> None:
    torch.manual_seed(0)
    mine, theirs = _both("Saliency", nn.Sequential(nn.Conv2d(3, 4, 3)), _images(1), target=target)
    _close(mine, theirs)


def test_the_only_output_needs_no_target() -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Flatten(), nn.Linear(192, 1))
    mine, theirs = _both("InputXGradient", network, (_images(1),))
    assert isinstance(mine, tuple) and isinstance(theirs, tuple)
    _close(mine[0], theirs[0])
    with pytest.raises(TargetError, match="returns 5 values"):
        ours.Saliency(_network()).attribute(_images(1))


def test_a_softmax_at_the_end_is_explained_as_it_is() -> None:
    network = nn.Sequential(_network(), nn.Softmax(1))
    mine, theirs = _both("IntegratedGradients", network, _images(1), target=TARGETS)
    _close(mine, theirs)


class _Shifted(nn.Module):
    """Takes a second argument."""

    def __init__(self) -> None:
        super().__init__()
        self.network = _network()

    def forward(self, images: Tensor, shift: Tensor) -> Tensor:
        return self.network(images * shift.view(-1, 1, 1, 1)).square()


def test_what_else_the_network_takes() -> None:
    network, shift = _Shifted(), torch.tensor([1.0, 2.0, 3.0])
    options = {"additional_forward_args": shift, "target": TARGETS}
    mine, theirs = _both("IntegratedGradients", network, _images(1), _images(2), **options)
    _close(mine, theirs)
    # One row goes along with every image.
    shared, theirs = (
        ours.Saliency(network).attribute(
            _images(1), target=TARGETS, additional_forward_args=(rows,)
        )
        for rows in (torch.tensor([2.0]), torch.tensor([2.0, 2.0, 2.0]))
    )
    _close(shared, theirs)


def test_deeplift_sums_where_captum_does_not() -> None:
    """Behind a ReLU, max pooling gets a stale gradient from Captum's hooks."""
    network, baselines = _pooling(nn.ReLU()), _images(2)
    options = {"target": 1, "return_convergence_delta": True}
    (_, mine), (_, theirs) = _both("DeepLift", network, _images(1), baselines, **options)
    change = (network(_images(1)) - network(baselines))[:, 1].detach().abs()
    assert float((mine.abs() / change).max()) < 1e-5
    assert float((theirs.abs() / change).max()) > 0.5


@pytest.mark.parametrize("name", ["GuidedBackprop", "Deconvolution"])
def test_rectified_signals_of_other_activations(name: str) -> None:
    """Captum gives the plain gradient without a word; ours rectifies."""
    network = _pooling(nn.GELU())
    mine, theirs = _both(name, network, _images(1), target=1)
    plain = ours.Saliency(network).attribute(_images(1), target=1, abs=False)
    _close(theirs, plain)
    assert float((mine - plain).abs().max()) > 0.1 * float(plain.abs().max())


def test_gradient_shap_of_one_baseline_on_a_linear_network() -> None:
    """There every drawn point gives the same."""
    torch.manual_seed(0)
    network, baseline = nn.Sequential(nn.Flatten(), nn.Linear(192, 5)), _images(2)[:1]
    mine = ours.GradientShap(network).attribute(_images(1), baseline, target=1)
    weights = network[1].weight[1].view(1, 3, 8, 8).detach()
    _close(mine, (_images(1) - baseline) * weights)
    drawn = ours.GradientShap(_network())
    one = drawn.attribute(_images(1), _images(2), target=1)
    assert torch.equal(one, drawn.attribute(_images(1), lambda: _images(2), target=1))
    assert not torch.equal(one, drawn.attribute(_images(1), _images(2), target=1, seed=1))


def test_afmi_in_the_same_shape() -> None:
    network, images, baseline = _network(), _images(1), _images(2)
    exact = ours.LayerAFMI(network, network[3], averaged=False)
    maps, delta = exact.attribute(images, baseline, target=TARGETS, return_convergence_delta=True)
    assert maps.shape == (3, 1, 6, 6)
    change = network(images) - network(baseline)
    change = change.gather(1, TARGETS[:, None])[:, 0]
    torch.testing.assert_close(maps.sum((1, 2, 3)), change, atol=1e-6, rtol=1e-5)
    assert float(delta.abs().max()) < 1e-6
    # The same map as by our own call, with the layer found and a reference in the network's range.
    method = afmi.AFMI(network, reference=baseline[:1])
    expected = method.attribution(images, TARGETS).coarse
    mine = ours.LayerAFMI(network).attribute(images, baseline[:1], target=TARGETS)
    assert expected is not None
    torch.testing.assert_close(mine, expected)


def test_another_baseline_is_another() -> None:
    """Also one that was changed in place, or comes in another precision."""
    network, baseline = _network(), _images(2)[:1]
    deeplift, theirs = ours.DeepLift(network), captum.DeepLift(copy.deepcopy(network))
    for change in (0.0, 1.0):
        baseline += change
        mine = deeplift.attribute(_images(1), baseline, target=1)
        _close(mine, theirs.attribute(_images(1), baseline.clone(), target=1))
    wide = network.double()
    mine = ours.DeepLift(wide).attribute(_images(1).double(), baseline.double() / 3, target=1)
    again = deeplift.attribute(_images(1).double(), baseline.double() / 3, target=1)
    assert torch.equal(mine, again)


def test_the_network_is_left_as_it_was() -> None:
    network = _network().train()
    state = torch.get_rng_state()
    ours.DeepLift(network).attribute(_images(1), target=1)
    assert network.training and all(module.training for module in network)
    assert all(parameter.grad is None for parameter in network.parameters())
    assert not any(module._forward_hooks for module in network.modules())
    assert torch.equal(torch.get_rng_state(), state)


REFUSED: list[tuple[type[AfmiError], str, Any]] = [
    (ModelError, "nn.Module", lambda: ours.Saliency(lambda x: x)),  # type: ignore[arg-type]
    (UsageError, "eps=1e-10 only", lambda: ours.DeepLift(_network(), eps=1e-3)),
    (
        UsageError,
        "custom_attribution_func=None only",
        lambda: ours.DeepLift(_network()).attribute(
            _images(1),
            target=1,
            custom_attribution_func=lambda *a: a,  # type: ignore[arg-type]
        ),
    ),
    (
        UsageError,
        "one tensor of images",
        lambda: ours.Saliency(_network()).attribute((_images(1), _images(2))),  # type: ignore
    ),
    (
        ShapeError,
        r"1 or 3 rows .* got \(2, 3, 8, 8\)",
        lambda: ours.DeepLift(_network()).attribute(_images(1), _images(2)[:2], target=1),
    ),
    (
        UsageError,
        "riemann_left.*got 'simpson'",
        lambda: ours.IntegratedGradients(_network()).attribute(
            _images(1), target=1, method="simpson"
        ),
    ),
    (
        UsageError,
        "n_steps from 2",
        lambda: ours.IntegratedGradients(_network()).attribute(
            _images(1), target=1, method="riemann_left", n_steps=1
        ),
    ),
    (
        UsageError,
        "stdevs=0.0 only",
        lambda: ours.GradientShap(_network()).attribute(_images(1), _images(2), stdevs=0.1),
    ),
    (
        UsageError,
        "with all 3 channels",
        lambda: ours.Occlusion(_network()).attribute(_images(1), (1, 3, 3), target=1),
    ),
    (
        UsageError,
        "attribute_to_layer_input=False only",
        lambda: ours.LayerGradCam(_network(), "3").attribute(
            _images(1), target=1, attribute_to_layer_input=True
        ),
    ),
    (
        TargetError,
        "tuple of indices",
        lambda: ours.Saliency(_network()).attribute(_images(1), target=("cat",)),
    ),
    (
        TargetError,
        r"of the shape \(\d+,\), got \(1, 9\)",
        lambda: ours.Saliency(_network()).attribute(_images(1), target=(1, 9)),
    ),
]


@pytest.mark.parametrize(("kind", "words", "call"), REFUSED)
def test_what_cannot_be_served_is_refused(kind: type[AfmiError], words: str, call: Any) -> None:
    with pytest.raises(kind, match=words):
        call()
