"""Whatever is done to a network between two calls, the second explains it as it then is."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from networks import build, images
from settings import crossed
from torch import Tensor, nn

from afmi.errors import ModelError, OperationError
from afmi.methods import AFMI, CATALOGUE, DeepLIFT, GradCAM
from afmi.network.classifier import Classifier, classify
from afmi.pictures.references import Blurred


def activation(x: Tensor) -> Tensor:
    return F.relu(x)


class Network(nn.Module):
    """Two stages and whatever else a result may depend on."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU())
        self.stage = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), nn.ReLU())
        self.head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4))
        self.scale, self.shift, self.width, self.amp = 1.0, torch.zeros(1, 8, 1, 1), 8, False
        self.table = np.ones((8, 1, 1), np.float32)
        self.register_buffer("masked", torch.tensor(-1e9))  # beside which small numbers vanish
        self.stem[1].running_mean.uniform_(-0.5, 0.5)

    def forward(self, x: Tensor) -> Tensor:
        x = activation(self.stem(x) * self.scale + self.shift)
        kept = torch.arange(8) < self.width
        with torch.autocast("cpu", torch.bfloat16, enabled=self.amp):
            x = self.stage(x * kept.view(-1, 1, 1) * torch.as_tensor(self.table))
        return self.head(x.float())


def cut_channels(model: Network) -> None:
    def one_channel(_module: nn.Module, _args: object, output: Tensor) -> Tensor:
        return output * 0 + output[:, :1]

    model.stem.register_forward_hook(one_channel)


def prune(model: Network) -> None:
    model.stem[0].weight.data[1:6] = 0


def swap_filters(model: Network) -> None:
    """Keep each sum of the weights."""
    weight = model.stem[0].weight.data
    weight.copy_(weight.flip(0))


def one_number(model: Network) -> None:
    model.stem[0].weight.data[3, 1, 2, 0] += 0.5


def by_numpy(model: Network) -> None:
    model.stem[1].weight.detach().numpy()[2:5] *= 3


def replace_forward(model: Network) -> None:
    forward = type(model).forward
    model.forward = lambda x: forward(model, x.flip(2) * 0.5)  # type: ignore[method-assign]


def later_stage(model: Network) -> None:
    model.head.insert(0, nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), nn.Tanh()))


def wrap(model: Network) -> None:
    model.stage = nn.Sequential(model.stage, nn.Hardswish())


def rename(model: Network) -> None:
    class Renamed(Network):
        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.last(activation(self.stem(x) * self.scale + self.shift)))

    model.last = model.stage
    del model.stage
    model.__class__ = Renamed


def in_inference_mode(model: Network) -> None:
    with torch.inference_mode():
        model.stem[0].bias.add_(1)


DOORS: dict[str, Callable[[Network], Any]] = {
    "a forward hook": cut_channels,
    "a pre-hook": lambda m: m.stage.register_forward_pre_hook(lambda _, args: args[0] * 0.5),
    "a hook on the head": lambda m: m.head.register_forward_hook(lambda _m, _a, y: y.tanh()),
    "a number": lambda m: setattr(m, "scale", 0.3),
    "a tensor": lambda m: setattr(m, "shift", torch.full((1, 8, 1, 1), 0.4)),
    "a tensor's numbers": lambda m: m.shift[:, 2:5].fill_(1.0),
    "an array's numbers": lambda m: m.table[2:5].fill(0.2),
    "its own autocast": lambda m: setattr(m, "amp", True),
    "a width": lambda m: setattr(m, "width", 4),
    "an epsilon": lambda m: setattr(m.stem[1], "eps", 2.0),
    "running statistics": lambda m: m.stem[1].running_mean.add_(0.5),
    "a scale through .data": lambda m: m.stem[1].weight.data.mul_(2),
    "pruned filters": prune,
    "swapped filters": swap_filters,
    "one number of one filter": one_number,
    "memory shared with NumPy": by_numpy,
    "inference mode": in_inference_mode,
    "an assigned parameter": lambda m: setattr(
        m.stem[0], "weight", nn.Parameter(m.stem[0].weight * 2)
    ),
    "a replaced forward": replace_forward,
    "another module": lambda m: m.stem.__setitem__(2, nn.Softplus()),
    "a module's padding": lambda m: (
        setattr(m.stem[0], "padding_mode", "circular")
        or setattr(m.stem[0], "_reversed_padding_repeated_twice", [1, 1, 1, 1])
    ),
    "a stride": lambda m: setattr(m.stage[0], "stride", (2, 2)),
    "a later stage": later_stage,
    "a wrapped stage": wrap,
    "a renamed stage": rename,
    "the head": lambda m: m.head[2].weight.data.neg_(),
}

