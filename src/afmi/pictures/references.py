"""Reference images x̄: what an image is compared with.

A reference is called with the images and returns (R, C, H, W) in the images' dtype and on their
device; with signals (N, C, L) or volumes (N, C, D, H, W), references of their shape. Through a
`Classifier` pixels lie in [0, 1], so 0 is black; a bare network takes its inputs as they are, and
the references' numbers too.
"""

from __future__ import annotations

import math
import numbers
import os
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

import numpy as np
import PIL.Image
import torch
from torch import Tensor

from afmi import specs
from afmi.errors import ShapeError, UsageError
from afmi.pictures.dimensions import FORMS
from afmi.pictures.images import ImageSource, read_channels, read_pixels
from afmi.pictures.matrices import BLUR_SHARE, along_each, blurring
from afmi.pictures.pixels import LUMA
from afmi.pictures.transforms import resize_and_crop, to_tensor

__all__ = [
    "REFERENCES",
    "Black",
    "Blurred",
    "Image",
    "Mean",
    "Random",
    "Reference",
    "ReferenceLike",
    "Several",
    "White",
    "reference_of",
]


class Reference(ABC):
    """Makes the reference images for a batch of images."""

    per_image: bool = False
    """Whether each image has its own reference: then R = N and row i belongs to image i."""

    @abstractmethod
    def __call__(self, inputs: Tensor) -> Tensor:
        """Return reference images (R, C, *spatial) for images (N, C, *spatial)."""

    def for_each(self, inputs: Tensor) -> Tensor:
        """Return the references of each image, (N, R, C, *spatial); R is 1 if each has its own."""
        images = self(inputs)
        if self.per_image:
            return images[:, None]
        return images[None].expand(inputs.shape[0], *images.shape)

    def count(self, inputs: Tensor) -> int:
        """Return how many references each of the images (N, C, *spatial) is compared with."""
        return self.for_each(inputs[:1]).shape[1]

    def __str__(self) -> str:
        return specs.text(self)


@dataclass(frozen=True)
class Black(Reference):
    """All pixels 0, the paper's default.

    Example:
        >>> Black()(torch.rand(5, 3, 2, 2)).sum().item()
        0.0
    """

    def __call__(self, inputs: Tensor) -> Tensor:
        return torch.zeros_like(inputs[:1])


@dataclass(frozen=True)
class White(Reference):
    """All pixels 1."""

    def __call__(self, inputs: Tensor) -> Tensor:
        return torch.ones_like(inputs[:1])


@dataclass(frozen=True)
class Random(Reference):
    """Pixels drawn uniformly from [0, 1), each by itself.

    Args:
        samples: how many images to draw; the maps against them are averaged.
        seed: of the generator.
    """

    samples: int = 1
    seed: int = 0

    def __post_init__(self) -> None:
        if self.samples < 1:
            raise UsageError(f"expected at least 1 random reference, got samples={self.samples}")

    def __call__(self, inputs: Tensor) -> Tensor:
        # Drawn on the CPU in float32, so that every device and dtype gets the same numbers.
        size = (self.samples, *inputs.shape[1:])
        drawn = torch.rand(
            size,
            generator=torch.Generator("cpu").manual_seed(self.seed),
            dtype=torch.float32,
            device="cpu",
        )
        return drawn.to(inputs)


@dataclass(frozen=True)
class Blurred(Reference):
    """Each image itself, blurred by a Gaussian until no detail is left.

    Args:
        sigma: standard deviation in pixels; None: a tenth of the shorter side. Across the slices
            of a volume, of which there are often few, None is a tenth of their number.
    """

    sigma: float | None = None
    per_image = True

    def __post_init__(self) -> None:
        if self.sigma is not None and not self.sigma > 0:
            raise UsageError(f"expected a sigma above 0 pixels, got {self.sigma}")

    def __call__(self, inputs: Tensor) -> Tensor:
        matrices = blurring(inputs, BLUR_SHARE, sigma=self.sigma)
        return along_each(matrices, inputs.detach())


@dataclass(frozen=True)
class Mean(Reference):
    """One colour everywhere: a data set's mean.

    Args:
        color: one number per channel, in [0, 1], or one for all; the default is ImageNet's mean.
            On one channel red, green and blue are the grey that they make.
    """

    color: tuple[float, ...] = (0.485, 0.456, 0.406)

    def __post_init__(self) -> None:
        if not self.color or not all(map(math.isfinite, self.color)):
            raise UsageError(f"expected a finite number for each channel, got color={self.color}")

    def __call__(self, inputs: Tensor) -> Tensor:
        color = torch.tensor(self.color, dtype=inputs.dtype, device=inputs.device)
        channels = inputs.shape[1]
        if color.unique().numel() == 1:
            color = color[:1].expand(channels)
        elif (color.numel(), channels) == (3, 1):
            color = (color * color.new_tensor(LUMA)).sum(0, keepdim=True)
        elif color.numel() != channels:
            raise ShapeError(
                f"expected {channels} numbers, one for each channel, got {len(self.color)}; pass "
                "the means of your data, Mean(color=(…)), or one number for all channels"
            )
        shaped = color.view(1, -1, *[1] * (inputs.dim() - 2))
        return shaped.expand(1, *inputs.shape[1:]).contiguous()


