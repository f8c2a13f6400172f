"""Pixels in as many channels as a network takes, at the depth of their source.

Bytes stay bytes; deeper data become float32 in [0, 1] without going through bytes. Red, green and
blue become grey, and grey is repeated for them; of other bands none is made up or left out.
"""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np
from PIL import Image, ImageOps

from afmi.errors import ImageError

__all__ = ["LUMA", "Pixels", "in_bytes", "pixels_of_array", "pixels_of_image", "rgb_of_image"]

Pixels: TypeAlias = Image.Image | np.ndarray
"""An RGB image of 8 bits; or an array (H, W, C), uint8 or float32 in [0, 1]."""

LUMA = (0.299, 0.587, 0.114)
"""How much red, green and blue make grey: ITU-R BT.601, as Pillow does."""

_TIFF_BITS, _TIFF_PHOTOMETRIC = 258, 262


def pixels_of_image(image: Image.Image, name: str, channels: int | None) -> Pixels:
    """Return a decoded image upright, without metadata, independent of it.

    Args:
        image: of Pillow's, loaded.
        name: what to call it in errors.
        channels: how many; None: as many as it has.

    Raises:
        ImageError: it has other bands than that, or grey values without a known white.
    """
    upright = _upright(image)
    if _is_deep(image):
        return _fit(_deep_grey(upright, image, name), name, channels)
    bands = len(upright.getbands())
    if upright.mode in ("RGBA", "RGBX", "LA") and channels in (None, bands):
        return np.array(upright)
    if channels == 1 or (channels is None and upright.mode in ("1", "L")):
        grey = upright if upright.mode == "L" else rgb_of_image(image, name).convert("L")
        if upright.has_transparency_data:
            grey = rgb_of_image(image, name).convert("L")
        return np.array(grey)[..., None]
    if channels not in (None, 3):
        raise _mismatch(name, bands, channels, f"mode {image.mode}")
    return rgb_of_image(image, name)


def rgb_of_image(image: Image.Image, name: str, channels: int | None = 3) -> Image.Image:
    """Return a decoded image as new, upright, opaque RGB of 8 bits without metadata.

    Args:
        image: of Pillow's, loaded.
        name: what to call it in errors.
        channels: three.
    """
    upright = _upright(image)
    if _is_deep(image):
        return in_bytes(_fit(_deep_grey(upright, image, name), name, 3))
    if upright.has_transparency_data:
        upright = _over_white(upright.convert("RGBA"))
    rgb = upright.convert("RGB")  # a copy at least
    rgb.info = {}
    return rgb


def pixels_of_array(
    array: np.ndarray, name: str, channels: int | None, *, alpha: bool = True
) -> np.ndarray:
    """Return an array as (H, W, channels), uint8 or float32 in [0, 1], independent of it.

    Args:
        array: (H, W) or (H, W, C), of dtype uint8, uint16, bool, or float in [0, 1].
        name: what to call it in errors.
        channels: how many; None: as many as it has.
        alpha: whether a fourth channel, where one or three are wanted, is how opaque pixels are.

    Raises:
        ImageError: its shape, dtype or range is another.
    """
    form = f"shape {array.shape}, dtype {array.dtype}"
    if array.ndim not in (2, 3) or array.size == 0:
        raise ImageError(
            f"{name} is of {form}; expected the shape (H, W) or (H, W, C): give one picture at a "
            "time, the channels last"
        )
    values = _in_range(array if array.ndim == 3 else array[..., None], name, form)
    if alpha and values.shape[2] == 4 and channels in (1, 3):
        values = _array_over_white(values)
    return _fit(values, name, channels, form)


def in_bytes(pixels: Pixels) -> Image.Image:
    """Return RGB pixels as an image of 8 bits."""
    if isinstance(pixels, Image.Image):
        return pixels
    if pixels.dtype != np.uint8:
        pixels = np.rint(pixels * np.float32(255)).astype(np.uint8)
    return Image.fromarray(np.ascontiguousarray(pixels))


def _upright(image: Image.Image) -> Image.Image:
    try:
        return ImageOps.exif_transpose(image)
    except Exception:  # damaged EXIF says nothing about the picture
        return image


def _is_deep(image: Image.Image) -> bool:
    return image.mode in ("I", "F") or image.mode.startswith("I;16")


