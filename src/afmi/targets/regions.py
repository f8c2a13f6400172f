"""Region: the score of a class where a network segments the image."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from afmi.errors import OutputsWarning, ShapeError, TargetError, UsageError, near_matches
from afmi.network.classifier import class_label, find_class, labels_of
from afmi.network.guards import without_compilation
from afmi.network.outputs import Meaning, Outputs, read_maps
from afmi.targets.base import Target, bits

__all__ = ["Mask", "Region"]

Mask: TypeAlias = "str | tuple[int, ...] | Tensor | np.ndarray"

_PREDICTED = "predicted"
_BACKGROUND = ("background", "__background__")
_SMOOTH = {1: "linear", 2: "bilinear", 3: "trilinear"}
_UNITS = {"sigmoid": "logit", "probabilities": "probability", "value": "value"}


@dataclass(frozen=True, eq=False)
class Region(Target):
    """The mean score of a class over a region, of a network that gives scores at each place.

    For segmentations (N, C, h, w): why is this here a person? A softmax over the classes or a
    sigmoid at the network's end is undone, so that logits are explained. Where the outputs are
    smaller than the image, a region of the image is scored on outputs enlarged to it (linearly).

    Args:
        of: the class, as its index or label; None: the class that is predicted at most places of
            the region, and of an image as a whole the background only where it is everywhere.
        mask: the region: ``"predicted"``, where the network predicts the class, fixed once for each
            image; a pixel of the image, ``(row, column)``; or bool (H, W), of the image's or the
            outputs' size.

    Raises:
        TargetError: when the class is predicted nowhere; those that are, are listed.

    Example:
        >>> model = nn.Conv2d(3, 4, 1)
        >>> image = torch.rand(1, 3, 6, 6)
        >>> score = Region(2, (5, 0)).fixed(model, image).score(model, image)
        >>> torch.equal(score, model(image)[:, 2, 5, 0])
        True
    """

    of: int | str | None = None
    mask: Mask = _PREDICTED
    _fixed: Tensor | None = field(default=None, init=False, repr=False)
    _meaning: Meaning | None = field(default=None, init=False, repr=False)

    def __post_init__(self) -> None:
        mask = self.mask
        if isinstance(mask, str):
            if mask.casefold() != _PREDICTED:
                raise UsageError(
                    f"expected a mask as 'predicted', a pixel (row, column) or bool (H, W), got "
                    f"{mask!r}{near_matches(mask, [_PREDICTED])}"
                )
            object.__setattr__(self, "mask", _PREDICTED)
        elif isinstance(mask, (Tensor, np.ndarray)):
            object.__setattr__(self, "mask", _checked(mask))
        else:
            object.__setattr__(self, "mask", _pixel(mask))

    @property
    def unit(self) -> str:  # type: ignore[override]
        """See `Target.unit`."""
        return _UNITS.get(self._meaning or "logits", "logit")

    def score(self, model: nn.Module, images: Tensor) -> Tensor:
        """See `Target.score`."""
        region = self._region
        if region is None:
            raise TargetError("the predicted region is not known before the network has run")
        with without_compilation():  # which would hide what the network ends in
            outputs = read_maps(model, images, meaning=self._meaning)
        maps = _maps_of(outputs, self._index(model))
        maps = _enlarged(maps, region, images)
        if isinstance(region, tuple):
            return maps[(slice(None), 0, *region)]
        weights = region.to(maps.device, maps.dtype) / int(region.sum())
        return (maps[:, 0] * weights).flatten(1).sum(1)

    def label(self, model: nn.Module) -> str:
        """See `Target.label`."""
        if self._meaning == "value" and not labels_of(model):
            name = f"output {self.of}"
        else:
            name = (
                "the largest class" if self.of is None else class_label(model, self._index(model))
            )
        if isinstance(self.mask, str):
            return f"{name} in the predicted region"
        if isinstance(self.mask, tuple):
            return f"{name} at the pixel {self.mask}"
        return f"{name} in the mask"

    def fixed(self, model: nn.Module, images: Tensor) -> Target | Sequence[Target]:
        """See `Target.fixed`."""
        with without_compilation(), torch.no_grad():
            outputs = read_maps(model, images)
        if outputs.assumed is not None and outputs.meaning != "value":
            warnings.warn(outputs.assumed, OutputsWarning, stacklevel=2)
        if not bool(outputs.scores.isfinite().all()):
            raise TargetError("the network's scores are NaN or infinite, so no class is predicted")
        region = self._region
        inside = None if region is None else _inside(region, outputs.scores, images)
        if self.of is not None and inside is not None:
            index = self._index(model)
            _maps_of(outputs, index)  # which checks it
            return self._with(index, None, outputs.meaning)
        held = _held(outputs)
        return [self._in(model, each, inside, outputs.meaning) for each in held]

    def _in(
        self, model: nn.Module, held: Tensor, inside: Tensor | None, meaning: Meaning
    ) -> Region:
        """Return the target for one image, given where each class is predicted, bool (K, …)."""
        counts = (held if inside is None else held & inside).flatten(1).sum(1)
        index = None if self.of is None else self._index(model)
        if index is None:
            if inside is None and int((counts > 0).sum()) > 1:
                counts = counts.masked_fill(_backgrounds(model, counts), 0)
            index = int(counts.argmax())
        if not 0 <= index < len(counts):
            raise TargetError(f"expected a class from 0 to {len(counts) - 1}, got {index}")
        if not int(counts[index]) and inside is None:
            raise TargetError(
                f"the network predicts {class_label(model, index)} nowhere in this image; it "
                f"predicts {_present(model, counts)}; choose one of these, or give a mask"
            )
        return self._with(index, held[index].cpu() if inside is None else None, meaning)

    def alike(self) -> Hashable:
        """See `Target.alike`."""
        return Region, self._meaning

    def area(self, size: tuple[int, ...]) -> Tensor | None:
        """See `Target.area`."""
        region = self._region
        if region is None:
            return None
        if isinstance(region, tuple):
            area = torch.zeros(size, dtype=torch.bool, device="cpu")
            area[region] = True
            return area
        return F.interpolate(region[None, None].float(), size, mode="nearest-exact")[0, 0] > 0

    @property
    def _region(self) -> Tensor | tuple[int, ...] | None:
        """A mask or a pixel; None: not known yet."""
        mask = self.mask if self._fixed is None else self._fixed
        return mask if isinstance(mask, (Tensor, tuple)) else None

    def _index(self, model: nn.Module) -> int:
        if self.of is None:
            raise TargetError("the largest class is not known before the network has run")
        return find_class(model, self.of)

    def _with(self, index: int, region: Tensor | None, meaning: Meaning) -> Region:
        """Return the target with all that was decided by an image."""
        target = Region(index, self.mask)
        object.__setattr__(target, "_fixed", region)
        object.__setattr__(target, "_meaning", meaning)
        return target

    @functools.cached_property
    def _identity(self) -> tuple[Hashable, ...]:
        return (self.of, bits(self.mask), bits(self._fixed), self._meaning)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Region) and self._identity == other._identity

    def __hash__(self) -> int:
        return hash(self._identity)


def _pixel(mask: Any) -> tuple[int, ...]:
    try:
        pixel = tuple(int(place) for place in mask)
    except (TypeError, ValueError):
        pixel = ()
    if not 1 <= len(pixel) <= 3 or any(place < 0 for place in pixel):
        raise UsageError(
            f"expected a pixel as (row, column), counted from 0, got {mask!r}; a mask of many "
            "pixels is a bool tensor (H, W)"
        )
    return pixel


def _checked(mask: Tensor | np.ndarray) -> Tensor:
    """Return a copy of a mask: what the caller does with it later must not change the target."""
    if isinstance(mask, np.ndarray):
        mask = torch.from_numpy(np.ascontiguousarray(mask))
    if mask.dtype != torch.bool or not 1 <= mask.dim() <= 3:
        raise UsageError(
            f"expected a mask as bool (H, W), got {tuple(mask.shape)} {mask.dtype}; make one by a "
            "comparison, such as mask > 0"
        )
    if not bool(mask.any()):
        raise UsageError("expected a mask that holds a pixel at least, got one that is empty")
    return mask.detach().cpu().clone()


def _maps_of(outputs: Outputs, index: int) -> Tensor:
    """Return the scores of a class, (N, 1, …)."""
    classes = outputs.scores.shape[1]
    if not 0 <= index < classes:
        advice = ""
        if outputs.meaning == "value" and classes == 1:
            advice = (
                "; the network returns one map, which is taken for values: pass "
                "Classifier(network, output='sigmoid') where it is the logit of a class"
            )
        raise TargetError(f"expected a class from 0 to {classes - 1}, got {index}{advice}")
    return outputs.scores[:, index : index + 1]


def _enlarged(maps: Tensor, region: Tensor | tuple[int, ...], images: Tensor) -> Tensor:
    """Return maps (N, 1, …) at the size that a region is counted in."""
    size = tuple(images.shape[2:])
    if tuple(maps.shape[2:]) == size:
        return maps
    if isinstance(region, Tensor) and tuple(region.shape) == tuple(maps.shape[2:]):
        return maps
    return F.interpolate(maps, size=size, mode=_SMOOTH[len(size)], align_corners=False)


def _inside(mask: Tensor | tuple[int, ...], scores: Tensor, images: Tensor) -> Tensor:
    """Return a mask at the size of the scores (N, K, …), on their device.

    Raises:
        ShapeError: when it has neither the scores' size nor the images'.
    """
    places, size = tuple(scores.shape[2:]), tuple(images.shape[2:])
    if isinstance(mask, tuple):
        if len(mask) != len(size) or any(p >= side for p, side in zip(mask, size, strict=True)):
            raise ShapeError(f"expected a pixel inside of an image of {size} pixels, got {mask}")
        inside = torch.zeros(places, dtype=torch.bool, device=scores.device)
        inside[tuple(p * n // side for p, n, side in zip(mask, places, size, strict=True))] = True
        return inside
    if tuple(mask.shape) not in (places, size):
        raise ShapeError(
            f"expected a mask of the image's size {size}"
            + (f" or the outputs' size {places}" if places != size else "")
            + f", got {tuple(mask.shape)}"
        )
    if tuple(mask.shape) != places:
        mask = F.interpolate(mask[None, None].float(), places, mode="area")[0, 0] > 0
    return mask.to(scores.device)


def _held(outputs: Outputs) -> Tensor:
    """Return where each class is predicted, bool (N, K, …)."""
    scores = outputs.scores
    if outputs.meaning == "value":
        raise TargetError(
            "the network returns values at each place and predicts no class; give a class and a "
            "mask, or say what the outputs are: Classifier(network, output='sigmoid'), say"
        )
    if outputs.meaning == "sigmoid":
        return scores > 0
    best = scores.argmax(1, keepdim=True)
    return torch.zeros_like(scores, dtype=torch.bool).scatter_(1, best, True)


def _backgrounds(model: nn.Module, counts: Tensor) -> Tensor:
    """Tell which classes are called background, bool (K,)."""
    labels = labels_of(model) or [""] * len(counts)
    is_background = [label.casefold() in _BACKGROUND for label in labels]
    return torch.tensor(is_background, dtype=torch.bool, device=counts.device)


def _present(model: nn.Module, counts: Tensor) -> str:
    """Return the classes that are predicted somewhere, in words, the largest first."""
    ranked = [k for k in counts.argsort(descending=True).tolist() if counts[k]]
    listed = ", ".join(class_label(model, k) for k in ranked[:8])
    return (listed or "none") + (", …" if len(ranked) > 8 else "")
