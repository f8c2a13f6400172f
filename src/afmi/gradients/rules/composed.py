"""Operations that are others put together: written out, so that the rules of those apply.

A formula is plain PyTorch code with the operation's own signature. It runs with its operations
intercepted, so that it needs no rule of its own, sums to delta where its parts do, and takes every
form of the call that its signature has.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache, reduce
from types import FunctionType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from afmi.gradients.interception import Handler, Interception
from afmi.gradients.operation import Operation
from afmi.gradients.rules.elementwise import ExactChord

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


def addr(x: Tensor, a: Tensor, b: Tensor, *, beta: float = 1, alpha: float = 1) -> Tensor:
    """beta · x + alpha · a bᵀ."""
    return torch.outer(a, b) * alpha + x * beta


def chain_of_products(*matrices: Any, out: None = None) -> Tensor:
    """The product of several matrices, from left to right."""
    several = matrices[0] if isinstance(matrices[0], (list, tuple)) else matrices
    return reduce(torch.matmul, several)


def bilinear(a: Tensor, b: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """aᵀ W_k b for each k."""
    product = (
        torch.matmul(a.unsqueeze(-2).unsqueeze(-2), weight).squeeze(-2) * b.unsqueeze(-2)
    ).sum(-1)
    return product if bias is None else product + bias


def logaddexp(x: Tensor, y: Tensor) -> Tensor:
    """log(exp(x) + exp(y)): a log-sum-exp of two."""
    return torch.logsumexp(torch.stack(torch.broadcast_tensors(x, y), -1), -1)


def aminmax(x: Tensor, *, dim: int | None = None, keepdim: bool = False) -> Any:
    """The least and the largest number."""
    dims = () if dim is None else (dim,)
    return torch.return_types.aminmax((x.amin(dims, keepdim), x.amax(dims, keepdim)))


def polar(absolute: Tensor, angle: Tensor) -> Tensor:
    """A complex number of this size and angle."""
    return torch.complex(absolute * angle.cos(), absolute * angle.sin())


def lerp(interception: Interception, operation: Operation) -> Any:
    """a + w · (b − a), a product where the weight w depends on the image."""
    weight = operation.argument(2, "weight", None)
    if isinstance(weight, Tensor) and weight.requires_grad:
        return composed(lambda input, end, weight: input + weight * (end - input))(
            interception, operation
        )
    return operation()


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
    "addr": composed(addr),
    "linalg_multi_dot": composed(chain_of_products),
    "chain_matmul": composed(chain_of_products),
    "bilinear": composed(bilinear),
    "logaddexp": composed(logaddexp),
    "aminmax": composed(aminmax),
    "polar": composed(polar),
    "lerp": lerp,
    "cosine_similarity": composed(cosine_similarity),
    "rpow": composed(power_of_constant),
    "clamp": Clamp(),
}