@dataclass(frozen=True, eq=False)
class Image(Reference):
    """A given picture.

    Args:
        source: tensor (C, *spatial) or (R, C, *spatial) in the images' own range and size; or a
            file, or a picture as `afmi.images.read_pixels` takes it, which is resized and cropped
            to the images' size. It is read in the images' channels; what only a model's reader can
            read, give as a tensor, ``model.prepare(file)``.
    """

    source: Tensor | ImageSource
    _tensor: Tensor | None = field(init=False, repr=False, default=None)

    def __post_init__(self) -> None:
        if isinstance(self.source, Tensor):
            if self.source.dim() not in (2, 3, 4, 5) or not self.source.is_floating_point():
                raise ShapeError(
                    "expected a reference image (C, H, W) or images (R, C, H, W), floating point, "
                    f"got {tuple(self.source.shape)} {self.source.dtype}; divide bytes by 255"
                )
            if not bool(self.source.isfinite().all()):
                raise UsageError("expected finite pixels, got NaN or infinity in the reference")
            # A copy: what the caller does with the tensor later must not change cached runs.
            object.__setattr__(self, "_tensor", self.source.detach().clone())
        elif not isinstance(self.source, (str, os.PathLike)):
            object.__setattr__(self, "source", read_pixels(self.source))

    def __call__(self, inputs: Tensor) -> Tensor:
        if self._tensor is None:
            assert not isinstance(self.source, Tensor)
            if inputs.dim() != 4:
                raise ShapeError(
                    f"expected a reference of shape {tuple(inputs.shape[1:])}, as a tensor, for "
                    f"{FORMS.get(inputs.dim() - 2)}, got a picture"
                )
            height, width = inputs.shape[-2:]
            picture = read_channels(self.source, inputs.shape[1])
            rows, columns = np.asarray(picture).shape[:2]
            short = round(max(height / rows, width / columns) * min(rows, columns))
            picture = resize_and_crop(picture, max(short, 1), (height, width))
            return to_tensor(picture)[None].to(inputs)
        given = self._tensor if self._tensor.dim() == inputs.dim() else self._tensor[None]
        if given.shape[1:] != inputs.shape[1:]:
            raise ShapeError(
                f"expected a reference image of the images' shape {tuple(inputs.shape[1:])}, got "
                f"{tuple(given.shape[1:])}; resize it"
            )
        return given.to(inputs)


ReferenceLike: TypeAlias = (
    "Reference | type[Reference] | ImageSource | Tensor | float | Sequence[ReferenceLike]"
)


def reference_of(given: ReferenceLike) -> Reference:
    """Return the reference that a user meant.

    Args:
        given: a `Reference` or the class of one; its name (``"white"``) or a file of a picture; a
            picture (PIL, or an array (H, W, C)); a tensor (C, *spatial) or (R, C, *spatial); a
            number, the value of every pixel; numbers, one for each channel; or a list of several
            of these.

    Raises:
        UsageError: when it is none of these.

    Example:
        >>> reference_of(0.5), reference_of("white")
        (Mean(color=(0.5,)), White())
    """
    if isinstance(given, type) and issubclass(given, Reference):
        given = given()
    if isinstance(given, Reference):
        return given
    if isinstance(given, str):
        return specs.parse(given, Reference)
    pictures = (os.PathLike, PIL.Image.Image)
    if isinstance(given, pictures) or (isinstance(given, (Tensor, np.ndarray)) and given.ndim >= 2):
        return Image(given)
    if _is_number(given):
        return Mean((float(given),))  # type: ignore[arg-type]
    if isinstance(given, (tuple, list)) and given:
        if all(map(_is_number, given)):
            return Mean(tuple(float(number) for number in given))  # type: ignore[arg-type]
        return Several([reference_of(one) for one in given])
    form = f"a tensor {tuple(given.shape)}" if isinstance(given, Tensor) else repr(given)
    raise UsageError(
        "expected a reference such as Black(), 'white', a file, a picture, a tensor (C, H, W) or a "
        f"number, got {form}"
    )


def _is_number(value: object) -> bool:
    if isinstance(value, Tensor) and value.dim() == 0:
        value = value.item()
    return isinstance(value, numbers.Real) and not isinstance(value, bool)


@dataclass(frozen=True)
class Several(Reference):
    """Several references at once; the maps against them are averaged.

    Args:
        references: at least one, none of which is made per image.
    """

    references: tuple[Reference, ...]

    def __init__(self, references: Sequence[Reference]) -> None:
        object.__setattr__(self, "references", tuple(references))
        if not self.references or any(r.per_image for r in self.references):
            raise UsageError(
                "expected one or more references that are the same for every image, got "
                f"{[str(r) for r in self.references]}; a blurred reference stands alone"
            )

    def __call__(self, inputs: Tensor) -> Tensor:
        return torch.cat([reference(inputs) for reference in self.references])


REFERENCES: dict[str, type[Reference]] = {
    "Black": Black,
    "White": White,
    "Random": Random,
    "Blurred": Blurred,
    "Mean": Mean,
    "Image": Image,
}
"""The references that can be named in text."""


def _image_file(source: str) -> Image | None:
    """Return the reference that a file's path stands for; None: there is no such file."""
    return Image(source) if os.path.exists(source) else None


specs.register(
    Reference,
    "reference",
    lambda: REFERENCES | {"Several": Several},
    joined=Several,
    other=_image_file,
    otherwise="an image file",
)