METHODS = {
    "A-FMI": lambda m: AFMI(m, averaged=False),
    "A-FMI, blurred": lambda m: AFMI(m, reference=Blurred()),
    "Grad-CAM": GradCAM,
    "DeepLIFT": DeepLIFT,
    "IG": lambda m: CATALOGUE["IntegratedGradients"](m, steps=4),
    "RISE": lambda m: CATALOGUE["RISE"](m, masks=6),
    "Kernel SHAP": lambda m: CATALOGUE["KernelSHAP"](m, samples=20),
}

# Which keep something of a network or a reference; the others run the network and no more.
WITH_MEMORY = {"A-FMI", "A-FMI, blurred", "Grad-CAM", "DeepLIFT"}

UNMOVED = {"a renamed stage"}
"""Changes that leave the function as it was."""


def changed(door: str) -> Network:
    model = Network().eval()
    DOORS[door](model)
    return model


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("method", "door"), crossed(METHODS, DOORS, WITH_MEMORY))
def test_the_network_is_explained_as_it_is_now(method: str, door: str) -> None:
    model, x = Network().eval(), images(2, 12)
    explain = METHODS[method](model)
    before = explain.attribute(x, 1)
    DOORS[door](model)
    for _ in range(2):  # and the second time from what the first kept
        after = explain.attribute(x, 1)
        torch.testing.assert_close(after, METHODS[method](changed(door)).attribute(x, 1))
    if door not in UNMOVED:
        assert not torch.equal(before, after)


def test_a_function_that_the_network_calls(monkeypatch: pytest.MonkeyPatch) -> None:
    model, x = Network().eval(), images(1, 12)
    explain = AFMI(model, averaged=False)
    explain.attribute(x, 1)
    monkeypatch.setitem(globals(), "activation", torch.tanh)
    attribution = explain.attribution(x, 1)
    torch.testing.assert_close(
        attribution.maps, AFMI(Network().eval(), averaged=False).attribute(x, 1)
    )
    torch.testing.assert_close(attribution.logits, model(x).detach())


def test_a_function_below_the_one_that_it_calls(monkeypatch: pytest.MonkeyPatch) -> None:
    model, x = Network().eval(), images(1, 12)
    explain = AFMI(model, averaged=False)
    explain.attribute(x, 1)
    monkeypatch.setattr(torch, "relu", torch.tanh)
    fresh = AFMI(Network().eval(), averaged=False).attribute(x, 1)
    torch.testing.assert_close(explain.attribute(x, 1), fresh)


def test_a_network_that_decides_by_its_input() -> None:
    """The reference takes a way that the images do not show."""

    class Deciding(Network):
        dark = 1.0

        def forward(self, x: Tensor) -> Tensor:
            factor = self.dark if x.mean() < 0.1 else self.scale
            return super().forward(x * factor + (factor - 1))

    model, x = Deciding().eval(), images(1, 12)
    AFMI(model, averaged=False).attribute(x, 1)
    model.dark = 0.2
    fresh = copy.deepcopy(model)
    torch.testing.assert_close(
        AFMI(model, averaged=False).attribute(x, 1), AFMI(fresh, averaged=False).attribute(x, 1)
    )


def test_history_leaves_no_trace() -> None:
    """There and back again gives the same bits."""
    model, x = build("resnet"), images(2)
    before = DeepLIFT(model).attribute(x, 1)
    handle = model.conv1.register_forward_hook(lambda _m, _a, y: y + y.mean((1, 2, 3), True))
    DeepLIFT(model).attribute(x[:1], 1)
    handle.remove()
    assert torch.equal(DeepLIFT(model).attribute(x, 1), before)


class Dropping(nn.Sequential):
    def __init__(self, before: Callable[[Tensor], Tensor], behind: Callable[[Tensor], Tensor]):
        super().__init__(
            nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3)
        )
        self.before, self.behind = before, behind

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(self.before(x)) if self.before else self.behind(super().forward(x))


RANDOM: dict[str, tuple[Callable[[Tensor], Tensor], str]] = {
    "dropout": (lambda x: F.dropout(x, 0.5), "at random"),
    "channel dropout": (lambda x: F.dropout2d(x, 0.5, True), "at random"),
    "noise": (lambda x: x + torch.randn_like(x), "random numbers"),
    "a mask": (lambda x: x * torch.bernoulli(torch.full_like(x, 0.5)), "random numbers"),
    "in-place noise": (lambda x: x + torch.zeros_like(x).uniform_(), "random numbers"),
    "batch statistics": (lambda x: F.batch_norm(x, None, None, training=True), "of a batch"),
    "a batch's mean": (lambda x: x - 0.9 * x.mean(0), "of a batch"),
    "softmax over the batch": (lambda x: x.softmax(0), "of a batch"),
    "a state": (lambda x: x * STATE.pop(), "each time"),
}
STATE: list[float] = []


