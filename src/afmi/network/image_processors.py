"""Translate the settings of image processors of transformers into a `Preprocessing`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from PIL import Image

from afmi.network.preprocessing import Preprocessing

__all__ = ["DEFAULT", "at_size", "preprocessing_of"]

DEFAULT = Preprocessing((0.485, 0.456, 0.406), (0.229, 0.224, 0.225), resize=256, crop=224)
"""Where nothing else is known: ImageNet's statistics, and the central 224 of 256 pixels."""


def preprocessing_of(kind: str, settings: Mapping[str, Any]) -> Preprocessing:
    """Return the preprocessing of an image processor.

    Args:
        kind: name of its class, which says how some of the settings are meant.
        settings: as its ``to_dict`` returns them. Missing ones are off.
    """
    mean, std = _normalisation(settings)
    resample = settings.get("resample")
    resample = Image.Resampling.BILINEAR if resample is None else Image.Resampling(int(resample))
    preprocessing = Preprocessing(mean, std, interpolation=resample)
    size = dict(settings.get("size") or {}) if settings.get("do_resize") else {}
    short, exact = size.get("shortest_edge"), _pair(size)
    crop = _pair(settings.get("crop_size") or {}) if settings.get("do_center_crop") else None
    part = settings.get("crop_pct")
    if kind.startswith("ConvNext") and short and part:
        # Large pictures are squeezed into the square and not cropped.
        preprocessing = replace(
            preprocessing, crop=short, resize=int(short / part) if short < 384 else (short,) * 2
        )
    elif kind.startswith("PoolFormer") and part and (short or (exact and len({*exact}) == 1)):
        preprocessing = replace(preprocessing, resize=int((short or max(exact or ())) / part))
    elif kind.startswith("Levit") and short:
        preprocessing = replace(preprocessing, resize=int(256 / 224 * short))
    elif settings.get("do_resize"):
        if not exact and (not short or "longest_edge" in size):
            why = f"afmi cannot prepare pictures as the model asks for ({kind} with size {size})"
            return replace(preprocessing, unknown=("resize", "crop"), why=why)
        preprocessing = replace(preprocessing, resize=exact or short)
    return replace(preprocessing, crop=_simple(crop)) if crop else preprocessing


def _normalisation(settings: Mapping[str, Any]) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return the mean and standard deviation that all rescaling of images in [0, 1] amounts to."""
    mean, std = (0.0,) * 3, (1.0,) * 3
    if settings.get("do_normalize"):
        given = (settings[f"image_{key}"] for key in ("mean", "std"))
        mean, std = (tuple(map(float, v if isinstance(v, Sequence) else [v] * 3)) for v in given)
    factor = float(settings["rescale_factor"]) if settings.get("do_rescale") else 1.0
    if settings.get("do_rescale") and settings.get("rescale_offset"):
        mean = tuple(m + 1 for m in mean)  # EfficientNet's values lie in [-1, 1] before
    scale = 255 * factor  # what white becomes
    mean, spread = tuple(m / scale for m in mean), tuple(s / scale for s in std)
    if settings.get("include_top"):  # EfficientNet's top was trained on values divided twice
        spread = tuple(a * b for a, b in zip(spread, std, strict=True))
    return mean, spread


def _pair(size: Any) -> tuple[int, int] | None:
    height, width = size.get("height"), size.get("width")
    return (int(height), int(width)) if height and width else None


def _simple(pair: tuple[int, int]) -> int | tuple[int, int]:
    return pair[0] if pair[0] == pair[1] else pair


def at_size(preprocessing: Preprocessing, size: int | tuple[int, int]) -> Preprocessing:
    """Return the preprocessing for another image size, with the same share of the picture cropped.

    Args:
        preprocessing: for the old size.
        size: side of the square, or (height, width).
    """
    sides = (size, size) if isinstance(size, int) else (int(size[0]), int(size[1]))
    size_before = preprocessing.crop or preprocessing.resize
    if preprocessing.unknown:
        return preprocessing
    if size_before is None:
        return replace(preprocessing, crop=_simple(sides), resize=sides)
    before = (size_before,) * 2 if isinstance(size_before, int) else size_before
    if before == sides:
        return preprocessing
    resize = preprocessing.resize
    if isinstance(resize, int) and sides[0] == sides[1]:
        resize = round(resize * sides[0] / before[0])
    elif resize is not None:
        was = (resize, resize) if isinstance(resize, int) else resize
        resize = tuple(round(w * s / b) for w, s, b in zip(was, sides, before, strict=True))
    return replace(preprocessing, crop=_simple(sides), resize=resize)
