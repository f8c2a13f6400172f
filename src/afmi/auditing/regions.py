"""Where in an image the feature maps lie that tell a group from the rest of its class."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from afmi.methods import AFMI
from afmi.pictures.maps import upsample
from afmi.targets import OneTarget

__all__ = ["Marked", "distinguishing_maps", "marked"]

_CARRIED = 0.5
"""Share of a group's lead that its distinguishing maps carry."""
_MOST_MAPS = 16
_RARE = 0.95
"""Share of the places in the rest of the class that a marked place is above."""
_LARGEST = 0.25
"""Share of an image that a region covers at most."""
_BATCH = 8


@dataclass(frozen=True)
class Marked:
    """Images of a group with what tells it from the rest.

    Attributes:
        images: (N, C, H, W), as the network sees them.
        cluster_maps: the exact maps of the distinguishing feature maps alone, (N, 1, H, W).
        exact_maps: those of all feature maps, (N, 1, H, W).
        regions: where the cluster map is above nearly all places in the rest of the class, but a
            quarter of the image at most, bool (N, 1, H, W).
    """

    images: Tensor
    cluster_maps: Tensor
    exact_maps: Tensor
    regions: Tensor

    def first(self, number: int) -> Marked:
        """Return the same of the first images alone."""
        parts = (self.images, self.cluster_maps, self.exact_maps, self.regions)
        return Marked(*(part[:number] for part in parts))


def distinguishing_maps(group: np.ndarray, rest: np.ndarray) -> np.ndarray:
    """Return the feature maps through which a group gets more than the rest of its class.

    The fewest that carry half of its lead, at most sixteen, the one with the largest part first.

    Args:
        group: contributions of its images, (N, K).
        rest: of the others, (M, K).

    Returns:
        Their numbers, int (D,), one at least where any has a lead.
    """
    lead = np.maximum(group.mean(0, dtype=np.float64) - rest.mean(0, dtype=np.float64), 0)
    order = np.argsort(-lead, kind="stable")
    reached = np.cumsum(lead[order]) / max(lead.sum(), np.finfo(np.float64).tiny)
    number = int(np.searchsorted(reached, _CARRIED)) + 1 if lead.any() else 0
    return order[: min(number, _MOST_MAPS)]


def marked(
    method: AFMI,
    images: Sequence[Tensor],
    target: OneTarget | None,
    maps: np.ndarray,
    rest: Marked | None = None,
) -> Marked:
    """Return images with their cluster maps, exact maps and regions.

    Args:
        method: A-FMI on the network, whose layer's maps are meant.
        images: of one size, each (1, C, H, W), on the network's device.
        target: what is explained of all of them.
        maps: the distinguishing feature maps, int (D,).
        rest: images of the rest of the class, by the same maps, which say what is marked; None:
            these are such ones themselves.
    """
    together = torch.cat(list(images))
    chosen = torch.from_numpy(maps).to(together.device)
    cluster, exact = [], []
    for batch in together.split(_BATCH):
        contributions = method.contribution_maps(batch, target)
        cluster.append(contributions[:, chosen].sum(1, keepdim=True))
        exact.append(contributions.sum(1, keepdim=True))
    sides = together.shape[2:]
    cluster_maps, exact_maps = (upsample(torch.cat(each), sides) for each in (cluster, exact))
    usual = cluster_maps if rest is None else rest.cluster_maps
    level = np.quantile(usual.cpu().numpy(), _RARE)
    regions = torch.cat([_region(one, float(level)) for one in cluster_maps])
    return Marked(together, cluster_maps, exact_maps, regions)


def _region(map: Tensor, level: float) -> Tensor:
    """Return the places (1, 1, H, W) of a map (1, H, W) that are above a level, and positive."""
    number = max(int(_LARGEST * map.numel()), 1)
    lowest = map.flatten().topk(number).values[-1]
    return ((map > max(level, 0)) & (map >= lowest))[None]
