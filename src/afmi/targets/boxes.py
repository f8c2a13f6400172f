"""Box: the score of a class in a box of the image, where a network detects objects."""

from __future__ import annotations

import sys
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from afmi.errors import TargetError, UsageError
from afmi.network.classifier import class_label, classifier_of, find_class
from afmi.network.guards import without_compilation
from afmi.network.outputs import read_detections
from afmi.network.wrappers import within
from afmi.targets.base import Target

__all__ = ["Box"]

_OPAQUE = (
    "the score of a detection has passed through proposals or non-maximum suppression, which no "
    "gradient follows; explain it by a method that only looks at outputs (KernelSHAP, LIME, "
    "PredictionDifference or RISE), or use a detector of torchvision with one stage (RetinaNet, "
    "SSD, SSDlite, FCOS), whose class scores before that every method explains"
)


@dataclass(frozen=True)
class Box(Target):
    """The score of a class in a box of the image, of a network that detects objects.

    Of torchvision's one-stage detectors (RetinaNet, SSD, SSDlite, FCOS) it is the logit that the
    head gives the class at one anchor: that whose decoded box fits best, by IoU × probability,
    fixed once for each image. No suppression stands behind it, so gradients are exact.

    Of any other detector, such as Faster R-CNN, whose proposals depend on the image, it is
    max_d IoU(box, box_d) · score_d over the detections d of the class; 0 where there is none. Only
    methods that look at nothing but outputs can explain that.

    Paper: Petsiuk et al., *Black-box Explanation of Object Detectors via Saliency Maps* (D-RISE),
    CVPR 2021, Eq. 2 to 5. Differs: detections after the suppression take the place of proposals, so
    the class's own score stands for the likeness of all classes' and the objectness; any method
    takes the place of RISE.

    Args:
        of: the class, as its index or label; None: that of the detection that fits best.
        box: (left, top, right, bottom) in pixels of the image; None: the most certain detection's,
            fixed once for each image.

    Raises:
        TargetError: when no detection is meant; those that there are, are listed.

    Example:
        >>> class Detector(nn.Module):
        ...     def forward(self, images):
        ...         found = {"boxes": torch.tensor([[1.0, 1, 3, 3]]), "labels": torch.tensor([2])}
        ...         return [{**found, "scores": image.mean()[None]} for image in images]
        >>> image = torch.ones(1, 3, 4, 4)
        >>> Box(2, (1, 1, 3, 2)).score(Detector(), image)
        tensor([0.5000])
    """

    of: int | str | None = None
    box: tuple[float, ...] | None = None
    _anchor: tuple[int, int] | None = field(default=None, init=False, repr=False)

    def __post_init__(self) -> None:
        if self.box is None:
            return
        try:
            box = tuple(float(side) for side in self.box)
        except (TypeError, ValueError):
            box = ()
        if len(box) != 4 or not (0 <= box[0] < box[2] and 0 <= box[1] < box[3]):
            raise UsageError(
                "expected a box as (left, top, right, bottom) in pixels, with left < right and "
                f"top < bottom, got {self.box!r}"
            )
        object.__setattr__(self, "box", box)

    @property
    def unit(self) -> str:  # type: ignore[override]
        """See `Target.unit`."""
        return "detection score" if self._anchor is None else "logit"

    def score(self, model: nn.Module, images: Tensor) -> Tensor:
        """See `Target.score`."""
        if self._anchor is not None:
            level, index = self._anchor
            network, images = _inside(model, images)
            return _level_logits(network, images, level)[:, index, self._index(model)]
        if self.box is None or self.of is None:
            raise TargetError("the detection is not known before the network has run")
        label, box = self._index(model), torch.tensor([self.box], dtype=torch.float32, device="cpu")
        scores = [
            _fitting(found, box.to(found["boxes"]), label).amax()
            for found in read_detections(model, images)
        ]
        return torch.stack(scores).to(images)

    def label(self, model: nn.Module) -> str:
        """See `Target.label`."""
        name = "the object" if self.of is None else class_label(model, self._index(model))
        if self.box is None:
            return f"{name} in the most certain box"
        left, top, right, bottom = (f"{side:.0f}" for side in self.box)
        return f"{name} in the box ({left}, {top}) to ({right}, {bottom})"

    def fixed(self, model: nn.Module, images: Tensor) -> Target | Sequence[Target]:
        """See `Target.fixed`."""
        index = None if self.of is None else self._index(model)
        one_stage = is_one_stage(model)
        with without_compilation(), torch.no_grad():
            found: Sequence[Any] = [None] * len(images)
            if self.box is None or not one_stage:
                found = read_detections(model, images)
            targets = [self._detected(model, index, one) for one in found]
            if not one_stage:
                return targets
            network, inner = _inside(model, images)
            return [
                target._anchored(model, *rows)
                for target, *rows in zip(targets, *_decoded(network, inner), strict=True)
            ]

    def _detected(
        self, model: nn.Module, index: int | None, found: dict[str, Tensor] | None
    ) -> Box:
        """Return the target with class and box, as far as an image's detections decide them."""
        if found is None:
            return replace(self, of=index)
        boxes, fits = found["boxes"], found["scores"]
        if self.box is None:
            fits = torch.where((boxes[:, 2:] > boxes[:, :2]).all(1), fits, 0)
        else:
            fits = _overlaps(boxes, boxes.new_tensor([self.box])) * fits
        if index is not None:
            fits = torch.where(found["labels"] == index, fits, 0)
        if not len(fits) or not float(fits.max()) > 0:
            what = "nothing" if index is None else f"no {class_label(model, index)}"
            where = "in this image" if self.box is None else "that meets the box"
            raise TargetError(
                f"the network detects {what} {where}; it detects {_listed(model, found)}; choose "
                "one of these, or lower the network's score_thresh"
            )
        best = int(fits.argmax())
        box = self.box or tuple(boxes[best].tolist())
        return Box(int(found["labels"][best]), box)

    def _anchored(
        self, model: nn.Module, boxes: Tensor, probabilities: Tensor, places: Tensor
    ) -> Box:
        """Return the target with its anchor, given what each gives an image.

        Args:
            model: the network.
            boxes: (A, 4), in pixels of the image.
            probabilities: (A, K).
            places: each anchor's level and its index there, int64 (A, 2).
        """
        fits = _overlaps(boxes, boxes.new_tensor([self.box]))[:, None] * probabilities
        if self.of is not None:
            index = self._index(model)
            if not 0 <= index < fits.shape[1]:
                raise TargetError(f"expected a class from 0 to {fits.shape[1] - 1}, got {index}")
            fits = fits[:, index : index + 1]
        if not float(fits.max()) > 0:
            raise TargetError(
                f"no anchor's box meets the box {self.box}; give it in pixels of the image that "
                "the network sees, as (left, top, right, bottom)"
            )
        best, index = divmod(int(fits.argmax()), fits.shape[1])
        target = Box(index if self.of is None else self.of, self.box)
        level, place = places[best].tolist()
        object.__setattr__(target, "_anchor", (level, place))
        return target

    def alike(self) -> Hashable:
        """See `Target.alike`."""
        return Box, self._anchor is None

    def opaque(self, model: nn.Module) -> str | None:
        """See `Target.opaque`."""
        return _OPAQUE if self._anchor is None else None

    def area(self, size: tuple[int, ...]) -> Tensor | None:
        """See `Target.area`."""
        if self.box is None or len(size) != 2:
            return None
        area = torch.zeros(size, dtype=torch.bool, device="cpu")
        left, top, right, bottom = (round(side) for side in self.box)
        area[top : max(bottom, top + 1), left : max(right, left + 1)] = True
        return area

    def _index(self, model: nn.Module) -> int:
        assert self.of is not None
        return find_class(model, self.of)


