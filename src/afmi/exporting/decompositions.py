"""What runtimes or translations lack, by operations that every runtime has: mostly backward passes.

Pooling with means and interpolation act along each side of the maps by itself, so a matrix for
each side is all that there is to them, and its transpose to their backward passes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch._subclasses.fake_tensor import unset_fake_temporarily
from torch.fx.experimental.proxy_tensor import disable_proxy_modes_tracing
from torch.overrides import TorchFunctionMode

from afmi.errors import OperationError

__all__ = ["DECOMPOSITIONS", "MeansOfWholeSides", "by_rows", "untraced"]

aten = torch.ops.aten


@contextmanager
def untraced() -> Iterator[None]:
    """Compute at once what does not depend on the images: the trace holds what comes of it."""
    with disable_proxy_modes_tracing(), unset_fake_temporarily():
        yield


class MeansOfWholeSides(TorchFunctionMode):
    """Computes adaptive pooling to one place as the mean that it is.

    PyTorch's own changes the strides of what it gives in place where tokens were turned to maps,
    and the backward pass of that writes into memory by its addresses, which no runtime has.
    """

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        sides = _ADAPTIVE_MEANS.get(getattr(func, "__name__", ""))
        if sides is not None:
            x, size = (*args, *(kwargs or {}).values())
            if (
                size == 1
                or list(size if isinstance(size, (list, tuple)) else [size]) == [1] * sides
            ):
                return x.mean(tuple(range(-sides, 0)), keepdim=True)
        return func(*args, **(kwargs or {}))


_ADAPTIVE_MEANS = {f"adaptive_avg_pool{sides}d": sides for sides in (1, 2, 3)}


def by_rows(matrices: Sequence[Tensor], x: Tensor) -> Tensor:
    """Do as `afmi.pictures.matrices.along_each`, by products with a matrix on the right alone.

    One on the left is copied for each row of x in a file.
    """
    for side, matrix in enumerate(matrices, -len(matrices)):
        turned = x.movedim(side, -1)
        rows = turned.reshape(-1, matrix.shape[1]) @ matrix.mT
        x = rows.reshape(-1, *turned.shape[1:-1], len(matrix)).movedim(-1, side)
    return x


def _along(x: Tensor, sizes: Sequence[int], along_side: Callable[[Tensor, int], Tensor]) -> Tensor:
    """Return x taken from the last sides of ``sizes`` to its own, by the transposed matrices.

    Args:
        x: gradients by what an operation gave, (N, C, *outputs).
        sizes: of what it was given, one number for each side.
        along_side: the operation on rows (1, rows, size) along a side.
    """
    return by_rows([matrix.mT for matrix in _matrices(sizes, along_side, x)], x)


def _matrices(
    sizes: Sequence[int], along_side: Callable[[Tensor, int], Tensor], like: Tensor
) -> list[Tensor]:
    """Return what an operation is along each side, (outputs, inputs)."""
    with untraced():
        return [
            along_side(torch.eye(size, dtype=torch.float64, device="cpu")[None], side)[0].T.to(
                like.device, like.dtype
            )
            for side, size in enumerate(sizes)
        ]


def _each(value: Any, side: int, default: Any = None) -> Any:
    """Return what an argument of a pooling says of a side."""
    if not isinstance(value, (list, tuple)):
        return value
    if not value:
        return default
    return value[side if len(value) > 1 else 0]


def _average_pool_backward(
    gradient: Tensor,
    x: Tensor,
    kernel_size: Any,
    stride: Any,
    padding: Any,
    ceil_mode: bool,
    count_include_pad: bool,
    divisor_override: int | None,
) -> Tensor:
    if divisor_override is not None:
        raise OperationError(
            "a mean pooling with divisor_override cannot be exported; scale what it gives instead"
        )

    def along_side(rows: Tensor, side: int) -> Tensor:
        kernel = _each(kernel_size, side)
        return F.avg_pool1d(
            rows,
            kernel,
            _each(stride, side, kernel) or kernel,
            _each(padding, side, 0),
            ceil_mode,
            count_include_pad,
        )

    return _along(gradient, x.shape[2:], along_side)


def _adaptive_average_pool(x: Tensor, output_size: Sequence[int]) -> Tensor:
    if all(size == 1 for size in output_size):
        return x.mean(tuple(range(2, x.dim())), keepdim=True)
    if tuple(output_size) == tuple(x.shape[2:]):
        return x
    return by_rows(
        _matrices(
            x.shape[2:], lambda rows, side: F.adaptive_avg_pool1d(rows, output_size[side]), x
        ),
        x,
    )


def _adaptive_average_pool_backward(gradient: Tensor, x: Tensor) -> Tensor:
    sizes = gradient.shape[2:]
    if sizes == x.shape[2:]:
        return gradient
    return _along(
        gradient, x.shape[2:], lambda rows, side: F.adaptive_avg_pool1d(rows, sizes[side])
    )


def _linear_interpolation(
    x: Tensor, output_size: Sequence[int], align_corners: bool, *_: Any
) -> Tensor:
    def along_side(rows: Tensor, side: int) -> Tensor:
        return F.interpolate(rows, output_size[side], mode="linear", align_corners=align_corners)

    return by_rows(_matrices(x.shape[2:], along_side, x), x)


def _linear_interpolation_backward(
    gradient: Tensor,
    output_size: Sequence[int],
    input_size: Sequence[int],
    align_corners: bool,
    *_: Any,
) -> Tensor:
    def along_side(rows: Tensor, side: int) -> Tensor:
        return F.interpolate(rows, output_size[side], mode="linear", align_corners=align_corners)

    return _along(gradient, input_size[2:], along_side)


def _nearest_interpolation_backward(
    gradient: Tensor, output_size: Sequence[int], input_size: Sequence[int], *_: Any
) -> Tensor:
    def along_side(rows: Tensor, side: int) -> Tensor:
        return F.interpolate(rows, output_size[side], mode="nearest")

    return _along(gradient, input_size[2:], along_side)


def _convolution_backward(
    gradient: Tensor,
    x: Tensor,
    weight: Tensor,
    bias_sizes: Any,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    transposed: bool,
    output_padding: Sequence[int],
    groups: int,
    output_mask: Sequence[bool],
) -> tuple[Tensor | None, None, None]:
    if output_mask[1] or output_mask[2]:
        raise OperationError(
            "a convolution whose weights depend on the image cannot be exported; write it as "
            "products and sums, or choose a layer behind it"
        )
    if not output_mask[0]:
        return None, None, None
    reach = [gap * (kernel - 1) for kernel, gap in zip(weight.shape[2:], dilation, strict=True)]
    around = [wide - pad for wide, pad in zip(reach, padding, strict=True)]
    if not transposed and set(stride) == {1} and min(around) >= 0:
        # As an ordinary convolution, which runtimes are several times as fast at.
        back = _turned(weight, groups)
        return (
            aten.convolution.default(
                gradient, back, None, stride, around, dilation, False, [0] * len(stride), groups
            ),
            None,
            None,
        )
    left = [0] * len(stride)
    if not transposed:
        left = [
            side - ((out - 1) * step - 2 * pad + wide + 1)
            for side, out, step, pad, wide in zip(
                x.shape[2:],
                gradient.shape[2:],
                stride,
                padding,
                reach,
                strict=True,
            )
        ]
    back = aten.convolution.default(
        gradient, weight, None, stride, padding, dilation, not transposed, left, groups
    )
    return back, None, None


def _turned(weight: Tensor, groups: int) -> Tensor:
    """Return weights (O, I/g, *kernel) as a convolution back from O to I channels has them."""
    of_groups = weight.reshape(groups, -1, *weight.shape[1:]).transpose(1, 2)
    back = of_groups.reshape(-1, *of_groups.shape[2:])
    sides = [dim for dim in range(2, back.dim()) if back.shape[dim] > 1]
    return back.flip(sides) if sides else back


def _batch_norm_backward(
    gradient: Tensor,
    x: Tensor,
    weight: Tensor | None,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    save_mean: Tensor | None,
    save_inverse: Tensor | None,
    train: bool,
    eps: float,
    output_mask: Sequence[bool],
) -> tuple[Tensor, None, None]:
    assert running_var is not None  # in training the rule for batch norms has raised
    scale = (running_var + eps).rsqrt()
    scale = scale if weight is None else scale * weight
    return gradient * scale.view(1, -1, *[1] * (x.dim() - 2)), None, None


def _silu_backward(gradient: Tensor, x: Tensor) -> Tensor:
    """Return g·σ(x)(1 + x σ(−x)), in which nothing cancels or overflows."""
    wide = _wide(x)
    slope = wide.sigmoid() * (1 + wide * (-wide).sigmoid())
    return gradient * slope.to(x.dtype)


def _mish_backward(gradient: Tensor, x: Tensor) -> Tensor:
    """Return g·(t + x σ(x)(1 − t²)), with t = tanh(softplus(x))."""
    wide = _wide(x)
    t = F.softplus(wide).tanh()
    return gradient * (t + wide * wide.sigmoid() * (1 - t * t)).to(x.dtype)


def _hardtanh_backward(gradient: Tensor, x: Tensor, low: float, high: float) -> Tensor:
    """Do as PyTorch does; onnxscript's own takes the bounds in, and multiplies with 32 bits."""
    return torch.where((x > low) & (x < high), gradient, 0.0)


