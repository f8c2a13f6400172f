"""Gradient: how strongly each pixel sways the class score, to first order."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from afmi.methods.gradient_methods import GradientMethod
from afmi.pictures.maps import channel_maximum

__all__ = ["Gradient"]


@dataclass(frozen=True)
class Gradient(GradientMethod):
    """Show how strongly a small change of each pixel would change the class score.

    S_ij = max_k |∂y_c/∂x_kij| over the colour channels k.

    Paper: Simonyan, Vedaldi & Zisserman, *Deep Inside Convolutional Networks*, ICLR workshop
    2014, Section 3.1. Differs: nothing.
    Cost: 1 forward + 1 backward per image.

    Args:
        model: see `Method`.

    Example:
        >>> import torch
        >>> model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(12, 2))
        >>> Gradient(model).attribute(torch.rand(4, 3, 2, 2)).shape
        torch.Size([4, 1, 2, 2])
    """

    name = "Gradient"
    family = "pixel"
    scores = "gradients"
    signed = False
    paper = "Simonyan et al., Deep Inside Convolutional Networks, ICLR workshop 2014"

    def _reduce(self, inputs: Tensor, gradient: Tensor) -> Tensor:
        return channel_maximum(gradient)