def _overlaps(boxes: Tensor, box: Tensor) -> Tensor:
    """Return the intersection of boxes (D, 4) with one (1, 4) over their union, (D,)."""
    low = torch.maximum(boxes[:, :2], box[:, :2])
    high = torch.minimum(boxes[:, 2:], box[:, 2:])
    shared = (high - low).clamp_min(0).prod(1)
    areas = (boxes[:, 2:] - boxes[:, :2]).prod(1) + (box[:, 2:] - box[:, :2]).prod(1)
    return shared / (areas - shared)


def _fitting(found: dict[str, Tensor], box: Tensor, label: int) -> Tensor:
    """Return IoU × score of each detection of a class, and 0 besides, (D + 1,)."""
    fits = _overlaps(found["boxes"], box) * found["scores"]
    return F.pad(torch.where(found["labels"] == label, fits, 0), (0, 1))


def _listed(model: nn.Module, found: dict[str, Tensor]) -> str:
    """Return detections in words, the most certain first."""
    ranked = found["scores"].argsort(descending=True)[:8].tolist()
    parts = [
        f"{class_label(model, int(found['labels'][d]))} ({float(found['scores'][d]):.2f})"
        for d in ranked
    ]
    return ", ".join(parts) or "nothing"


# What follows knows how torchvision's one-stage detectors are made.