def _wide(x: Tensor) -> Tensor:
    """Return numbers in a precision in which PyTorch's own kernels compute."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def _slice_backward(
    gradient: Tensor, input_sizes: Sequence[int], dim: int, start: int, end: int, step: int
) -> Tensor:
    if step != 1:
        return NotImplemented
    dim = dim % len(input_sizes)
    after = input_sizes[dim] - start - gradient.shape[dim]
    return F.pad(gradient, [0, 0] * (len(input_sizes) - 1 - dim) + [start, after])


def _select_backward(gradient: Tensor, input_sizes: Sequence[int], dim: int, index: int) -> Tensor:
    dim, size = dim % len(input_sizes), input_sizes[dim]
    index = index % size
    ends = [0, 0] * (len(input_sizes) - 1 - dim) + [index, size - 1 - index]
    return F.pad(gradient.unsqueeze(dim), ends)


def _clamp(x: Tensor, low: float | None = None, high: float | None = None) -> Tensor:
    """Clamp float64 by tensors: the translation takes numbers through float32, 1 − 1e-15 as 1."""
    if x.dtype != torch.float64:
        return NotImplemented
    with untraced():
        like = torch.empty((), dtype=x.dtype, device=x.device)
        lower, upper = (None if end is None else torch.full_like(like, end) for end in (low, high))
    x = x if lower is None else x.maximum(lower)
    return x if upper is None else x.minimum(upper)


DECOMPOSITIONS: dict[Any, Callable[..., Any]] = {
    aten.convolution_backward.default: _convolution_backward,
    aten.native_batch_norm_backward.default: _batch_norm_backward,
    aten.clamp.default: _clamp,
    aten.avg_pool2d_backward.default: _average_pool_backward,
    aten.avg_pool3d_backward.default: _average_pool_backward,
    aten._adaptive_avg_pool2d.default: _adaptive_average_pool,
    aten._adaptive_avg_pool2d_backward.default: _adaptive_average_pool_backward,
    aten._adaptive_avg_pool3d.default: _adaptive_average_pool,
    aten._adaptive_avg_pool3d_backward.default: _adaptive_average_pool_backward,
    aten.upsample_linear1d.default: _linear_interpolation,
    aten.upsample_bilinear2d.default: _linear_interpolation,
    aten.upsample_trilinear3d.default: _linear_interpolation,
    aten.upsample_linear1d_backward.default: _linear_interpolation_backward,
    aten.upsample_bilinear2d_backward.default: _linear_interpolation_backward,
    aten.upsample_trilinear3d_backward.default: _linear_interpolation_backward,
    aten.upsample_nearest1d_backward.default: _nearest_interpolation_backward,
    aten.upsample_nearest2d_backward.default: _nearest_interpolation_backward,
    aten.upsample_nearest3d_backward.default: _nearest_interpolation_backward,
    aten.hardtanh_backward.default: _hardtanh_backward,
    aten.silu_backward.default: _silu_backward,
    aten.mish_backward.default: _mish_backward,
    aten.slice_backward.default: _slice_backward,
    aten.select_backward.default: _select_backward,
}
"""What stands for an operation of PyTorch's in a trace."""
