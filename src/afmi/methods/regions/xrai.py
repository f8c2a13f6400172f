"""XRAI: regions of the image, added one after another by their mean integrated gradient."""

from __future__ import annotations

import math
import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import KW_ONLY, dataclass, field

import numpy as np
import torch
from torch import Tensor

from afmi.errors import UsageError
from afmi.gradients.integrated import Integrated, check_steps, integrated_gradients
from afmi.gradients.passes import BatchRunner
from afmi.methods.base import Attribution, Method
from afmi.methods.work import Work
from afmi.packages import imported
from afmi.pictures.references import Black, Reference, Several, White
from afmi.targets import Columns

__all__ = ["XRAI", "merge_regions"]

_SIDE = 224
"""Of the picture that is cut into segments, for which the scales are meant."""


@dataclass(frozen=True)
class XRAI(Method):
    """Show which regions matter, the ones with the densest integrated gradients first.

    The image is cut into overlapping segments at several scales. Beginning with nothing, the
    segment whose pixels not yet covered have the highest mean attribution is added, again and
    again; those pixels get that mean. Attributions are Integrated Gradients against black and
    white, averaged, and the largest of the colour channels is taken.

    Paper: Kapishnikov et al., *XRAI: Better Attributions Through Regions*, ICCV 2019,
    Algorithm 1, with its authors' settings (Felzenszwalb segments of the image at 224×224 pixels,
    at six scales, widened by 5 pixels; segments that add fewer than 50 pixels are dropped); their
    program, too, takes the maximum over the channels. Felzenszwalb's segments are those of
    pictures, so signals and volumes are refused. Differs: black and white are 0 and 1, where
    the program by default takes the smallest and the largest number in the image for all
    channels, which depends on the image and, after normalisation, is no grey.
    Cost: 2 × ``steps`` forwards + backwards, 3 forwards; a tolerance may triple the steps, as that
    of Integrated Gradients. The segmentation, a third of a second per
    image on one core, runs in threads beside them, and the merging takes a tenth.

    Args:
        model: see `Method`.
        reference: where the ways of Integrated Gradients begin.
        steps: points on each way.
        tolerance: as of `IntegratedGradients`, of whose gradients the regions are made.
        scales: Felzenszwalb scales; larger ones give larger segments.
        smallest: pixels that a segment has at least, of 224×224.
        dilation: pixels by which segments are widened, so that they take in their edges.
        least_gain: pixels that a segment must add.
        batch_size: see `afmi.gradients.passes.BatchRunner`.

    Example:
        >>> model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * 32 * 32, 2))
        >>> XRAI(model, steps=2).attribute(torch.rand(1, 3, 32, 32)).shape
        torch.Size([1, 1, 32, 32])
    """

    name = "XRAI"
    family = "region"
    scores = "integrated gradients"
    signed = False
    sides = (2,)
    paper = "Kapishnikov et al., XRAI: Better Attributions Through Regions, ICCV 2019"

    _: KW_ONLY
    reference: Reference = field(default_factory=lambda: Several([Black(), White()]))
    steps: int = 100
    tolerance: float | None = None
    scales: tuple[float, ...] = (50, 100, 150, 250, 500, 1200)
    smallest: int = 150
    dilation: int = 5
    least_gain: int = 50
    batch_size: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        check_steps(self.steps, self.tolerance)
        if not self.scales:
            raise UsageError("expected at least 1 scale, got none")

    def work(self, inputs: Tensor) -> Work:
        """See `Method.work`; a tolerance may ask for more."""
        return Work(1) + self.reference.count(inputs) * (self.steps * Work(1, 1) + Work(1))

    def _attribute(self, inputs: Tensor, columns: Columns) -> Attribution:
        with ThreadPoolExecutor(_free_cores(inputs)) as pool:
            cuts = [
                [pool.submit(self._labels, picture, scale) for scale in self.scales]
                for picture in map(_picture, inputs)
            ]
            try:
                integrated = self._integrated(inputs, columns)
                pixels = integrated.gradients.amax(1).to("cpu", torch.float64).numpy()
            except BaseException:
                pool.shutdown(cancel_futures=True)
                raise
            maps = [
                merge_regions(
                    pixel,
                    _widened([cut.result() for cut in scales], pixel.shape, self.dilation),
                    least_gain=self.least_gain,
                )
                for pixel, scales in zip(pixels, cuts, strict=True)
            ]
        tensor = torch.from_numpy(np.stack(maps))[:, None].to(inputs)
        return Attribution(tensor, integrated.classes, integrated.logits)

    def _integrated(self, inputs: Tensor, columns: Columns) -> Integrated:
        return integrated_gradients(
            BatchRunner(self.model, inputs, self.batch_size),
            inputs,
            self.reference,
            columns.of,
            steps=self.steps,
            tolerance=self.tolerance,
            description=f"{self.name}: Integrated Gradients",
        )

    def _labels(self, picture: np.ndarray, scale: float) -> np.ndarray:
        """Return each pixel's segment at one scale, (224, 224), of a picture (224, 224, C)."""
        felzenszwalb = imported("skimage.segmentation", "XRAI", "afmi[regions]").felzenszwalb
        labels = felzenszwalb(
            picture, scale=scale, sigma=0.8, min_size=self.smallest, channel_axis=-1
        )
        return labels.astype(np.int32)

    def segments(self, image: Tensor) -> np.ndarray:
        """Return the segments of an image (C, H, W) as masks, bool (S, H, W).

        Segments of different scales overlap, and so do neighbours, as far as they are widened.
        """
        picture = _picture(image)
        labels = [self._labels(picture, scale) for scale in self.scales]
        return _widened(labels, (image.shape[1], image.shape[2]), self.dilation)