def is_one_stage(model: nn.Module) -> bool:
    """Tell whether a model is, or wraps, one of torchvision's one-stage detectors."""
    if "torchvision.models.detection" not in sys.modules:  # whose import takes a second
        return False
    from torchvision.models.detection.fcos import FCOS
    from torchvision.models.detection.retinanet import RetinaNet
    from torchvision.models.detection.ssd import SSD

    return isinstance(within(model), (FCOS, RetinaNet, SSD))


def _inside(model: nn.Module, images: Tensor) -> tuple[Any, Tensor]:
    """Return the detector that a model is or wraps, and images (N, C, H, W) as it takes them."""
    classifier = classifier_of(model)
    if classifier is None:
        return within(model), images
    mean, std = (one.reshape(1, -1, 1, 1) for one in (classifier.mean, classifier.std))
    return within(classifier), (images - mean) / std


def _features(network: Any, images: Tensor) -> tuple[list[Tensor], Tensor, tuple[int, int]]:
    """Return the maps of each level, the images that the backbone saw, and their size unpadded."""
    transform = network.transform
    rows = [transform.resize(transform.normalize(image))[0] for image in images.unbind(0)]
    batch = torch.stack(rows)
    height, width = batch.shape[2:]
    step = transform.size_divisible
    # As the transform pads: below and to the right, with zeros.
    batch = F.pad(batch, (0, -width % step, 0, -height % step))
    features = network.backbone(batch)
    levels = [features] if isinstance(features, Tensor) else list(features.values())
    return levels, batch, (height, width)


def _level_logits(network: Any, images: Tensor, level: int) -> Tensor:
    """Return the logits that the head gives the classes at the anchors of a level, (N, A, K).

    The other levels do not run, so that the score passes through this one's maps alone.
    """
    from torchvision.models.detection.ssd import SSDScoringHead

    maps = _features(network, images)[0][level]
    head = network.head.classification_head
    if not isinstance(head, SSDScoringHead):
        return head([maps])
    scores = head.module_list[level](maps)
    batch, _, height, width = scores.shape
    scores = scores.view(batch, -1, head.num_columns, height, width)
    return scores.permute(0, 3, 4, 1, 2).reshape(batch, -1, head.num_columns)


def _decoded(network: Any, images: Tensor) -> tuple[list[Tensor], Tensor, Tensor]:
    """Return what a detector gives at each anchor, before any suppression.

    Returns:
        Boxes in pixels of the images, N times (A, 4); probabilities (N, A, K); and each anchor's
        level and index there, int64 (N, A, 2).
    """
    from torchvision.models.detection.image_list import ImageList
    from torchvision.ops import clip_boxes_to_image

    levels, batch, size = _features(network, images)
    outputs = network.head(levels)
    count = len(images)
    anchors = network.anchor_generator(ImageList(batch, [size] * count), levels)
    coder = network.box_coder
    decode = getattr(coder, "decode_single", coder.decode)  # FCOS's has no other
    ratio = batch.new_tensor([w / s for w, s in zip(images.shape[:1:-1], size[::-1], strict=True)])
    boxes = [
        clip_boxes_to_image(decode(offsets, grid), size) * ratio.repeat(2)
        for offsets, grid in zip(outputs["bbox_regression"], anchors, strict=True)
    ]
    per_place = network.anchor_generator.num_anchors_per_location()
    counts = [a * maps[0, 0].numel() for a, maps in zip(per_place, levels, strict=True)]
    places = [(level, i) for level, n in enumerate(counts) for i in range(n)]
    table = torch.tensor(places, dtype=torch.int64, device="cpu")
    return boxes, _probabilities(network, outputs), table.expand(count, -1, -1)


def _probabilities(network: Any, outputs: dict[str, Tensor]) -> Tensor:
    """Return how certain a detector is of each class at each anchor, (N, A, K)."""
    from torchvision.models.detection.ssd import SSD

    logits = outputs["cls_logits"]
    if isinstance(network, SSD):  # whose first class is the background
        return F.pad(logits.softmax(-1)[..., 1:], (1, 0))
    if "bbox_ctrness" in outputs:
        return (logits.sigmoid() * outputs["bbox_ctrness"].sigmoid()).sqrt()
    return logits.sigmoid()
