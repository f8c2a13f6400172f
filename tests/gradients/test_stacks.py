"""Random stacks of operations sum to delta; an operation without a rule raises and can get one."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import torchvision
from completeness import errors
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from afmi import gradients as engine
from afmi.errors import CompletenessWarning, OperationError
from afmi.gradients import blocking
from afmi.gradients.rules import _table, elementwise
from afmi.gradients.tape import TapeMismatchError
from afmi.network import channels_last
from afmi.pictures.references import Black, Blurred, Random, Reference, White

Function = Callable[[Tensor], Tensor]

# Every elementwise function with a rule, on arguments where it is defined.
ELEMENTWISE: dict[str, Function] = {
    "relu": lambda x: F.relu(x + 0, inplace=True),
    "silu": lambda x: F.silu(x + 0, inplace=True),
    "mish": F.mish,
    "gelu": lambda x: F.gelu(x) + F.gelu(x, approximate="tanh"),
    "tanh": torch.tanh,
    "tanhshrink": F.tanhshrink,
    "softsign": F.softsign,
    "erf": torch.erf,
    "sin": torch.sin,
    "expm1": torch.expm1,
    "log1p": lambda x: torch.log1p(x.square()),
    "log": lambda x: (x.square() + 1).log(),
    "log2": lambda x: (x.square() + 1).log2(),
    "log10": lambda x: (x.square() + 1).log10(),
    "sqrt": lambda x: (x.square() + 1).sqrt(),
    "rsqrt": lambda x: (x.square() + 1).rsqrt(),
    "reciprocal": lambda x: (x.square() + 1).reciprocal(),
    "square": torch.square,
    "sigmoid": lambda x: (x + 0).sigmoid_(),
    "logsigmoid": F.logsigmoid,
    "log_sigmoid": F.logsigmoid,
    "softplus": lambda x: F.softplus(x, beta=3),
    "exp": torch.exp,
    "cos": torch.cos,
    "erfc": torch.erfc,
    "erfinv": lambda x: torch.erfinv(x.tanh() * 0.9),
    "ndtr": torch.special.ndtr,
    "log_ndtr": torch.special.log_ndtr,
    "tan": lambda x: torch.tan(x.tanh()),
    "asin": lambda x: torch.arcsin(x.tanh() * 0.9),
    "acos": lambda x: torch.acos(x.tanh() * 0.9),
    "atan": torch.atan,
    "sinh": lambda x: (x + 0).sinh_(),
    "cosh": torch.cosh,
    "asinh": torch.asinh,
    "acosh": lambda x: torch.acosh(x.square() + 1.5),
    "atanh": lambda x: torch.atanh(x.tanh() * 0.9),
    "sinc": torch.sinc,
    "exp2": torch.exp2,
    "logit": lambda x: torch.logit(x.tanh() * 0.4 + 0.5),
    "entr": lambda x: torch.special.entr(x.square() + 0.1),
    "lgamma": lambda x: torch.lgamma(x.square() + 0.5),
    "digamma": lambda x: torch.digamma(x.square() + 0.5),
    "i0": torch.special.i0,
    "hardshrink": F.hardshrink,
    "nan_to_num": lambda x: torch.nan_to_num(x, 0.0),
    "weight in a map's form": lambda x: x * torch.ones(1).expand_as(x).type_as(x) * 2,
    "relu6": lambda x: F.relu6(x + 0, inplace=True),
    "hardtanh": F.hardtanh,
    "leaky_relu": lambda x: F.leaky_relu(x, 0.2),
    "prelu": lambda x: F.prelu(x, torch.tensor([0.1], dtype=x.dtype)),
    "rrelu": F.rrelu,
    "threshold": lambda x: F.threshold(x, 0.1, 0.1),
    "softshrink": F.softshrink,
    "abs": abs,
    "clamp": lambda x: x.clamp(-0.5, 0.7),
    "clamp_min": lambda x: torch.clamp_min(x, -0.1),
    "clamp_max": lambda x: (x + 0).clamp_max_(0.3),
    "hardswish": lambda x: F.hardswish(x + 0, inplace=True),
    "elu": lambda x: F.elu(x, 0.7),
    "selu": F.selu,
    "celu": lambda x: F.celu(x, 0.5),
    "hardsigmoid": F.hardsigmoid,
    "pow": lambda x: x.pow(3) + torch.pow(x, 2),
    "float_power": lambda x: (x.square() + 1).float_power(0.5),
}


def in_place_product(x: Tensor) -> Tensor:
    x = x + 0
    x *= x
    return x


def overwritten_later(x: Tensor) -> Tensor:
    gate = torch.sigmoid(x)
    y = F.silu(x)
    product = y * gate
    y += 1
    gate += 1
    return product + y + gate


def written_into(x: Tensor) -> Tensor:
    buffer = torch.zeros_like(x)
    buffer[:, :1] = F.relu(x[:, :1])
    buffer[:, 1:] = x[:, 1:]
    return buffer


def pooled(pool: nn.Module, flat: Callable[[Tensor], Tensor] = lambda x: x) -> Function:
    """Pool, and resize the output to the shape of the input."""
    return lambda x: F.interpolate(_maps(pool(flat(x))), size=x.shape[2:])[:, : x.shape[1]]


def _maps(x: Tensor) -> Tensor:
    return x.flatten(2)[:, :, None] if x.dim() != 4 else x


# Each keeps the shape (N, 4, 6, 6).
OTHER: dict[str, Function] = {
    "overlapping": pooled(nn.MaxPool2d(3, 2, 1)),
    "ceil": pooled(nn.MaxPool2d(3, 2, ceil_mode=True)),
    "dilated": pooled(nn.MaxPool2d(2, 1, dilation=2)),
    "adaptive": pooled(nn.AdaptiveMaxPool2d((4, 5))),
    "1d": pooled(nn.MaxPool1d(3, 2, 1, ceil_mode=True), lambda x: x.flatten(2)),
    "adaptive 1d": pooled(nn.AdaptiveMaxPool1d(7), lambda x: x.flatten(2)),
    "3d": lambda x: F.max_pool3d(x[:, None], (3, 3, 3), 1, 1)[:, 0],
    "adaptive 3d": lambda x: F.adaptive_max_pool3d(x[:, None], (4, 6, 6))[:, 0],
    "average": pooled(nn.AvgPool2d(3, 2, 1, ceil_mode=True)),
    "gate": lambda x: x * torch.sigmoid(x.mean((2, 3), keepdim=True)),
    "square": lambda x: x * x,
    "in-place product": in_place_product,
    "overwritten later": overwritten_later,
    "written into": written_into,
    "divide": lambda x: x / 3 + (2 * x) / torch.tensor(5.0, dtype=x.dtype),
    "constant over": lambda x: 1 / (x * x + 2) + torch.ones_like(x).div_(x.exp() + 1),
    "matrix product": lambda x: x @ x.mT / 4,
    "residual": lambda x: x + F.relu(x),
    "in-place residual": lambda x: F.relu(x).add_(x),
    "cat": lambda x: torch.cat([F.relu(x[:, 2:]), x[:, :2] - 1], 1),
    "chunk": lambda x: torch.cat([F.relu(p) for p in reversed(x.chunk(2, 1))], 1),
    "shuffle": lambda x: x.view(-1, 2, 2, 6, 6).transpose(1, 2).reshape(x.shape),
    "pad": lambda x: F.pad(x, (1, 1, 1, 1), mode="reflect")[..., 2:, 2:],
    "interpolate": lambda x: F.interpolate(
        F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False), size=(6, 6)
    ),
    "dropout": lambda x: F.dropout(x, training=False),
}


def divided_in_place(x: Tensor) -> Tensor:
    y = x + 0
    y /= 1 + x.square().mean(1, keepdim=True)
    return y


def added_in_place(x: Tensor) -> Tensor:
    y, maps = x + 0, (x + 1).flatten(0, 1)
    y.addcmul_(x, x).addcdiv_(x, x.exp())
    maps.baddbmm_(maps.mT, maps, alpha=0.1)
    return y + maps.view_as(x)


def own_layer_norm(x: Tensor) -> Tensor:
    mean = x.mean(1, keepdim=True)
    variance = (x - mean).pow(2).mean(1, keepdim=True)
    return (x - mean) / torch.sqrt(variance + 1e-6)


def _weights(*shape: int) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def attended(**options: Any) -> Function:
    """Attention of the maps' rows to one another, four heads wide 6."""
    return lambda x: F.scaled_dot_product_attention(3 * x, x.flip(2), x + 1, **options)