def _free_cores(inputs: Tensor) -> int:
    """Return how many segmentations may run beside the network's passes."""
    cores = os.cpu_count() or 1
    return max(1, cores - torch.get_num_threads() if inputs.device.type == "cpu" else cores)


def _picture(image: Tensor) -> np.ndarray:
    """Stretch an image (C, H, W) to [−1, 1], for which the scales are meant: (224, 224, C).

    They are meant for three channels, too: pixels that differ alike in every channel are brought
    as far apart as they are in three, and of more channels the three principal components stay.
    """
    resize = imported("skimage.transform", "XRAI", "afmi[regions]").resize
    pixels = image.detach().to("cpu", torch.float64).numpy()
    low, high = float(pixels.min()), float(pixels.max())
    stretched = (pixels - low) / max(high - low, 1e-12) * 2 - 1
    # One channel at a time, because splines across the channels would take four times as long.
    picture = np.empty((_SIDE, _SIDE, len(stretched)))
    for k, channel in enumerate(stretched):
        picture[..., k] = resize(
            channel, (_SIDE, _SIDE), order=3, mode="constant", anti_aliasing=True, clip=False
        )
    picture = picture.clip(-1, 1) * math.sqrt(3 / len(stretched))
    return picture if len(stretched) <= 3 else _principal(picture)


def _principal(picture: np.ndarray) -> np.ndarray:
    """Return the three principal components of the channels of a picture: (H, W, 3)."""
    values = picture - picture.mean((0, 1))
    _, directions = np.linalg.eigh(np.einsum("hwi,hwj->ij", values, values))
    return values @ directions[:, -3:]


def _widened(labels: list[np.ndarray], shape: tuple[int, int], dilation: int) -> np.ndarray:
    """Return every segment as a mask, widened by a disk: bool (S, H, W).

    Args:
        labels: segments at each scale, (224, 224).
        shape: H, W.
        dilation: radius of the disk, in pixels.
    """
    from scipy import ndimage

    rows, columns = (((np.arange(n) + 0.5) * _SIDE / n).astype(int) for n in shape)
    masks: list[np.ndarray] = []
    for scale in labels:
        segments = scale[np.ix_(rows, columns)]
        for label, box in enumerate(ndimage.find_objects(segments + 1)):
            if box is None:
                continue
            # Widened inside its own box only: whole images would take a hundred times as long.
            wide = tuple(
                slice(max(s.start - dilation, 0), min(s.stop + dilation, n))
                for s, n in zip(box, shape, strict=True)
            )
            mask = np.zeros(shape, dtype=bool)
            mask[wide] = _dilated(segments[wide] == label, dilation)
            masks.append(mask)
    return np.stack(masks)


def _dilated(mask: np.ndarray, radius: int) -> np.ndarray:
    """Widen a mask (H, W) by a disk, whose rows are runs: a run is one cell longer than the last.

    Three times as fast as a footprint of all the disk's cells.
    """
    runs = [mask]
    for reach in range(1, radius + 1):
        run = runs[-1].copy()
        run[:, reach:] |= mask[:, :-reach]
        run[:, :-reach] |= mask[:, reach:]
        runs.append(run)
    wide = runs[radius].copy()
    for down in range(1, radius + 1):
        run = runs[math.isqrt(radius**2 - down**2)]
        wide[down:] |= run[:-down]
        wide[:-down] |= run[down:]
    return wide


def merge_regions(attribution: np.ndarray, masks: np.ndarray, *, least_gain: int) -> np.ndarray:
    """Add segments in the order of their gain (Algorithm 1) and give their pixels that gain.

    The gain of a segment is the mean attribution of its pixels that are not covered yet. A
    segment that would cover fewer than ``least_gain`` new pixels is dropped. Pixels that no
    segment covered get their own mean in the end.

    Args:
        attribution: (H, W).
        masks: bool (S, H, W).
        least_gain: pixels.

    Returns:
        (H, W).
    """
    from scipy.sparse import csr_array

    pixels = attribution.astype(np.float64).ravel()
    members = [np.flatnonzero(mask) for mask in masks]
    counts = np.array([len(inside) for inside in members])
    sums = np.array([pixels[inside].sum() for inside in members])
    # The segments of each pixel: a pixel is taken out of their sums once, when it is covered, and
    # no segment is summed again.
    ends = np.concatenate([[0], counts.cumsum()])
    owners = csr_array(
        (np.ones(ends[-1], dtype=np.int8), np.concatenate(members), ends),
        shape=(len(members), pixels.size),
    ).T.tocsr()
    uncovered = np.ones(pixels.size, dtype=bool)
    result = np.empty(pixels.size)
    while True:
        open_ = counts >= max(least_gain, 1)
        if not open_.any():
            break
        gain = np.where(open_, sums / np.maximum(counts, 1), -np.inf)
        best = int(gain.argmax())
        new = members[best][uncovered[members[best]]]
        result[new] = pixels[new].mean()
        uncovered[new] = False
        touched = owners[new]
        values = np.repeat(pixels[new], np.diff(touched.indptr))
        counts -= np.bincount(touched.indices, minlength=len(members))
        sums -= np.bincount(touched.indices, values, minlength=len(members))
    if uncovered.any():
        result[uncovered] = pixels[uncovered].mean()
    return result.reshape(attribution.shape)
