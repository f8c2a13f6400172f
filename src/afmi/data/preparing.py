"""Prepare labelled pictures for a network, in as many channels as it takes."""

from __future__ import annotations

from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn

from afmi.batching import prepare
from afmi.data.fields import one_line
from afmi.errors import AfmiError, ImageError, ShapeError
from afmi.network.classifier import Classifier
from afmi.pictures.images import read_image

__all__ = ["named_error", "prepared", "prepared_or_named"]

_LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601, as Pillow turns RGB into grey


def prepared(model: nn.Module, picture: Any) -> Tensor:
    """Return a picture as the model is to see it, in as many channels as it takes."""
    channels = _channels(model)
    if not isinstance(picture, Tensor) and channels == 1:
        # Grey before it is resized; of the three equal channels that come out, one is kept.
        grey: Image.Image = read_image(picture).convert("L")
        return prepare(model, grey)[:, :1]
    image = prepare(model, picture)
    if image.shape[1] == channels:
        return image
    if image.shape[1] == 1:
        return image.expand(-1, channels, -1, -1).contiguous()
    if channels == 1 and image.shape[1] == 3:
        luma = torch.tensor(_LUMA, dtype=image.dtype, device=image.device).view(3, 1, 1)
        return (image * luma).sum(1, keepdim=True)
    raise ShapeError(
        f"the model takes {channels} channels, but the picture has {image.shape[1]}; "
        "pass a data set of tensors that fit"
    )


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


def _channels(model: nn.Module) -> int:
    if isinstance(model, Classifier):
        return model.mean.shape[0]
    convolution = next((m for m in model.modules() if isinstance(m, nn.Conv2d)), None)
    return 1 if convolution is not None and convolution.in_channels == 1 else 3