def recurrent(network: nn.RNNBase) -> Function:
    """A recurrent network along the rows, whose channels are made those of the maps."""
    network = network.double()

    def run(x: Tensor) -> Tensor:
        rows = x.flatten(0, 1)
        if network.batch_first:
            return network(rows)[0].view(*x.shape[:3], -1)
        return network(rows.transpose(0, 1))[0].transpose(0, 1).reshape(*x.shape[:3], -1)

    return run


# Operations that mix positions, or have two operands that depend on the image.
MIXING: dict[str, Function] = {
    "softmax": lambda x: x.softmax(1) + F.softmax(5 * x, 3) + F.softmin(x, dim=2),
    "log_softmax": lambda x: F.log_softmax(x, 1),
    "logsumexp": lambda x: x - torch.logsumexp(x, (1, 2), keepdim=True) + x.logsumexp(3)[..., None],
    "own softmax": lambda x: x.exp() / x.exp().sum(1, keepdim=True),
    "quotient": lambda x: x / (x.flip(2).square() + 0.1) + (1 + x) / x.exp(),
    "quotient through the pole": lambda x: x / (x.mean(1, keepdim=True) + 0.01),
    "in-place quotient": divided_in_place,
    "layer_norm": lambda x: F.layer_norm(x, (6, 6), _weights(6, 6), _weights(6, 6)),
    "own layer norm": own_layer_norm,
    "rms_norm": lambda x: F.rms_norm(x, (6,), _weights(6)) + F.rms_norm(x, (6,), eps=1e-3),
    "group_norm": lambda x: F.group_norm(x, 2, _weights(4), _weights(4)),
    "instance_norm": lambda x: F.instance_norm(x, weight=_weights(4), bias=_weights(4)),
    "overwritten norms": lambda x: (
        F.relu_(F.instance_norm(x))
        + F.hardswish(F.layer_norm(x, (6, 6)), inplace=True)
        + F.rms_norm(x, (6,)).tanh_()
    ),
    "local_response_norm": lambda x: F.local_response_norm(x, 3, alpha=1.0),
    "normalize": lambda x: F.normalize(x) + F.normalize(x, p=1, dim=3),
    "norm": lambda x: x * x.norm(dim=1, keepdim=True) + torch.norm(x, dim=(1, 2), keepdim=True),
    "linalg_norm": lambda x: x + torch.linalg.norm(x, dim=(2, 3), keepdim=True),
    "vector_norm": lambda x: (
        x
        + torch.linalg.vector_norm(x, 3, (1, 2), keepdim=True)
        + torch.linalg.vector_norm(x, torch.inf, 3, True)
    ),
    "cosine_similarity": lambda x: x + F.cosine_similarity(x, x.flip(2))[:, None],
    "var": lambda x: (
        x - x.var(1, keepdim=True) + torch.var(x, (2, 3), correction=0)[..., None, None]
    ),
    "std": lambda x: x / (1 + x.std(1, keepdim=True)) + torch.std(x, (1, 2), False, True),
    "var_mean": lambda x: (
        x * torch.var_mean(x, 1, keepdim=True)[0] + torch.std_mean(x, 1, keepdim=True)[1]
    ),
    "amax": lambda x: x - x.amax((2, 3), keepdim=True) + x.amin(1, True),
    "max": lambda x: x - x.max(1, keepdim=True).values + x.min(2)[0][:, :, None],
    "maximum": lambda x: torch.maximum(x, x.flip(2)) + torch.min(x, x.mean(1, keepdim=True)),
    "maximum with a constant": lambda x: torch.maximum(x, torch.full_like(x, 0.1)),
    "clamp": lambda x: torch.clamp(x, min=x.mean(1, keepdim=True)) + x.clamp(max=x.flip(2)),
    "glu": lambda x: F.glu(torch.cat([x, x.flip(2)], 1), 1),
    "lp_pool": pooled(nn.LPPool2d(2, 2)),
    "einsum": lambda x: (
        torch.einsum("nchw,ncwd->nchd", x, x.flip(2)) / 4 + torch.einsum("nchw,nchw->nchw", [x, x])
    ),
    "vector product": lambda x: (x @ x[:, :, 0, :, None]).expand_as(x),
    "baddbmm": lambda x: torch.baddbmm(
        x.flatten(0, 1), x.flatten(0, 1), x.flatten(0, 1), beta=2, alpha=0.5
    ).view_as(x),
    "addcmul": lambda x: torch.addcdiv(torch.addcmul(x, x, x, value=2), x, x.exp()),
    "product of many": lambda x: x.cumprod(2) + x.prod(1, keepdim=True),
    "added in place": added_in_place,
    "power of a constant": lambda x: 2**x,
    "attention": attended(),
    "scaled attention": attended(scale=2.0),
    "causal attention": attended(is_causal=True),
    "masked attention": attended(attn_mask=_weights(6, 6) > -0.5),
    "biased attention": attended(attn_mask=_weights(6, 6)),
    "grouped attention": lambda x: F.scaled_dot_product_attention(
        x, x[:, :2], x[:, 2:], enable_gqa=True
    ),
    "moved": lambda x: torch.cat([p.roll(2, 3) for p in x.split([1, 3], 1)], 1).gather(
        3, torch.tensor([5, 0, 1, 1, 4, 2]).expand(len(x), 4, 6, 6)
    ),
    "three factors": lambda x: torch.einsum("nchw,nchw,nchw->nchw", x, x.flip(2), x + 1),
    "five factors": lambda x: torch.einsum(
        "nchw,ncw,nhw,ncw,nch->nchw", x, x.mean(2), x.mean(1), x.flip(2).mean(2), x.mean(3)
    ),
    "lstm": recurrent(nn.LSTM(6, 3, 2, bidirectional=True)),
    "lstm without biases": recurrent(nn.LSTM(6, 6, bias=False)),
    "gru": recurrent(nn.GRU(6, 3, bidirectional=True, batch_first=True)),
    "pixel shuffle": lambda x: F.pixel_unshuffle(F.pixel_shuffle(x, 2).tanh(), 2),
    "bicubic": lambda x: F.interpolate(
        F.interpolate(x, (9, 9), mode="bicubic").sigmoid(), (6, 6), mode="area"
    ),
    "grouped convolution": lambda x: F.conv_transpose2d(
        F.conv2d(x, _weights(8, 2, 3, 3) / 4, padding=1, groups=2),
        _weights(8, 2, 3, 3) / 4,
        padding=1,
        groups=2,
    ),
}


