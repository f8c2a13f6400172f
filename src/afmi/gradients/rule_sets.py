"""What methods share that change the backward pass: which operations they leave alone.

DeconvNet, Guided Backprop and LRP are sets of rules on the same interception as the modified
gradient, so they meet functional, in-place and reused activations alike. They need no reference,
so their rules read no tape. Operations that a user registered as linear or as elementwise count
here too.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from afmi.errors import OperationError
from afmi.gradients.dependence import tensors_in
from afmi.gradients.interception import Handler, Interception
from afmi.gradients.operation import Operation
from afmi.gradients.rules import MODIFIED_GRADIENT
from afmi.gradients.rules.elementwise import Chord
from afmi.gradients.rules.linear import RULES as LINEAR
from afmi.gradients.rules.linear import keep
from afmi.gradients.rules.pooling import MaxPool
from afmi.network.operations import Trait, operations_with

__all__ = [
    "elementwise_chords",
    "guided",
    "linear_rules",
    "max_pooling_rules",
    "on_the_way_back",
    "ordinary_rules",
    "positive_part",
]


def elementwise_chords() -> dict[str, Chord]:
    """Return every nonlinear function of single numbers by name, with the rule for its chord."""
    return {n: rule for n, rule in MODIFIED_GRADIENT.by_name.items() if isinstance(rule, Chord)}


def linear_rules() -> dict[str, Handler]:
    """Return the rules of linear and affine operations, which keep their ordinary derivative."""
    registered = {n: rule for n, rule in MODIFIED_GRADIENT.by_name.items() if rule is keep}
    return {**registered, **LINEAR}


def max_pooling_rules() -> dict[str, Handler]:
    """Return rules by which max pooling keeps its derivative: to each window's maximum."""
    return {n: keep for n, rule in MODIFIED_GRADIENT.by_name.items() if isinstance(rule, MaxPool)}


def ordinary_rules() -> dict[str, Handler]:
    """Return rules by which all but the elementwise functions keep their ordinary derivative.

    Linear operations, max pooling, products, normalisations and softmax. A network that compares
    activations, as a rectifier written ``x * (x > 0)`` does, raises: its rectifiers are hidden.
    """
    return {
        **dict.fromkeys(operations_with(Trait.COMPARISON), _hidden_activation),
        **dict.fromkeys(operations_with(Trait.MIXING), keep),
        **dict.fromkeys(operations_with(Trait.PRODUCT), keep),
        **max_pooling_rules(),
        **linear_rules(),
    }


def positive_part(signal: Tensor) -> Tensor:
    """Return max(R, 0) of what comes back."""
    return signal.clamp(min=0)


def on_the_way_back(operation: Operation, change: Callable[[Tensor], Tensor]) -> Any:
    """Make a call that gives one tensor, and change the gradient that comes back to that.

    Beside the tensor it may give others that do not depend on the images, such as None. By a hook
    on the graph and not on the tensor, which the network may keep.
    """
    x = operation.operand
    # What is done in place to a part of a tensor concerns the whole, which this tensor is not.
    part = operation.inplace and x._is_view()
    output = operation.on(x.clone()) if part else operation()
    (made,) = (tensor for tensor in tensors_in(output) if tensor.requires_grad)
    assert made.grad_fn is not None
    made.grad_fn.register_prehook(lambda gradients: (change(gradients[0]), *gradients[1:]))
    return x.copy_(output) if part else output


def guided(interception: Interception, operation: Operation) -> Any:
    """Send the positive part of what comes back through the function's own derivative.

    The rule R_in = σ'(y) · max(R_out, 0).
    """
    if operation.operand.is_complex():
        raise interception.no_rule(
            f"{operation.name!r} of complex numbers", "apply it to real and imaginary parts"
        )
    return on_the_way_back(operation, positive_part)


def _hidden_activation(interception: Interception, operation: Operation) -> Any:
    raise OperationError(
        f"the network compares its activations ({operation.name!r}), which may be an activation "
        "function in disguise that a rule for activation functions would miss; write it as "
        "torch.relu or another function of PyTorch's"
    )
