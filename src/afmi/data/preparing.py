"""Prepare labelled pictures for a network, in as many channels as it takes."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from afmi.batching import prepare
from afmi.errors import AfmiError, ImageError, ShapeError, one_line
from afmi.network.checking import first_convolution
from afmi.network.classifier import input_channels
from afmi.pictures.pixels import LUMA

__all__ = ["named_error", "prepared", "prepared_or_named"]


def prepared(model: nn.Module, picture: Any) -> Tensor:
    """Return a picture as the model is to see it, in as many channels as it takes."""
    channels = input_channels(model)
    first = first_convolution(model)
    flat = first is None or first[0] == 2  # neither a signal nor a volume
    if flat and _is_picture(picture):
        picture = _in_channels(picture, channels)
        if picture.shape[-3] != channels:
            raise ShapeError(
                f"the model takes {channels} channels, but the picture has {picture.shape[-3]}; "
                "pass a data set of tensors that fit"
            )
    return prepare(model, picture)


def _is_picture(picture: Any) -> bool:
    if not isinstance(picture, Tensor) or not picture.is_floating_point():
        return False
    return picture.dim() in (3, 4)


def _in_channels(image: Tensor, channels: int) -> Tensor:
    """Repeat grey for three channels, and make grey of three for one."""
    if (image.shape[-3], channels) == (1, 3):
        return image.repeat_interleave(3, -3)
    if (image.shape[-3], channels) == (3, 1):
        luma = torch.tensor(LUMA, dtype=image.dtype, device=image.device).view(3, 1, 1)
        return (image * luma).sum(-3, keepdim=True)
    return image


def prepared_or_named(model: nn.Module, picture: Any, where: str) -> Tensor:
    """Return a picture as `prepared` does; errors name the picture.

    Raises:
        ImageError: it cannot be read or prepared.
    """
    try:
        return prepared(model, picture)
    except AfmiError as error:
        named = named_error(error, where)
        if named is error:
            raise
        raise named from error


def named_error(error: Exception, where: str) -> ImageError:
    """Return an error that names the picture that it is about."""
    unread = isinstance(error, ImageError) or not isinstance(error, AfmiError)
    if isinstance(error, ImageError) and where in str(error):
        return error
    what = "read" if unread else "prepared for the network"
    return ImageError(f"{where} cannot be {what}: {one_line(error)}")
