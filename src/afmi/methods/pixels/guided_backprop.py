"""Guided Backprop: the gradient, of which only the positive part passes each activation."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from afmi.gradients import Rules
from afmi.gradients.rule_sets import elementwise_chords, guided, ordinary_rules
from afmi.methods.gradient_methods import GradientMethod
from afmi.pictures.maps import channel_maximum

__all__ = ["GuidedBackprop"]


@dataclass(frozen=True)
class GuidedBackprop(GradientMethod):
    """Show the pixels from which unbroken paths of positive gradient lead to the class score.

    At each activation function σ, R_in = σ'(y) · max(R_out, 0), where R is the signal sent back
    and y the activation's input; for ReLU that is [y > 0] · max(R_out, 0). At the image
    S_ij = max_k |R_kij| over the colour channels k.

    σ is every nonlinear function of single numbers, whether or not it rectifies: ReLU6, hardswish,
    SiLU, GELU, sigmoid, … All else keeps its ordinary derivative: linear operations, max pooling,
    products (squeeze-and-excite, attention), normalisations, softmax. An operation beyond these
    raises an `OperationError`.

    Paper: Springenberg et al., *Striving for Simplicity: The All Convolutional Net*, ICLR workshop
    2015, Section 3.4. Differs: nothing on ReLU networks, for which the paper defines it; the paper
    shows the colour image R, of which we keep each pixel's largest magnitude.
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
        >>> GuidedBackprop(model).attribute(torch.rand(4, 3, 2, 2)).shape
        torch.Size([4, 1, 2, 2])
    """

    name = "Guided Backprop"
    aliases = ("gbp",)
    family = "pixel"
    scores = "gradients"
    signed = False
    paper = "Springenberg et al., Striving for Simplicity, ICLR workshop 2015"

    def _rules(self) -> Rules:
        by_name = ordinary_rules() | dict.fromkeys(elementwise_chords(), guided)
        return Rules(by_name, purpose="Guided Backprop's backward pass")

    def _reduce(self, inputs: Tensor, gradient: Tensor) -> Tensor:
        return channel_maximum(gradient)
