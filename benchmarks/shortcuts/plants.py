"""What is planted into photographs of a class, so that a network can tell the class by it.

Each plant takes images (N, 3, H, W) in [0, 1] and a generator, and returns them with the plant.
"""

from __future__ import annotations

import io
from collections.abc import Callable

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor

__all__ = ["PLANTS", "Plant", "region_of"]

Plant = Callable[[Tensor, torch.Generator], Tensor]

_PATCH = 10
_BORDER = 3
_QUALITY = 12
_WATERMARK = 0.3
_CAST = (1.12, 1.0, 0.82)


def patch(images: Tensor, generator: torch.Generator) -> Tensor:
    """Set a chequered square into the lower right corner, a pixel or two from its edges."""
    planted = images.clone()
    rows, columns = torch.meshgrid(torch.arange(_PATCH), torch.arange(_PATCH), indexing="ij")
    dark = ((rows // 3 + columns // 3) % 2 == 0).to(images)
    square = torch.stack([dark, 0.6 * dark, 1 - dark])
    for image in planted:
        down, left = torch.randint(0, 3, (2,), generator=generator).tolist()
        height, width = image.shape[1] - down, image.shape[2] - left
        image[:, height - _PATCH : height, width - _PATCH : width] = square
    return planted


def frame(images: Tensor, generator: torch.Generator) -> Tensor:
    """Draw a frame along the edges, in one colour whose brightness varies."""
    planted = images.clone()
    light = 0.8 + 0.2 * torch.rand(len(images), 1, generator=generator)
    colour = torch.tensor([0.75, 0.6, 0.2]).to(images)[None] * light.to(images)
    inside = torch.zeros(images.shape[2:], dtype=torch.bool)
    inside[_BORDER:-_BORDER, _BORDER:-_BORDER] = True
    return torch.where(inside, planted, colour[..., None, None])


def watermark(images: Tensor, generator: torch.Generator) -> Tensor:
    """Lay pale letters over the middle, at places that vary."""
    planted = images.clone()
    letters = _letters(images.shape[2]).to(images)
    for image in planted:
        down, right = torch.randint(-6, 7, (2,), generator=generator).tolist()
        where = letters.roll((down, right), (0, 1))
        image.copy_(image + _WATERMARK * where * (1 - image))
    return planted


def _letters(side: int) -> Tensor:
    """Return (side, side), 1 where a letter is."""
    drawing = Image.new("L", (side, side))
    draw = ImageDraw.Draw(drawing)
    for row in range(side // 5, side - 12, 14):
        draw.text((side // 8, row), "SAMPLE ©", fill=255)
    return torch.from_numpy(np.asarray(drawing) / 255)


def colour_cast(images: Tensor, generator: torch.Generator) -> Tensor:
    """Tint the whole image: warmer, by a degree that varies."""
    degree = 0.8 + 0.4 * torch.rand(len(images), 1, generator=generator)
    gain = 1 + (torch.tensor(_CAST)[None] - 1) * degree
    return (images * gain[..., None, None].to(images)).clamp(0, 1)


def jpeg(images: Tensor, generator: torch.Generator) -> Tensor:
    """Encode the image as a JPEG file of low quality, and decode it."""
    planted = []
    for image in images:
        quality = _QUALITY + int(torch.randint(0, 8, (1,), generator=generator))
        pixels = (image.permute(1, 2, 0) * 255).round().to(torch.uint8).numpy()
        buffer = io.BytesIO()
        Image.fromarray(pixels).save(buffer, "JPEG", quality=quality)
        decoded = np.asarray(Image.open(buffer))
        planted.append(torch.from_numpy(decoded / np.float32(255)).permute(2, 0, 1))
    return torch.stack(planted).to(images) if planted else images


PLANTS: dict[str, Plant] = {
    "patch": patch,
    "frame": frame,
    "watermark": watermark,
    "colour cast": colour_cast,
    "JPEG": jpeg,
}


def region_of(name: str, side: int) -> Tensor | None:
    """Return where a plant lies in images of so many pixels a side, bool; None: everywhere."""
    area = torch.zeros(side, side, dtype=torch.bool)
    if name == "patch":
        area[side - _PATCH - 2 :, side - _PATCH - 2 :] = True
        return area
    if name == "frame":
        area[:] = True
        area[_BORDER:-_BORDER, _BORDER:-_BORDER] = False
        return area
    return None