@pytest.mark.parametrize(("name", "kind"), crossed(CATALOGUE, RANDOM))
def test_outputs_that_differ_by_themselves_are_refused(name: str, kind: str) -> None:
    if name == "Random":
        pytest.skip("it does not look at the network")
    unsteady, words = RANDOM[kind]
    STATE[:] = [float(i) for i in range(100)]
    with pytest.raises(ModelError, match=words):
        CATALOGUE[name](Dropping(unsteady, None).eval()).attribute(images(1, 12), 1)


def own_statistics(model: Network) -> None:
    norm = model.stem[1]
    norm.track_running_stats, norm.running_mean, norm.running_var = False, None, None


LATER: dict[str, Callable[[Network], Any]] = {
    "batch statistics": own_statistics,
    "noise behind a number": lambda m: setattr(m, "noise", 1.0),
    "a noisy hook": lambda m: m.stem.register_forward_hook(
        lambda _m, _a, y: y + torch.from_numpy(np.random.rand(*y.shape)).float()
    ),
}


class Noisy(Network):
    noise = 0.0

    def forward(self, x: Tensor) -> Tensor:
        noise = np.random.rand(*x.shape).astype(np.float32) if self.noise else np.zeros(1, "f")
        return super().forward(x + self.noise * torch.from_numpy(noise))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("door", LATER)
def test_a_network_that_becomes_unsteady_is_refused(door: str, method: str) -> None:
    model, x = Noisy().eval(), images(1, 12)
    explain = METHODS[method](model)
    explain.attribute(x, 1)
    LATER[door](model)
    with pytest.raises((ModelError, OperationError), match=r"each time|of a batch|batch's own"):
        explain.attribute(x, 1)


def test_a_class_that_is_ruled_out_hides_no_noise() -> None:
    class Masked(Noisy):
        noise = 1.0

        def forward(self, x: Tensor) -> Tensor:
            return torch.cat([super().forward(x), torch.full((len(x), 1), -1e9)], 1)

    with pytest.raises(ModelError, match="each time"):
        GradCAM(Masked().eval()).attribute(images(1, 12), 1)


def test_another_layer_of_the_classifier() -> None:
    model = Classifier(Network().eval())
    x = images(1, 12)
    GradCAM(model).attribute(x, 1)
    model.layer = "stem"
    assert str(GradCAM(model).attribution(x, 1).layer) == "stem"


def test_a_network_may_call_something_else_its_layer() -> None:
    model = Network().eval()
    expected = GradCAM(model).attribute(images(1, 12), 1)
    model.layer = [1, 2]
    assert torch.equal(GradCAM(model).attribute(images(1, 12), 1), expected)


def test_a_batch_norm_that_standardises_weights_is_none_of_these() -> None:
    class Standardised(nn.Conv2d):
        def forward(self, x: Tensor) -> Tensor:
            flat = self.weight.reshape(1, len(self.weight), -1)
            weight = F.batch_norm(flat, None, None, training=True).reshape_as(self.weight)
            return F.conv2d(x, weight, self.bias)

    model = nn.Sequential(
        Standardised(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3)
    ).eval()
    attribution = DeepLIFT(model).attribution(images(2, 12), 1)
    assert attribution.residual.abs().max() < 1e-4


LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "as_strided": lambda x: x.as_strided((len(x), 4, 9, 9), (4 * 324, 324, 18, 1)),
    "strides": lambda x: x * x.stride(1),
    "a branch": lambda x: x if x.is_contiguous() else x.flip(2),
    "memory": lambda x: x * torch.stack([_first_numbers(each) for each in x.detach()]),
    "aten": lambda x: torch.ops.aten.as_strided.default(
        x, (len(x), 4, 9, 9), (4 * 324, 324, 18, 1)
    ),
    "unseen": lambda x: _in_secret(x),
}


def _first_numbers(image: Tensor) -> Tensor:
    return torch.tensor(image.numpy().ravel("K")[:18].copy()).view(1, 1, 18)


def _in_secret(x: Tensor) -> Tensor:
    with torch._C.DisableTorchFunction():
        return x if x.is_contiguous() else x.flip(2) * 0.5


@pytest.mark.parametrize("kind", LAYOUTS)
def test_a_network_that_reads_strides_is_run_on_the_usual_layout(kind: str) -> None:
    class Strided(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.conv, self.head = nn.Conv2d(3, 4, 16, stride=16), nn.Linear(4, 3)

        def forward(self, x: Tensor) -> Tensor:
            maps = LAYOUTS[kind](self.conv(x).relu())
            rows = torch.arange(1.0, maps.shape[2] + 1).view(-1, 1)
            return self.head((maps * rows).mean((2, 3)))

    model, x = Strided().eval(), torch.rand(2, 3, 288, 288)
    with torch.no_grad():
        expected = model(x)
    torch.testing.assert_close(classify(model, x), expected)
    attribution = CATALOGUE["Gradient"](model).attribution(x, 1)
    torch.testing.assert_close(attribution.logits, expected)
