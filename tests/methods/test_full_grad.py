"""FullGrad: by hand, complete on every kind of network, and why packages differ."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from dimensional import images as images_of
from dimensional import network
from networks import TINY, build, images
from torch import Tensor, nn

from afmi import Classifier, load_model, targets
from afmi.errors import OperationError
from afmi.methods import FullGrad
from afmi.methods.feature_maps import full_grad


def scaled(part: Tensor) -> Tensor:
    """ψ at the image's own size, of one image's part (K, H, W)."""
    sizes = part.abs()
    return ((sizes - sizes.min()) / (sizes.max() - sizes.min())).sum(0)


def tiny(activation: nn.Module) -> nn.Sequential:
    """y_0 = 2 Σ σ(x_0 + 1) − Σ σ(3 x_1 − 1) + 5 over two pixels."""
    convolution, norm, head = nn.Conv2d(2, 2, 1), nn.BatchNorm2d(2), nn.Linear(4, 2)
    with torch.no_grad():
        convolution.weight.copy_(torch.eye(2)[:, :, None, None])
        convolution.bias.copy_(torch.tensor([1.0, 0.0]))  # type: ignore[union-attr]
        norm.eps = 0.0
        norm.weight.copy_(torch.tensor([1.0, 3.0]))
        norm.bias.copy_(torch.tensor([0.0, -1.0]))
        head.weight.copy_(torch.tensor([[2.0, 2.0, -1.0, -1.0], [0.0, 1.0, 0.0, 1.0]]))
        head.bias.copy_(torch.tensor([5.0, 0.0]))
    return nn.Sequential(convolution, norm, activation, nn.Flatten(), head).double().eval()


def test_by_hand() -> None:
    """z = (2, 4; 2, −4): the last one is cut off, and ReLU6 leaves nothing else out."""
    x = torch.tensor([[[[1.0, 3.0]], [[1.0, -1.0]]]]).double()
    method = FullGrad(tiny(nn.ReLU()))
    parts = method.full_gradients(x, 0)
    # ∂y/∂x = (2, 2; −3, 0); of the convolution's outputs the same; of the norm's (2, 2; −1, 0).
    of_input = torch.tensor([[[2.0, 6.0]], [[-3.0, 0.0]]]).double()
    of_convolution = torch.tensor([[[2.0, 2.0]], [[0.0, 0.0]]]).double()
    of_norm = torch.tensor([[[0.0, 0.0]], [[1.0, 0.0]]]).double()
    torch.testing.assert_close(parts.input[0], of_input.sum(0, keepdim=True))
    assert parts.operations == ("conv2d", "batch_norm", "linear")
    torch.testing.assert_close(parts.biases[:, 0], torch.tensor([4.0, 1.0, 5.0]).double())
    assert float(parts.scores) == 2 * (2 + 4) - 2 + 5 == 5 + 4 + 1 + 5
    assert float(parts.residual) == 0
    maps = method.attribute(x, 0)
    torch.testing.assert_close(
        maps[0, 0], scaled(of_input) + scaled(of_convolution) + scaled(of_norm)
    )


def test_clipping_is_a_bias() -> None:
    """z = (8, 3) for the first map: ReLU6 gives 6 of its own, whatever the first pixel is."""
    x = torch.tensor([[[[7.0, 2.0]], [[1.0, 1.0]]]]).double()
    for activation in (nn.ReLU6(), nn.ReLU6(inplace=True), nn.Hardtanh(0.0, 6.0)):
        parts = FullGrad(tiny(activation)).full_gradients(x, 0)
        assert parts.operations == ("conv2d", "batch_norm", "hardtanh", "linear")
        # Two times 6, and half of what the convolution's and the norm's biases had.
        expected = torch.tensor([2.0, 2.0, 12.0, 5.0]).double()
        torch.testing.assert_close(parts.biases[:, 0], expected)
        assert float(parts.scores) == 2 * (6 + 3) - 2 * 2 + 5
        assert float(parts.residual) == 0


def test_the_normalisation_is_no_layer() -> None:
    inner, x = build("vgg", torch.float64), images(2).double()
    model = Classifier(inner, mean=[0.5, 0.2, 0.4], std=[0.25, 0.5, 0.2])
    normalised = (x - model.mean) / model.std
    parts, expected = (
        FullGrad(m).full_gradients(i, 1) for m, i in ((model, x), (inner, normalised))
    )
    assert parts.operations == expected.operations
    torch.testing.assert_close(parts.input, expected.input)
    torch.testing.assert_close(parts.biases, expected.biases)
    maps = FullGrad(model).attribute(x, 1)
    torch.testing.assert_close(maps, FullGrad(inner).attribute(normalised, 1))


class Every(nn.Module):
    """Operations with biases of every kind."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.attention = nn.MultiheadAttention(4, 2, batch_first=True)
        self.norm = nn.LayerNorm(4)
        self.group = nn.GroupNorm(2, 4)
        self.token = nn.Parameter(torch.randn(1, 1, 4))
        self.head = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = F.pad(self.conv(x), (1, 1), value=0.5)
        x = 1.5 - F.elu(x, inplace=True)
        x = torch.maximum(x, torch.full_like(x, 0.25)) / (1 + x.abs().mean((2, 3), keepdim=True))
        x[:, :, 0] += 0.75
        x = self.group(x) * torch.sigmoid(x)
        tokens = x.flatten(2).mT
        tokens = torch.cat([self.token.expand(len(x), -1, -1), tokens], 1)
        tokens = tokens + self.attention(tokens, tokens, tokens, need_weights=False)[0]
        tokens = F.scaled_dot_product_attention(tokens, tokens, tokens)
        x = torch.addmm(self.head.bias, self.norm(tokens)[:, 0], self.head.weight.T)
        return x.clamp(-0.5, 5) + 2 / (1 + x.square())


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    **{name: lambda name=name: build(name) for name in TINY},  # type: ignore[misc]
    "every": Every,
    "signals": lambda: network(1),
    "volumes": lambda: network(3),
    "photos": lambda: load_model("photos"),
}


