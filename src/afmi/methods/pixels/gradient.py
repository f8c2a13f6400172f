"""Gradient: how strongly each pixel sways the class score, to first order."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from afmi.gradients import forward_pass
from afmi.methods.base import Attribution, Method, Target, Work
from afmi.pictures.maps import channel_maximum

__all__ = ["Gradient"]


@dataclass(frozen=True)
class Gradient(Method):
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
    cost = "1 forward + 1 backward"
    paper = "Simonyan et al., Deep Inside Convolutional Networks, ICLR workshop 2014"

    def work(self, inputs: Tensor) -> Work:
        """See `Method.work`."""
        return Work(1, 1)

    def _attribute(self, inputs: Tensor, target: Target) -> Attribution:
        run = forward_pass(self.model, inputs, layer=None)
        classes = target.of(run.logits)
        return Attribution(channel_maximum(run.gradient(classes, last=True)), classes, run.logits)
