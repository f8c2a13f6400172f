"""FullGrad: the input's gradient and those of all biases, which together are the whole score."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from afmi.errors import CompletenessWarning, OperationError
from afmi.gradients import (
    MODIFIED_GRADIENT,
    ForwardPass,
    Interception,
    Operation,
    Rules,
    forward_pass,
)
from afmi.gradients.rule_sets import linear_rules, max_pooling_rules, on_the_way_back
from afmi.methods.base import Attribution, Method
from afmi.methods.gradient_methods import change_of_pixels
from afmi.methods.work import Work
from afmi.network.classifier import classifier_of
from afmi.network.operations import Trait, operations_with
from afmi.pictures.maps import INTERPOLATION
from afmi.targets import Columns, TargetLike, Targets, as_target

__all__ = ["FullGrad", "FullGradients"]


@dataclass(frozen=True)
class FullGradients:
    """What a score consists of: y_c = Σ input + Σ biases.

    Attributes:
        input: ∂y_c/∂x ⊙ x, summed over the channels, (N, 1, *spatial).
        biases: Σ ∂y_c/∂z ⊙ b of each operation's outputs z that has a bias b, (L, N), in the
            network's order.
        operations: their names, such as ``conv2d``, L of them.
        scores: y_c, (N,).
    """

    input: Tensor
    biases: Tensor
    operations: tuple[str, ...]
    scores: Tensor

    @property
    def residual(self) -> Tensor:
        """(Σ input + Σ biases − y_c) / |y_c|, (N,); 0 is exact."""
        total = self.input.flatten(1).sum(1) + self.biases.sum(0)
        return (total - self.scores) / self.scores.abs()


@dataclass(frozen=True)
class FullGrad(Method):
    """Show where the input and the layers' biases move the class score, all layers added up.

    S = ψ(∂y_c/∂x ⊙ x) + Σ_l ψ(∂y_c/∂z_l ⊙ b_l) over the operations l with outputs z_l, whose bias
    is b_l; ψ takes magnitudes, brings those of an operation to [0, 1] by their smallest and
    largest, interpolates them to the image's size, and sums over the channels. Not signed. Before ψ
    the parts sum to the score, y_c = Σ ∂y_c/∂x ⊙ x + Σ_l Σ ∂y_c/∂z_l ⊙ b_l, on every network, and
    `full_gradients` returns them. The map itself sums to nothing in particular.

    The bias of an operation is what its tangent leaves, b = z − J·a for operands a with the
    derivative J there. That is the bias of a convolution or a linear layer, β − γμ/σ of a batch
    norm, a constant that is added; 0 of ReLU, pooling and whatever else is linear on each side of
    0; and 6 where a ReLU6 is clipped. Of smooth functions it is σ(a) − σ'(a) a, of a product of two
    things that depend on the image −ab, and likewise of softmax and norms.

    Paper: Srinivas & Fleuret, *Full-Gradient Representation for Neural Network Visualization*,
    NeurIPS 2019, Eq. 3 and 6, Section 3.1. Differs: ψ's range is that of all channels of a layer,
    as in the authors' program; the paper's formula reads as if of each channel. The program adds
    1e-6 to the range, which hides layers with small gradients, and aligns corners when it
    interpolates. Operations whose outputs have no places, such as linear layers, are not in the
    map, as in the program. That knows biases of convolutions, linear layers and batch norms alone,
    so activations such as ReLU6 leave its parts incomplete. A `Classifier`'s normalisation is no
    layer: x is the normalised image.
    Cost: 1 forward + 1 backward per image.

    Args:
        model: see `Method`.

    Raises:
        OperationError: when the network has an operation whose bias is not known, such as a
            recurrent layer.

    Example:
        >>> model = torch.nn.Sequential(
        ...     torch.nn.Conv2d(3, 4, 3), torch.nn.ReLU6(), torch.nn.Flatten(),
        ...     torch.nn.Linear(64, 2),
        ... )
        >>> method, image = FullGrad(model), torch.rand(1, 3, 6, 6)
        >>> method.attribute(image).shape
        torch.Size([1, 1, 6, 6])
        >>> parts = method.full_gradients(image, target=1)
        >>> torch.allclose(parts.input.sum() + parts.biases.sum(), model(image)[0, 1], atol=1e-5)
        True
    """

    name = "FullGrad"
    family = "feature map"
    scores = "gradients"
    signed = False
    paper = "Srinivas & Fleuret, Full-Gradient Representation, NeurIPS 2019"

    def work(self, inputs: Tensor) -> Work:
        """See `Method.work`."""
        return Work(1, 1)

    def full_gradients(self, inputs: Tensor, target: TargetLike = None) -> FullGradients:
        """Return the parts that the score consists of.

        Args:
            inputs: images (N, C, *spatial).
            target: as in `attribute`.
        """
        chosen = as_target(self.model, target)
        if isinstance(chosen, Targets):
            return _joined([m.full_gradients(x) for m, x, _ in self._on(inputs, chosen)])
        with self._session(inputs, chosen) as (images, wanted):
            return _joined([parts for parts, *_ in self._runs(images, wanted, mapped=False)])

    def _attribute(self, inputs: Tensor, columns: Columns) -> Attribution:
        runs = self._runs(inputs, columns, mapped=True)
        logits = torch.cat([run.logits for *_, run in runs])
        if _gap(_joined([parts for parts, *_ in runs]), logits) > _allowed(logits):
            _warn_of_a_gap()
        maps = torch.cat([biases.map for _, biases, _, _ in runs])
        return Attribution(maps, torch.cat([classes for *_, classes, _ in runs]), logits)

    def _runs(
        self, inputs: Tensor, columns: Columns, *, mapped: bool
    ) -> list[tuple[FullGradients, _Biases, Tensor, ForwardPass]]:
        """Run the images together, or one by one where a network has them in other dimensions."""
        together = self._parts(inputs, columns, _Biases(inputs, mapped=mapped))
        logits = together[-1].logits
        if len(inputs) == 1 or _gap(together[0], logits) <= _allowed(logits):
            return [together]
        wanted = Columns(together[2])
        rows = [slice(n, n + 1) for n in range(len(inputs))]
        return [
            self._parts(inputs[row], wanted[row], _Biases(inputs[row], mapped=mapped))
            for row in rows
        ]

    def _parts(
        self, inputs: Tensor, columns: Columns, biases: _Biases
    ) -> tuple[FullGradients, _Biases, Tensor, ForwardPass]:
        """Return the score's parts, with the biases, the classes (N,) and the run."""
        classifier = classifier_of(self.model)
        rules = _rules(biases, None if classifier is None else classifier.mean)
        run = forward_pass(self.model, inputs, layer=None, rules=rules)
        classes = columns.of(run.logits)
        gradient = run.gradient(classes, last=True)
        of_input = change_of_pixels(self.model, inputs, None) * gradient
        biases.add_map(of_input)
        sums = run.logits.new_zeros(len(biases.operations), len(inputs))
        for at, part in biases.sums.items():
            sums[at] = part
        parts = FullGradients(
            of_input.sum(1, keepdim=True),
            sums,
            tuple(biases.operations),
            run.logits.gather(1, classes[:, None])[:, 0],
        )
        return parts, biases, classes, run