def into_view(write: Callable[[Tensor, Tensor], Any], start: float = 0.0) -> Function:
    """Return a function that writes its maps into a part of a larger tensor, and uses that."""

    def function(x: Tensor) -> Tensor:
        larger = x.new_full((x.shape[0], 6, *x.shape[2:]), start)
        before = larger[:, 2:]
        write(larger.narrow(1, 1, 4), x)
        return larger[:, :4] + before

    return function


def overwritten(write: Callable[[Tensor], Any]) -> Function:
    """Return a function that writes to a part of a copy of its maps, which it saw before."""

    def function(x: Tensor) -> Tensor:
        copy = x * 2
        half, rest = copy[:, :2], copy[:, 2:]
        write(half)
        return torch.cat([rest * copy[:, :2], half.tanh()], 1)

    return function


_CHANNELS = torch.tensor([2, 0, 1])

# Writing to tensors and to parts of them, and operations that are linear, or others put together.
SMALL: dict[str, Function] = {
    "copied into a view": into_view(lambda part, x: part.copy_(x)),
    "added into a view": into_view(lambda part, x: part.add_(x.tanh()), start=0.5),
    "set in a view": into_view(lambda part, x: part.__setitem__(slice(None), x * x)),
    "a view zeroed": overwritten(lambda part: part.zero_()),
    "a view filled": overwritten(lambda part: part.fill_(0.3)),
    "a view rectified": overwritten(lambda part: F.relu(part, inplace=True)),
    "a view multiplied": overwritten(lambda part: part.mul_(part.flip(1).exp())),
    "a view clamped": overwritten(lambda part: part.clamp_(-0.1, 0.2)),
    "a view overwritten by itself": overwritten(lambda part: part.copy_(part.square())),
    "index_fill": lambda x: x.index_fill(1, _CHANNELS[:1], 0.3),
    "index_copy": lambda x: (x * 1).index_copy_(1, _CHANNELS, x[:, 1:].square()),
    "index_put": lambda x: x.index_put(
        (torch.arange(len(x))[:, None], _CHANNELS[:2]), x[:, :2].exp()
    ),
    "scatter": lambda x: x.scatter(
        1, torch.zeros(len(x), 1, 6, 6, dtype=torch.long), x.exp()[:, :1]
    ),
    "scatter_reduce": lambda x: x.scatter_reduce(1, x.new_zeros(x.shape).long(), x * 2, "mean"),
    "slice_scatter": lambda x: torch.slice_scatter(x, x[:, 2:].square(), 1, 0, 2),
    "select_scatter": lambda x: torch.select_scatter(x, x[:, 2].square(), 1, 0),
    "diagonal_scatter": lambda x: torch.diagonal_scatter(x, x.diagonal(0, 2, 3).square(), 0, 2, 3),
    "take": lambda x: torch.stack([y.take(torch.arange(144)) for y in x.square()]).view_as(x),
    "flips": lambda x: torch.fliplr(x).square().rot90(1, (2, 3)),
    "splits": lambda x: torch.cat([*x.square().hsplit(2), *x.dsplit(2)[:0]], 1),
    "trapezoid": lambda x: x + torch.trapezoid(x, dim=2).unsqueeze(2),
    "weight by the maps": lambda x: torch.lerp(x, x.square(), x.sigmoid()),
    "hypot": lambda x: torch.hypot(x, x.flip(1)) + torch.hypot(x, _weights(6, 6)),
    "logaddexp": lambda x: torch.logaddexp(x, x.flip(1)) + torch.logaddexp(x, _weights(6, 6)),
    "aminmax": lambda x: x - torch.aminmax(x, dim=1, keepdim=True).max,
    "distances": lambda x: x + torch.cdist(x, x.exp()) + torch.cdist(x, _weights(6, 6), p=1),
    "cross": lambda x: torch.cat([x[:, :1], torch.cross(x[:, 1:], x[:, 1:].exp(), dim=1)], 1),
    "bilinear": lambda x: x + F.bilinear(x, x.square(), _weights(6, 6, 6)),
    "Frobenius": lambda x: x / torch.linalg.matrix_norm(x, keepdim=True),
    "reversed": lambda x: torch.stack([*reversed(x.exp().transpose(0, 1))], 1),
    "vecdot": lambda x: x + torch.linalg.vecdot(x, x.exp()).unsqueeze(-1),
    "grids of frequencies": lambda x: torch.fft.irfft2(
        torch.fft.rfft2(x.exp()) * torch.complex(_weights(6, 4), _weights(6, 4)), s=(6, 6)
    ),
    "sizes of frequencies": lambda x: torch.fft.fft2(x).abs(),
    "complex matrices": lambda x: (torch.fft.fft2(x) @ (torch.fft.fft2(x).mT + x)).real / 36,
    "a product of frequencies": lambda x: (
        torch.fft.ifft2(torch.fft.fft2(x) * torch.fft.fft2(x.flip(2))).real
    ),
}

