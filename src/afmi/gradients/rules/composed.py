"""Operations that are others put together: written out, so that the rules of those apply.

A formula is plain PyTorch code with the operation's own signature. It runs with its operations
intercepted, so that it needs no rule of its own, sums to delta where its parts do, and takes every
form of the call that its signature has.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache
from types import FunctionType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Size, Tensor

from afmi.errors import OperationError
from afmi.gradients.interception import BackwardState, Handler, Interception
from afmi.gradients.operation import Operation
from afmi.gradients.rule import Factors, Rule, Tensors
from afmi.gradients.rules.elementwise import ExactChord
from afmi.gradients.tape import Entry

__all__ = ["RULES", "composed", "look_inside"]


def composed(formula: Callable[..., Any]) -> Handler:
    """Return the rule that makes ``formula``'s operations in place of the call.

    Where the call overwrites its first operand, so does what the formula gives.
    """

    def rule(interception: Interception, operation: Operation) -> Any:
        with interception:
            result = formula(*operation.args, **operation.kwargs)
            return operation.operand.copy_(result) if operation.inplace else result

    return rule


@cache
def _without_dispatch(function: FunctionType) -> FunctionType:
    """Return a copy of one of PyTorch's Python functions that does not ask for interception."""
    no = {f"has_torch_function{kind}": lambda *_: False for kind in ("", "_unary", "_variadic")}
    names = {**function.__globals__, **no}
    copy = FunctionType(function.__code__, names, function.__name__, function.__defaults__)
    copy.__kwdefaults__ = function.__kwdefaults__
    return copy


def look_inside(interception: Interception, operation: Operation) -> Any:
    """Run a function that PyTorch writes in Python, such as multi-head attention, by its parts."""
    with interception:
        return _without_dispatch(operation.function)(*operation.args, **operation.kwargs)


