"""Put a finding to the test: paste the marked region into other images, and remove it from its own.

What is changed is the image, not the network, and beside each change stands a control: a region
of the same shape, of the same image, at a random place. A region that the network rests on changes
its predictions far more often than the control does. That says what the network uses; whether it
should, a person has to say.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from afmi.auditing.regions import Marked
from afmi.network.classifier import classify
from afmi.packages import imported
from afmi.pictures.references import Blurred
from afmi.report.statistics import Estimate, means

__all__ = ["FILLS", "Change", "Intervention", "intervention_on"]

_PAIRS = 64
"""How often regions are pasted into images."""
_PLACES = 16
"""Random places of which the control is the one that shares least with the region."""
_INPAINTED_SIDE = 64
"""Pixels of the longest side at which a hole is filled in; its cost grows fast with the size."""
_BATCH = 32


@dataclass(frozen=True)
class Change:
    """How often a change of the image changes the prediction as expected.

    Attributes:
        what: ``pasted``, or how the region was removed: ``inpainted``, ``blurred``, ``mean``.
        marked: share of the images where changing the marked region does it, with its interval.
        control: share where changing a random region of the same shape does it.
        difference: marked less control, image by image.
    """

    what: str
    marked: Estimate
    control: Estimate
    difference: Estimate

    @property
    def clear(self) -> bool:
        """Whether the marked region does it more often than chance allows."""
        return bool(self.difference.low > 0)


@dataclass(frozen=True)
class Intervention:
    """What came of changing images.

    Attributes:
        pasted: into images of other classes; a prediction changes where it becomes the group's
            class. None: no images of other classes were there.
        removed: from images of the group that are predicted as the class, in several ways; a
            prediction changes where it becomes another.
        area: mean share of the image that the region covers.
        others: how many different images of other classes there were to paste into; each serves
            several times where they are few.
    """

    pasted: Change | None
    removed: tuple[Change, ...]
    area: float
    others: int

    @property
    def confirmed(self) -> bool:
        """Whether pasting the region or every way of removing it does more than the control."""
        of_removal = bool(self.removed) and all(change.clear for change in self.removed)
        return of_removal or (self.pasted is not None and self.pasted.clear)


def intervention_on(
    model: nn.Module, group: Marked, class_index: int, others: Sequence[Tensor], *, seed: int = 0
) -> Intervention:
    """Change images, and see what the network says.

    Args:
        model: the network.
        group: images of the group with their regions.
        class_index: the class of the group.
        others: images of other classes, each (1, C, H, W); those that are predicted as the group's
            class are left out.
        seed: of the controls' places.
    """
    generator = np.random.default_rng(seed)
    controls = torch.cat([_control(region, generator) for region in group.regions])
    pasted = None
    below = group.images[:0]
    if others:
        sized = torch.cat([_sized(one, group.images.shape[2:]) for one in others])
        below = sized[_predicted(model, sized) != class_index]
    if len(below):
        pasted = _pasted(model, group, controls, class_index, below, seed)
    right = _predicted(model, group.images) == class_index
    removed = []
    if bool(right.any()):
        images, regions, held = (part[right] for part in (group.images, group.regions, controls))
        for name, fill in FILLS.items():
            changed = [
                _predicted(model, torch.where(areas, fill(images, areas), images)) != class_index
                for areas in (regions, held)
            ]
            removed.append(_change(name, changed[0], changed[1], seed))
    area = float(group.regions.float().mean())
    return Intervention(pasted, tuple(removed), area, len(below))


def _pasted(
    model: nn.Module,
    group: Marked,
    controls: Tensor,
    class_index: int,
    others: Tensor,
    seed: int,
) -> Change:
    count = len(group.images)
    changed: list[list[Tensor]] = [[], []]
    for start in range(0, _PAIRS, _BATCH):
        pairs = range(start, min(start + _BATCH, _PAIRS))
        sources = [n % count for n in pairs]
        below = others[[n % len(others) for n in pairs]]
        for areas, into in zip((group.regions, controls), changed, strict=True):
            mixed = torch.where(areas[sources], group.images[sources], below)
            into.append(_predicted(model, mixed) == class_index)
    marked, control = (torch.cat(each) for each in changed)
    return _change("pasted", marked, control, seed)


def _change(what: str, marked: Tensor, control: Tensor, seed: int) -> Change:
    hits = [each.cpu().numpy().astype(np.float64) for each in (marked, control)]
    columns = np.column_stack([*hits, hits[0] - hits[1]])
    return Change(what, *means(columns, seed=seed))


def _predicted(model: nn.Module, images: Tensor) -> Tensor:
    """Return the classes with the highest scores, int64 (N,)."""
    scores = [classify(model, batch) for batch in images.split(_BATCH)]
    return torch.cat(scores).argmax(1)


def _sized(image: Tensor, sides: Sequence[int]) -> Tensor:
    if tuple(image.shape[2:]) == tuple(sides):
        return image
    return F.interpolate(image, tuple(sides), mode="bilinear", antialias=True)


def _control(region: Tensor, generator: np.random.Generator) -> Tensor:
    """Return a region of the same shape at a random place, (1, 1, H, W), closed at the edges."""
    height, width = region.shape[-2:]
    places = [
        region.roll((int(generator.integers(height)), int(generator.integers(width))), (-2, -1))
        for _ in range(_PLACES)
    ]
    return min(places, key=lambda place: int((place & region).sum()))[None]


def _blurred(images: Tensor, areas: Tensor) -> Tensor:
    """Return the images without detail."""
    return Blurred()(images)


def _mean(images: Tensor, areas: Tensor) -> Tensor:
    """Return each image's mean colour."""
    return images.mean((2, 3), keepdim=True).expand_as(images)


def _inpainted(images: Tensor, areas: Tensor) -> Tensor:
    """Return the images with their areas filled in smoothly from around (biharmonic)."""
    fill = imported("skimage.restoration", "an audit", "afmi[audit]").inpaint_biharmonic
    scale = min(_INPAINTED_SIDE / max(images.shape[2:]), 1.0)
    size = [max(round(scale * side), 4) for side in images.shape[2:]]
    small = F.interpolate(images, size, mode="area").cpu()
    holes = F.adaptive_max_pool2d(areas.float(), size).bool().cpu()
    filled = [
        fill(image.permute(1, 2, 0).numpy(), hole[0].numpy(), channel_axis=-1)
        for image, hole in zip(small, holes, strict=True)
    ]
    smooth = torch.from_numpy(np.stack(filled)).permute(0, 3, 1, 2).clamp(0, 1).to(images)
    return F.interpolate(smooth, images.shape[2:], mode="bilinear")


FILLS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "inpainted": _inpainted,
    "blurred": _blurred,
    "mean": _mean,
}
"""What stands in place of a region that is removed: functions of images (N, C, H, W) and areas."""