FOURIER: dict[str, Function] = {
    "filter": lambda x: torch.fft.irfft2(torch.fft.rfft2(x) * 0.5j, s=x.shape[-2:]),
    "real_spectrum": lambda x: torch.fft.fft2(x, norm="ortho").real,
    "imaginary_spectrum": lambda x: torch.fft.fft(x, dim=1, norm="ortho").imag,
    "shifted": lambda x: (
        torch.fft.fftshift(torch.fft.fftn(x, dim=(2, 3), norm="ortho"), (2, 3)).real
    ),
    "pairs": lambda x: torch.view_as_real(torch.fft.fft2(x, norm="ortho")).sum(-1),
    "joined": lambda x: (torch.complex(x, x.flip(2)) * (1 + 2j)).conj().imag,
    "spectral_relu": lambda x: F.relu(torch.fft.fft2(x, norm="ortho").real),
}

FUNCTIONS = {**ELEMENTWISE, **OTHER, **MIXING, **SMALL, **FOURIER}


class Stack(nn.Module):
    """Linear maps with functions between them, ending in two logits."""

    def __init__(self, functions: list[Function], scale: float = 1.0, seed: int = 0) -> None:
        super().__init__()
        self.functions = functions
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.convolutions = nn.ModuleList(
                nn.Conv2d(3 if i == 0 else 4, 4, 3, padding=1) for i in range(len(functions))
            )
            self.norms = nn.ModuleList(nn.BatchNorm2d(4) for _ in functions)
            self.head = nn.Linear(4 * 36, 2)
        with torch.no_grad():
            first = self.convolutions[0]
            first.weight *= scale
            first.bias *= scale
        self.double().eval()

    def forward(self, x: Tensor) -> Tensor:
        parts = zip(self.convolutions, self.norms, self.functions, strict=True)
        for convolution, norm, function in parts:
            x = function(norm(convolution(x)))
        return self.head(x.flatten(1))

    def largest(self, x: Tensor) -> float:
        """Return the largest size of a number between the functions; nan or inf: overflow."""
        sizes = [x]
        parts = zip(self.convolutions, self.norms, self.functions, strict=True)
        for convolution, norm, function in parts:
            sizes.append(function(norm(convolution(sizes[-1]))))
        return max(float(y.detach().abs().nan_to_num(torch.inf).max()) for y in sizes)