def _joined(parts: list[FullGradients]) -> FullGradients:
    """Return the parts of all images from those of some of them each."""
    return FullGradients(
        torch.cat([part.input for part in parts]),
        torch.cat([part.biases for part in parts], 1),
        parts[0].operations,
        torch.cat([part.scores for part in parts]),
    )


def _gap(parts: FullGradients, logits: Tensor) -> float:
    """Return by how much the parts miss the score, as a share of their sizes."""
    gap = (parts.input.flatten(1).sum(1) + parts.biases.sum(0) - parts.scores).abs()
    scale = parts.biases.abs().sum(0) + parts.input.flatten(1).abs().sum(1)
    return float((gap / (scale + logits.abs().amax(1)).clamp_min(1e-30)).max())


def _allowed(logits: Tensor) -> float:
    device = logits.device.type
    autocast = torch.is_autocast_enabled(device)
    return torch.finfo(torch.get_autocast_dtype(device) if autocast else logits.dtype).eps ** 0.5


def _warn_of_a_gap() -> None:
    warnings.warn(
        "the gradients of the input and of all biases miss the score by more than rounding: a part "
        "of the network has a bias that was not seen, or is ill-conditioned",
        CompletenessWarning,
        stacklevel=4,
    )


@dataclass
class _Biases:
    """What a backward pass says of the biases that its operations have.

    Attributes:
        like: the images (N, C, *spatial).
        mapped: whether the map is wanted.
        operations: the names of those that have a bias, in the network's order.
        sums: of each of them Σ ∂y_c/∂z ⊙ b, (N,), by its place among them; none where b is 0.
        map: Σ_l ψ(∂y_c/∂z_l ⊙ b_l), (N, 1, *spatial).
        channels_last: whether the operations that run have their maps' channels last.
    """

    like: Tensor
    mapped: bool = False
    operations: list[str] = field(default_factory=list)
    sums: dict[int, Tensor] = field(default_factory=dict)
    channels_last: bool = False
    _run: Interception | None = None

    def __post_init__(self) -> None:
        self.map = self.like.new_zeros(len(self.like), 1, *self.like.shape[2:])

    def see_run(self, interception: Interception) -> None:
        """Begin anew where this is another run, after one that failed in its memory layout."""
        if self._run is not interception:
            self._run, self.channels_last = interception, False
            self.operations.clear()

    def note(self, at: int, bias: Tensor, channels_last: bool, gradient: Tensor) -> Tensor:
        """Take the gradient (N, …) of an operation's outputs, and return it as it is."""
        part = gradient.detach() * bias
        count, dims = len(self.like), self.like.dim()
        self.sums[at] = part.reshape(count, -1).sum(1)
        of_heads = self.operations[at] in _OF_HEADS  # whose dimensions are no places
        if part.dim() == dims and len(part) == count and not of_heads:
            self.add_map(part.movedim(-1, 1) if channels_last else part)
        return gradient

    def add_map(self, part: Tensor) -> None:
        """Add ψ of a part (N, K, *places) to the map."""
        if not self.mapped:
            return
        sizes = part.abs().to(self.map)
        over = tuple(range(1, sizes.dim()))
        low, high = sizes.amin(over, keepdim=True), sizes.amax(over, keepdim=True)
        scaled = torch.where(high > low, (sizes - low) / (high - low), 0.0).sum(1, keepdim=True)
        sides = self.like.shape[2:]
        self.map += torch.nn.functional.interpolate(
            scaled, size=sides, mode=INTERPOLATION[len(sides)], align_corners=False
        )


