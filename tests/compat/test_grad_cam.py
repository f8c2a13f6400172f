"""pytorch-grad-cam's call shapes: maps in [0, 1] at the image's size, worked out by hand."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import afmi
from afmi.compat import grad_cam as ours
from afmi.compat.grad_cam import ClassifierOutputTarget
from afmi.errors import AfmiError, ShapeError, TargetError, UsageError

NAMES = [name for name in ours.__all__ if name.endswith("CAM") or name == "GradCAMPlusPlus"]


def _network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        *(nn.Conv2d(3, 6, 3, padding=1), nn.ReLU(), nn.Conv2d(6, 8, 3), nn.ReLU()),
        *(nn.MaxPool2d(2), nn.Flatten(), nn.Linear(8 * 49, 10), nn.ReLU(), nn.Linear(10, 5)),
    ).eval()


def _images(count: int = 3) -> Tensor:
    return torch.randn(count, 3, 16, 16, generator=torch.Generator().manual_seed(1))


def _first_channel() -> nn.Sequential:
    """Its one feature map is the first channel of the image, halved, and the score its mean."""
    network = nn.Sequential(
        nn.Conv2d(3, 1, 2, stride=2, bias=False), nn.AdaptiveAvgPool2d(1), nn.Flatten()
    )
    with torch.no_grad():
        network[0].weight.zero_()[0, 0] = 0.25
    return network


def test_worked_out_by_hand() -> None:
    # The feature map is [[-1, 0], [1, 3]]: after the ReLU and the stretch [[0, 0], [1/3, 1]].
    image = torch.zeros(1, 3, 4, 4)
    for (row, column), value in {(0, 0): -1.0, (2, 0): 1.0, (2, 2): 3.0}.items():
        image[0, 0, row : row + 2, column : column + 2] = value
    # Interpolated to 4 × 4 along each side: weights (1, 0), (3/4, 1/4), (1/4, 3/4), (0, 1).
    along = torch.tensor([[1, 0], [0.75, 0.25], [0.25, 0.75], [0, 1]])
    expected = along @ torch.tensor([[0, 0], [1 / 3, 1]]) @ along.T
    with ours.GradCAM(model=_first_channel(), target_layers=["0"]) as cam:
        map_ = cam(input_tensor=image, targets=[ClassifierOutputTarget(0)])
    assert map_.shape == (1, 4, 4) and map_.dtype == np.float32
    np.testing.assert_allclose(map_[0], expected.numpy(), atol=1e-6)


@pytest.mark.parametrize("name", [*NAMES, "AFMI", "FullGrad"])
def test_every_method_gives_maps_from_0_to_1(name: str) -> None:
    network = _network()
    layers: list[Any] = [] if name == "FullGrad" else [network[3]]
    cam = getattr(ours, name)(network, layers)
    targets = [ClassifierOutputTarget(c) for c in network(_images()).argmax(1).tolist()]
    maps = cam(input_tensor=_images(), targets=targets)
    assert maps.shape == (3, 16, 16) and maps.dtype == np.float32
    np.testing.assert_array_equal(maps.min((1, 2)), 0)
    np.testing.assert_array_equal(maps.max((1, 2)), 1)
    np.testing.assert_array_equal(cam(_images()), maps)  # without targets, the predicted class
    np.testing.assert_allclose(cam(_images(1), targets[:1])[0], maps[0], atol=1e-4)


def test_the_outputs_need_no_second_run() -> None:
    """As pytorch-grad-cam's readme takes them, also of targets that are no classes."""
    network = _network().train()
    targets: list[Any] = [ClassifierOutputTarget(1)] * 3
    for each in (targets, None, [lambda output: output[1] - output[2]] * 3):
        cam = ours.GradCAM(model=network, target_layers=[network[1], network[3]])
        assert cam.outputs is None
        cam(input_tensor=_images(), targets=each)
        torch.testing.assert_close(cam.outputs, _network()(_images()).detach())
        assert not cam.outputs.requires_grad and network.training


def test_afmi_is_the_positive_part_of_ours() -> None:
    network, reference = _network(), torch.full((3, 16, 16), -0.5)
    with torch.no_grad():
        classes = network(_images()).argmax(1)
    coarse = afmi.AFMI(network, layer="3", reference=reference).attribution(_images()).coarse
    assert coarse is not None
    large = nn.functional.interpolate(_stretched(coarse.relu()), (16, 16), mode="bilinear")[:, 0]
    mine = ours.AFMI(network, [network[3]], reference=reference)(_images(), classes.tolist())
    np.testing.assert_allclose(mine, _stretched(large).numpy(), atol=1e-5)


def test_several_layers_are_averaged() -> None:
    network, total = _network(), np.zeros((3, 16, 16), np.float32)
    for layer in ("1", "3"):
        method = afmi.methods.LayerCAM(network, layer=layer)
        coarse = method.attribution(_images()).coarse
        assert coarse is not None
        total += nn.functional.interpolate(_stretched(coarse), (16, 16), mode="bilinear")[
            :, 0
        ].numpy()
    both = ours.LayerCAM(network, [network[1], network[3]])(_images())
    np.testing.assert_allclose(both, _stretched(torch.from_numpy(total)).numpy(), atol=1e-5)


def _stretched(maps: Tensor) -> Tensor:
    low, high = maps.amin((-2, -1), keepdim=True), maps.amax((-2, -1), keepdim=True)
    return (maps - low) / (high - low)


