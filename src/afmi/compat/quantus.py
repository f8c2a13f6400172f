"""Our methods in Quantus' call shape: ``explain_func=afmi.compat.quantus.explain_func``.

Quantus itself is not needed, nor imported.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from afmi.api import MethodLike, method_of
from afmi.errors import UsageError
from afmi.network.classifier import device_of
from afmi.network.wrappers import runnable

__all__ = ["explain_func"]


def explain_func(
    model: nn.Module,
    inputs: Any,
    targets: Any,
    method: MethodLike = "AFMI",
    device: Any = None,
    **parameters: Any,
) -> np.ndarray:
    """Explain a batch as Quantus asks for it.

    Metrics pass ``explain_func_kwargs`` on, so a method and its parameters go there:
    ``explain_func_kwargs={"method": "grad-cam", "layer": "features.4"}``.

    Args:
        model: the network.
        inputs: (N, C, *spatial), as the network takes them; an array or a tensor. Floating-point
            numbers of another precision become the network's, as in Quantus' own functions.
        targets: the classes, (N,).
        method: as in `afmi.explain`.
        device: where to compute; None: where the network is. Any other is refused.
        **parameters: of the method, as in `afmi.explain`.

    Returns:
        Signed maps (N, 1, *spatial), in the inputs' dtype, not normalised.

    Raises:
        UsageError: when the method does not take a parameter, or the device is another.
        TargetError: when there is no such class.

    Example:
        >>> network = nn.Sequential(nn.Flatten(), nn.Linear(48, 2))
        >>> images = np.zeros((5, 3, 4, 4), "float32")
        >>> explain_func(network, images + 1, np.zeros(5, int), method="gradient").shape
        (5, 1, 4, 4)
    """
    network = runnable(model)
    place = device_of(network)
    if device is not None and torch.device(device).type != place.type:
        raise UsageError(
            f"expected the network on {device}, where it is to be explained, got it on {place}; "
            "move it with model.to(…), or leave the device out"
        )
    chosen = method_of(model, method, **parameters)
    images = torch.as_tensor(inputs, device=place)
    maps = chosen.attribute(_in_its_precision(network, images), targets)
    return maps.to(images.dtype).cpu().numpy()


def _in_its_precision(network: nn.Module, images: Tensor) -> Tensor:
    """Return images in the precision of a network's weights, where both are floating-point."""
    weights = next((each for each in network.parameters() if each.is_floating_point()), None)
    if weights is None or not images.is_floating_point():
        return images
    return images.to(weights.dtype)
