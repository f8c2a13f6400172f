"""Grad-CAM: feature maps weighted by their mean gradient."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from afmi.methods.gradient_methods import WeightedMapsMethod
from afmi.pictures.dimensions import places

__all__ = ["GradCAM"]


@dataclass(frozen=True)
class GradCAM(WeightedMapsMethod):
    """Show where the feature maps that raise the class score are active.

    S = ReLU(Σ_k α_k A^k) with α_k = (1/hw) Σ_ij ∂y_c/∂A^k_ij.

    Paper: Selvaraju et al., *Grad-CAM: Visual Explanations from Deep Networks via Gradient-based
    Localization*, ICCV 2017, Eq. 1–2. Differs: nothing.
    Cost: 1 forward + 1 backward through the layers after ``layer``.

    Args:
        model: see `Method`.
        layer: see `LayerMethod`.

    Example:
        >>> import torch
        >>> model = torch.nn.Sequential(
        ...     torch.nn.Conv2d(3, 5, 3), torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten()
        ... )
        >>> GradCAM(model, layer="0").attribute(torch.rand(2, 3, 6, 6)).shape
        torch.Size([2, 1, 6, 6])
    """

    name = "Grad-CAM"
    family = "feature map"
    scores = "gradients"
    signed = False
    paper = "Selvaraju et al., Grad-CAM, ICCV 2017"

    def _weights(self, features: Tensor, gradient: Tensor) -> Tensor:
        return gradient.mean(places(gradient), keepdim=True)
