"""PyTorch's operations: one name for each, and the traits by which the rest of afmi sorts them.

``F.relu``, ``torch.relu``, ``Tensor.relu`` and ``Tensor.relu_`` are all ``relu``. Rules and
layers are written against these names, and take their sets of names from the traits here.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from enum import Enum, auto
from functools import cache, lru_cache
from types import FunctionType
from typing import Any

import torch.nn.functional as F

__all__ = ["TRAITS", "Trait", "ignores_values", "is_inplace", "operation_name", "operations_with"]

# Spellings that the general rule for names (below) would not bring together.
_ALIASES = {
    "max_pool1d_with_indices": "max_pool1d",
    "max_pool2d_with_indices": "max_pool2d",
    "max_pool3d_with_indices": "max_pool3d",
    "adaptive_max_pool1d_with_indices": "adaptive_max_pool1d",
    "adaptive_max_pool2d_with_indices": "adaptive_max_pool2d",
    "adaptive_max_pool3d_with_indices": "adaptive_max_pool3d",
    "multiply": "mul",
    "subtract": "sub",
    "divide": "div",
    "true_divide": "div",
    "truediv": "div",
    "rtruediv": "rdiv",
    "negative": "neg",
    "pos": "positive",
    "clip": "clamp",
    "absolute": "abs",
    "expit": "sigmoid",
    "arcsin": "asin",
    "arccos": "acos",
    "arctan": "atan",
    "arcsinh": "asinh",
    "arccosh": "acosh",
    "arctanh": "atanh",
    "linalg_matmul": "matmul",
    "linalg_diagonal": "diagonal",
    "linalg_cross": "cross",
    "fliplr": "flip",
    "flipud": "flip",
    "reversed": "flip",
    "concat": "cat",
    "concatenate": "cat",
    "swapaxes": "transpose",
    "swapdims": "transpose",
    "t": "transpose",
    "T": "transpose",
    "mT": "transpose",
    "H": "transpose",
    "mH": "transpose",
    "adjoint": "transpose",
    "moveaxis": "movedim",
    "iadd": "add",
    "radd": "add",
    "isub": "sub",
    "imul": "mul",
    "rmul": "mul",
    "itruediv": "div",
    "ipow": "pow",
}


def _spelling(function: Callable[..., Any]) -> str:
    name = getattr(function, "__name__", None) or type(function).__name__
    if name == "__get__":  # a property such as Tensor.T: the descriptor knows its name
        name = getattr(getattr(function, "__self__", None), "__name__", name)
    return name


@cache
def _boolean_dispatched() -> dict[Callable[..., Any], str]:
    """Name the pooling functions of ``nn.functional``, which are all called ``fn``."""
    return {
        function: _ALIASES.get(name, name)
        for name, function in vars(F).items()
        if callable(function) and "pool" in name and not name.startswith("_")
    }


@lru_cache(maxsize=4096)
def operation_name(function: Callable[..., Any]) -> str:
    """Return the operation's name: ``relu`` for ``F.relu``, ``Tensor.relu_``, … alike."""
    dispatched = _boolean_dispatched().get(function)
    if dispatched is not None:
        return dispatched
    name = _spelling(function)
    if name.startswith("__") and name.endswith("__"):
        name = name[2:-2]
    else:
        name = name.rstrip("_").lstrip("_").removeprefix("special_")
    return _ALIASES.get(name, name)


# fmt: off
_WRITING_METHODS = frozenset({
    "__iadd__", "__isub__", "__imul__", "__itruediv__", "__idiv__", "__ifloordiv__", "__imod__",
    "__ipow__", "__iand__", "__ior__", "__ixor__", "__ilshift__", "__irshift__",
    "__setitem__", "__set__",
})
# fmt: on


@lru_cache(maxsize=4096)
def _writes_in_place(function: Callable[..., Any]) -> bool:
    name = _spelling(function)
    if name.startswith("__"):
        return name in _WRITING_METHODS
    return name.endswith("_")


