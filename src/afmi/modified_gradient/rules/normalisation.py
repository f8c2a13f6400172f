"""Layer, group, instance and RMS norm: the mean derivative along the straight line, exactly.

Each is affine but for one step, r ↦ u = r/s with s = √(mean(r²) + ε). With an axis added for √ε,
that is a vector divided by its length, and the mean of its derivative I/s − r rᵀ/(n s³) over the
line from r̄ = a to r = b has a closed form. With the lengths s₀ and s₁, their inner product
q = mean(a b) + ε, the distance g = √mean((b − a)²), σ = s₀ + s₁, z = g/σ and D = s₀ s₁ + q,

    m = A I − (α a aᵀ + β (a bᵀ + b aᵀ) + γ b bᵀ)/n
    A = ∫ 1/s = (2/σ) artanh(z)/z
    β = ∫ t(1 − t)/s³ = (2/σ³) (1/(1 − z²) − artanh(z)/z)/z²
    α = ∫ (1 − t)²/s³ = 1/(s₀ D) − β,     γ = ∫ t²/s³ = 1/(s₁ D) − β,

where 1 − z² = 2D/σ². (A is the potential of a charged rod, 1/(s₀ D) and 1/(s₁ D) the field of one.)
Written as a product r · (1/s) the norm would sum to delta too, but against a constant reference
map, where 1/s̄ = 1/√ε is large, with large multipliers of both signs that cancel: A grows only with
the logarithm of s₁/√ε there.
"""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import Tensor

from afmi.errors import ConditioningWarning
from afmi.modified_gradient.interception import Interception, Operation, Rule
from afmi.modified_gradient.rules.linear import argument, keep_first, path_operands
from afmi.modified_gradient.rules.mixing import Mixing

__all__ = ["RULES"]


class UnitVector(Mixing):
    """u = r/√(mean(r²) + ε) over the last dimension (…, n).

    The closed form's sums are taken in float64, where the device has it: opposite vectors a and b
    pass near zero on their way, and α, β and γ cancel there.
    """

    name = "unit_vector"

    def __init__(self, eps: float) -> None:
        self.eps = eps

    def value(self, x: Tensor) -> Tensor:
        return x * (x.square().mean(-1, keepdim=True) + self.eps).rsqrt()

    def factors(self, x: Tensor, y: Tensor, reference: Tensor, output: Tensor) -> list[Tensor]:
        a, b = _wide(reference), _wide(x)
        s0 = (a.square().mean(-1, keepdim=True) + self.eps).sqrt()
        s1 = (b.square().mean(-1, keepdim=True) + self.eps).sqrt()
        sigma, product = s0 + s1, s0 * s1
        z2 = (b - a).square().mean(-1, keepdim=True) / sigma.square()
        # D as a sum of squares: s₀ s₁ + q would cancel where a and b are opposite.
        d = (s0 * b + s1 * a).square().mean(-1, keepdim=True) + self.eps * sigma.square()
        d = (d / (2 * product)).clamp_min(torch.finfo(d.dtype).tiny)
        rest = 2 * d / sigma.square()  # 1 − z²
        artanh = _artanh_over_z(z2, rest)
        mean_inverse = 2 / sigma * artanh
        beta = 2 / sigma**3 * _second(z2, rest, artanh)
        return [a, b, mean_inverse, 1 / (s0 * d) - beta, beta, 1 / (s1 * d) - beta]

    def pull_back(self, gradient: Tensor, factors: list[Tensor]) -> Tensor:
        a, b, mean_inverse, alpha, beta, gamma = factors
        g = gradient.to(a.dtype)
        along_a = (a * g).mean(-1, keepdim=True)
        along_b = (b * g).mean(-1, keepdim=True)
        result = mean_inverse * g
        result = result - a * (alpha * along_a + beta * along_b)
        result = result - b * (beta * along_a + gamma * along_b)
        return result.to(gradient.dtype)


def _wide(x: Tensor) -> Tensor:
    return x.float() if x.device.type == "mps" else x.double()


_SERIES = 0.05
"""Below this z², power series of 12 terms are exact to float64's rounding."""


def _artanh_over_z(z2: Tensor, rest: Tensor) -> Tensor:
    """Return artanh(z)/z from z² and 1 − z²."""
    z = z2.clamp_min(_SERIES).sqrt()
    closed = ((1 + z).square() / rest.clamp_max(1 - _SERIES)).log() / (2 * z)
    series = sum((z2**k / (2 * k + 1) for k in range(1, 12)), torch.ones_like(z2))
    return torch.where(z2 < _SERIES, series, closed)


