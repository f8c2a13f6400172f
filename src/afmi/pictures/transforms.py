"""Turn images into tensors and back, and resize and crop them as networks expect."""

from __future__ import annotations

import math
from typing import TypeAlias, overload

import numpy as np
import torch
from PIL import Image

from afmi.errors import ImageError, ShapeError, UsageError, near_matches
from afmi.pictures import images
from afmi.pictures.pixels import Pixels

__all__ = ["crop_box", "resize_and_crop", "to_image", "to_tensor"]


def to_tensor(image: Pixels) -> torch.Tensor:
    """Turn an image into a tensor.

    Args:
        image: a PIL image; one that is not RGB goes through `afmi.images.read_image` first. Or an
            array (H, W, C), uint8 or float32 in [0, 1], as `afmi.images.read_pixels` gives it.

    Returns:
        Float32, shape (3, H, W) or (C, H, W), values in [0, 1], on the CPU.

    Raises:
        ImageError: the image cannot be read as RGB.

    Example:
        >>> to_tensor(Image.new("RGB", (2, 1), (255, 0, 51)))[:, 0, 0]
        tensor([1.0000, 0.0000, 0.2000])
    """
    if isinstance(image, Image.Image) and image.mode != "RGB":
        image = images.read_image(image)
    values = torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous()
    return values.float() / 255 if values.dtype == torch.uint8 else values


def to_image(tensor: torch.Tensor) -> Image.Image:
    """Turn a tensor into an image; the inverse of `to_tensor` up to rounding to 8 bits.

    Args:
        tensor: floating point, shape (3, H, W) or (1, H, W), values in [0, 1], any device.

    Returns:
        An image in mode RGB, or L for one channel.

    Raises:
        ShapeError: the shape or dtype is another.
        ImageError: a value lies outside [0, 1] by more than 0.001, or is NaN.

    Example:
        >>> to_image(torch.ones(1, 2, 3)).size
        (3, 2)
    """
    shape = tuple(tensor.shape)
    if len(shape) != 3 or shape[0] not in (1, 3) or 0 in shape or not tensor.is_floating_point():
        raise ShapeError(
            f"expected a floating point tensor (3, H, W) or (1, H, W); got {shape}, "
            f"{tensor.dtype}: give one image at a time, without the batch axis"
        )
    values = tensor.detach().to("cpu", torch.float32)
    low, high = values.min().item(), values.max().item()
    if not (low >= -1e-3 and high <= 1 + 1e-3):  # NaN too
        raise ImageError(
            f"expected values in [0, 1]; got {low:g} to {high:g}: undo the normalisation, or clamp"
        )
    array = values.clamp(0, 1).mul(255).round().to(torch.uint8).permute(1, 2, 0).numpy()
    return Image.fromarray(np.ascontiguousarray(array[..., 0] if shape[0] == 1 else array))


_Side: TypeAlias = "int | tuple[int, int] | None"


@overload
def resize_and_crop(
    image: Image.Image, resize: _Side, crop: _Side, interpolation: Image.Resampling | str = ...
) -> Image.Image: ...
@overload
def resize_and_crop(
    image: np.ndarray, resize: _Side, crop: _Side, interpolation: Image.Resampling | str = ...
) -> np.ndarray: ...


def resize_and_crop(
    image: Pixels,
    resize: _Side,
    crop: _Side,
    interpolation: Image.Resampling | str = "bilinear",
) -> Pixels:
    """Resize with antialiasing, then crop at the centre, as torchvision's classifiers expect.

    Where the resized image would be much larger than both the source and the crop, only what the
    crop keeps is resized, so that a picture of one pixel by thousands costs no more than others.

    Args:
        image: a PIL image; one that is not RGB goes through `afmi.images.read_image` first. Or an
            array (H, W, C), uint8 or float32 in [0, 1], each band of which is resized by the same
            filters: bytes come out as the bands of an RGB image do, floats unrounded.
        resize: length of the short side in pixels (the aspect ratio is kept), or the exact
            (height, width), or None to leave the size.
        crop: side of a square in pixels, or (height, width), or None not to crop.  Where the
            resized image is smaller than the crop it is padded with black.
        interpolation: "nearest", "box", "bilinear", "hamming", "bicubic" or "lanczos", or
            Pillow's constant.

    Returns:
        A new image in mode RGB, or a new array of the dtype given.

    Raises:
        UsageError: a size is not positive, the interpolation is unknown, or the result would
            have more than `afmi.images.MAX_PIXELS` pixels.
        ImageError: the image cannot be read as RGB.

    Example:
        >>> resize_and_crop(Image.new("RGB", (640, 480)), 256, 224).size
        (224, 224)
        >>> resize_and_crop(np.zeros((480, 640, 4), np.float32), 256, 224).shape
        (224, 224, 4)
    """
    resample = _resampling(interpolation)
    if isinstance(image, Image.Image):
        picture = image if image.mode == "RGB" else images.read_image(image)
        return _resized_and_cropped(picture, resize, crop, resample)
    bands = [
        np.asarray(_resized_and_cropped(Image.fromarray(band), resize, crop, resample))
        for band in np.ascontiguousarray(np.moveaxis(image, 2, 0))
    ]
    pixels = np.stack(bands, 2)
    # Bicubic and Lanczos overshoot at edges; Pillow cuts that off in bytes only.
    return pixels if pixels.dtype == np.uint8 else pixels.clip(0, 1)