@lru_cache(maxsize=4096)
def _inplace_position(function: Callable[..., Any]) -> int | None:
    """Return where ``inplace`` stands among the function's positional parameters."""
    if not isinstance(function, FunctionType):
        return None
    names = list(inspect.signature(function, follow_wrapped=False).parameters)
    return names.index("inplace") if "inplace" in names else None


def is_inplace(function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Tell whether a call writes its result into its first operand."""
    if "inplace" in kwargs:
        return bool(kwargs["inplace"])
    position = _inplace_position(function)
    if position is not None:
        return len(args) > position and bool(args[position])
    return _writes_in_place(function)


def ignores_values(name: str) -> bool:
    """Tell whether an operation looks only at its operand's shape and dtype: zeros_like, …"""
    return name.endswith("_like") or name.startswith("new_")


class Trait(Enum):
    """What an operation does; one operation may have several traits."""

    SUM = auto()
    """Linear in all operands together: sums, means, differences."""
    ADDEND = auto()
    """May add numbers of its own, besides a sum or a product."""
    JOIN = auto()
    """Puts several tensors into one."""
    RESHAPE = auto()
    """Keeps the numbers and their order, and changes the dimensions."""
    LAST = auto()
    """Makes probabilities of logits, or their logarithms, at the end of a network."""
    EXPAND = auto()
    """Repeats numbers along new or longer dimensions, or views them through windows."""
    TRANSPOSE = auto()
    """Reorders dimensions."""
    CHOOSE = auto()
    """Takes whole slices of a tensor."""
    SCATTER = auto()
    """Takes, masks or writes single numbers."""
    REARRANGE = auto()
    """Moves numbers to other places, or repeats them there."""
    RESAMPLE = auto()
    """Changes the size of maps by interpolation."""
    AVERAGE_POOL = auto()
    MAX_POOL = auto()
    NONLINEAR_POOL = auto()
    """Pooling that is neither an average nor a maximum with a rule of its own."""
    COPY = auto()
    """Gives the same numbers, perhaps in another dtype or place."""
    FOURIER = auto()
    """Transforms to and from frequencies, and parts of complex numbers: linear over the reals."""
    CREATE = auto()
    """Gives constants in the form of its operand."""
    LIKE_OTHER = auto()
    """Gives its first operand in the form of the second, whose values do not matter."""
    EACH = auto()
    """Gives an output for each operand, made of that one alone but for its shape."""
    CONVOLUTION = auto()
    LINEAR_IN_FIRST = auto()
    """Linear in the first operand, as long as the others are constant."""
    WEIGHTED = auto()
    """Applies weights. Batched products are left out: they multiply activations (attention)."""
    DROPOUT = auto()
    PRODUCT = auto()
    """Bilinear, or a quotient."""
    ATTENTION = auto()
    """Runs in each of attention's heads, where no dimension is that of all channels."""
    TOKEN_MIXING = auto()
    """May keep the shape of tokens (N, T, K), yet does not treat each token by itself."""
    MIXING = auto()
    """Nonlinear in several numbers together: normalisations, softmax, norms, products of all."""
    CHANNELS_FIRST = auto()
    """Takes (N, K, …)."""
    CHANNELS_LAST = auto()
    """Takes (…, K)."""
    COMPARISON = auto()
    ELEMENTWISE = auto()
    """A nonlinear function of each number."""
    RECTIFIER = auto()
    """Elementwise, with a side on which the input passes."""
    STRAIGHT_FROM_ZERO = auto()
    """Elementwise, linear on each side of 0, where it is 0."""
    UNDEFINED_AT_ZERO = auto()
    """Elementwise, without a finite value or slope at 0, or with a variable exponent."""
    EXTREME = auto()
    """Maximum or minimum, of one tensor or of two."""
    COMPOSITE = auto()
    """Contains nonlinear functions of its own, such as gates."""
    NORMALISATION = auto()
    """Affine once its statistics are stored."""
    RANDOM = auto()
    """Draws random numbers whenever it runs."""
    BY_VALUES = auto()
    """Gives a shape, or hands out memory, by which the network may decide what to do."""
    LAYOUT = auto()
    """Depends on how a tensor lies in memory, or hands its memory out."""


_CONVOLUTIONS = "conv1d conv2d conv3d conv_transpose1d conv_transpose2d conv_transpose3d"
_AVERAGE_POOLS = """
    avg_pool1d avg_pool2d avg_pool3d
    adaptive_avg_pool1d adaptive_avg_pool2d adaptive_avg_pool3d"""
_MAX_POOLS = """
    max_pool1d max_pool2d max_pool3d
    adaptive_max_pool1d adaptive_max_pool2d adaptive_max_pool3d"""
_OTHER_POOLS = "lp_pool1d lp_pool2d lp_pool3d fractional_max_pool2d fractional_max_pool3d"
_RECTIFIERS = """
    relu relu6 leaky_relu prelu rrelu elu selu celu threshold silu mish gelu hardswish softplus
    hardtanh clamp clamp_min clamp_max"""
_FOURIER = """
    fft_fft fft_fft2 fft_fftn fft_ifft fft_ifft2 fft_ifftn fft_rfft fft_rfft2 fft_rfftn fft_irfft
    fft_irfft2 fft_irfftn fft_hfft fft_hfft2 fft_hfftn fft_ihfft fft_ihfft2 fft_ihfftn fft_fftshift
    fft_ifftshift"""
_POLES = "log log2 log10 rsqrt reciprocal pow float_power digamma lgamma entr acosh logit"

_OPERATIONS: dict[Trait, str] = {
    Trait.SUM: """
        add sub rsub neg positive sum nansum mean nanmean sum_to_size cumsum diff trace lerp deg2rad
        rad2deg trapezoid trapz cumulative_trapezoid gradient""",
    Trait.ADDEND: """
        add sub rsub lerp pad constant_pad_nd addmm baddbmm addmv addbmm addr addcmul""",
    Trait.JOIN: """
        cat stack hstack vstack dstack column_stack row_stack block_diag where broadcast_tensors
        meshgrid cartesian_prod""",
    Trait.RESHAPE: """
        reshape view view_as reshape_as flatten unflatten ravel squeeze unsqueeze
        atleast_1d atleast_2d atleast_3d""",
    Trait.LAST: "softmax log_softmax sigmoid",
    Trait.EXPAND: "expand expand_as broadcast_to as_strided unfold fold",
    Trait.TRANSPOSE: "permute transpose movedim",
    Trait.CHOOSE: """
        getitem select narrow narrow_copy chunk split split_with_sizes tensor_split hsplit vsplit
        dsplit unbind unsafe_chunk unsafe_split index_select embedding""",
    Trait.SCATTER: """
        setitem gather take take_along_dim diagonal diag diag_embed tril triu combinations
        masked_select masked_fill masked_scatter zero fill fill_diagonal put index_put index_fill
        index_add index_copy scatter scatter_add scatter_reduce select_scatter slice_scatter
        diagonal_scatter""",
    Trait.REARRANGE: """
        flip rot90 roll tile repeat repeat_interleave pixel_shuffle pixel_unshuffle
        channel_shuffle native_channel_shuffle pad constant_pad_nd""",
    Trait.RESAMPLE: "interpolate upsample",
    Trait.AVERAGE_POOL: _AVERAGE_POOLS,
    Trait.MAX_POOL: _MAX_POOLS,
    Trait.NONLINEAR_POOL: _OTHER_POOLS,
    Trait.COPY: """
        contiguous clone alias identity copy to type type_as float double half bfloat16 cpu cuda
        detach data requires_grad as_subclass conj conj_physical resolve_conj resolve_neg""",
    Trait.FOURIER: f"""
        {_FOURIER} stft istft real imag complex view_as_real view_as_complex""",
    Trait.CREATE: """
        zeros_like ones_like empty_like full_like new_zeros new_ones new_empty new_full""",
    Trait.LIKE_OTHER: "type_as view_as reshape_as expand_as",
    Trait.EACH: "broadcast_tensors meshgrid atleast_1d atleast_2d atleast_3d",
    Trait.CONVOLUTION: _CONVOLUTIONS,
    Trait.LINEAR_IN_FIRST: f"grid_sample affine_grid ldexp {_CONVOLUTIONS}",
    Trait.WEIGHTED: f"{_CONVOLUTIONS} linear bilinear addmm einsum matmul mm",
    Trait.DROPOUT: """
        dropout dropout1d dropout2d dropout3d feature_dropout alpha_dropout
        feature_alpha_dropout""",
    Trait.PRODUCT: """
        mul div rdiv matmul bmm mm linear einsum addmm baddbmm addmv addbmm addcmul
        tensordot inner outer ger mv dot vdot kron linalg_vecdot cross addr linalg_multi_dot
        chain_matmul bilinear""",
    Trait.ATTENTION: "scaled_dot_product_attention matmul bmm baddbmm softmax einsum",
    Trait.TOKEN_MIXING: f"""
        scaled_dot_product_attention multi_head_attention_forward matmul bmm baddbmm einsum softmax
        conv1d conv_transpose1d cumsum cumprod roll flip cat gather take_along_dim lstm gru
        transpose permute movedim reshape view view_as reshape_as index_select {_FOURIER}""",
    Trait.MIXING: """
        softmax log_softmax softmin logsumexp scaled_dot_product_attention
        multi_head_attention_forward layer_norm group_norm instance_norm rms_norm
        local_response_norm normalize var std var_mean std_mean norm vector_norm
        linalg_vector_norm linalg_norm linalg_matrix_norm cosine_similarity amax amin aminmax prod
        cumprod cdist dist hypot logaddexp""",
    Trait.CHANNELS_FIRST: f"""
        {_CONVOLUTIONS} {_AVERAGE_POOLS} {_MAX_POOLS} {_OTHER_POOLS} max_unpool1d max_unpool2d
        max_unpool3d batch_norm group_norm instance_norm local_response_norm interpolate upsample
        pixel_shuffle pixel_unshuffle""",
    Trait.CHANNELS_LAST: "linear layer_norm rms_norm multi_head_attention_forward",
    Trait.COMPARISON: """
        gt ge lt le greater greater_equal less less_equal sign sgn heaviside""",
    Trait.ELEMENTWISE: f"""
        {_RECTIFIERS} {_POLES} tanh tanhshrink softsign softshrink sigmoid logsigmoid log_sigmoid
        hardsigmoid hardshrink erf erfc erfinv ndtr log_ndtr sin cos tan asin acos atan sinh cosh
        asinh acosh atanh sinc exp exp2 expm1 log1p logit sqrt square abs rpow nan_to_num i0""",
    Trait.RECTIFIER: _RECTIFIERS,
    Trait.STRAIGHT_FROM_ZERO: "relu leaky_relu prelu rrelu abs",
    Trait.UNDEFINED_AT_ZERO: _POLES,
    Trait.EXTREME: "amax max maximum fmax amin min minimum fmin",
    Trait.COMPOSITE: "glu lstm gru addcdiv polar",
    Trait.NORMALISATION: "batch_norm",
    Trait.RANDOM: """
        rand randn randint randperm rand_like randn_like randint_like bernoulli multinomial normal
        poisson binomial uniform random exponential cauchy geometric log_normal gumbel_softmax
        trunc_normal""",
    Trait.BY_VALUES: """
        nonzero argwhere unique unique_consecutive masked_select bincount apply map cond
        storage typed_storage untyped_storage data_ptr dlpack array_interface""",
    Trait.LAYOUT: """
        as_strided as_strided_copy as_strided_scatter stride is_contiguous storage typed_storage
        untyped_storage storage_offset data_ptr dim_order resize resize_as set numpy array dlpack
        array_interface""",
}


@cache
def operations_with(*traits: Trait) -> frozenset[str]:
    """Return the names of the operations that have any of these traits."""
    return frozenset(name for trait in traits for name in _OPERATIONS[trait].split())


TRAITS: dict[str, frozenset[Trait]] = {
    name: frozenset(trait for trait in Trait if name in operations_with(trait))
    for name in sorted(operations_with(*Trait))
}
"""The traits of every operation that afmi knows, by its name."""
