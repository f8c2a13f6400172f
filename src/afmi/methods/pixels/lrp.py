"""LRP: the class score handed back as relevance, layer by layer, to the pixels (ε-rule)."""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass
from typing import Any

import torch
from torch import Size, Tensor

from afmi.errors import UsageError
from afmi.gradients import (
    BackwardState,
    Factors,
    Interception,
    Operation,
    Rule,
    Rules,
    Tensors,
    forward_pass,
)
from afmi.gradients.rule_sets import (
    elementwise_chords,
    linear_rules,
    max_pooling_rules,
    on_the_way_back,
)
from afmi.gradients.rules.elementwise import Chord
from afmi.gradients.rules.products import RULES as PRODUCTS
from afmi.gradients.tape import Entry
from afmi.methods.base import Attribution, Method
from afmi.methods.gradient_methods import change_of_pixels
from afmi.methods.work import Work
from afmi.network.operations import Trait, operations_with
from afmi.pictures.dimensions import beside
from afmi.pictures.references import Reference
from afmi.targets import Columns

__all__ = ["LRP"]

_SQUASHING = ("sigmoid", "hardsigmoid")

# Functions that have no value at 0, so that no chord starts there.
_UNDEFINED_AT_ZERO = operations_with(Trait.UNDEFINED_AT_ZERO)


@dataclass(frozen=True)
class LRP(Method):
    """Show which pixels the class score rests on, as the layers hand relevance back to them.

    A linear layer z_j = Σ_i w_ij a_i + b_j hands its outputs' relevance back in proportion to what
    each input added, R_i = Σ_j a_i w_ij / (z_j + ε_j sign z_j) · R_j, with ε_j = epsilon · the
    root mean square of z over the layer; an activation passes relevance on unchanged. It starts
    with R = y_c, and S_ij = Σ_k R_kij over the colour channels k. Signed. What arrives is not y_c:
    ε and biases absorb most of it in a deep network, and the map's sum may have the other sign, so
    no part of the sum is a share of the score.

    It is computed as R = a · ρ, where ρ is a gradient in which an activation's derivative is
    (σ(z) − σ(0)) / (z + ε sign z) (Ancona et al., ICLR 2018, Proposition 1). No quotient of small
    numbers arises, so it cannot blow up. How the parts of a network are taken:

    - Linear operations in a row are one layer, stabilised at its end: a convolution and the batch
      norm behind (or, in dense blocks, in front of the next ReLU), a residual sum, average
      pooling. Each addend of a sum gets relevance in proportion to its share.
    - Biases, and σ(0) where it is not 0, absorb their share of relevance, and so does ε.
    - Max pooling: the maximum takes all.
    - A product of two things that depend on the image: all goes to the signal, none to the gate.
      The gate is what comes from a sigmoid, or else the smaller one, which is broadcast
      (squeeze-and-excite). Where neither tells them apart, each takes half.
    - Layer and group norms: the deviation that they divide by is taken as constant.
    - A `Classifier`'s normalisation is no layer: relevance is that of the normalised pixels, as if
      the network had been called with them, so pixels of its mean colour get 0. With a reference
      x̄ it is a layer in x − x̄, whose bias is the normalised x̄.

    Paper: Bach et al., *On Pixel-Wise Explanations for Non-Linear Classifier Decisions by
    Layer-Wise Relevance Propagation*, PLOS ONE 2015, Eq. 58. Differs: ε is relative to the
    layer's outputs, with the 0.25 of Montavon et al., *Layer-Wise Relevance Propagation: An
    Overview*, 2019; an absolute one means something else in every layer. With ε near 0 it is
    `InputXGradient` on ReLU networks, which has the same zero.
    Cost: 1 forward + 1 backward per image.

    Args:
        model: see `Method`.
        epsilon: ε as a share of the root mean square of a layer's outputs, from 0 up; the larger,
            the fewer pixels are left with relevance, and the smaller its sum. Near 0, relevance
            sums to y_c in networks without biases.
        reference: x̄, whose pixels get 0; the mean of several. ``Black()``: black pixels get 0.
            None: the network's own zero, a `Classifier`'s mean colour.

    Raises:
        OperationError: when the network has an operation without a rule, such as softmax inside.

    Example:
        >>> model = torch.nn.Sequential(
        ...     torch.nn.Flatten(),
        ...     torch.nn.Linear(12, 5, bias=False),
        ...     torch.nn.ReLU(),
        ...     torch.nn.Linear(5, 2, bias=False),
        ... )
        >>> image = torch.rand(1, 3, 2, 2)
        >>> relevance = LRP(model, epsilon=1e-9).attribute(image, target=1)
        >>> torch.allclose(relevance.sum(), model(image)[0, 1], atol=1e-5)
        True
    """

    name = "LRP"
    family = "pixel"
    scores = "modified gradients"
    signed = True
    paper = "Bach et al., On Pixel-Wise Explanations, PLOS ONE 2015"

    _: KW_ONLY
    epsilon: float = 0.25
    reference: Reference | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.epsilon < float("inf"):
            raise UsageError(f"expected epsilon from 0 up, got {self.epsilon}")

    def work(self, inputs: Tensor) -> Work:
        """See `Method.work`."""
        return Work(1, 1)

    def _attribute(self, inputs: Tensor, columns: Columns) -> Attribution:
        run = forward_pass(self.model, inputs, layer=None, rules=_rules(self.epsilon))
        classes = columns.of(run.logits)
        start = _stabilised(run.logits, self.epsilon).gather(1, classes[:, None])
        rho = run.gradient(classes, last=True) * beside(start, inputs)
        # With the normalisation's own derivative 1/std in ρ, this is the normalised pixel times
        # the ρ there.
        change = change_of_pixels(self.model, inputs, self.reference)
        maps = (change * rho).sum(1, keepdim=True)
        return Attribution(maps, classes, run.logits)


