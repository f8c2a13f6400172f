"""Photographs in memory, and batches of them made on the device: shared by both scripts.

Every picture is decoded once, brought to a short side of 144 pixels and kept as uint8 on one
square canvas, so a training batch is one gather and one resampling for all its crops.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from afmi.models.photos import INPUT_SIZE, LABELS, MEAN, STD

SHORT_SIDE = 144
CANVAS = 192
SUFFIXES = {".jpg", ".jpeg", ".png"}


def load_photo(path: Path, short_side: int = SHORT_SIDE) -> Image.Image:
    """The picture in RGB, resized (antialiased bilinear) to the given short side."""
    image = Image.open(path).convert("RGB")
    scale = short_side / min(image.size)
    size = tuple(max(short_side, round(side * scale)) for side in image.size)
    return image if size == image.size else image.resize(size, Image.Resampling.BILINEAR)


def centre_crop(image: Image.Image, width: int, height: int) -> Image.Image:
    """The middle width x height pixels of the picture."""
    left, top = (image.width - width) // 2, (image.height - height) // 2
    return image.crop((left, top, left + width, top + height))


def list_photos(folder: Path) -> list[tuple[Path, int]]:
    """Every picture under folder/<class>/ with its class index; folders are sorted by name."""
    classes = sorted(p for p in folder.iterdir() if p.is_dir())
    names = [p.name.replace("_", " ") for p in classes]
    if names != list(LABELS):
        raise SystemExit(f"{folder} must hold the folders of {LABELS}, but has {names}")
    return [
        (path, index)
        for index, folder_of_class in enumerate(classes)
        for path in sorted(folder_of_class.iterdir())
        if path.suffix.lower() in SUFFIXES
    ]


def normalise(x: Tensor) -> Tensor:
    """Images in 0..1, shape (N, 3, H, W), as the network expects them."""
    mean, std = (
        torch.tensor(v, device=x.device, dtype=x.dtype)[:, None, None] for v in (MEAN, STD)
    )
    return (x - mean) / std


def centre_crops(photos: Sequence[tuple[Path, int]]) -> tuple[Tensor, Tensor]:
    """The pictures' centre crops (uint8, N x 3 x size x size) and labels: the evaluation set."""
    crops = [np.asarray(centre_crop(load_photo(p), INPUT_SIZE, INPUT_SIZE)) for p, _ in photos]
    images = torch.from_numpy(np.stack(crops)).permute(0, 3, 1, 2).contiguous()
    return images, torch.tensor([label for _, label in photos])


@dataclass
class Photos:
    """Training pictures on a common canvas: ``images`` (uint8), their ``sizes`` (h, w), labels."""

    images: Tensor
    sizes: Tensor
    labels: Tensor

    @classmethod
    def load(cls, photos: Sequence[tuple[Path, int]], device: torch.device) -> Photos:
        """Decode the pictures; what reaches beyond the canvas is trimmed from the long side."""
        images = torch.zeros(len(photos), 3, CANVAS, CANVAS, dtype=torch.uint8)
        sizes = torch.zeros(len(photos), 2)
        for i, (path, _) in enumerate(photos):
            photo = load_photo(path)
            photo = centre_crop(photo, min(photo.width, CANVAS), min(photo.height, CANVAS))
            pixels = torch.from_numpy(np.array(photo)).permute(2, 0, 1)
            images[i, :, : photo.height, : photo.width] = pixels
            sizes[i] = torch.tensor([photo.height, photo.width])
        labels = torch.tensor([label for _, label in photos])
        return cls(images.to(device), sizes.to(device), labels.to(device))

    def batch(self, index: Tensor, size: int, min_scale: float) -> tuple[Tensor, Tensor]:
        """Normalised, augmented pictures, size x size, of the given indices, and their labels.

        Each is a random crop (an area of at least min_scale of the picture, aspect 3:4 to 4:3,
        turned by up to 10 degrees), perhaps mirrored, with its brightness, contrast and
        saturation changed (once in ten cases to grey) and perhaps a rectangle erased.
        """
        finer = 2 if 2 * size <= INPUT_SIZE else 1  # against aliasing in small pictures
        x = F.grid_sample(
            self.images[index].float().div_(255),
            _crop_grid(self.sizes[index], finer * size, min_scale),
            mode="bilinear",
            padding_mode="reflection",
            align_corners=False,
        )
        x = F.avg_pool2d(x, finer) if finer > 1 else x
        return _erase(normalise(_jitter(x))), self.labels[index]