def pictures(seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(2, 3, 6, 6, generator=generator, dtype=torch.float64)


def test_every_elementwise_rule_is_tried() -> None:
    assert set(elementwise.RULES) <= set(ELEMENTWISE)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_one_operation_sums_to_delta(name: str) -> None:
    function = FUNCTIONS[name]
    for reference in (Black(), Random()):
        assert errors(Stack([function]), pictures(), reference).of_logits <= 1e-12


def test_a_chain_of_matrices_of_one_image() -> None:
    class Chain(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.linalg.multi_dot([x[0, 0], x[0, 1].t(), x[0, 2]])[None, 0, :2]

    assert errors(Chain(), pictures()[:1], Random()).of_logits <= 1e-12


STACKS = given(
    names=st.lists(st.sampled_from(list(FUNCTIONS)), min_size=1, max_size=6),
    reference=st.sampled_from([Black(), White(), Random()]),
    seed=st.integers(0, 1000),
)
SETTINGS = settings(
    deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much]
)


def check_stack(names: list[str], reference: Black, seed: int) -> None:
    model = Stack([FUNCTIONS[name] for name in names], seed=seed)
    images = pictures(seed)
    # Exponentials upon exponentials, or upon a pole, overflow: then there is no sum to compare.
    assume(model.largest(images) < 1e6 and model.largest(reference(images)) < 1e6)
    assert errors(model, images, reference).of_logits <= 1e-10


@STACKS
@settings(SETTINGS, max_examples=60, derandomize=True)
def test_random_stacks_sum_to_delta(names: list[str], reference: Black, seed: int) -> None:
    check_stack(names, reference, seed)


@pytest.mark.slow
@STACKS
@settings(SETTINGS, max_examples=3000)
def test_many_random_stacks_sum_to_delta(names: list[str], reference: Black, seed: int) -> None:
    check_stack(names, reference, seed)


@pytest.mark.parametrize("scale", [1e-8, 1.0, 1e8])
@pytest.mark.parametrize("name", ["relu", "leaky_relu", "tanh", "silu", "sqrt", "overlapping"])
def test_the_small_difference_is_relative(name: str, scale: float) -> None:
    """An absolute threshold would give networks with tiny activations the plain gradient."""
    function = FUNCTIONS[name]
    model = Stack([function], scale)
    model.head.bias.data.zero_()
    assert errors(model, pictures(), Random()).of_logits <= 1e-12
    error = errors(model.float(), pictures().float(), Random())
    assert error.of_logits <= 1e-5


def test_powers_written_with_stars() -> None:
    assert errors(Stack([lambda x: x**3]), pictures(), Random()).of_logits <= 1e-12


@pytest.mark.parametrize("fast", [True, False])
@pytest.mark.parametrize(
    "activation",
    [nn.ReLU(True), nn.ReLU(), nn.ReLU6(True), nn.ReLU6(), nn.SiLU(True), nn.SiLU(), nn.GELU()],
    ids=str,
)
def test_large_maps_go_piece_by_piece(
    activation: nn.Module, fast: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    # One image against another of its own, and against one for all; the last piece is short.
    network = nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1), activation, nn.Flatten(), nn.Linear(144, 2)
    )
    pieces: list[list[Tensor]] = []
    cut = blocking._cut

    def noted(tensors: list[Tensor]) -> Iterator[Any]:
        pieces.append([])
        for piece in cut(tensors):
            pieces[-1].append(piece[0])
            yield piece

    monkeypatch.setattr(blocking, "_cut", noted)
    if fast:
        monkeypatch.setattr(channels_last, "_FEW_PIXELS", 0)
    large = (8 * (pictures() - 0.5)).float()
    references = (Black(), Blurred(sigma=1.0))
    expected = [attributed(network, large, reference) for reference in references]
    assert [len(run) for run in pieces] == [1, 1]
    monkeypatch.setattr(blocking, "_PIECE", 35)
    for reference, one in zip(references, expected, strict=True):
        assert torch.allclose(attributed(network, large, reference), one, rtol=1e-6, atol=1e-9)
    assert [{piece.numel() for piece in run} for run in pieces[2:]] == [{35, 4}, {35, 4}]