def _rules(epsilon: float) -> Rules:
    chords = elementwise_chords()
    activations = {
        name: _Activation(chord, epsilon, gates=name in _SQUASHING)
        for name, chord in chords.items()
        if name not in _UNDEFINED_AT_ZERO
    }
    return Rules(
        {
            **PRODUCTS,
            **linear_rules(),
            **max_pooling_rules(),
            **activations,
            **dict.fromkeys(_RESHAPING, _reshape),
            "mul": _product,
            "matmul": _product,
            "bmm": _product,
            "mm": _product,
            "div": _quotient,
            "rdiv": _quotient,
            "layer_norm": _layer_norm,
            "group_norm": _group_norm,
        },
        purpose="LRP's backward pass",
    )


def _stabilised(z: Tensor, epsilon: float) -> Tensor:
    """Return z / (z + ε sign z), which lies in [0, 1]; ε goes by the size of each image's z."""
    magnitude = z.abs()
    return magnitude / _with_epsilon(magnitude, z, epsilon)


def _with_epsilon(magnitude: Tensor, z: Tensor, epsilon: float) -> Tensor:
    over = tuple(range(1, z.dim()))
    size = torch.linalg.vector_norm(z, dim=over, keepdim=True) / (z[0].numel() ** 0.5)
    # The smallest number there is keeps 0/0 away.
    return magnitude.add(size, alpha=epsilon).clamp_min_(torch.finfo(z.dtype).tiny)


class _Activation(Rule):
    """Pass relevance on unchanged: ρ_in = ρ_out · (σ(z) − σ(0)) / (z + ε sign z).

    Args:
        chord: the rule for σ's chord, whose reference is 0 here.
        epsilon: ε as a share of the root mean square of z.
        gates: whether σ's output counts as a gate where it is multiplied with something.
    """

    def __init__(self, chord: Chord, epsilon: float, *, gates: bool) -> None:
        self.chord = chord
        self.epsilon = epsilon
        self.gates = gates

    def __call__(self, interception: Interception, operation: Operation) -> Any:
        output = super().__call__(interception, operation)
        if self.gates:
            _mark_gate(output)
        return output

    def operands(self, interception: Interception, operation: Operation) -> list[Tensor]:
        if len(operation.path_operands) > 1:
            raise interception.no_rule(
                f"{operation.name!r} with parameters that depend on the image"
            )
        return self.chord.operands(interception, operation)

    def entries(
        self, interception: Interception, operation: Operation, operands: Tensors
    ) -> list[Entry]:
        zero = torch.zeros_like(operands[0][:1])
        return [self.chord.entry(operation, (zero,), (operation.on(zero.clone()),))]

    def factors(
        self, operation: Operation, operands: Tensors, outputs: Tensors, entry: Entry
    ) -> Factors:
        x, y = operands[0], outputs[0]
        if operation.name == "relu":
            return [y / _with_epsilon(y, x, self.epsilon)]
        return [self.chord.slope(operation, x, y, entry) * _stabilised(x, self.epsilon)]

    def pull_back(
        self, gradient: Tensor, factors: Factors, shapes: list[Size], state: BackwardState
    ) -> list[Tensor]:
        return [gradient * factors[0]]