def _uniform(n: int, low: float, high: float, device: torch.device) -> Tensor:
    return torch.rand(n, device=device) * (high - low) + low


def _crop_grid(sizes: Tensor, side: int, min_scale: float) -> Tensor:
    """Sampling grid of one random crop per picture, in the canvas's coordinates (-1..1)."""
    n, device = len(sizes), sizes.device
    h, w = sizes.unbind(1)
    area = h * w * _uniform(n, min_scale, 1.0, device)
    aspect = torch.exp(_uniform(n, -math.log(4 / 3), math.log(4 / 3), device))
    crop_h = torch.minimum((area / aspect).sqrt(), h)
    crop_w = torch.minimum((area * aspect).sqrt(), w)
    centre_y = crop_h / 2 + torch.rand(n, device=device) * (h - crop_h)
    centre_x = crop_w / 2 + torch.rand(n, device=device) * (w - crop_w)
    angle = _uniform(n, -math.pi / 18, math.pi / 18, device)
    angle = torch.where(torch.rand(n, device=device) < 0.5, angle, torch.zeros_like(angle))
    mirror = torch.where(torch.rand(n, device=device) < 0.5, 1.0, -1.0)
    cos, sin = angle.cos(), angle.sin()
    theta = torch.stack(
        [
            torch.stack([mirror * crop_w * cos, -crop_h * sin, 2 * centre_x - CANVAS], 1),
            torch.stack([mirror * crop_w * sin, crop_h * cos, 2 * centre_y - CANVAS], 1),
        ],
        1,
    )
    grid = F.affine_grid(theta, [n, 3, side, side], align_corners=False)
    # Stay inside the picture: beyond it the canvas is black.
    limit = 2 * sizes.flip(1)[:, None, None, :] - CANVAS - 1
    return torch.minimum(grid, limit) / CANVAS


def _jitter(x: Tensor) -> Tensor:
    """Change brightness, contrast and saturation of each picture (values in 0..1)."""
    n, device = len(x), x.device
    brightness, contrast, saturation = (
        _uniform(n, 0.7, 1.3, device)[:, None, None, None] for _ in range(3)
    )
    grey_only = (torch.rand(n, device=device) < 0.1)[:, None, None, None]
    saturation = torch.where(grey_only, torch.zeros_like(saturation), saturation)
    weights = torch.tensor([0.299, 0.587, 0.114], device=device)[:, None, None]
    x = x * brightness
    grey = (x * weights).sum(1, keepdim=True)
    x = grey + (x - grey) * saturation
    mean = grey.mean((2, 3), keepdim=True)
    return (mean + (x - mean) * contrast).clamp_(0, 1)


def _erase(x: Tensor, probability: float = 0.25) -> Tensor:
    """Set a random rectangle (a fifth to a half of each side) of some pictures to the mean."""
    n, device = len(x), x.device
    inside = torch.rand(n, device=device)[:, None] < probability
    for dim in (2, 3):
        side = x.shape[dim]
        length = _uniform(n, 0.2, 0.5, device) * side
        start = torch.rand(n, device=device) * (side - length)
        at = torch.arange(side, device=device)
        hit = (at >= start[:, None]) & (at < (start + length)[:, None])
        inside = inside[..., None] & hit[:, None, :] if dim == 3 else inside & hit
    return x.masked_fill(inside[:, None], 0.0)
