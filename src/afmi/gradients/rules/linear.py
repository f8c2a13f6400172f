"""Linear and affine operations keep their ordinary derivative (Eq. 3)."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from afmi.errors import OperationError
from afmi.gradients.interception import Handler, Interception
from afmi.gradients.operation import Operation

__all__ = ["RULES", "keep", "keep_first"]


def keep(interception: Interception, operation: Operation) -> Any:
    """Make the call as it stands: linear in all its operands together."""
    return operation()


def keep_first(interception: Interception, operation: Operation) -> Any:
    """Make the call when only its first operand depends on the maps, so that it is linear."""
    if len(operation.path_operands) > 1:
        raise interception.no_rule(
            f"{operation.name!r} with weights that depend on the image, which make it a product,",
            name=operation.name,
        )
    return operation()


def batch_norm(interception: Interception, operation: Operation) -> Any:
    """Affine while it uses stored statistics, as it does in evaluation mode."""
    if operation.argument(5, "training", False):
        raise OperationError(
            "a batch norm without running statistics normalises by the batch's own, which ties the "
            "images of a batch together; train it with track_running_stats=True"
        )
    return keep_first(interception, operation)


def dropout(interception: Interception, operation: Operation) -> Any:
    """The identity in evaluation mode."""
    name = "train" if "train" in operation.kwargs else "training"
    if operation.argument(2, name, True):
        raise OperationError(
            "the network drops activations at random also in evaluation mode, so its output has no "
            "explanation that holds; call dropout with training=self.training"
        )
    return operation()


def lerp(interception: Interception, operation: Operation) -> Any:
    """Linear in both ends together, while the weight is constant."""
    weight = operation.argument(2, "weight", None)
    if isinstance(weight, Tensor) and weight.requires_grad:
        raise interception.no_rule(
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

RULES: dict[str, Handler] = {
    **dict.fromkeys(_ANY_OPERAND, keep),
    **dict.fromkeys(_FIRST_OPERAND, keep_first),
    **dict.fromkeys(_DROPOUTS, dropout),
    "batch_norm": batch_norm,
    "lerp": lerp,
}