def attributed(network: nn.Module, images: Tensor, reference: Reference) -> Tensor:
    run = engine.modified_gradient(network, images, layer=None, reference=reference)
    return run.gradients(torch.zeros(1, len(images), dtype=torch.int64), last=True)


UNSUPPORTED: dict[str, Function] = {
    "frac": torch.frac,
    "conv2d": lambda x: F.conv2d(  # each image with its own bias
        x.flatten(0, 1)[None],
        torch.ones(4 * len(x), 1, 1, 1, dtype=x.dtype),
        x.mean((2, 3)).flatten(),
        groups=4 * len(x),
    ).view_as(x),
    "linalg_norm": lambda x: x / torch.linalg.norm(x, 2, dim=(2, 3), keepdim=True),
    "deform_conv2d": lambda x: torchvision.ops.deform_conv2d(
        x, x.repeat(1, 5, 1, 1)[:, :18], torch.ones(4, 4, 3, 3, dtype=x.dtype), padding=1
    ),
    "atan2": lambda x: torch.atan2(x, x.flip(2)),
    "softmax": lambda x: torch.softmax(x, 1, out=torch.empty_like(x)),
    "sort": lambda x: x.sort(2).values,
    "where": lambda x: torch.where(x > 0, x, 0 * x),
    "mul": lambda x: x * (x > 0),
    "masked_fill": lambda x: x.masked_fill(x < 0, 0.0),
    "getitem": lambda x: (
        x + x.flatten(1)[torch.arange(len(x)), x.flatten(1).argmax(1)].view(-1, 1, 1, 1)
    ),
    "sub": lambda x: x - x.detach().round(),
    "div": lambda x: torch.div(x, 0.1, rounding_mode="floor"),
    "grid_sample": lambda x: F.grid_sample(
        x, torch.tanh(x[:, :2]).permute(0, 2, 3, 1), align_corners=False
    ),
    "scatter_reduce": lambda x: x.scatter_reduce(1, x.new_zeros(x.shape).long(), x, "prod"),
    "add": lambda x: torch.add(x, 1, out=torch.empty_like(x)),
    "tanh": lambda x: torch.fft.fft2(x).tanh().real,
    "lstm": recurrent(nn.LSTM(6, 6, proj_size=3)),
}


