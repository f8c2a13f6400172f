"""How many channels a network's images have, as its first layer says."""

from __future__ import annotations

from torch import nn

__all__ = ["first_channels"]

_NORMALISATIONS = (nn.BatchNorm2d, nn.InstanceNorm2d)
_REARRANGED = (nn.PixelUnshuffle, nn.PixelShuffle, nn.Unfold, nn.Fold)


def first_channels(network: nn.Module) -> int | None:
    """Return the channels that the first layer takes, in the order in which layers were made.

    None: it cannot be read there; the first layer with weights is no convolution, is not set up
    yet, or takes pixels that were rearranged.

    Example:
        >>> first_channels(nn.Sequential(nn.Conv2d(4, 8, 3), nn.Conv2d(8, 2, 3)))
        4
    """
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            return module.in_channels or None
        if isinstance(module, _NORMALISATIONS):
            return module.num_features or None
        weighted = next(module.parameters(recurse=False), None) is not None
        if isinstance(module, _REARRANGED) or (weighted and not list(module.children())):
            return None
    return None
