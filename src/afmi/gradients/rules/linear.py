"""Linear and affine operations keep their ordinary derivative (Eq. 3)."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from afmi.errors import OperationError
from afmi.gradients.interception import Handler, Interception
from afmi.gradients.operation import Operation
from afmi.network.operations import Trait, operations_with

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


def lerp(interception: Interception, operation: Operation) -> Any:
    """Linear in both ends together, while the weight is constant."""
    weight = operation.argument(2, "weight", None)
    if isinstance(weight, Tensor) and weight.requires_grad:
        raise interception.no_rule(
            "'lerp' with a weight that depends on the image", "write it as a + weight * (b - a)"
        )
    return operation()


def scatter(interception: Interception, operation: Operation) -> Any:
    """Linear in what is written and in what it is written to, unless numbers are multiplied."""
    reduce = operation.argument(4, "reduce", None)
    if reduce not in (None, "add", "sum", "mean"):
        raise interception.no_rule(f"{operation.name!r} with reduce={reduce!r}")
    return operation()


_LINEAR = operations_with(
    *(Trait.SUM, Trait.JOIN, Trait.RESHAPE, Trait.EXPAND, Trait.TRANSPOSE, Trait.CHOOSE),
    *(Trait.SCATTER, Trait.REARRANGE, Trait.RESAMPLE, Trait.AVERAGE_POOL, Trait.COPY),
    *(Trait.CREATE, Trait.FOURIER),
)

RULES: dict[str, Handler] = {
    **dict.fromkeys(_LINEAR, keep),
    **dict.fromkeys(operations_with(Trait.LINEAR_IN_FIRST), keep_first),
    **dict.fromkeys(operations_with(Trait.DROPOUT), keep),  # off, or `network.watch` raises
    "batch_norm": batch_norm,
    "lerp": lerp,
    "scatter": scatter,
    "scatter_reduce": scatter,
}