COMPLEX: dict[str, Function] = {
    "div": lambda z: (1.0 / (z + 3)).real,
    "tanh": lambda z: torch.tanh(z).real,
    "square": lambda z: z.square().real,
    "pow": lambda z: (z**2).real,
    "angle": lambda z: z.angle(),
    "softmax": lambda z: torch.softmax(z.real, 1) * z.imag + torch.exp(z).imag,
}


@pytest.mark.parametrize("name", COMPLEX)
def test_nonlinear_functions_of_complex_numbers_raise(name: str) -> None:
    with pytest.raises(OperationError, match="has no rule"):
        errors(Stack([lambda x: COMPLEX[name](torch.fft.fft2(x))]), pictures(), Random())


@pytest.mark.parametrize("name", UNSUPPORTED)
def test_an_operation_without_rule_raises_and_is_named(name: str) -> None:
    with pytest.raises(OperationError, match=f"'{name}'"):
        errors(Stack([UNSUPPORTED[name]]), pictures(), Random())


@pytest.fixture
def table() -> Iterator[None]:
    before = dict(_table)
    yield
    _table.clear()
    _table.update(before)


@pytest.mark.usefixtures("table")
def test_registered_elementwise_function() -> None:
    model = Stack([torch.special.i1, F.relu])
    with pytest.raises(OperationError, match=r"register_elementwise\('i1'\)"):
        errors(model, pictures(), Black())
    engine.register_elementwise("i1")
    assert errors(model, pictures(), Black()).of_logits <= 1e-12


