"""Linear and affine operations keep their ordinary derivative (Eq. 3)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from torch import Tensor

from afmi.errors import OperationError
from afmi.gradients.interception import Interception, Operation, Rule

__all__ = ["RULES", "argument", "keep", "path_operands"]


def path_operands(operation: Operation) -> list[Tensor]:
    """Return the operands that depend on the feature maps, in order."""
    return list(_tensors_on_path([*operation.args, *operation.kwargs.values()]))


def _tensors_on_path(values: Iterable[Any]) -> Iterator[Tensor]:
    for value in values:
        if isinstance(value, Tensor):
            if value.requires_grad:
                yield value
        elif isinstance(value, (list, tuple)):
            yield from _tensors_on_path(value)


def keep(state: Interception, operation: Operation) -> Any:
    """Make the call as it stands: linear in all its operands together."""
    return operation()


def keep_first(state: Interception, operation: Operation) -> Any:
    """Make the call when only its first operand depends on the maps, so that it is linear."""
    if len(path_operands(operation)) > 1:
        raise state.no_rule(
            f"{operation.name!r} with weights that depend on the image, which make it a product,",
            name=operation.name,
        )
    return operation()


def argument(operation: Operation, position: int, name: str, default: Any) -> Any:
    """Return one argument of the call, given by position or by name."""
    if name in operation.kwargs:
        return operation.kwargs[name]
    return operation.args[position] if len(operation.args) > position else default


def batch_norm(state: Interception, operation: Operation) -> Any:
    """Affine while it uses stored statistics, as it does in evaluation mode."""
    if argument(operation, 5, "training", False):
        raise OperationError(
            "a batch norm without running statistics normalises by the batch's own, which ties the "
            "images of a batch together; train it with track_running_stats=True"
        )
    return keep_first(state, operation)


def dropout(state: Interception, operation: Operation) -> Any:
    """The identity in evaluation mode."""
    name = "train" if "train" in operation.kwargs else "training"
    if argument(operation, 2, name, True):
        raise OperationError(
            "the network drops activations at random also in evaluation mode, so its output has no "
            "explanation that holds; call dropout with training=self.training"
        )
    return operation()


def lerp(state: Interception, operation: Operation) -> Any:
    """Linear in both ends together, while the weight is constant."""
    weight = argument(operation, 2, "weight", None)
    if isinstance(weight, Tensor) and weight.requires_grad:
        raise state.no_rule(
            "'lerp' with a weight that depends on the image", "write it as a + weight * (b - a)"
        )
    return operation()


# fmt: off
_ANY_OPERAND = (
    # sums
    "add", "sub", "rsub", "neg", "positive", "sum", "nansum", "mean", "cumsum", "diff",
    "trace", "real",
    # joining
    "cat", "stack", "hstack", "vstack", "dstack", "where", "broadcast_tensors",
    # shape
    "reshape", "view", "view_as", "reshape_as", "flatten", "unflatten", "ravel", "squeeze",
    "unsqueeze", "expand", "expand_as", "broadcast_to", "permute", "transpose", "movedim",
    "atleast_1d", "atleast_2d", "atleast_3d", "as_strided", "unfold", "fold",
    # selecting
    "getitem", "setitem", "select", "narrow", "chunk", "split", "split_with_sizes",
    "tensor_split", "unbind", "unsafe_chunk", "unsafe_split", "index_select", "gather",
    "take_along_dim", "diagonal", "tril", "triu", "masked_fill", "index_add", "scatter_add",
    "index_copy", "masked_scatter",
    # moving
    "flip", "rot90", "roll", "tile", "repeat", "repeat_interleave", "pixel_shuffle",
    "pixel_unshuffle", "channel_shuffle", "pad", "constant_pad_nd",
    # averaging
    "interpolate", "upsample", "avg_pool1d", "avg_pool2d", "avg_pool3d",
    "adaptive_avg_pool1d", "adaptive_avg_pool2d", "adaptive_avg_pool3d",
    # copying
    "contiguous", "clone", "alias", "identity", "copy", "to", "type", "type_as", "float",
    "double", "half", "bfloat16", "cpu", "cuda", "detach", "data", "requires_grad",
    # constants
    "zeros_like", "ones_like", "empty_like", "full_like", "new_zeros", "new_ones",
    "new_empty", "new_full",
)

_FIRST_OPERAND = (
    "grid_sample",
    "conv1d", "conv2d", "conv3d",
    "conv_transpose1d", "conv_transpose2d", "conv_transpose3d",
)

_DROPOUTS = (
    "dropout", "dropout1d", "dropout2d", "dropout3d", "feature_dropout", "alpha_dropout",
)
# fmt: on

RULES: dict[str, Rule] = {
    **dict.fromkeys(_ANY_OPERAND, keep),
    **dict.fromkeys(_FIRST_OPERAND, keep_first),
    **dict.fromkeys(_DROPOUTS, dropout),
    "batch_norm": batch_norm,
    "lerp": lerp,
}
