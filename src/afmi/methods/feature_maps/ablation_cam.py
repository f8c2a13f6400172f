"""Ablation-CAM: feature maps weighted by how much the class score drops without each of them."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from afmi.gradients import ForwardPass
from afmi.gradients.replaced import ChangedMaps, batch_of
from afmi.methods.per_map import PerMapMethod
from afmi.methods.work import Work
from afmi.network.wrappers import within

__all__ = ["AblationCAM"]


@dataclass(frozen=True)
class AblationCAM(PerMapMethod):
    """Show where the feature maps are active without which the class score drops.

    S = ReLU(Σ_k w_k A^k) with w_k = (y_c − y_c^k) / |y_c|, where y_c^k is the score when all of
    A^k is set to 0.

    Paper: Desai & Ramaswamy, *Ablation-CAM: Visual Explanations for Deep Convolutional Network via
    Gradient-free Localization*, WACV 2020, Eq. 4–6. Differs: divides by |y_c| and not by y_c, which
    would turn the map around where the score is negative. (1 where it is 0.)
    Cost: 1 forward + 1 forward through the layers after ``layer`` for each feature map, whatever
    the number of classes. The maps are set to 0 in batches, each of which takes a forward through
    the whole network more, and batches hold up to 2²⁴ numbers. A network that fails on more rows
    behind the layer than before it runs whole for each map.

    Args:
        model: see `Method`.
        layer: see `LayerMethod`.
        batch_size: the most feature maps that are set to 0 at once; None: as many as are fast.

    Example:
        >>> model = torch.nn.Sequential(
        ...     torch.nn.Conv2d(3, 5, 3), torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten()
        ... )
        >>> AblationCAM(model, layer="0").attribute(torch.rand(2, 3, 6, 6)).shape
        torch.Size([2, 1, 6, 6])
    """

    name = "Ablation-CAM"
    family = "feature map"
    scores = "perturbation"
    signed = False
    paper = "Desai & Ramaswamy, Ablation-CAM, WACV 2020"
    per_map = "a few forwards + 1 forward behind the layer for each feature map"

    def _work(self, maps: Tensor) -> Work:
        count, size = maps.shape[1], self.batch_size or batch_of(maps)
        return Work(1 + math.ceil(count / size), layer_forwards=count)

    def _weights(self, inputs: Tensor, run: ForwardPass, classes: Tensor) -> Tensor:
        def ablate(maps: Tensor, start: int, stop: int) -> None:
            rows = torch.arange(stop - start, device=maps.device)
            maps[rows, rows + start] = 0

        assert run.layer is not None
        place = within(self.model).get_submodule(run.layer.name), run.layer
        weights = []
        for n in range(len(inputs)):
            one = slice(n, n + 1)
            runs = ChangedMaps(
                self.model, inputs[one], place, run.features[one], run.logits[one], self.batch_size
            )
            without = runs.logits(run.features.shape[1], ablate)[:, classes[:, n]].T
            score = run.logits[n, classes[:, n], None]
            weights.append((score - without) / torch.where(score == 0, 1.0, score.abs()))
        return torch.stack(weights, 1)