SIZE = {"every": 8, "photos": 64}


@pytest.mark.parametrize("name", NETWORKS)
def test_complete(name: str) -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = NETWORKS[name]().double().eval()
    sides = {"signals": 1, "volumes": 3}.get(name)
    x = images(2, SIZE.get(name, 20)) if sides is None else images_of(sides)
    parts = FullGrad(model).full_gradients(x.double(), torch.tensor([1, 2]))
    assert float(parts.residual.abs().max()) < 1e-9
    assert float(parts.biases.abs().max()) > 1e-3
    with torch.no_grad():
        scores = model(x.double())[[0, 1], [1, 2]]
    torch.testing.assert_close(parts.scores, scores)


def test_complete_for_other_targets() -> None:
    model, x = build("vgg", torch.float64), images(2).double()
    target = targets.Scalar(lambda y: y.softmax(1)[:, 0] * y[:, 1])
    parts = FullGrad(model).full_gradients(x, target)
    assert parts.biases.shape == (len(parts.operations), 2)
    assert {"softmax", "mul"} <= set(parts.operations)
    assert float(parts.residual.abs().max()) < 1e-9


def test_channels_that_come_last_are_summed_over() -> None:
    """A 1 × 1 convolution and the linear layer that it is have one map."""

    class Last(nn.Module):
        def __init__(self, linear: nn.Linear) -> None:
            super().__init__()
            self.linear = linear

        def forward(self, x: Tensor) -> Tensor:
            return torch.relu(self.linear(x.movedim(1, -1))).mean((1, 2))

    convolution = nn.Conv2d(3, 5, 1).double()
    linear = nn.Linear(3, 5).double()
    linear.weight.data, linear.bias.data = (
        convolution.weight.data[:, :, 0, 0],
        convolution.bias.data,
    )  # type: ignore[union-attr]
    first = nn.Sequential(convolution, nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    x = images(2, 6).double()
    torch.testing.assert_close(
        FullGrad(Last(linear)).attribute(x, 1), FullGrad(first.eval()).attribute(x, 1)
    )


def test_a_bias_that_is_not_known() -> None:
    class Recurrent(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lstm, self.head = nn.LSTM(3, 4, batch_first=True), nn.Linear(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.lstm(x.mean(3).mT)[0][:, -1])

    with pytest.raises(OperationError, match="bias of 'lstm', which gives several outputs"):
        FullGrad(Recurrent().eval()).attribute(images(1), 0)


def plain() -> nn.Sequential:
    layers: list[nn.Module] = [
        nn.Conv2d(3, 4, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(4, 4, 3, padding=1),
    ]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        return nn.Sequential(
            *layers, nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3)
        ).eval()


def large(map_: Tensor) -> Tensor:
    return F.interpolate(map_[None, None], (16, 16), mode="bilinear")[0, 0]


def test_equals_the_grad_cam_package_with_its_own_ranges() -> None:
    """It scales each channel by itself, where the authors' program has one range for a layer."""
    package = pytest.importorskip("pytorch_grad_cam")
    choice = pytest.importorskip("pytorch_grad_cam.utils.model_targets")
    model, x = plain(), images(1, 16)
    with package.FullGrad(model=model, target_layers=[]) as other:
        theirs: Any = other(input_tensor=x, targets=[choice.ClassifierOutputTarget(1)])[0]
    leaf = x.clone().requires_grad_()
    first = model[0](leaf)
    second = model[2](first.relu())
    score = model[3:](second)[0, 1]
    gradients = torch.autograd.grad(score, [leaf, first, second])
    factors = [x[0], *(model[i].bias.detach()[:, None, None] for i in (0, 2))]  # type: ignore[union-attr, index]
    parts = [gradient[0] * factor for gradient, factor in zip(gradients, factors, strict=True)]
    # A channel may be the same everywhere: its ReLU is closed at each place.
    each = sum(large(scaled(c[None])) for part in parts for c in part if float(c.std()) > 0)
    both = torch.stack([each.flatten(), torch.from_numpy(theirs).flatten()])
    assert float(torch.corrcoef(both)[0, 1]) > 0.999
    ours = FullGrad(model).attribute(x, 1)[0, 0]
    torch.testing.assert_close(ours, sum(large(scaled(part)) for part in parts))


class Attends(nn.Module):
    """Maps of 4 × 4 places, as tokens that attend to one another in two heads of two channels."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 4, stride=4)
        self.head = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.conv(x).flatten(2).unflatten(1, (2, 2)).mT  # (N, heads, tokens, channels)
        mixed = nn.functional.scaled_dot_product_attention(tokens, tokens, tokens)
        return self.head(mixed.mT.flatten(1, 2).mean(2))


def test_heads_are_no_maps() -> None:
    """The attention's bias is part of the sum; its tokens and channels are no rows and columns."""
    torch.manual_seed(0)
    model, x = Attends().double(), torch.rand(2, 3, 16, 16, dtype=torch.float64)
    parts = FullGrad(model).full_gradients(x, 1)
    assert "scaled_dot_product_attention" in parts.operations
    assert parts.residual.abs().max() < 1e-9
    without = FullGrad(model).attribute(x, 1)
    added = []
    original = full_grad._Biases.add_map
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            full_grad._Biases,
            "add_map",
            lambda self, part: (added.append(tuple(part.shape)), original(self, part))[1],
        )
        torch.testing.assert_close(FullGrad(model).attribute(x, 1), without)
    assert (2, 2, 16, 2) not in added
    assert (2, 4, 4, 4) in added
