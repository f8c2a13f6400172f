"""How many channels a network's images have, as its first layer says."""

from __future__ import annotations

from torch import nn
from torch.nn.modules.conv import _ConvNd

__all__ = ["first_channels"]

_NORMALISATIONS = (nn.BatchNorm2d, nn.InstanceNorm2d)
_REARRANGED = (nn.PixelUnshuffle, nn.PixelShuffle, nn.Unfold, nn.Fold)


def first_channels(network: nn.Module) -> int | None:
    """Return the channels that the first layer takes, in the order in which layers were made.

    None: it cannot be read there. The first layer with weights is no convolution or is not set up
    yet, or a module before it, such as one from pixels to channels, may rearrange what comes.

    Example:
        >>> first_channels(nn.Sequential(nn.Conv2d(4, 8, 3), nn.Conv2d(8, 2, 3)))
        4
    """
    for module in network.modules():
        if isinstance(module, _ConvNd):
            return module.in_channels or None
        if isinstance(module, _NORMALISATIONS):
            return module.num_features or None
        if not list(module.children()) and not _keeps_channels(module):
            return None
    return None


def _keeps_channels(layer: nn.Module) -> bool:
    weighted = next(layer.parameters(recurse=False), None) is not None
    of_torch = type(layer).__module__.startswith("torch.nn.modules.")
    return of_torch and not weighted and not isinstance(layer, _REARRANGED)
