"""Eigen-CAM: the feature maps' first principal component, whatever the class."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from afmi.gradients import layer_pass
from afmi.methods.base import Attribution, LayerMethod
from afmi.methods.work import Work
from afmi.network.layers import LayerChoice
from afmi.targets import Columns

__all__ = ["EigenCAM"]


@dataclass(frozen=True)
class EigenCAM(LayerMethod):
    """Show the places that stand out in the feature maps, with no regard to the class.

    S = A v_1, with A (h·w, K) the feature maps and v_1 the first right singular vector of
    A = U Σ Vᵀ; so S = σ_1 u_1. It is the same map for every class and every other target.
    The sign, which the decomposition leaves open, is that by which the map's sum is positive. Not
    negative anywhere where the feature maps are not.

    Paper: Muhammad & Yeasin, *Eigen-CAM: Class Activation Map using Principal Components*, IJCNN
    2020, Eq. 3–4. Differs: says the sign. The maps are not centred, as in the paper.
    Cost: 1 forward.

    Args:
        model: see `Method`.
        layer: see `LayerMethod`.

    Example:
        >>> model = torch.nn.Sequential(
        ...     torch.nn.Conv2d(3, 5, 3), torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten()
        ... )
        >>> method, images = EigenCAM(model, layer="0"), torch.rand(2, 3, 6, 6)
        >>> torch.equal(method.attribute(images, 1), method.attribute(images, 2))
        True
    """

    name = "Eigen-CAM"
    family = "feature map"
    scores = "principal component"
    signed = False
    paper = "Muhammad & Yeasin, Eigen-CAM, IJCNN 2020"

    def work(self, inputs: Tensor) -> Work:
        """See `Method.work`."""
        return Work(1)

    def _attribute(self, inputs: Tensor, columns: Columns) -> Attribution:
        run = layer_pass(self.model, inputs, LayerChoice(self.layer))
        maps = _component(run.features).to(run.features.dtype)
        return Attribution(maps, columns.of(run.logits), run.logits, layer=run.layer)


def _component(features: Tensor) -> Tensor:
    """Return σ_1 u_1 (N, 1, *spatial) of feature maps (N, K, *spatial)."""
    flat = features.flatten(2).mT
    flat = flat.to(torch.promote_types(flat.dtype, torch.float32))
    left, values, _ = torch.linalg.svd(flat, full_matrices=False)
    map_ = left[:, :, 0] * values[:, :1]
    map_ = torch.where(map_.sum(1, keepdim=True) < 0, -map_, map_)
    return map_.view(len(features), 1, *features.shape[2:])
