"""Equal to Eq. 4 and 6 taken literally: a sum over all paths, by loops and without autograd."""

from __future__ import annotations

import functools
from collections.abc import Callable
from itertools import pairwise, product
from math import tanh

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from afmi.gradients import modified_gradient
from afmi.methods import AFMI
from afmi.pictures.references import Image

# Closed forms are those of networks with one output.
pytestmark = pytest.mark.filterwarnings("ignore:the network returns one number")

WIDTHS = (4, 5, 3, 2)


def activation(name: str, value: float) -> float:
    return tanh(value) if name == "tanh" else max(value, 0.0)


def derivative(name: str, value: float) -> float:
    return 1 - tanh(value) ** 2 if name == "tanh" else float(value > 0)


def chord(name: str, value: float, reference: float) -> float:
    """Eq. 2: the slope from the reference's activation to the input's."""
    if abs(value - reference) < 1e-6:
        return derivative(name, (value + reference) / 2)
    return (activation(name, value) - activation(name, reference)) / (value - reference)


def network(name: str) -> nn.Sequential:
    generator = torch.Generator().manual_seed(len(name))
    layers: list[nn.Module] = [nn.Flatten()]
    for i, (width, following) in enumerate(pairwise(WIDTHS)):
        linear = nn.Linear(width, following, dtype=torch.float64)
        with torch.no_grad():
            linear.weight.copy_(torch.randn(linear.weight.shape, generator=generator))
            linear.bias.copy_(torch.randn(linear.bias.shape, generator=generator))
        layers.append(linear)
        if i < len(WIDTHS) - 2:
            layers.append(nn.Tanh() if name == "tanh" else nn.ReLU(inplace=True))
    return nn.Sequential(*layers)


def by_paths(net: nn.Sequential, name: str, x: list[float], reference: list[float]) -> list:
    """Return ∂_σ y_c/∂x_i as modified[c][i]: the sum over all paths from i to c (Eq. 4)."""
    weights = [m.weight.tolist() for m in net if isinstance(m, nn.Linear)]
    biases = [m.bias.tolist() for m in net if isinstance(m, nn.Linear)]

    def sums(values: list[float]) -> list[list[float]]:
        """Return the input of each layer's units before their activation."""
        recorded = []
        for weight, bias in zip(weights, biases, strict=True):
            into = [
                b + sum(w * v for w, v in zip(row, values, strict=True))
                for row, b in zip(weight, bias, strict=True)
            ]
            recorded.append(into)
            values = [activation(name, v) for v in into]
        return recorded

    of_x, of_reference = sums(x), sums(reference)
    modified = [[0.0] * len(x) for _ in range(WIDTHS[-1])]
    for path in product(*(range(width) for width in WIDTHS)):
        slope = 1.0
        for layer, (start, end) in enumerate(pairwise(path)):
            slope *= weights[layer][end][start]
            if layer < len(weights) - 1:
                slope *= chord(name, of_x[layer][end], of_reference[layer][end])
        modified[path[-1]][path[0]] += slope
    return modified


@pytest.mark.parametrize("name", ["tanh", "relu"])
def test_fully_connected(name: str) -> None:
    generator = torch.Generator().manual_seed(1)
    x, reference = torch.randn(2, 1, 1, 2, 2, generator=generator, dtype=torch.float64)
    reference[0, 0, 0, 0] = x[0, 0, 0, 0]
    net = network(name)
    gradient = modified_gradient(net, x, layer=None, reference=Image(reference))
    expected = by_paths(net, name, x.flatten().tolist(), reference.flatten().tolist())
    for c in range(WIDTHS[-1]):
        gradients = gradient.gradients(torch.tensor([[c]])).flatten().tolist()
        assert gradients == pytest.approx(expected[c], rel=1e-12, abs=1e-12)


class ConvolutionAndHead(nn.Module):
    """Feature maps (2, 2, 2) of a convolution, and two fully connected layers behind them."""

    def __init__(self) -> None:
        super().__init__()
        self.maps = nn.Sequential(nn.Conv2d(1, 1, 2, bias=True), nn.Tanh())
        self.head = network("tanh")
        self.double()

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.maps(x))