def _resized_and_cropped(
    image: Image.Image, resize: _Side, crop: _Side, resample: Image.Resampling
) -> Image.Image:
    width, height = image.size
    full_height, full_width = _resized_size(height, width, resize)
    out_height, out_width = _pair("crop", crop) or (full_height, full_width)
    if out_width * out_height > images.MAX_PIXELS:
        raise UsageError(
            f"a result of {out_width} x {out_height} pixels exceeds the limit of "
            f"{images.MAX_PIXELS}: give a smaller size, or a crop"
        )
    x, pad_x, keep_width = _centre(full_width, out_width)
    y, pad_y, keep_height = _centre(full_height, out_height)
    if (full_width, full_height) == (width, height):
        piece = image.crop((x, y, x + keep_width, y + keep_height))
    elif full_width * full_height <= max(width * height, 16 * out_width * out_height):
        whole = image.resize((full_width, full_height), resample)  # torchvision's result, exactly
        piece = whole.crop((x, y, x + keep_width, y + keep_height))
    else:
        # Pillow keeps the box in single precision: cutting near it first keeps that exact.
        left, right, x0, x1 = _source_span(x, keep_width, width, full_width)
        top, bottom, y0, y1 = _source_span(y, keep_height, height, full_height)
        near = image.crop((left, top, right, bottom))
        piece = near.resize((keep_width, keep_height), resample, (x0, y0, x1, y1))
    if piece.size == (out_width, out_height):
        return piece
    canvas = Image.new(image.mode, (out_width, out_height))
    canvas.paste(piece, (pad_x, pad_y))
    return canvas


def _resized_size(height: int, width: int, resize: _Side) -> tuple[int, int]:
    if not isinstance(resize, int):
        return _pair("resize", resize) or (height, width)
    _pair("resize", resize)
    short = min(width, height)
    return int(resize * height / short), int(resize * width / short)


def crop_box(
    size: tuple[int, int], resize: _Side, crop: _Side
) -> tuple[float, float, float, float]:
    """Return which part of an image `resize_and_crop` gives, in the image's own pixels.

    Args:
        size: the image's height and width.
        resize: as in `resize_and_crop`.
        crop: as in `resize_and_crop`.

    Returns:
        The left, upper, right and lower edge. Edges beyond the image's own are of black that was
        added.

    Example:
        >>> crop_box((480, 640), 240, 200)
        (120.0, 40.0, 520.0, 440.0)
    """
    height, width = size
    full_height, full_width = _resized_size(height, width, resize)
    out_height, out_width = _pair("crop", crop) or (full_height, full_width)
    left, right = _span(width, full_width, out_width)
    top, bottom = _span(height, full_height, out_height)
    return left, top, right, bottom


def _span(source: int, full: int, out: int) -> tuple[float, float]:
    """Return, along one axis, where the result begins and ends in the source."""
    start, padding, _ = _centre(full, out)
    return (start - padding) * source / full, (start - padding + out) * source / full


def _resampling(interpolation: Image.Resampling | str) -> Image.Resampling:
    names = {member.name.lower(): member for member in Image.Resampling}
    if isinstance(interpolation, Image.Resampling):
        return interpolation
    if interpolation not in names:
        raise UsageError(
            f"unknown interpolation {interpolation!r}; expected one of {', '.join(names)}"
            + near_matches(str(interpolation), names)
        )
    return names[interpolation]


def _pair(option: str, size: int | tuple[int, int] | None) -> tuple[int, int] | None:
    """Return (height, width) of a size option."""
    if size is None:
        return None
    pair = tuple(size) if isinstance(size, (tuple, list)) else (size, size)
    if len(pair) != 2 or not all(type(n) is int and n > 0 for n in pair):
        raise UsageError(f"{option} must be a positive whole number or two of them; got {size!r}")
    return pair


def _centre(full: int, out: int) -> tuple[int, int, int]:
    """Return, along one axis, where the crop starts, the padding before it, and what is kept."""
    if full < out:
        return 0, (out - full) // 2, full
    return round((full - out) / 2), 0, out


def _source_span(start: int, kept: int, source: int, full: int) -> tuple[int, int, float, float]:
    """Find which pixels of the source make `kept` of `full` resized ones, along one axis.

    Returns:
        The first and the last source pixel (exclusive) that the widest filter can reach, and
        the start and the end of the kept part, counted from that first pixel.
    """
    scale = source / full
    begin, end = start * scale, (start + kept) * scale
    margin = 5 * max(scale, 1.0) + 2  # no filter of Pillow reaches beyond five pixels
    first, last = max(0, math.floor(begin - margin)), min(source, math.ceil(end + margin))
    return first, last, begin - first, min(end - first, float(last - first))
