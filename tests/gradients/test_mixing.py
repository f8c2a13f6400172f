"""Rules for operations that mix positions equal their equations, taken literally by loops."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from completeness import errors
from torch import Tensor, nn

from afmi.errors import ConditioningWarning, ModelError
from afmi.gradients import forward_pass, modified_gradient
from afmi.pictures.references import Black, Image, Random, Several

# Closed forms are those of networks with one output.
pytestmark = pytest.mark.filterwarnings("ignore::afmi.errors.OutputsWarning")

Function = Callable[[Tensor], Tensor]


class Vector(nn.Module):
    """A function of the image's numbers, whose outputs are the logits."""

    def __init__(self, function: Function) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        # Times 1: a softmax is explained where it is not the last, which would be undone.
        return 1 * self.function(x.flatten(1)).flatten(1)


def matrix(function: Function, x: Tensor, reference: Tensor) -> Tensor:
    """Return the modified gradient m_ij (outputs, inputs) of a function of vectors (1, n)."""
    gradient = modified_gradient(
        Vector(function), _image(x), layer=None, reference=Image(_image(reference))
    )
    targets = torch.arange(gradient.run.logits.shape[1])[:, None]
    return gradient.gradients(targets).flatten(1)


def _image(x: Tensor) -> Tensor:
    return x.reshape(1, 1, 1, -1)


