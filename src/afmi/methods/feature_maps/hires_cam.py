"""HiResCAM: feature maps weighted place by place by their gradient."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from afmi.methods.gradient_methods import WeightedMapsMethod

__all__ = ["HiResCAM"]


@dataclass(frozen=True)
class HiResCAM(WeightedMapsMethod):
    """Show what each place of the feature maps adds to the class score, to first order.

    S = Σ_k ∂y_c/∂A^k ⊙ A^k. Signed, no ReLU. It is `GradCAM` without the mean over positions. Where
    one linear layer follows the maps it sums to y_c less that layer's bias.

    Paper: Draelos & Carin, *Use HiResCAM instead of Grad-CAM for faithful explanations of
    convolutional neural networks*, 2020, Eq. 3. Differs: nothing.
    Cost: 1 forward + 1 backward through the layers after ``layer``.

    Args:
        model: see `Method`.
        layer: see `LayerMethod`.

    Example:
        >>> import torch
        >>> model = torch.nn.Sequential(
        ...     torch.nn.Conv2d(3, 5, 3), torch.nn.Flatten(), torch.nn.Linear(80, 2, bias=False)
        ... )
        >>> image = torch.rand(1, 3, 6, 6)
        >>> map = HiResCAM(model, layer="0").attribution(image, target=1)
        >>> map.maps.shape
        torch.Size([1, 1, 6, 6])
    """

    name = "HiResCAM"
    family = "feature map"
    scores = "gradients"
    signed = True
    paper = "Draelos & Carin, Use HiResCAM instead of Grad-CAM, 2020"

    def _weights(self, features: Tensor, gradient: Tensor) -> Tensor:
        return gradient

    def _rectified(self, maps: Tensor) -> Tensor:
        return maps