BiasOf = Callable[[Operation], Tensor | None]
"""Gives the bias of an operation, in a form that broadcasts to its outputs; None: it has none."""


def _rules(biases: _Biases, mean: Tensor | None) -> Rules:
    """Return rules by which the backward pass notes the biases.

    Args:
        biases: notes them.
        mean: what a `Classifier` subtracts from its images, which is no bias.
    """
    known: dict[str, BiasOf] = {
        **dict.fromkeys(MODIFIED_GRADIENT.by_name, _of_tangent),
        **dict.fromkeys(operations_with(Trait.PRODUCT), _of_product),
        **dict.fromkeys(operations_with(Trait.EXTREME), _of_extreme),
        **dict.fromkeys(linear_rules(), _of_affine),
        **dict.fromkeys(max_pooling_rules(), _none),
        **dict.fromkeys(operations_with(Trait.STRAIGHT_FROM_ZERO), _none),
        **dict.fromkeys(operations_with(Trait.CONVOLUTION), _of_layer),
        "linear": _of_layer,
        "batch_norm": _of_batch_norm,
    }

    def rule(bias_of: BiasOf, interception: Interception, operation: Operation) -> Any:
        biases.see_run(interception)
        _see_layout(biases, operation)
        if mean is not None and operation.name == "sub" and _holds(operation, mean):
            return operation()
        with torch.no_grad():
            bias = bias_of(operation)
        if bias is None:
            return operation()
        biases.operations.append(operation.name)
        if not bool(bias.any()):
            return operation()
        if operation.name in _WRITING:
            raise interception.no_rule(
                f"{operation.name!r} that writes to a tensor with other numbers than 0",
                "have the network join tensors by torch.cat",
            )
        at = len(biases.operations) - 1
        note = partial(biases.note, at, bias, biases.channels_last)
        return on_the_way_back(operation, note)

    return Rules({n: partial(rule, f) for n, f in known.items()}, purpose="FullGrad's biases")


_WRITING = ("setitem",)
"""Give nothing, so that no gradient comes back to them."""

_DIVISOR = {"div": 1, "rdiv": 0}
"""Where the divisor stands among the operands."""

_ELEMENTWISE = operations_with(Trait.ELEMENTWISE)
_OF_HEADS = operations_with(Trait.ATTENTION)

_ADDING = operations_with(Trait.ADDEND)


def _see_layout(biases: _Biases, operation: Operation) -> None:
    """Note where the operation has its channels, if it says so."""
    if operation.path_operands[0].dim() == biases.like.dim():
        if operation.name in operations_with(Trait.CHANNELS_FIRST):
            biases.channels_last = False
        elif operation.name in operations_with(Trait.CHANNELS_LAST):
            biases.channels_last = True