def vectors(n: int = 5, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x, reference = torch.randn(2, n, generator=generator, dtype=torch.float64)
    return x, reference


def along_the_line(function: Function, x: Tensor, reference: Tensor, parts: int = 200) -> Tensor:
    """Return ∫₀¹ ∂f/∂x at x̄ + t(x − x̄) dt by Gauss–Legendre quadrature on many short parts."""
    nodes, weights = np.polynomial.legendre.leggauss(8)
    total: Tensor | float = 0.0
    for part in range(parts):
        for node, weight in zip(nodes.tolist(), weights.tolist(), strict=True):
            at = (reference + (part + (1 + node) / 2) / parts * (x - reference))[None]
            slope = torch.autograd.functional.jacobian(function, at).reshape(-1, x.numel())
            total = total + weight / 2 / parts * slope
    assert isinstance(total, Tensor)
    return total


MEANS: dict[str, Function] = {
    "layer norm": lambda x: F.layer_norm(x, x.shape[-1:], eps=1e-3),
    "rms norm": lambda x: F.rms_norm(x, x.shape[-1:], eps=1e-3),
    "group norm": lambda x: F.group_norm(x[..., None], 1, eps=0.1),
    "quotient": lambda x: x[:, :2] / x[:, 2:4].exp(),
    "square": lambda x: x * x,
    "product of many": lambda x: x.prod(1, keepdim=True),
    "variance": lambda x: x.var(1, keepdim=True),
    "einsum": lambda x: torch.einsum("ni,nj->nij", x, x),
    "convolution by the image": lambda x: F.conv1d(x[None], x[:, None, :2], torch.ones(1).double()),
    "linear layer by the image": lambda x: F.linear(
        x[:, :2], x[0, 2:4][None], torch.ones(1).double()
    ),
}


@pytest.fixture
def untried(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let images of a batch depend on one another, where a test has but one."""
    monkeypatch.setattr("afmi.network.trial._try", lambda *_: None)


@pytest.mark.usefixtures("untried")
@pytest.mark.parametrize("near", [1.0, 1e-3, 1e-8])
@pytest.mark.parametrize("name", MEANS)
def test_mean_derivative_along_the_straight_line(name: str, near: float) -> None:
    x, reference = vectors()
    x = reference + near * (x - reference)
    factors = matrix(MEANS[name], x, reference)
    if name == "quotient":  # the exponentials' chords follow a curve from ȳ to y
        x, reference = (
            torch.cat([x[:2], x[2:4].exp()]),
            torch.cat([reference[:2], reference[2:4].exp()]),
        )
        factors = matrix(lambda v: v[:, :2] / v[:, 2:4], x, reference)
        expected = along_the_line(lambda v: v[:, :2] / v[:, 2:4], x, reference, 20)
    else:
        expected = along_the_line(MEANS[name], x, reference, 20)
    torch.testing.assert_close(factors, expected, rtol=1e-7, atol=1e-9)


def logarithmic_mean(p: float, q: float) -> float:
    return p if p == q else (p - q) / (math.log(p) - math.log(q))


def test_softmax_by_its_equation() -> None:
    x, reference = vectors()
    p, q = x.softmax(0).tolist(), reference.softmax(0).tolist()
    means = [logarithmic_mean(a, b) for a, b in zip(p, q, strict=True)]
    total = sum(means)
    weights = matrix(lambda v: v.logsumexp(1, keepdim=True), x, reference)[0].tolist()
    assert weights == pytest.approx([m / total for m in means], rel=1e-10)
    factors = matrix(lambda v: v.softmax(1), x, reference).tolist()
    found_log = matrix(lambda v: v.log_softmax(1), x, reference).tolist()
    for i, j in ((i, j) for i in range(5) for j in range(5)):
        same = float(i == j)
        assert factors[i][j] == pytest.approx(
            same * means[i] - means[i] * means[j] / total, rel=1e-9
        )
        assert found_log[i][j] == pytest.approx(same - means[j] / total, rel=1e-9)


@pytest.mark.parametrize("shift", [0.0, 300.0, -5000.0])
@pytest.mark.parametrize("scale", [1e-6, 1.0, 500.0])
def test_softmax_is_exact_whatever_the_shift_and_the_scale(shift: float, scale: float) -> None:
    """In float32, with scores whose exponentials overflow."""
    x, reference = (scale * v for v in vectors())
    x = (x + shift).float()
    factors = matrix(lambda v: v.softmax(1), x, reference.float())
    assert factors.sum(1).abs().max() <= 1e-6  # a constant added to the scores changes nothing
    change = x.softmax(0) - reference.float().softmax(0)
    explained = factors.double() @ (x.double() - reference)
    assert (explained - change).abs().max() <= 3e-7 * (1 + abs(shift))
    unshifted = matrix(lambda v: v.softmax(1), (x.double() - shift), reference)
    torch.testing.assert_close(factors.double(), unshifted, rtol=1e-2, atol=1e-5 * (1 + abs(shift)))


def test_softmax_of_equal_scores_has_its_own_derivative() -> None:
    x, _ = vectors()
    p = x.softmax(0)
    factors = matrix(lambda v: v.softmax(1), x, x)
    torch.testing.assert_close(factors, p.diag() - p.outer(p))


def test_masked_scores_take_no_part() -> None:
    x, reference = vectors()
    mask = torch.tensor([0.0, 0.0, -math.inf, 0.0, -math.inf], dtype=x.dtype)
    factors = matrix(lambda v: (v + mask).softmax(1), x, reference)
    assert factors.isfinite().all()
    assert factors[:, [2, 4]].abs().max() == 0 == factors[[2, 4]].abs().max()
    change = (x + mask).softmax(0) - (reference + mask).softmax(0)
    torch.testing.assert_close(factors @ (x - reference), change)


def test_a_quotient_whose_divisor_changes_sign_is_a_product() -> None:
    x, reference = torch.tensor([3.0, -2.0]).double(), torch.tensor([1.0, 4.0]).double()
    factors = matrix(lambda v: v[:, :1] / v[:, 1:], x, reference)
    assert factors.tolist() == [[pytest.approx((1 / -2 + 1 / 4) / 2), pytest.approx(-4 / 2 / -8)]]


def test_length_by_its_equation() -> None:
    x, reference = vectors()
    factors = matrix(lambda v: v.norm(dim=1, keepdim=True), x, reference)
    expected = (x + reference) / (x.square().sum().sqrt() + reference.square().sum().sqrt())
    torch.testing.assert_close(factors[0], expected)
    nothing = matrix(lambda v: v.norm(dim=1, keepdim=True), 0 * x, 0 * x)
    assert nothing.abs().max() == 0


@pytest.mark.parametrize("rises", [True, False])
def test_a_maximum_is_carried_by_one_position(rises: bool) -> None:
    high = torch.tensor([1.0, 5.0, 2.0]).double()
    low = torch.tensor([3.0, 0.0, 2.0]).double()
    x, reference = (high, low) if rises else (low, high)
    factors = matrix(lambda v: v.amax(1, keepdim=True), x, reference)
    # From 3 (first) to 5 (second, which was 0): the second carries 2 of its change of 5.
    assert factors.tolist() == [[0.0, pytest.approx(2 / 5), 0.0]]
    least = matrix(lambda v: -(-v).min(1, keepdim=True)[0], x, reference)
    assert least.tolist() == factors.tolist()
    torch.testing.assert_close(
        matrix(lambda v: torch.maximum(v[:, :1], v[:, 1:2]), x, reference), factors
    )


def test_max_over_a_dimension_gives_the_places_too() -> None:
    def pooled(v: Tensor) -> Tensor:
        values, indices = v.max(1)
        assert v.max(1).indices.tolist() == indices.tolist() == [1] * len(v)
        return values[:, None]

    x, reference = torch.tensor([1.0, 5.0]).double(), torch.tensor([0.0, 2.0]).double()
    assert matrix(pooled, x, reference).tolist() == [[0.0, 1.0]]


def test_layer_norm_of_a_constant_reference_is_exact_in_float32() -> None:
    """A product with 1/√ε would leave factors of ±100 that cancel."""
    x, _ = vectors(64)
    x, black = x.float(), torch.full((64,), 0.25)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        factors = matrix(lambda v: F.layer_norm(v, (64,)), x, black)
    torch.testing.assert_close(factors @ (x - black), F.layer_norm(x, (64,)), rtol=1e-5, atol=1e-5)
    assert factors.abs().max() < 10


def test_layer_norm_of_opposite_maps_is_exact() -> None:
    """The straight line passes near zero, where the closed form's terms cancel."""
    x, _ = vectors(3)
    for eps in (1e-5, 1e-9):
        factors = matrix(lambda v, eps=eps: F.layer_norm(v, (3,), eps=eps), x, -x)
        torch.testing.assert_close(
            factors @ (2 * x), 2 * F.layer_norm(x, (3,), eps=eps), rtol=1e-6, atol=1e-6
        )


@pytest.mark.parametrize("apart", [1.0, 0.1, 1e-3, 0.0])
@pytest.mark.parametrize(
    "norm",
    [
        lambda v: F.layer_norm(v, (64,), eps=1e-6),
        lambda v: F.rms_norm(v, (64,), eps=1e-6),
        lambda v: F.group_norm(v[..., None], 2, eps=1e-6),
    ],
)
def test_norms_of_opposite_maps_keep_their_digits_in_float32(norm: Function, apart: float) -> None:
    x, other = (v.float() for v in vectors(64))
    reference = apart * other - 1.3 * x
    factors = matrix(norm, x, reference).double()
    expected = matrix(norm, x.double(), reference.double())
    assert (factors - expected).norm() <= 1e-6 * expected.norm()
    change = norm(x.double()[None]) - norm(reference.double()[None])
    error = factors @ (x.double() - reference.double()) - change.flatten()
    assert error.abs().max() <= 2e-5


@pytest.mark.parametrize("of_the_reference", [True, False])
def test_normalised_rounding_errors_are_reported(of_the_reference: bool) -> None:
    x, _ = vectors(64)
    noise = 1e6 + 0.1 * x.float()  # float32 resolves numbers of this size in steps of 0.06
    x, reference = (x.float(), noise) if of_the_reference else (noise, x.float())
    whose = "the reference" if of_the_reference else "an image"
    with pytest.warns(ConditioningWarning, match=f"rounding, in {whose}"):
        matrix(lambda v: F.layer_norm(v, (64,)), x, reference)


class Attention(nn.Module):
    """Tokens of a convolution, and ``nn.MultiheadAttention`` of them in one of its forms."""

    def __init__(self, *, need_weights: bool, batch_first: bool, **options: bool) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.conv = nn.Conv2d(3, 8, 2, 2)
            self.attention = nn.MultiheadAttention(8, 2, batch_first=batch_first, **options)
            self.head = nn.Linear(8, 3)
        self.need_weights, self.batch_first = need_weights, batch_first
        self.double().eval()

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.conv(x).flatten(2).mT
        tokens = tokens if self.batch_first else tokens.transpose(0, 1)
        mask = torch.zeros(9, 9, dtype=torch.bool).fill_diagonal_(self.need_weights)
        out, weights = self.attention(
            tokens, tokens, tokens, need_weights=self.need_weights, attn_mask=mask
        )
        out = out if self.batch_first else out.transpose(0, 1)
        out = out if weights is None else out + weights.sum(1)[..., None]
        return self.head(out.mean(1))


@pytest.mark.parametrize("need_weights", [True, False])
@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize("options", [{}, {"add_bias_kv": True, "add_zero_attn": True}])
def test_multi_head_attention(need_weights: bool, batch_first: bool, options: dict) -> None:
    if options and need_weights:
        pytest.skip("the mask would have to cover the two keys that are added")
    model = Attention(need_weights=need_weights, batch_first=batch_first, **options)
    x = torch.rand(2, 3, 6, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for reference in (Black(), Random(), Several([Black(), Random()])):
        assert errors(model, x, reference).of_logits <= 1e-12


class Encoder(nn.Module):
    """PyTorch's encoder, which runs fused in evaluation mode."""

    def __init__(self, *, norm_first: bool = False) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.conv = nn.Conv2d(3, 8, 2, 2)
            layer = nn.TransformerEncoderLayer(
                8, 2, 16, activation="gelu", batch_first=True, norm_first=norm_first
            )
            self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
            self.decoder = nn.TransformerDecoderLayer(8, 2, 16, batch_first=True)
            self.head = nn.Linear(8, 3)
        self.double().eval()

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.conv(x).flatten(2).mT
        memory = self.encoder(tokens)
        return self.head(self.decoder(tokens, memory).mean(1))


@pytest.mark.parametrize("norm_first", [True, False])
@pytest.mark.parametrize("layer", ["inputs", "conv"])
def test_transformer_encoder(norm_first: bool, layer: str) -> None:
    x = torch.rand(2, 3, 6, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    model = Encoder(norm_first=norm_first)
    for reference in (Black(), Random()):
        assert errors(model, x, reference, layer).of_logits <= 1e-12


def test_attention_that_drops_weights_raises() -> None:
    x, reference = vectors(8)

    def dropping(v: Tensor) -> Tensor:
        tokens = v.reshape(-1, 4, 2)
        return F.scaled_dot_product_attention(tokens, tokens, tokens, dropout_p=0.1)

    with pytest.raises(ModelError, match="drops activations at random"):
        matrix(dropping, x, reference)


def test_a_root_that_stays_zero_carries_nothing() -> None:
    """Its derivative is infinite, and 0 · ∞ would spoil the whole map."""
    x, reference = vectors()
    for root in (
        lambda v: (0 * v).sqrt(),
        lambda v: torch.linalg.vector_norm(0 * v, 3, 1)[:, None],
    ):
        assert matrix(root, x, reference).abs().max() == 0


def test_one_image_of_transposed_tokens_has_the_right_gradient() -> None:
    """PyTorch's batch norm permutes a gradient whose strides are those of transposed tokens."""

    class Attending(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.norm = nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)
            self.norm.running_var = torch.tensor([0.5, 1.0, 2.0, 4.0])
            self.head = nn.Linear(4, 3)
            self.double().eval()

        def forward(self, x: Tensor) -> Tensor:
            tokens = self.norm(self.conv(x)).flatten(2).mT.unsqueeze(1)
            return self.head(F.scaled_dot_product_attention(tokens, tokens, tokens).mean((1, 2)))

    model, x = Attending(), torch.rand(1, 3, 6, 6, dtype=torch.float64)
    assert errors(model, x, Random()).of_logits <= 1e-12
    # The ordinary gradient of one image is that of the same image twice, where nothing is wrong.
    with torch.enable_grad():
        twice = x.repeat(2, 1, 1, 1).requires_grad_()
        (expected,) = torch.autograd.grad(model(twice)[:, 1].sum(), twice)
    run = forward_pass(model, x, layer=None)
    torch.testing.assert_close(run.gradient(torch.tensor([1])), expected[:1])
