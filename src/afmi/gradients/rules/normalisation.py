"""Layer, group, instance and RMS norm: the mean derivative along the straight line, exactly.

Each is affine but for one step, r ↦ u = r/s with s = √(mean(r²) + ε). With an axis added for √ε,
that is a vector divided by its length, and the mean of its derivative I/s − r rᵀ/(n s³) over the
line from r̄ = a to r = b has a closed form. With the lengths s₀ and s₁, their inner product
q = mean(a b) + ε, the distance g = √mean((b − a)²), σ = s₀ + s₁, z = g/σ and D = s₀ s₁ + q,

    m = A I − (α a aᵀ + β (a bᵀ + b aᵀ) + γ b bᵀ)/n
    A = ∫ 1/s = (2/σ) L,                              L = artanh(z)/z
    β = ∫ t(1 − t)/s³ = (2/σ³) S,                     S = (1/(1 − z²) − L)/z²
    α = ∫ (1 − t)²/s³ = 1/(s₀ D) − β,     γ = ∫ t²/s³ = 1/(s₁ D) − β,

where 1 − z² = 2D/σ². (A is the potential of a charged rod, 1/(s₀ D) and 1/(s₁ D) the field of one.)
Written as a product r · (1/s) the norm would sum to delta too, but against a constant reference
map, where 1/s̄ = 1/√ε is large, with large multipliers of both signs that cancel: A grows only with
the logarithm of s₁/√ε there.

The code has the unit vectors ū = a/s₀ and u = b/s₁ in place of a and b. With the lengths' shares
p₀ = s₀/σ and p₁ = s₁/σ, v = (b − a)/σ = p₁ u − p₀ ū, whose mean square is z², and
d = 2D/(s₀ s₁) = mean((u + ū)²) + ε (1/s₀ + 1/s₁)²,

    m = (2/σ) (L I − (F (p₀ ū ūᵀ + p₁ u uᵀ) − S v vᵀ)/n),     F = 1/(1 − z²) = 1/(p₀ p₁ d).

Opposite vectors a and b pass near zero on their way: d is small there, and F and S are large and
cancel. So d is a sum of squares, which keeps its digits, what is one number for each row is in
float64, and float32's rounding of the maps grows by no more than 1/√d.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Size, Tensor

from afmi.errors import ConditioningWarning
from afmi.gradients.interception import BackwardState, Handler, Interception
from afmi.gradients.operation import Operation
from afmi.gradients.rule import Factors, Rule, Tensors
from afmi.gradients.rules.linear import keep_first
from afmi.gradients.tape import Entry

__all__ = ["RULES"]

_OPPOSITE = 1e-3
"""Maps with a smaller mean((u + ū)²) than this are taken in float64."""


class _Rows(NamedTuple):
    """Numbers that are normalised together (N, R, n), with their means and 1/s (N, R, 1).

    The means are None where the norm leaves them in.
    """

    numbers: Tensor
    mean: Tensor | None
    inverse: Tensor


@dataclass(frozen=True, eq=False)
class _Norm(Rule):
    """One call of a norm.

    Attributes:
        measure: returns the norm's value and its rows, in the dtype of what it is given.
        weight: what the unit vectors are multiplied with; broadcasts against the operand.
        eps: what is added to the mean square.
    """

    measure: Callable[[Tensor], tuple[Tensor, _Rows]]
    weight: Tensor | None
    eps: float

    def operands(self, interception: Interception, operation: Operation) -> list[Tensor]:
        return [operation.operand]

    def call(self, operation: Operation) -> tuple[Any, ...]:
        x = operation.operand.detach()
        y, rows = self.measure(x if x.dtype == torch.float64 else x.float())
        y = y.to(x.dtype if self.weight is None else torch.result_type(x, self.weight))
        return y, *rows

    def entry(self, operation: Operation, operands: Tensors, outputs: Sequence[Any]) -> Entry:
        rows = _Rows(*outputs[1:])
        _warn_of_rounding(operands[0].dtype, rows, "the reference")
        return Entry(operation.name, tuple(operands), _unit(rows), more=(_wide(rows.inverse),))

    def run(
        self, operation: Operation, operands: Tensors, entries: list[Entry]
    ) -> tuple[tuple[Any, ...], list[Factors]]:
        outputs, factors = super().run(operation, operands, entries)
        _warn_of_rounding(operands[0].dtype, _Rows(*outputs[1:]), "an image")
        return outputs, factors

    def factors(
        self, operation: Operation, operands: Tensors, outputs: Sequence[Any], entry: Entry
    ) -> Factors:
        return self._factors(operands[0], _Rows(*outputs[1:]), entry)

    def traceable_factors(
        self, operation: Operation, operands: Tensors, outputs: Sequence[Any], entry: Entry
    ) -> Factors:
        rows, (of_reference,) = _Rows(*outputs[1:]), entry.more
        square = _square(rows, entry.output)
        return [entry.output, *rows, *_coefficients(of_reference, rows, square, self.eps)]

    def _factors(self, x: Tensor, rows: _Rows, entry: Entry) -> Factors:
        (of_reference,), unit = entry.more, entry.output
        square = _square(rows, unit)
        if x.dtype != square.dtype and float(square.min()) < _OPPOSITE:
            measured = self.measure(_wide(entry.inputs[0]))[1]
            entry = Entry(entry.name, (), _unit(measured), more=(measured.inverse,))
            return self._factors(_wide(x), self.measure(_wide(x))[1], entry)
        return [unit, *rows, *_coefficients(of_reference, rows, square, self.eps)]

    def pull_back(
        self, gradient: Tensor, factors: Factors, shapes: list[Size], state: BackwardState
    ) -> list[Tensor]:
        unit, numbers, mean, inverse, average, field, second, p0, p1 = factors
        g = gradient if self.weight is None else gradient * self.weight
        g = g.reshape(numbers.shape).to(numbers.dtype)
        total = _sum(g) if isinstance(mean, Tensor) else None
        along_unit, along = _sum(unit * g), _sum(numbers * g)
        # From here to the rows' last step in float64, which the factors bring.
        along = (along if total is None else along - total * mean) * inverse
        shift = second * (p1 * along - p0 * along_unit)
        of_unit = (p0 * (field * along_unit + shift)).to(g.dtype)
        of_numbers = (p1 * (field * along - shift) * inverse).to(g.dtype)
        # In place where that is this function's own memory: new memory costs as much as a pass.
        result = g * average if self.weight is None else g.mul_(average)
        result.addcmul_(unit, of_unit, value=-1).addcmul_(numbers, of_numbers, value=-1)
        if total is not None:  # the result's mean, as a constant added to x changes nothing
            result.sub_(average * total / g.shape[-1] - of_numbers * mean)
        return [result.reshape(shapes[0])]


def _wide(x: Tensor) -> Tensor:
    return x.float() if x.device.type == "mps" else x.double()


def _sum(x: Tensor) -> Tensor:
    return x.sum(-1, keepdim=True)


def _unit(rows: _Rows) -> Tensor:
    """Return u, the rows less their means over their lengths."""
    numbers, mean, inverse = rows
    return (numbers if mean is None else numbers - mean) * inverse


def _square(rows: _Rows, unit: Tensor) -> Tensor:
    """Return mean((u + ū)²) of each row, given ū."""
    both = torch.addcmul(unit, rows.numbers, rows.inverse)
    both = both if rows.mean is None else both.sub_(rows.mean * rows.inverse)
    return _wide(both.square_().mean(-1, keepdim=True))


def _coefficients(of_reference: Tensor, rows: _Rows, square: Tensor, eps: float) -> list[Tensor]:
    """Return 2L/σ, in the rows' dtype, then 2F/(nσ), 2S/(nσ), p₀ and p₁.

    Args:
        of_reference: 1/s₀.
        rows: the images'.
        square: mean((u + ū)²).
        eps: ε.
    """
    of_image = _wide(rows.inverse)
    both = of_reference + of_image
    p0, p1 = of_image / both, of_reference / both
    half = p0 * of_reference  # 1/σ
    # An error δ of S is one of δz² at most in m, so that S needs no series where z² is small and
    # its digits are lost, as long as S is that of the same z.
    smallest = torch.finfo(square.dtype).eps
    rest = p0 * p1 * torch.addcmul(square, both, both, value=eps)
    # Tensors, since a file has Python's numbers in single precision, in which the second is 1.
    least, most = (
        torch.tensor(bound, dtype=rest.dtype, device=rest.device)
        for bound in (smallest**2, 1 - 8 * smallest)
    )
    rest.clamp_(least, most)
    field, z2 = rest.reciprocal(), 1 - rest
    z = z2.sqrt()
    twice = (2 * (z + z2) * field).log1p_() / z  # 2L
    average = (half * twice).to(rows.numbers.dtype)
    scale = half * (2 / rows.numbers.shape[-1])
    second = torch.sub(field, twice, alpha=0.5).div_(z2)
    return [average, scale * field, scale * second, p0, p1]


def _warn_of_rounding(dtype: torch.dtype, rows: _Rows, whose: str) -> None:
    """Warn where what is left of a row less its mean is the rounding error of its numbers."""
    if rows.mean is None:
        return
    # The rounding error of the mean stands for that of the numbers that it is taken from: those of
    # one outlier are small beside the outlier itself.
    eps = torch.finfo(dtype).eps
    worst = eps * float((rows.mean * rows.inverse).abs_().max())
    if worst > eps**0.5:
        warnings.warn(
            f"a normalisation of maps that are constant but for rounding, in {whose}: what it "
            f"gives there is rounding noise to about {worst:.0e} of its scale, and so are the "
            "modified gradients; choose another layer or reference, or use float64",
            ConditioningWarning,
            stacklevel=2,
        )


def _constant_weights(interception: Interception, operation: Operation) -> None:
    if len(operation.path_operands) > 1:
        raise interception.no_rule(
            f"{operation.name!r} with weights that depend on the image",
            "normalise without weights and multiply afterwards",
            name=operation.name,
        )


def layer_norm(interception: Interception, operation: Operation) -> Any:
    """(x − mean)/√(var + ε) over the last dimensions."""
    _constant_weights(interception, operation)
    shape = list(operation.argument(1, "normalized_shape", None))
    weight, bias = operation.argument(2, "weight", None), operation.argument(3, "bias", None)
    eps = operation.argument(4, "eps", 1e-5)

    def measure(x: Tensor) -> tuple[Tensor, _Rows]:
        x = x.contiguous()
        # PyTorch is quicker with a weight and a bias than without.
        w = x.new_ones(shape) if weight is None else weight.to(x.dtype)
        b = x.new_zeros(shape) if bias is None else bias.to(x.dtype)
        y, mean, inverse = torch.native_layer_norm(x, shape, w, b, eps)
        rows = _rows_of_last(x, len(shape))
        return y, _Rows(rows, mean.view(*rows.shape[:2], 1), inverse.view(*rows.shape[:2], 1))

    return _Norm(measure, weight, eps)(interception, operation)


def _rows_of_last(x: Tensor, dims: int) -> Tensor:
    """Return rows (N, R, n) of the last dimensions of contiguous x."""
    return x.view(x.shape[0] if x.dim() > dims else 1, -1, math.prod(x.shape[-dims:]))


def rms_norm(interception: Interception, operation: Operation) -> Any:
    """x/√(mean(x²) + ε) over the last dimensions."""
    _constant_weights(interception, operation)
    shape = list(operation.argument(1, "normalized_shape", None))
    weight, eps = operation.argument(2, "weight", None), operation.argument(3, "eps", None)
    eps = torch.finfo(operation.operand.dtype).eps if eps is None else eps

    def measure(x: Tensor) -> tuple[Tensor, _Rows]:
        x = x.contiguous()
        numbers = _rows_of_last(x, len(shape))
        inverse = (numbers.square().mean(-1, keepdim=True) + eps).rsqrt_()
        y = x * inverse.view(*x.shape[: -len(shape)], *[1] * len(shape))
        return y if weight is None else y.mul_(weight.to(x.dtype)), _Rows(numbers, None, inverse)

    return _Norm(measure, weight, eps)(interception, operation)


def group_norm(interception: Interception, operation: Operation) -> Any:
    """(x − mean)/√(var + ε) over groups of channels and all places."""
    _constant_weights(interception, operation)
    weight, bias = operation.argument(2, "weight", None), operation.argument(3, "bias", None)
    eps, groups = operation.argument(4, "eps", 1e-5), operation.argument(1, "num_groups", 1)
    return _over_groups(interception, operation, groups, weight, bias, eps)


def instance_norm(interception: Interception, operation: Operation) -> Any:
    """(x − mean)/√(var + ε) over each map; affine where it uses stored statistics."""
    if not operation.argument(5, "use_input_stats", True):
        return keep_first(interception, operation)
    _constant_weights(interception, operation)
    weight, bias = operation.argument(3, "weight", None), operation.argument(4, "bias", None)
    groups, eps = operation.operand.shape[1], operation.argument(7, "eps", 1e-5)
    return _over_groups(interception, operation, groups, weight, bias, eps)


def _over_groups(
    interception: Interception,
    operation: Operation,
    groups: int,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
) -> Any:
    shape = operation.operand.shape
    channels, places = shape[1], math.prod(shape[2:])

    def measure(x: Tensor) -> tuple[Tensor, _Rows]:
        x = x.contiguous()
        w, b = (p if p is None else p.to(x.dtype) for p in (weight, bias))
        y, mean, inverse = torch.native_group_norm(
            x, w, b, x.shape[0], channels, places, groups, eps
        )
        return y, _Rows(x.view(x.shape[0], groups, -1), mean[..., None], inverse[..., None])

    shaped = None if weight is None else weight.reshape(-1, *[1] * (len(shape) - 2))
    return _Norm(measure, shaped, eps)(interception, operation)


RULES: dict[str, Handler] = {
    "layer_norm": layer_norm,
    "rms_norm": rms_norm,
    "group_norm": group_norm,
    "instance_norm": instance_norm,
}
