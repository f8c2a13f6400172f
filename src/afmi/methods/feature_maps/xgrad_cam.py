"""XGrad-CAM: feature maps weighted by their mean gradient, where each place counts by its size."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from afmi.methods.gradient_methods import WeightedMapsMethod
from afmi.pictures.dimensions import places

__all__ = ["XGradCAM"]


@dataclass(frozen=True)
class XGradCAM(WeightedMapsMethod):
    """Show where the feature maps that raise the class score are active.

    S = ReLU(Σ_k α_k A^k) with α_k = Σ_ij A^k_ij ∂y_c/∂A^k_ij / Σ_ij A^k_ij, 0 where the sum of a
    map is 0. Before the ReLU its sum is that of gradient times map.

    Paper: Fu et al., *Axiom-based Grad-CAM: Towards Accurate Visualization and Explanation of
    CNNs*, BMVC 2020, Eq. 8. Differs: the authors' program adds 1e-6 to Σ_ij A^k_ij, which shrinks
    the weights of maps with small activations. The paper has maps behind a ReLU; of others the
    sum may be next to 0, and the weight large.
    Cost: 1 forward + 1 backward through the layers after ``layer``.

    Args:
        model: see `Method`.
        layer: see `LayerMethod`.

    Example:
        >>> import torch
        >>> model = torch.nn.Sequential(
        ...     torch.nn.Conv2d(3, 5, 3), torch.nn.ReLU(), torch.nn.AdaptiveAvgPool2d(1),
        ...     torch.nn.Flatten(),
        ... )
        >>> XGradCAM(model, layer="1").attribute(torch.rand(2, 3, 6, 6)).shape
        torch.Size([2, 1, 6, 6])
    """

    name = "XGrad-CAM"
    family = "feature map"
    scores = "gradients"
    signed = False
    paper = "Fu et al., Axiom-based Grad-CAM, BMVC 2020"

    def _weights(self, features: Tensor, gradient: Tensor) -> Tensor:
        over = places(features)
        total = features.sum(over, keepdim=True)
        weighted = (features * gradient).sum(over, keepdim=True)
        return torch.where(total == 0, 0.0, weighted / total)