def _holds(operation: Operation, tensor: Tensor) -> bool:
    """Tell whether a tensor, or a view of it, is an operand."""
    storage = tensor.untyped_storage().data_ptr()
    return any(
        isinstance(value, Tensor) and value.untyped_storage().data_ptr() == storage
        for value in operation.args
    )


def _none(operation: Operation) -> None:
    return None


def _of_layer(operation: Operation) -> Tensor | None:
    """Return the bias of a convolution or a linear layer."""
    if len(operation.path_operands) > 1:
        return _of_tangent(operation)
    bias = operation.argument(2, "bias", None)
    if bias is None or operation.name == "linear":
        return bias
    batched = bias.view(1, -1, *[1] * (operation.argument(1, "weight", None).dim() - 2))
    return batched if operation.operand.dim() == batched.dim() else batched[0]


def _of_batch_norm(operation: Operation) -> Tensor | None:
    """Return β − γμ/σ, (1, K, 1, …)."""
    if len(operation.path_operands) > 1:
        return _of_tangent(operation)
    x = operation.operand
    return operation.on(x.new_zeros(1, x.shape[1], *[1] * (x.dim() - 2)))


def _of_affine(operation: Operation) -> Tensor | None:
    """Return what an affine operation makes of zeros."""
    values = [*operation.args, *operation.kwargs.values()]
    adds = operation.name in _ADDING and len(operation.path_operands) == 1
    if not adds and not _has_constants(values):
        return None
    return _at_zero(operation)


def _of_product(operation: Operation) -> Tensor | None:
    """Return the bias of a product: none of one factor, −ab of two."""
    divisor = _DIVISOR.get(operation.name)
    divided_by = divisor is not None and _depends(operation.args[divisor])
    if len(operation.path_operands) > 1 or divided_by:
        return _of_tangent(operation)
    return _at_zero(operation) if operation.name in _ADDING else None


def _of_extreme(operation: Operation) -> Tensor | None:
    """Return the bias of a maximum: none, unless constants take part."""
    return _of_tangent(operation) if _has_constants(operation.args) else None


def _depends(value: Any) -> bool:
    return isinstance(value, Tensor) and value.requires_grad


def _has_constants(values: Any) -> bool:
    """Tell whether tensors that do not depend on the image are among these."""
    return any(
        not value.requires_grad
        if isinstance(value, Tensor)
        else isinstance(value, (list, tuple)) and _has_constants(value)
        for value in values
    )


def _at_zero(operation: Operation) -> Tensor:
    """Return what an operation gives where zeros stand for what depends on the image."""
    written = operation.written

    def replaced(value: Any) -> Any:
        if isinstance(value, Tensor):
            if value.requires_grad:
                return torch.zeros_like(value)
            return value.clone() if value is written else value
        if isinstance(value, (list, tuple)):
            return type(value)(map(replaced, value))
        return value

    args = [replaced(value) for value in operation.args]
    kwargs = {key: replaced(value) for key, value in operation.kwargs.items()}
    output = operation.function(*args, **kwargs)
    return output if isinstance(output, Tensor) else args[0]


def _of_tangent(operation: Operation) -> Tensor:
    """Return z − J·a, what the tangent at operands a leaves of the outputs z."""
    operands = [x.detach().clone().requires_grad_() for x in operation.path_operands]
    # Of several ways to compute attention this is the one that has second derivatives.
    with torch.enable_grad(), sdpa_kernel(SDPBackend.MATH):
        given = operation.with_operands(x.clone() for x in operands)
        several = given if isinstance(given, tuple) else (given,)
        outputs, *more = (y for y in several if isinstance(y, Tensor) and y.requires_grad)
        if more:
            raise OperationError(
                f"the bias of {operation.name!r}, which gives several outputs, is not known for "
                "FullGrad; write it as operations of one output each, or have it give one"
            )
        # Jᵀv is linear in v, so its derivative there along a is J·a, whatever v is.
        vector = torch.ones_like(outputs, requires_grad=True)
        pulled = torch.autograd.grad(
            outputs, operands, vector, create_graph=True, materialize_grads=True
        )
        elementwise = operation.name in _ELEMENTWISE and len(operands) == 1
        if elementwise:  # J is a diagonal, and not all of them have a second derivative
            along = pulled[0] * operands[0]
        else:
            along = torch.autograd.grad(pulled, vector, operands, materialize_grads=True)[0]
    return (outputs - along).detach()
