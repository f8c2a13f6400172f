"""Maps that stand beside methods where networks are retrained: edges, and squared gradients."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from afmi.methods.base import Attribution, Method
from afmi.methods.gradient_methods import GradientMethod
from afmi.methods.work import Work
from afmi.network.classifier import classify
from afmi.targets import Columns

__all__ = ["Sobel", "SquaredGradient"]


@dataclass(frozen=True)
class Sobel(Method):
    """Show the edges of the image, whatever the network: the magnitude of Sobel's gradient.

    S = √(G_x² + G_y²) of the mean over the channels, with the border's pixels repeated outside.

    Paper: Hooker et al., *A Benchmark for Interpretability Methods in Deep Neural Networks*,
    NeurIPS 2019, whose second control it is. Differs: nothing.
    Cost: 1 forward, to know the class.
    """

    name = "Sobel"
    family = "control"
    scores = "edges"
    signed = False
    sides = (2,)
    paper = "Hooker et al., A Benchmark for Interpretability Methods, NeurIPS 2019"

    def work(self, inputs: Tensor) -> Work:
        """See `Method.work`."""
        return Work(1)

    def _attribute(self, inputs: Tensor, columns: Columns) -> Attribution:
        logits = classify(self.model, inputs)
        smooth, slope = inputs.new_tensor([1.0, 2.0, 1.0]), inputs.new_tensor([-1.0, 0.0, 1.0])
        across = smooth[:, None] * slope
        kernels = torch.stack([across, across.T])[:, None]
        grey = F.pad(inputs.mean(1, keepdim=True), (1, 1, 1, 1), mode="replicate")
        return Attribution(
            F.conv2d(grey, kernels).norm(dim=1, keepdim=True), columns.of(logits), logits
        )


@dataclass(frozen=True)
class SquaredGradient(GradientMethod):
    """Show the squared gradient, summed over the channels: smoothed, it is SmoothGrad².

    S_ij = Σ_k (∂y_c/∂x_kij)².

    Paper: Hooker et al., *A Benchmark for Interpretability Methods in Deep Neural Networks*,
    NeurIPS 2019, Section 3 (SG-SQ is `SmoothGrad` of it). Differs: nothing.
    Cost: 1 forward + 1 backward per image.
    """

    name = "Squared gradient"
    family = "pixel"
    scores = "gradients"
    signed = False
    paper = "Hooker et al., A Benchmark for Interpretability Methods, NeurIPS 2019"

    def _reduce(self, inputs: Tensor, gradient: Tensor) -> Tensor:
        return (gradient * gradient).sum(1, keepdim=True)
