"""Images of one, two or three dimensions: signals, pictures and volumes, (N, C, *spatial).

Signals are (N, C, L), pictures (N, C, H, W) and volumes (N, C, D, H, W).
"""

from __future__ import annotations

from torch import Tensor

__all__ = ["ANY_FORM", "FORMS", "beside", "places", "plane"]

FORMS = {1: "signals (N, C, L)", 2: "images (N, C, H, W)", 3: "volumes (N, C, D, H, W)"}
"""What a batch is called, by its number of spatial dimensions."""

ANY_FORM = "images (N, C, H, W), signals (N, C, L) or volumes (N, C, D, H, W)"


def places(tensor: Tensor, before: int = 2) -> tuple[int, ...]:
    """Return the dimensions that hold places: all but those ``before`` them.

    Args:
        tensor: (N, C, *spatial), or with another number of dimensions in front.
        before: how many these are.
    """
    return tuple(range(before, tensor.dim()))


def beside(values: Tensor, images: Tensor) -> Tensor:
    """Return one value an image, (N,), in the shape (N, 1, …, 1) that broadcasts to the images."""
    return values.view(-1, *[1] * (images.dim() - 1))


def plane(images: Tensor) -> int:
    """Return the shorter side of images (N, C, *spatial), to which lengths in pixels refer.

    That of a signal is its length. That of a volume is taken in the plane of its slices, of which
    there are often few.
    """
    return min(images.shape[2:][-2:])
