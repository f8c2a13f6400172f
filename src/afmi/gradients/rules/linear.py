"""Linear and affine operations keep their ordinary derivative (Eq. 3)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from torch import Tensor

from afmi.errors import OperationError
from afmi.gradients.interception import Interception, Operation, Rule
from afmi.network.operations import Trait, operations_with

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


_LINEAR = operations_with(
    *(Trait.SUM, Trait.JOIN, Trait.RESHAPE, Trait.EXPAND, Trait.TRANSPOSE, Trait.CHOOSE),
    *(Trait.SCATTER, Trait.REARRANGE, Trait.RESAMPLE, Trait.AVERAGE_POOL, Trait.COPY),
    Trait.CREATE,
)

RULES: dict[str, Rule] = {
    **dict.fromkeys(_LINEAR, keep),
    **dict.fromkeys(operations_with(Trait.LINEAR_IN_FIRST), keep_first),
    **dict.fromkeys(operations_with(Trait.DROPOUT), dropout),
    "batch_norm": batch_norm,
    "lerp": lerp,
}
