"""Grad-CAM++: feature maps weighted by gradients that count each place by its share."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from afmi.methods.gradient_methods import WeightedMapsMethod
from afmi.pictures.dimensions import places

__all__ = ["GradCAMPlusPlus"]


@dataclass(frozen=True)
class GradCAMPlusPlus(WeightedMapsMethod):
    """Show where the feature maps that raise the class score are active, also on several objects.

    S = ReLU(Σ_k w_k A^k) with w_k = Σ_ij α^k_ij ReLU(g^k_ij), g = ∂y_c/∂A and
    α^k_ij = (g^k_ij)² / (2 (g^k_ij)² + Σ_ab A^k_ab (g^k_ij)³), 0 where g is 0.

    Paper: Chattopadhyay et al., *Grad-CAM++: Generalized Gradient-based Visual Explanations for
    Deep Convolutional Networks*, WACV 2018, Eq. 11 and 19, for which Y = exp(y_c) gives the
    derivatives in closed form. Differs: the factor exp(y_c) of all weights of an image is left
    out; it overflows, and only scales the map. The authors' program goes beyond the paper's
    equations and divides each map's α^k_ij by its sum over the places where g^k_ij > 0, which
    weighs maps with few such places more; we follow the equations.
    Cost: 1 forward + 1 backward through the layers after ``layer``.

    Args:
        model: see `Method`.
        layer: see `LayerMethod`.

    Example:
        >>> model = torch.nn.Sequential(
        ...     torch.nn.Conv2d(3, 5, 3), torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten()
        ... )
        >>> GradCAMPlusPlus(model, layer="0").attribute(torch.rand(2, 3, 6, 6)).shape
        torch.Size([2, 1, 6, 6])
    """

    name = "Grad-CAM++"
    family = "feature map"
    scores = "gradients"
    signed = False
    paper = "Chattopadhyay et al., Grad-CAM++, WACV 2018"

    def _weights(self, features: Tensor, gradient: Tensor) -> Tensor:
        # The quotient shortened by g²: nothing is lost where gradients are small.
        share = 2 + features.sum(places(gradient), keepdim=True) * gradient
        counted = (gradient > 0) & (share != 0)
        alpha = torch.where(counted, 1 / share, torch.zeros_like(share))
        return (alpha * gradient.relu()).sum(places(gradient), keepdim=True)