@pytest.mark.usefixtures("table")
def test_registered_as_smooth_in_spite_of_a_kink() -> None:
    """Differences across the kink within the threshold still sum to delta."""
    engine.register_elementwise("hardshrink")
    engine.register_elementwise("hardtanh")  # a kink at 1, passed by differences of 1e-7
    model = Stack([lambda x: F.hardtanh(1 + 1e-7 * x) * 1e7 - 1e7])
    assert errors(model, pictures(), Random()).of_logits <= 1e-8


@pytest.mark.usefixtures("table")
def test_registered_linear_operation() -> None:
    model = Stack([lambda x: torch.permute_copy(x, (0, 1, 3, 2)), F.relu])
    with pytest.raises(OperationError, match=r"register_linear\('permute_copy'\)"):
        errors(model, pictures(), Black())
    engine.register_linear("permute_copy")
    assert errors(model, pictures(), Black()).of_logits <= 1e-12


@pytest.mark.usefixtures("table")
def test_registered_composition() -> None:
    model = Stack([lambda x: torch.logaddexp2(x, x.flip(2)), F.relu])
    with pytest.raises(OperationError, match="'logaddexp2'"):
        errors(model, pictures(), Black())
    engine.register_composition("logaddexp2", lambda x, y: (x.exp2() + y.exp2()).log2())
    assert errors(model, pictures(), Black()).of_logits <= 1e-12


@pytest.mark.usefixtures("table")
@pytest.mark.parametrize("order", [2, 40])
def test_registered_path_integral(order: int) -> None:
    """Sums to delta as nearly as the quadrature is exact, and says where it is not."""
    model = Stack([lambda x: torch.atan2(x, x.flip(2).square() + 1), F.relu])
    with pytest.raises(OperationError, match=r"register_path_integral\('atan2'\)"):
        errors(model, pictures(), Random())
    engine.register_path_integral("atan2", order=order)
    if order == 2:
        with pytest.warns(CompletenessWarning, match="'atan2' .* with 2 nodes"):
            assert errors(model, pictures(), Random()).of_logits >= 1e-8
    else:
        assert errors(model, pictures(), Random()).of_logits <= 1e-12


@pytest.mark.usefixtures("table")
def test_registered_rule_replaces_cached_reference_runs() -> None:
    """A rule that comes later is used, also where a reference's run is at hand."""
    model = Stack([F.relu])
    errors(model, pictures(), Black())
    recorded = []

    def rule(interception: engine.Interception, operation: engine.Operation) -> Tensor:
        recorded.append(operation.name)
        return elementwise.RULES["relu"](interception, operation)

    engine.register_rule("relu", rule)
    errors(model, pictures(), Black())
    assert recorded == ["relu", "relu"]


class TurnsOnData(nn.Module):
    """Takes another path for dark pictures than for bright ones."""

    def __init__(self, *, linear: bool) -> None:
        super().__init__()
        self.linear = linear
        self.head = nn.Linear(3, 2).double()

    def forward(self, x: Tensor) -> Tensor:
        if x.mean() > 0.1:
            x = 2 * x if self.linear else F.relu(x)
        return self.head(torch.sigmoid(x).mean((2, 3)))


@pytest.mark.parametrize("linear", [False, True])
def test_flow_that_depends_on_data_raises(linear: bool) -> None:
    with pytest.raises(TapeMismatchError, match="must not depend on the values"):
        errors(TurnsOnData(linear=linear), pictures(), Black())


class Doubled(torch.autograd.Function):
    @staticmethod
    def forward(ctx: object, x: Tensor) -> Tensor:
        return x * 2

    @staticmethod
    def backward(ctx: object, gradient: Tensor) -> Tensor:
        return gradient * 2


def test_own_autograd_function_raises_and_is_named() -> None:
    with pytest.raises(OperationError, match="Doubled"):
        errors(Stack([Doubled.apply]), pictures(), Black())


class Plain(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.relu() * 2


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_scripted_part_raises() -> None:
    scripted = torch.jit.script(Plain())
    with pytest.raises(OperationError, match=r"not let be intercepted|does not let"):
        errors(Stack([scripted]), pictures(), Black())


def test_detached_path_raises() -> None:
    with pytest.raises(Exception, match="do not depend on the images"):
        errors(Stack([lambda x: x.detach()]), pictures(), Black())


def test_part_under_no_grad_raises() -> None:
    def part(x: Tensor) -> Tensor:
        with torch.no_grad():
            gate = torch.sigmoid(x)
        return x * gate

    with pytest.raises(OperationError, match="'mul'"):
        errors(Stack([part]), pictures(), Black())