def test_any_function_of_an_output_is_a_target() -> None:
    network = _network()

    def difference(output: Tensor) -> Tensor:
        return output[1] - output[2]

    maps = ours.GradCAM(network, [network[3]])(_images(), [difference, 1, difference])
    rows = nn.Linear(5, 2, bias=False)
    with torch.no_grad():
        rows.weight.copy_(torch.tensor([[0.0, 1, -1, 0, 0], [0, 1, 0, 0, 0]]))
    headed = nn.Sequential(network, rows)
    expected = ours.GradCAM(headed, [network[3]])(_images(), [0, 1, 0])
    np.testing.assert_allclose(maps, expected, atol=1e-5)


def test_overlay_worked_out_by_hand() -> None:
    image = np.array([[[0.2, 0.4, 0.6], [0.0, 0.0, 0.0]]])
    mask = np.array([[1.0, 0.0]])
    # Grey from white to black: 0.5 · 1 + 0.5 · image, then divided by the largest, 0.8.
    drawn = ours.show_cam_on_image(image, mask, use_rgb=True, colormap="gray")
    expected = [[[0.6 / 0.8, 0.7 / 0.8, 1.0], [0, 0, 0]]]
    assert np.abs(drawn.astype(int) - 255 * np.array(expected)).max() <= 1
    # Blue first: the red end of the colours is the last number.
    blue_first = ours.show_cam_on_image(np.zeros((1, 1, 3)), np.ones((1, 1)))
    assert blue_first.tolist() == [[[0, 0, 255]]]


def test_the_network_is_left_as_it_was() -> None:
    network = _network().train()
    names = dict(network.named_modules())
    with ours.AblationCAM(network, [network[3]]) as cam:
        cam(_images(1))
    assert network.training and dict(network.named_modules()) == names
    assert all(parameter.grad is None for parameter in network.parameters())


REFUSED: list[tuple[type[AfmiError], str, Any]] = [
    (UsageError, "no reshape_transform", lambda n: ours.GradCAM(n, [n[3]], lambda x: x)),
    (UsageError, r"write \[layer\]", lambda n: ours.GradCAM(n, n[3])),
    (UsageError, "aug_smooth=False", lambda n: ours.GradCAM(n)(_images(), aug_smooth=True)),
    (UsageError, "eigen_smooth=False", lambda n: ours.GradCAM(n)(_images(), eigen_smooth=True)),
    (TargetError, "list of 3 targets.*got 1", lambda n: ours.GradCAM(n)(_images(), [1])),
    (TargetError, "from 0 to 4, got 7", lambda n: ours.GradCAM(n)(_images(1), [7])),
    (ShapeError, r"\(N, C, H, W\)", lambda n: ours.GradCAM(n)(_images()[0])),
    (ShapeError, "floating-point.*uint8", lambda n: ours.GradCAM(n)(_images().to(torch.uint8))),
    (UsageError, "looks at all", lambda n: ours.FullGrad(n, [n[3]])),
    (UsageError, "ratio", lambda n: ours.AblationCAM(n, ratio_channels_to_ablate=0.5)),
    (
        UsageError,
        "img in .0, 1., got 0 to 255",
        lambda n: ours.show_cam_on_image(np.eye(3)[None] * 255, np.zeros((1, 3))),
    ),
    (
        UsageError,
        "name of a colour map",
        lambda n: ours.show_cam_on_image(
            np.zeros((2, 2, 3)),
            np.zeros((2, 2)),
            colormap=2,  # type: ignore[arg-type]
        ),
    ),
]


@pytest.mark.parametrize(("kind", "words", "call"), REFUSED)
def test_what_cannot_be_served_is_refused(kind: type[AfmiError], words: str, call: Any) -> None:
    with pytest.raises(kind, match=words):
        call(_network())


@pytest.mark.parametrize(
    ("name", "within"),
    [
        *(("GradCAM", 1e-5), ("HiResCAM", 1e-5), ("XGradCAM", 1e-5), ("LayerCAM", 1e-5)),
        *(("GradCAMPlusPlus", 0.02), ("ScoreCAM", 0.01)),
    ],
)
def test_it_is_what_the_peer_gives(name: str, within: float) -> None:
    """The last two but for a constant that the peer adds, and for how it enlarges masks."""
    peer = pytest.importorskip("pytorch_grad_cam", reason="grad-cam, the peer, is not installed")
    network = _network()
    targets = [ClassifierOutputTarget(c) for c in (0, 3, 2)]
    mine = getattr(ours, name)(network, [network[3]])(_images(), targets)
    theirs = getattr(peer, name)(network, [network[3]])(_images(), targets)
    np.testing.assert_allclose(mine, theirs, atol=within)


def test_a_class_is_named_by_its_index() -> None:
    assert ClassifierOutputTarget(np.int64(3)).category == 3  # type: ignore[arg-type]
    for wrong in ("cat", True, torch.tensor(True)):
        with pytest.raises(TargetError, match="expected a class by its index, got"):
            ClassifierOutputTarget(wrong)  # type: ignore[arg-type]


def test_the_peers_own_target_is_checked_as_well() -> None:
    theirs = type("ClassifierOutputTarget", (), {"category": True, "__call__": lambda *_: None})
    network = _network()
    with pytest.raises(TargetError, match=r"expected a class index, .* got \[True\]"):
        ours.GradCAM(network, [network[3]])(_images(1), [theirs()])