def _deep_grey(upright: Image.Image, image: Image.Image, name: str) -> np.ndarray:
    """Return grey of more than 8 bits, float32 (H, W, 1) in [0, 1].

    Args:
        upright: whose pixels are wanted.
        image: the same as it was decoded, with the tags of its file.
        name: what to call it in errors.
    """
    values = np.asarray(upright)
    if image.mode == "F":
        grey = _in_range(values, name, f"mode {image.mode}")
    else:
        grey = values.astype(np.float32) / np.float32(_white(image, values, name))
    tags: Any = getattr(image, "tag_v2", {})
    if tags.get(_TIFF_PHOTOMETRIC, 1) == 0:  # white is 0, which Pillow leaves so beyond 8 bits
        grey = 1 - grey
    if isinstance(transparent := upright.info.get("transparency"), int):
        grey[values == transparent] = 1
    return grey[..., None]


def _white(image: Image.Image, values: np.ndarray, name: str) -> int:
    """Return the number that stands for white; of 32 bits none is agreed on."""
    tags: Any = getattr(image, "tag_v2", {})
    low, high = values.min(), values.max()
    if image.mode == "I" and image.format not in ("PNG", "PPM"):
        raise ImageError(
            f"{name} holds grey values {low} to {high} of 32 bits, which have no fixed white; "
            "expected 8 or 16 bits, or floats in [0, 1]: divide them by their white, e.g. "
            "numpy.asarray(image) / 4095"
        )
    white = 4095 if tags.get(_TIFF_BITS) == (12,) else 65535
    if not (low >= 0 and high <= white):
        raise ImageError(
            f"{name} holds grey values {low} to {high}; expected 0 to {white}: rescale it"
        )
    return white


def _in_range(array: np.ndarray, name: str, form: str) -> np.ndarray:
    """Return uint8 as it is, and other numbers as float32 in [0, 1]; a copy."""
    if array.dtype == np.uint8:
        return array.copy()
    if array.dtype == np.bool_:
        return array * np.uint8(255)
    if array.dtype.kind == "u" and array.dtype.itemsize == 2:
        return array.astype(np.float32) / np.float32(65535)
    if array.dtype.kind != "f":
        raise ImageError(
            f"{name} is of {form}; expected the dtype uint8, uint16, bool, or float in [0, 1]: "
            "divide it by the number that stands for white, e.g. array / 4095"
        )
    low, high = array.min(), array.max()
    if not (low >= -1e-6 and high <= 1 + 1e-6):  # NaN too
        raise ImageError(
            f"{name} holds floats {low:g} to {high:g}; expected a float picture in [0, 1]: divide "
            f"it by the number that stands for white, e.g. array / {255 if high <= 255 else 65535}"
        )
    return array.clip(0, 1).astype(np.float32)


def _over_white(rgba: Image.Image) -> Image.Image:
    return Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba)


def _array_over_white(values: np.ndarray) -> np.ndarray:
    """Lay colours with opacity, (H, W, 4), over white: (H, W, 3)."""
    if values.dtype == np.uint8:
        return np.array(_over_white(Image.fromarray(np.ascontiguousarray(values))))[..., :3]
    return 1 - values[..., 3:] * (1 - values[..., :3])


def _fit(values: np.ndarray, name: str, channels: int | None, form: str = "") -> np.ndarray:
    """Return pixels (H, W, C) in as many channels as wanted."""
    bands = values.shape[2]
    if channels in (None, bands):
        return values
    if (bands, channels) == (1, 3):
        return np.repeat(values, 3, axis=2)
    if (bands, channels) == (3, 1):
        if values.dtype == np.uint8:
            grey = Image.fromarray(np.ascontiguousarray(values)).convert("L")
            return np.array(grey)[..., None]
        return np.dot(values, np.array(LUMA, dtype=np.float32))[..., None]
    raise _mismatch(name, bands, channels, form, first=values.shape[0])


def _mismatch(
    name: str, bands: int, channels: int | None, form: str, *, first: int | None = None
) -> ImageError:
    plural = "" if bands == 1 else "s"
    chosen = {1: [0], 3: [2, 1, 0]}.get(channels or 0, list(range(channels or 0))[:6])
    advice = (
        f"choose them, e.g. afmi.images.read_pixels(…)[..., {chosen}], or give the model a reader "
        "that does, afmi.Classifier(…, reader=…)"
    )
    if first is not None and first in (1, 3, channels):
        advice = "move the channels last, e.g. array.transpose(1, 2, 0)"
    elif bands < (channels or 0):
        advice = f"give a picture of {channels} bands, e.g. an array (H, W, {channels})"
    return ImageError(
        f"{name} has {bands} band{plural} ({form}); expected {channels}, as many channels as the "
        f"network takes: {advice}"
    )
