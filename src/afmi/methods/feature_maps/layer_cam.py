"""LayerCAM: feature maps weighted place by place by the positive part of their gradient."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from afmi.methods.gradient_methods import WeightedMapsMethod

__all__ = ["LayerCAM"]


@dataclass(frozen=True)
class LayerCAM(WeightedMapsMethod):
    """Show the places whose feature maps raise the class score, at any layer of the network.

    S = ReLU(Σ_k w^k ⊙ A^k) with w^k_ij = ReLU(∂y_c/∂A^k_ij).

    Paper: Jiang et al., *LayerCAM: Exploring Hierarchical Class Activation Maps for Localization*,
    TIP 2021, Eq. 6–8. Differs: nothing. The scaling by which the paper merges maps of several
    layers (Eq. 9) is left out, because a map is of one layer.
    Cost: 1 forward + 1 backward through the layers after ``layer``.

    Args:
        model: see `Method`.
        layer: see `LayerMethod`.

    Example:
        >>> import torch
        >>> model = torch.nn.Sequential(
        ...     torch.nn.Conv2d(3, 5, 3), torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten()
        ... )
        >>> LayerCAM(model, layer="0").attribute(torch.rand(2, 3, 6, 6)).shape
        torch.Size([2, 1, 6, 6])
    """

    name = "LayerCAM"
    family = "feature map"
    scores = "gradients"
    signed = False
    paper = "Jiang et al., LayerCAM, TIP 2021"

    def _weights(self, features: Tensor, gradient: Tensor) -> Tensor:
        return gradient.relu()
