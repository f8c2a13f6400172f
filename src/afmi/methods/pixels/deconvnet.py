"""DeconvNet: the class score sent back through transposed filters and rectifiers."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Size, Tensor

from afmi.gradients import (
    BackwardState,
    Factors,
    Interception,
    Operation,
    Rule,
    Rules,
    Tensors,
)
from afmi.gradients.rule_sets import (
    elementwise_chords,
    guided,
    ordinary_rules,
    positive_part,
)
from afmi.gradients.tape import Entry
from afmi.methods.gradient_methods import GradientMethod
from afmi.network.operations import Trait, operations_with
from afmi.pictures.maps import channel_maximum

__all__ = ["DeconvNet"]


@dataclass(frozen=True)
class DeconvNet(GradientMethod):
    """Show the pattern of pixels from which a deconvolutional network builds up the class score.

    At each rectifier R_in = max(R_out, 0), whether or not it was open on the way forward, where R
    is the signal sent back. Convolutions send it through their transposed filters, max pooling to
    where each maximum was (the "switches"). At the image S_ij = max_k |R_kij| over the colour
    channels k.

    A rectifier is every activation with a side on which it lets its input pass: ReLU and its
    leaky kin, ReLU6, ELU, SiLU, GELU, hardswish, … Functions that squash (sigmoid, tanh, …) do
    not rectify; for them R_in = σ'(y) · max(R_out, 0). All else keeps its ordinary derivative:
    products (squeeze-and-excite, attention), normalisations, softmax. An operation beyond these
    raises an `OperationError`.

    The signal depends on the image by the switches alone, and it can die on the way, at a layer
    where it is negative everywhere: then the map is blank, with a warning. With SqueezeNet 1.0's
    ImageNet weights that happens for most classes, in every implementation.

    Paper: Zeiler & Fergus, *Visualizing and Understanding Convolutional Networks*, ECCV 2014,
    Section 2.1. Differs: starts at the class's logit instead of at one feature map, as all
    comparisons do; the paper shows the colour image R, of which we keep each pixel's largest
    magnitude.
    Cost: 1 forward + 1 backward per image.

    Args:
        model: see `Method`.

    Raises:
        OperationError: when the network has an operation without a rule.

    Example:
        >>> import torch
        >>> model = torch.nn.Sequential(
        ...     torch.nn.Flatten(), torch.nn.Linear(12, 50), torch.nn.ReLU(), torch.nn.Linear(50, 2)
        ... )
        >>> DeconvNet(model).attribute(torch.rand(4, 3, 2, 2)).shape
        torch.Size([4, 1, 2, 2])
    """

    name = "DeconvNet"
    family = "pixel"
    scores = "gradients"
    paper = "Zeiler & Fergus, Visualizing and Understanding Convolutional Networks, ECCV 2014"

    def _rules(self) -> Rules:
        squashing = dict.fromkeys(elementwise_chords(), guided)
        rectifying = dict.fromkeys(operations_with(Trait.RECTIFIER), _Rectifying())
        by_name = ordinary_rules() | squashing | rectifying
        return Rules(by_name, purpose="DeconvNet's backward pass")

    def _reduce(self, inputs: Tensor, gradient: Tensor) -> Tensor:
        return channel_maximum(gradient)


class _Rectifying(Rule):
    """Rectify what comes back, and ignore which units were open on the way forward."""

    def operands(self, interception: Interception, operation: Operation) -> list[Tensor]:
        return [operation.operand]

    def factors(
        self, operation: Operation, operands: Tensors, outputs: Tensors, entry: Entry
    ) -> Factors:
        return ()

    def pull_back(
        self, gradient: Tensor, factors: Factors, shapes: list[Size], state: BackwardState
    ) -> list[Tensor]:
        return [positive_part(gradient)]
