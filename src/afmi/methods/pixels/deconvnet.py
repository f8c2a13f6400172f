"""DeconvNet: the class score sent back through transposed filters and rectifiers."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any

from torch import Size, Tensor

from afmi.errors import ImageIndependenceWarning
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
from afmi.gradients.interception import Handler
from afmi.gradients.rule_sets import (
    elementwise_chords,
    guided,
    linear_rules,
    ordinary_rules,
    positive_part,
)
from afmi.gradients.tape import Entry
from afmi.methods.base import Attribution
from afmi.methods.gradient_methods import GradientMethod
from afmi.network.operations import Trait, operations_with
from afmi.pictures.maps import channel_maximum
from afmi.targets import Columns

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

    The signal depends on the image by the switches alone, and by products and functions whose
    derivative does. In a network that has none of these (EfficientNet-Lite: ReLU6, strides and
    average pooling) a class has the same map for every image, noise and black among them, and an
    `ImageIndependenceWarning` says so. The signal can also die on the way, at a layer where it is
    negative everywhere: then the map is blank, with a warning. With SqueezeNet 1.0's ImageNet
    weights that happens for most classes, in every implementation.

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
        ...     torch.nn.Conv2d(3, 50, 3), torch.nn.ReLU(), torch.nn.AdaptiveMaxPool2d(1),
        ...     torch.nn.Flatten(), torch.nn.Linear(50, 2),
        ... )
        >>> DeconvNet(model).attribute(torch.rand(4, 3, 8, 8)).shape
        torch.Size([4, 1, 8, 8])
    """

    name = "DeconvNet"
    family = "pixel"
    scores = "gradients"
    signed = False
    paper = "Zeiler & Fergus, Visualizing and Understanding Convolutional Networks, ECCV 2014"

    def _reduce(self, inputs: Tensor, gradient: Tensor) -> Tensor:
        return channel_maximum(gradient)

    def _attribute(self, inputs: Tensor, columns: Columns) -> Attribution:
        gates: set[str] = set()
        run = forward_pass(self.model, inputs, layer=None, rules=_rules(gates))
        classes = columns.of(run.logits)
        maps = self._reduce(inputs, run.gradient(classes, last=True))
        if not gates:
            warnings.warn(
                f"{self.name}'s signal meets nothing on its way back that depends on the image, "
                "neither a switch of max pooling nor a gate, so a class's map is the same for "
                "every image: it shows the network's filters; explain images of this network by "
                "another method, such as Guided Backprop",
                ImageIndependenceWarning,
                stacklevel=4,
            )
        return Attribution(maps, classes, run.logits)


def _rules(gates: set[str]) -> Rules:
    """Return the rules of the backward pass.

    Args:
        gates: gets the names of the operations met through which it depends on the image.
    """
    squashing = dict.fromkeys(elementwise_chords(), guided)
    rectifying = dict.fromkeys(operations_with(Trait.RECTIFIER), _Rectifying())
    image_independent = {**linear_rules(), **rectifying}
    by_name = ordinary_rules() | squashing | rectifying
    watched = {
        name: handler if name in image_independent else _noting(handler, gates)
        for name, handler in by_name.items()
    }
    return Rules(watched, purpose="DeconvNet's backward pass")


def _noting(handler: Handler, gates: set[str]) -> Handler:
    """Return a handler that notes the operation where its derivative depends on the image."""

    def noting(interception: Interception, operation: Operation) -> Any:
        one = len(operation.path_operands) == 1
        if not (one and operation.name in operations_with(Trait.PRODUCT)):  # linear in one operand
            gates.add(operation.name)
        return handler(interception, operation)

    return noting


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