def _second(z2: Tensor, rest: Tensor, artanh: Tensor) -> Tensor:
    """Return (1/(1 − z²) − artanh(z)/z)/z²."""
    closed = (1 / rest - artanh) / z2.clamp_min(_SERIES)
    terms = (2 * (k + 1) / (2 * k + 3) * z2**k for k in range(12))
    series = sum(terms, torch.zeros_like(z2))
    return torch.where(z2 < _SERIES, series, closed)


def unit_vector(state: Interception, x: Tensor, centred: Tensor, eps: float) -> Tensor:
    """Return ``centred`` over its length, and warn where it is the rounding error of x.

    Args:
        x: what was centred, (…, n).
        centred: x less its mean, or x itself where the norm does not centre.
        eps: what is added to the mean square.
    """
    with torch.no_grad():
        # Of the numbers that centring subtracts from one another; those of one outlier are small
        # beside the outlier itself, so the mean square counts and not the largest.
        size = x.detach().to(centred.dtype).square().mean(-1, keepdim=True).sqrt()
        noise = torch.finfo(x.dtype).eps * size
        length = (centred.detach().square().mean(-1, keepdim=True) + eps).sqrt()
        worst = float((noise / length).nan_to_num(0.0).max())
    if worst > torch.finfo(x.dtype).eps ** 0.5:
        whose = "the reference" if state.recording is not None else "an image"
        warnings.warn(
            f"a normalisation of maps that are constant but for rounding, in {whose}: what it "
            f"gives there is rounding noise to about {worst:.0e} of its scale, and so are the "
            "modified gradients; choose another layer or reference, or use float64",
            ConditioningWarning,
            stacklevel=2,
        )
    return UnitVector(eps).apply(state, centred)


def _rows(state: Interception, rows: Tensor, eps: float, *, centre: bool = True) -> Tensor:
    """Return rows (…, n), less their means where ``centre``, over their lengths."""
    centred = rows - rows.mean(-1, keepdim=True) if centre else rows
    return unit_vector(state, rows, centred, eps)


def _constant_weights(state: Interception, operation: Operation) -> None:
    if len(path_operands(operation)) > 1:
        raise state.no_rule(
            f"{operation.name!r} with weights that depend on the image",
            "normalise without weights and multiply afterwards",
            name=operation.name,
        )


def _affine(y: Tensor, weight: Tensor | None, bias: Tensor | None, shape: list[int]) -> Tensor:
    y = y if weight is None else y * weight.reshape(shape)
    return y if bias is None else y + bias.reshape(shape)


def layer_norm(state: Interception, operation: Operation) -> Any:
    """(x − mean)/√(var + ε) over the last dimensions; RMS norm does not take the mean off."""
    _constant_weights(state, operation)
    x = operation.operand
    shape = list(argument(operation, 1, "normalized_shape", None))
    weight = argument(operation, 2, "weight", None)
    centre = operation.name == "layer_norm"
    if centre:
        bias, eps = argument(operation, 3, "bias", None), argument(operation, 4, "eps", 1e-5)
    else:
        bias, eps = None, argument(operation, 3, "eps", None)
        eps = torch.finfo(x.dtype).eps if eps is None else eps
    y = _rows(state, x.flatten(-len(shape)), eps, centre=centre).reshape(x.shape)
    return _affine(y, weight, bias, shape)


def group_norm(state: Interception, operation: Operation) -> Any:
    """(x − mean)/√(var + ε) over groups of channels and all places."""
    _constant_weights(state, operation)
    x = operation.operand
    groups = argument(operation, 1, "num_groups", 1)
    weight, bias = argument(operation, 2, "weight", None), argument(operation, 3, "bias", None)
    eps = argument(operation, 4, "eps", 1e-5)
    y = _rows(state, x.reshape(x.shape[0], groups, -1), eps).reshape(x.shape)
    return _affine(y, weight, bias, [-1] + [1] * (x.dim() - 2))


def instance_norm(state: Interception, operation: Operation) -> Any:
    """(x − mean)/√(var + ε) over each map; affine where it uses stored statistics."""
    if not argument(operation, 5, "use_input_stats", True):
        return keep_first(state, operation)
    _constant_weights(state, operation)
    x = operation.operand
    weight, bias = argument(operation, 3, "weight", None), argument(operation, 4, "bias", None)
    eps = argument(operation, 7, "eps", 1e-5)
    y = _rows(state, x.flatten(2), eps).reshape(x.shape)
    return _affine(y, weight, bias, [-1] + [1] * (x.dim() - 2))


RULES: dict[str, Rule] = {
    "layer_norm": layer_norm,
    "rms_norm": layer_norm,
    "group_norm": group_norm,
    "instance_norm": instance_norm,
}