def test_feature_map_importance_and_map() -> None:
    """Eq. 6 and 7 on the 2×2 maps of a convolution."""
    generator = torch.Generator().manual_seed(2)
    x, reference = torch.randn(2, 1, 1, 3, 3, generator=generator, dtype=torch.float64)
    model = ConvolutionAndHead()
    weight, bias = model.maps[0].weight[0, 0].tolist(), model.maps[0].bias.item()

    def maps(image: list[list[float]]) -> list[float]:
        return [
            tanh(
                bias
                + sum(weight[a][b] * image[i + a][j + b] for a, b in product(range(2), repeat=2))
            )
            for i, j in product(range(2), repeat=2)
        ]

    features, of_reference = maps(x[0, 0].tolist()), maps(reference[0, 0].tolist())
    method = AFMI(model, layer="maps", reference=Image(reference))
    for c, per_position in enumerate(by_paths(model.head, "tanh", features, of_reference)):
        importance = sum(per_position) / 4
        computed = method.feature_map_importance(x, target=c)
        assert computed.tolist() == [[pytest.approx(importance, rel=1e-12)]]
        expected = [importance * (a - r) for a, r in zip(features, of_reference, strict=True)]
        full = F.interpolate(
            torch.tensor(expected, dtype=x.dtype).view(1, 1, 2, 2), (3, 3), mode="bilinear"
        )
        torch.testing.assert_close(method.attribute(x, target=c), full, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("rectified", [False, True])
@pytest.mark.parametrize(
    ("kernel", "stride", "padding", "dilation", "ceil"),
    [(2, 2, 0, 1, False), (3, 1, 0, 1, False), (3, 2, 1, 1, True), (2, 2, 0, 2, False)],
)
def test_max_pooling_by_brute_force(
    kernel: int, stride: int, padding: int, dilation: int, ceil: bool, rectified: bool
) -> None:
    """Window by window: the input's maximum carries a rise, the reference's maximum a fall."""
    side = 5
    generator = torch.Generator().manual_seed(3)
    x, reference = torch.randn(2, 1, 1, side, side, generator=generator, dtype=torch.float64)
    if rectified:  # many equal numbers, as behind a ReLU
        x, reference = x.relu().round(), reference.relu().round()
    pool = nn.MaxPool2d(kernel, stride, padding, dilation, ceil_mode=ceil)
    out = pool(x).shape[-1]
    weights = torch.randn(out * out, generator=generator, dtype=torch.float64)
    linear = nn.Linear(out * out, 1, bias=False).double()
    linear.weight.data.copy_(weights)
    model = nn.Sequential(pool, nn.Flatten(), linear)

    expected = torch.zeros(side, side, dtype=torch.float64)
    for i, j in product(range(out), repeat=2):
        window = [
            (i * stride - padding + a * dilation, j * stride - padding + b * dilation)
            for a, b in product(range(kernel), repeat=2)
        ]
        window = [(a, b) for a, b in window if 0 <= a < side and 0 <= b < side]
        at = max(window, key=lambda p: float(x[0, 0][p]))
        reference_at = max(window, key=lambda p: float(reference[0, 0][p]))
        rise = x[0, 0][at] - reference[0, 0][reference_at]
        carrier = at if rise >= 0 else reference_at
        moved = x[0, 0][carrier] - reference[0, 0][carrier]
        slope = rise / moved if moved else torch.ones(())
        assert 0 <= slope <= 1
        assert slope * moved == pytest.approx(float(rise), rel=1e-12)
        expected[carrier] += weights[i * out + j] * slope

    gradient = modified_gradient(model, x, layer=None, reference=Image(reference))
    gradients = gradient.gradients(torch.tensor([[0]]))[0, 0, 0]
    torch.testing.assert_close(gradients, expected, rtol=1e-12, atol=1e-12)


MAXIMA: dict[str, Callable[[Tensor], Tensor]] = {
    "adaptive pooling": lambda x: F.adaptive_max_pool2d(x, 1).flatten(1),
    "pooling": lambda x: F.max_pool2d(x, (2, 3)).flatten(1),
    "pooling in one dimension": lambda x: F.max_pool1d(x.flatten(2), 6).flatten(1),
    "amax": lambda x: x.amax((2, 3)),
    "amin": lambda x: -(-x).amin((2, 3)),
    "max": lambda x: x.flatten(2).max(2).values,
    "maxima of two": lambda x: functools.reduce(torch.maximum, x.flatten(2).unbind(2)),
}


class MaximumHead(nn.Module):
    def __init__(self, maximum: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.maps, self.maximum = nn.Identity(), maximum

    def forward(self, x: Tensor) -> Tensor:
        return self.maximum(self.maps(x))


# Pictures and references of 2 × 3 pixels, and the multipliers of their maximum.
MOVES = {
    "rose at its place": ([5, 1, 0, 0, 0, 0], [3, 1, 0, 0, 0, 0], [1, 0, 0, 0, 0, 0]),
    "rose elsewhere": ([2, 6, 0, 0, 0, 0], [4, 2, 0, 0, 0, 0], [0, 0.5, 0, 0, 0, 0]),
    "fell elsewhere": ([0, 3, 0, 0, 0, 0], [4, 2, 0, 0, 0, 0], [0.25, 0, 0, 0, 0, 0]),
    # The input's maximum did not move: the whole fall is the reference's maximum's.
    "fell to what was there": ([0, 3, 0, 0, 0, 0], [4, 3, 0, 0, 0, 0], [0.25, 0, 0, 0, 0, 0]),
    "stayed at its place": ([4, 1, 0, 0, 0, 0], [4, 2, 0, 0, 0, 0], [1, 0, 0, 0, 0, 0]),
    "stayed, elsewhere": ([2, 4, 0, 0, 0, 0], [4, 2, 0, 0, 0, 0], [0, 0, 0, 0, 0, 0]),
    "nothing there": ([0, 0, 0, 0, 0, 0], [0, 0, 0, 0, 0, 0], [1, 0, 0, 0, 0, 0]),
}


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("maximum", MAXIMA)
def test_a_maximum_has_one_modified_gradient_in_every_spelling(
    maximum: str, dtype: torch.dtype
) -> None:
    numbers = [torch.tensor(rows, dtype=dtype) for rows in zip(*MOVES.values(), strict=True)]
    if maximum == "maxima of two":  # which is many windows, and equal where they have one carrier
        numbers = [rows[[0, 4, 6]] for rows in numbers]
    pictures, references, expected = (rows.view(-1, 1, 2, 3) for rows in numbers)
    model = MaximumHead(MAXIMA[maximum])
    for x, reference, multipliers in zip(pictures, references, expected, strict=True):
        method = AFMI(model, layer="maps", reference=Image(reference))
        gradient = modified_gradient(model, x[None], layer=None, reference=Image(reference))
        slopes = gradient.gradients(torch.tensor([[0]]))[0, 0]
        torch.testing.assert_close(slopes, multipliers)
        importance = method.feature_map_importance(x[None], target=0)
        torch.testing.assert_close(importance[0], multipliers.mean((1, 2)))


class Product(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return (x[:, 0] * x[:, 1]).flatten(1).sum(1, keepdim=True)


def test_products_take_the_mean_of_the_other_operand() -> None:
    generator = torch.Generator().manual_seed(4)
    x, reference = torch.randn(2, 1, 2, 2, 3, generator=generator, dtype=torch.float64)
    gradient = modified_gradient(Product(), x, layer=None, reference=Image(reference))
    gradients = gradient.gradients(torch.tensor([[0]]))[0, 0].tolist()
    for i, j in product(range(2), range(3)):
        for channel in range(2):
            other = (x[0, 1 - channel, i, j] + reference[0, 1 - channel, i, j]) / 2
            assert gradients[channel][i][j] == pytest.approx(float(other), rel=1e-12)


class Attention(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.matmul(x[:, 0], x[:, 1].mT).flatten(1)


def test_matrix_products_equal_their_sum_of_products() -> None:
    generator = torch.Generator().manual_seed(5)
    x, reference = torch.randn(2, 1, 2, 2, 3, generator=generator, dtype=torch.float64)
    gradient = modified_gradient(Attention(), x, layer=None, reference=Image(reference))
    middle = ((x + reference) / 2)[0].tolist()
    for i, j in product(range(2), repeat=2):  # entry (i, j) is Σ_k a_ik b_jk
        expected = torch.zeros(2, 2, 3, dtype=torch.float64)
        for k in range(3):
            expected[0, i, k] += middle[1][j][k]
            expected[1, j, k] += middle[0][i][k]
        gradients = gradient.gradients(torch.tensor([[2 * i + j]]))[0, 0]
        torch.testing.assert_close(gradients, expected, rtol=1e-12, atol=1e-12)