_GATE = "afmi gate"

# What gives a gate's own numbers in another form; an index, too, where it takes them all.
_RESHAPING = operations_with(Trait.RESHAPE, Trait.EXPAND, Trait.TRANSPOSE, Trait.COPY) - {
    "fold",
    "unfold",
} | {"getitem"}


def _mark_gate(output: Tensor) -> None:
    # On the node of this run's graph, which ends with it; not on the network's tensor.
    node: Any = output.grad_fn
    if node is not None:
        node.metadata[_GATE] = True


def _is_gate(tensor: Tensor) -> bool:
    """Tell whether a tensor is a sigmoid's output, perhaps reshaped."""
    node: Any = tensor.grad_fn
    return node is not None and _GATE in node.metadata


def _reshape(interception: Interception, operation: Operation) -> Any:
    """Keep the ordinary derivative; a gate in another shape is a gate."""
    output, x = operation(), operation.operand
    if _is_gate(x) and (operation.name != "getitem" or output.numel() == x.numel()):
        _mark_gate(output)
    return output


def _product(interception: Interception, operation: Operation) -> Any:
    """All relevance to the signal, none to the gate; half to each where neither is a gate."""
    operands = operation.path_operands
    if len(operands) == 1:
        return operation()
    a, b = operands
    gates = _is_gate(a), _is_gate(b)
    gate = a if gates[0] else b
    if gates[0] == gates[1]:
        if a.numel() == b.numel() or operation.name != "mul":
            # R = a·b·ρ, and a·(b ρ/2) is half of it.
            return on_the_way_back(operation, lambda rho: rho / 2)
        gate = a if a.numel() < b.numel() else b
    if operation.inplace and gate is operation.operand:
        raise interception.no_rule(
            f"{operation.name!r} that overwrites the gate with the signal",
            "write the product to a new tensor",
        )
    args = tuple(v.detach() if v is gate else v for v in operation.args)
    kwargs = {k: v.detach() if v is gate else v for k, v in operation.kwargs.items()}
    return operation.function(*args, **kwargs)


def _quotient(interception: Interception, operation: Operation) -> Any:
    """Linear in the numerator, which alone may depend on the image."""
    operands = operation.path_operands
    if operation.name == "rdiv" or len(operands) > 1 or operands[0] is not operation.operand:
        raise interception.no_rule("a division by something that depends on the image")
    return operation()


def _layer_norm(interception: Interception, operation: Operation) -> Any:
    """Linear while the deviation is taken as constant."""

    def layer_norm(
        input: Tensor,
        normalized_shape: list[int],
        weight: Tensor | None = None,
        bias: Tensor | None = None,
        eps: float = 1e-5,
        cudnn_enable: bool = True,
    ) -> Tensor:
        normal = _with_constant_deviation(input, len(tuple(normalized_shape)), eps)
        normal = normal if weight is None else normal * weight
        return normal if bias is None else normal + bias

    return layer_norm(*operation.args, **operation.kwargs)


def _group_norm(interception: Interception, operation: Operation) -> Any:
    """Linear while the deviation is taken as constant."""

    def group_norm(
        input: Tensor,
        num_groups: int,
        weight: Tensor | None = None,
        bias: Tensor | None = None,
        eps: float = 1e-5,
        cudnn_enabled: bool = True,
    ) -> Tensor:
        grouped = input.unflatten(1, (num_groups, -1))
        normal = _with_constant_deviation(grouped, grouped.dim() - 2, eps).reshape(input.shape)
        per_channel = (-1, *[1] * (input.dim() - 2))
        normal = normal if weight is None else normal * weight.view(per_channel)
        return normal if bias is None else normal + bias.view(per_channel)

    return group_norm(*operation.args, **operation.kwargs)


def _with_constant_deviation(x: Tensor, dimensions: int, eps: float) -> Tensor:
    over = tuple(range(-dimensions, 0))
    variance = x.detach().var(over, correction=0, keepdim=True)
    return (x - x.mean(over, keepdim=True)) * torch.rsqrt(variance + eps)
