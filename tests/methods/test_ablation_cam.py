"""Ablation-CAM: by hand, map by map, networks that refuse shared rows, an independent package."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from dimensional import images as images_of
from dimensional import network
from layer_maps import PLACES, assert_like_grad_cam, maps_and_gradients, pooled, two_maps
from networks import build, images
from torch import Tensor, nn

from afmi import targets
from afmi.gradients.replaced import ChangedMaps
from afmi.methods import AblationCAM
from afmi.network.layers import Layer
from afmi.pictures.maps import upsample


def test_by_hand() -> None:
    """y_0 = 4 − 2 = 2; without the first map −2, without the second 4."""
    x = two_maps()
    maps = AblationCAM(pooled(), layer="1").attribute(x, 0)
    expected = 4 / 2 * x[0, 0] - 2 / 2 * x[0, 1]
    torch.testing.assert_close(maps[0, 0], expected.clamp_min(0))


def test_a_negative_score_does_not_turn_the_map_around() -> None:
    """y_0 = −2 where the second map alone is active, and less without the first one."""
    x = two_maps()
    x[:, 1] *= 3
    maps = AblationCAM(pooled(), layer="1").attribute(x, 0)  # y_0 = 4 − 6 = −2
    torch.testing.assert_close(maps[0, 0], (4 / 2 * x[0, 0] - 6 / 2 * x[0, 1]).clamp_min(0))


def slow(model: nn.Module, layer: str, features: Tensor, image: Tensor, target: int) -> Tensor:
    """One map after the other, for one image, each by a hook."""
    total = torch.zeros(features.shape[1:], dtype=torch.float64)
    with torch.no_grad():
        score = model(image[None])[0, target]
        for k, a in enumerate(features):

            def ablate(_module: object, _args: object, output: Tensor, k: int = k) -> Tensor:
                output = output.clone()
                output[:, k] = 0
                return output

            handle = model.get_submodule(layer).register_forward_hook(ablate)
            total += (score - model(image[None])[0, target]) / score.abs() * a
            handle.remove()
    return total.clamp_min(0)


@pytest.mark.filterwarnings("ignore::afmi.methods.BlankMapWarning")
@pytest.mark.parametrize(("name", "layer"), [*PLACES, ("vgg", "features.2")])
def test_equals_the_formula(name: str, layer: str) -> None:
    model, x = build(name, torch.float64), images(2).double()
    features = maps_and_gradients(model, layer, x, 1)[0]
    expected = torch.stack([slow(model, layer, features[n], x[n], 3)[None] for n in range(2)])
    maps = AblationCAM(model, layer=layer, batch_size=4).attribute(x, 3)
    torch.testing.assert_close(maps, upsample(expected, (20, 20)))


class Folding(nn.Module):
    """Remembers how many images there are, and joins maps that did not pass the layer."""

    def __init__(self, network: nn.Module, how: str) -> None:
        super().__init__()
        self.network, self.how = network, how

    def forward(self, x: Tensor) -> Tensor:
        maps = self.network[1](self.network[0](x))  # type: ignore[index]
        if self.how == "counts":
            return self.network[4](maps.view(len(x), 2, -1).mean(2))  # type: ignore[index]
        beside = x.mean((2, 3))
        joined = torch.cat([maps.mean((2, 3)), beside], 1)
        return self.network[4](joined[:, :2] + joined[:, 2:])  # type: ignore[index]


@pytest.mark.parametrize("how", ["counts", "joins"])
def test_networks_that_take_no_more_rows_behind_the_layer(how: str) -> None:
    """They run whole for each map, and give the map of a network that does take them."""
    x = two_maps()
    maps = AblationCAM(Folding(pooled(), how).eval(), layer="network.1").attribute(x, 0)
    if how == "counts":
        torch.testing.assert_close(maps, AblationCAM(pooled(), layer="1").attribute(x, 0))
    else:  # y_0 = 2 + 2, of which the way beside the layer has half
        expected = 4 / 4 * x[0, 0] - 2 / 4 * x[0, 1]
        torch.testing.assert_close(maps[0, 0], expected.clamp_min(0))


def changed(model: nn.Module, layer: Layer, x: Tensor) -> tuple[ChangedMaps, Any]:
    place = model.get_submodule(layer.name), layer
    maps = model[:2](x) if isinstance(model, nn.Sequential) else x  # type: ignore[index]
    return ChangedMaps(model, x, place, maps, model(x).detach()), maps


def test_a_batch_that_is_answered_wrongly_is_not_believed() -> None:
    class Halves(nn.Module):
        """Gives another answer where there are several rows."""

        def forward(self, x: Tensor) -> Tensor:
            return x if len(x) == 1 else x * 0.5

    model = pooled()
    model.insert(2, Halves())
    runs, _ = changed(model, Layer("1"), two_maps())

    def ablate(maps: Tensor, start: int, stop: int) -> None:
        for row in range(stop - start):
            maps[row, start + row] = 0

    with torch.no_grad():
        logits = runs.logits(2, ablate)
    assert runs.copies
    assert logits.shape == (2, 2)


def fail(*_: Any) -> None:
    raise ZeroDivisionError


def test_the_network_is_left_alone() -> None:
    model = build("resnet")
    runs, _ = changed(model, Layer("layer1"), images(1))
    with pytest.raises(ZeroDivisionError):
        runs.logits(3, fail)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_other_targets_share_rows_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """The score of a function of the outputs is the class's where it returns that."""
    x, model = images_of(1), network(1)
    expected = AblationCAM(model).attribute(x, 2)
    runs: list[ChangedMaps] = []
    made = ChangedMaps.__init__

    def note(self: ChangedMaps, *args: Any, **kwargs: Any) -> None:
        runs.append(self)
        made(self, *args, **kwargs)

    monkeypatch.setattr(ChangedMaps, "__init__", note)
    maps = AblationCAM(model).attribute(x, targets.Scalar(lambda y: y[:, 2]))
    torch.testing.assert_close(maps, expected)
    assert len(runs) == 2
    assert not any(run.copies for run in runs)


def test_equals_the_grad_cam_package() -> None:
    assert_like_grad_cam("AblationCAM", AblationCAM)