def scaled_dot_product_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """softmax(scale · Q Kᵀ + mask) V: two matrix products of activations, and softmax between.

    Paper: Vaswani et al., *Attention Is All You Need*, NeurIPS 2017, Eq. 1.
    """
    if dropout_p:
        raise OperationError(
            "the network drops attention weights at random also in evaluation mode, so its output "
            "has no explanation that holds; pass dropout_p=0.0 unless self.training"
        )
    if enable_gqa:
        key = key.repeat_interleave(query.shape[-3] // key.shape[-3], -3)
        value = value.repeat_interleave(query.shape[-3] // value.shape[-3], -3)
    scale = 1 / math.sqrt(query.shape[-1]) if scale is None else scale
    scores = torch.matmul(query * scale, key.transpose(-2, -1))
    if is_causal:
        attn_mask = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).tril()
    if attn_mask is not None and attn_mask.dtype == torch.bool:
        scores = scores.masked_fill(~attn_mask, -math.inf)
    elif attn_mask is not None:
        scores = scores + attn_mask
    return torch.matmul(scores.softmax(-1), value)


class Length(Rule):
    """√Σx² along the last dimension, which is kept, with multipliers (x + x̄)/(‖x‖ + ‖x̄‖).

    The square's (x + x̄) times the chord of the root; no larger than 1, and 0 where both vectors
    are 0, as PyTorch has it.
    """

    def factors(
        self, operation: Operation, operands: Tensors, outputs: Tensors, entry: Entry
    ) -> Factors:
        (x,) = operands
        reference = entry.inputs[0].expand_as(x)
        lengths = outputs[0] + entry.output
        return [torch.where(lengths > 0, (x + reference) / lengths, torch.zeros_like(x))]

    def pull_back(
        self, gradient: Tensor, factors: Factors, shapes: list[Size], state: BackwardState
    ) -> list[Tensor]:
        return [gradient * factors[0]]


def length(interception: Interception, operation: Operation) -> Any:
    """The Euclidean or another norm of vectors: ``torch.linalg.vector_norm``."""
    x, p = operation.operand, operation.argument(1, "ord", 2)
    dim = operation.argument(2, "dim", None)
    keep = operation.argument(3, "keepdim", False)
    dims = tuple(range(x.dim())) if dim is None else (dim,) if isinstance(dim, int) else tuple(dim)
    if operation.kwargs.get("dtype") is not None:
        x = x.to(operation.kwargs["dtype"])
    if p != 2:
        with interception:
            return _other_norm(x, float(p), dims, keep)
    kept = [1 if d in {e % x.dim() for e in dims} else s for d, s in enumerate(x.shape)]
    moved = x.movedim(dims, tuple(range(-len(dims), 0))).flatten(-len(dims))
    call = Operation("length", torch.linalg.vector_norm, (moved, 2, -1, True), {})
    y = Length()(interception, call).reshape(kept)
    return y if keep else y.squeeze(dims)


def _other_norm(x: Tensor, p: float, dims: tuple[int, ...], keep: bool) -> Tensor:
    magnitude = x.abs()
    if math.isinf(p):
        extreme = torch.amax if p > 0 else torch.amin
        return extreme(magnitude, dims, keep)
    if p == 1:
        return magnitude.sum(dims, keep)
    return magnitude.pow(p).sum(dims, keep).pow(1 / p)


def norm(
    x: Tensor,
    p: float | str | None = "fro",
    dim: Any = None,
    keepdim: bool = False,
    out: None = None,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """``torch.norm``, of all numbers or along dimensions."""
    return torch.linalg.vector_norm(x, _order(p), dim, keepdim, dtype=dtype)


def linalg_norm(
    x: Tensor, ord: Any = None, dim: Any = None, keepdim: bool = False, *, dtype: Any = None
) -> Tensor:
    """``torch.linalg.norm``, of vectors."""
    matrices = x.dim() == 2 if dim is None else not isinstance(dim, int) and len(dim) == 2
    if matrices and ord not in (None, "fro"):
        raise OperationError(
            f"'linalg_norm' of a matrix (ord={ord!r}) that depends on the image has no rule for "
            "the modified gradient; use torch.linalg.vector_norm, or the Frobenius norm"
        )
    return torch.linalg.vector_norm(x, _order(ord), dim, keepdim, dtype=dtype)


def _order(p: float | str | None) -> float:
    if p is None or p == "fro":
        return 2
    if isinstance(p, str):
        raise OperationError(
            f"the norm {p!r} of what depends on the image has no rule for the modified gradient; "
            "use a norm of vectors"
        )
    return p


def variance(
    x: Tensor,
    dim: Any = None,
    unbiased: bool = True,
    keepdim: bool = False,
    *,
    correction: float | None = None,
) -> Tensor:
    """mean((x − mean x)²): linear maps and a square, whose rule is exact."""
    centred, count, dims = _centred(x, dim, unbiased, correction)
    return (centred * centred).sum(dims, keepdim=keepdim) / count


def deviation(
    x: Tensor,
    dim: Any = None,
    unbiased: bool = True,
    keepdim: bool = False,
    *,
    correction: float | None = None,
) -> Tensor:
    """√var: the length of the centred vector, whose rule holds where the map is constant too."""
    centred, count, dims = _centred(x, dim, unbiased, correction)
    return torch.linalg.vector_norm(centred, dim=dims, keepdim=keepdim) / math.sqrt(count)


def _centred(
    x: Tensor, dim: Any, unbiased: bool, correction: float | None
) -> tuple[Tensor, float, tuple[int, ...]]:
    """Return x less its mean, by how many the squares are divided, and the dimensions."""
    if isinstance(dim, bool):  # torch.var(x, unbiased)
        dim, unbiased = None, dim
    dims = tuple(range(x.dim())) if dim is None else (dim,) if isinstance(dim, int) else tuple(dim)
    correction = float(unbiased) if correction is None else correction
    count = math.prod(x.shape[d] for d in dims) - correction
    return x - x.mean(dims, keepdim=True), count, dims


def _with_mean(spread: Callable[..., Tensor]) -> Callable[..., tuple[Tensor, Tensor]]:
    def both(
        x: Tensor,
        dim: Any = None,
        unbiased: bool = True,
        keepdim: bool = False,
        *,
        correction: float | None = None,
    ) -> tuple[Tensor, Tensor]:
        _, _, dims = _centred(x.detach(), dim, unbiased, correction)
        spread_of_x = spread(x, dim, unbiased, keepdim, correction=correction)
        return spread_of_x, x.mean(dims, keepdim=keepdim)

    return both


def glu(x: Tensor, dim: int = -1) -> Tensor:
    """a · sigmoid(b), the two halves of x.

    Paper: Dauphin et al., *Language Modeling with Gated Convolutional Networks*, ICML 2017.
    """
    a, b = x.chunk(2, dim)
    return a * torch.sigmoid(b)


def _lp_pool(average: Callable[..., Tensor], dimensions: int) -> Callable[..., Tensor]:
    def pool(
        x: Tensor, norm_type: float, kernel_size: Any, stride: Any = None, ceil_mode: bool = False
    ) -> Tensor:
        """(Σ x^p)^(1/p) over windows: powers, and an average pooling between them."""
        sides = (kernel_size,) * dimensions if isinstance(kernel_size, int) else kernel_size
        if math.isinf(norm_type):
            maximum = getattr(F, f"max_pool{dimensions}d")
            sign = math.copysign(1, norm_type)
            return maximum(x.abs() * sign, kernel_size, stride, ceil_mode=ceil_mode) * sign
        sums = average(x.pow(norm_type), kernel_size, stride, 0, ceil_mode) * math.prod(sides)
        return sums.pow(1 / norm_type)

    return pool


def baddbmm(x: Tensor, a: Tensor, b: Tensor, *, beta: float = 1, alpha: float = 1) -> Tensor:
    """beta · x + alpha · a b, also for ``addmm``, ``addbmm`` and ``addmv``."""
    product = torch.matmul(a, b) * alpha
    return product + x * beta if beta else product


def addbmm(x: Tensor, a: Tensor, b: Tensor, *, beta: float = 1, alpha: float = 1) -> Tensor:
    """beta · x + alpha · Σ_n a_n b_n."""
    return torch.matmul(a, b).sum(0) * alpha + x * beta


def addcmul(x: Tensor, a: Tensor, b: Tensor, *, value: float = 1) -> Tensor:
    """x + value · a · b."""
    return x + a * b * value


def addcdiv(x: Tensor, a: Tensor, b: Tensor, *, value: float = 1) -> Tensor:
    """x + value · a / b."""
    return x + a / b * value


def cosine_similarity(x1: Tensor, x2: Tensor, dim: int = 1, eps: float = 1e-8) -> Tensor:
    """The inner product of two vectors of length 1."""
    return (F.normalize(x1, dim=dim, eps=eps) * F.normalize(x2, dim=dim, eps=eps)).sum(dim)


def power_of_constant(x: Tensor, base: float) -> Tensor:
    """base ** x, which Python spells ``x.__rpow__(base)``."""
    return torch.exp(x * math.log(base))


def _as_map(bound: Tensor | float, x: Tensor) -> Tensor:
    return bound if isinstance(bound, Tensor) else torch.full_like(x, bound)


class Clamp(ExactChord):
    """The chord while the bounds are constant; else a maximum and a minimum of two maps."""

    def __call__(self, interception: Interception, operation: Operation) -> Any:
        x = operation.operand
        if len(operation.path_operands) == 1 and x.requires_grad:
            return super().__call__(interception, operation)
        low, high = operation.argument(1, "min", None), operation.argument(2, "max", None)
        with interception:
            y = x
            if low is not None:
                y = torch.maximum(y, _as_map(low, x))
            if high is not None:
                y = torch.minimum(y, _as_map(high, x))
            return x.copy_(y) if operation.inplace else y


RULES: dict[str, Handler] = {
    "scaled_dot_product_attention": composed(scaled_dot_product_attention),
    "multi_head_attention_forward": look_inside,
    "normalize": look_inside,
    "local_response_norm": look_inside,
    "softmin": look_inside,
    "linalg_vector_norm": length,
    "vector_norm": length,
    "norm": composed(norm),
    "linalg_norm": composed(linalg_norm),
    "var": composed(variance),
    "std": composed(deviation),
    "var_mean": composed(_with_mean(variance)),
    "std_mean": composed(_with_mean(deviation)),
    "glu": composed(glu),
    "lp_pool1d": composed(_lp_pool(F.avg_pool1d, 1)),
    "lp_pool2d": composed(_lp_pool(F.avg_pool2d, 2)),
    "lp_pool3d": composed(_lp_pool(F.avg_pool3d, 3)),
    "addmm": composed(baddbmm),
    "baddbmm": composed(baddbmm),
    "addmv": composed(baddbmm),
    "addbmm": composed(addbmm),
    "addcmul": composed(addcmul),
    "addcdiv": composed(addcdiv),
    "cosine_similarity": composed(cosine_similarity),
    "rpow": composed(power_of_constant),
    "clamp": Clamp(),
}
