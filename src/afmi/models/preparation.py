"""Read how an image processor of transformers prepares pictures, and do the same by a `View`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from PIL import Image

from afmi.models.building import View

__all__ = ["DEFAULT", "at_size", "view_of"]

DEFAULT = View((0.485, 0.456, 0.406), (0.229, 0.224, 0.225), resize=256, crop=224)
"""How pictures are seen where nothing says how: as ImageNet's, at 224 of 256 pixels."""


def view_of(kind: str, settings: Mapping[str, Any]) -> View:
    """Return how an image processor's pictures are seen.

    Args:
        kind: name of its class, which says how some of the settings are meant.
        settings: as its ``to_dict`` gives them. What is missing is off.
    """
    mean, std = _normalisation(settings)
    resample = settings.get("resample")
    resample = Image.Resampling.BILINEAR if resample is None else Image.Resampling(int(resample))
    view = View(mean, std, interpolation=resample)
    size = dict(settings.get("size") or {}) if settings.get("do_resize") else {}
    short, exact = size.get("shortest_edge"), _pair(size)
    crop = _pair(settings.get("crop_size") or {}) if settings.get("do_center_crop") else None
    part = settings.get("crop_pct")
    if kind.startswith("ConvNext") and short and part:
        # Large pictures are squeezed into the square and not cropped.
        view = replace(view, crop=short, resize=int(short / part) if short < 384 else (short,) * 2)
    elif kind.startswith("PoolFormer") and part and (short or (exact and len({*exact}) == 1)):
        view = replace(view, resize=int((short or max(exact or ())) / part))
    elif kind.startswith("Levit") and short:
        view = replace(view, resize=int(256 / 224 * short))
    elif settings.get("do_resize"):
        if not exact and (not short or "longest_edge" in size):
            why = f"afmi cannot prepare pictures as the model asks for ({kind} with size {size})"
            return replace(view, unknown=("resize", "crop"), why=why)
        view = replace(view, resize=exact or short)
    return replace(view, crop=_simple(crop)) if crop else view


def _normalisation(settings: Mapping[str, Any]) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return the mean and deviation, for images in [0, 1], of all that is done to their values."""
    mean, std = (0.0,) * 3, (1.0,) * 3
    if settings.get("do_normalize"):
        mean, std = (tuple(_each(settings[f"image_{key}"])) for key in ("mean", "std"))
    factor = float(settings["rescale_factor"]) if settings.get("do_rescale") else 1.0
    if settings.get("do_rescale") and settings.get("rescale_offset"):
        mean = tuple(m + 1 for m in mean)  # EfficientNet's values lie in [-1, 1] before
    scale = 255 * factor  # what white becomes
    mean, spread = tuple(m / scale for m in mean), tuple(s / scale for s in std)
    if settings.get("include_top"):  # EfficientNet's top was trained on values divided twice
        spread = tuple(a * b for a, b in zip(spread, std, strict=True))
    return mean, spread


def _each(value: Any) -> list[float]:
    return [float(value)] * 3 if isinstance(value, (int, float)) else [float(v) for v in value]


def _pair(size: Any) -> tuple[int, int] | None:
    height, width = size.get("height"), size.get("width")
    return (int(height), int(width)) if height and width else None


def _simple(pair: tuple[int, int]) -> int | tuple[int, int]:
    return pair[0] if pair[0] == pair[1] else pair


def at_size(view: View, size: int | tuple[int, int]) -> View:
    """Return the view for images of another size, cropped from as much of the picture.

    Args:
        view: how pictures are seen.
        size: side of the square, or (height, width).
    """
    sides = (size, size) if isinstance(size, int) else (int(size[0]), int(size[1]))
    seen = view.crop or view.resize
    if view.unknown:
        return view
    if seen is None:
        return replace(view, crop=_simple(sides), resize=sides)
    before = (seen, seen) if isinstance(seen, int) else seen
    if before == sides:
        return view
    resize = view.resize
    if isinstance(resize, int) and sides[0] == sides[1]:
        resize = round(resize * sides[0] / before[0])
    elif resize is not None:
        was = (resize, resize) if isinstance(resize, int) else resize
        resize = tuple(round(w * s / b) for w, s, b in zip(was, sides, before, strict=True))
    return replace(view, crop=_simple(sides), resize=resize)
