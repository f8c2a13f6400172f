"""Prediction difference analysis: what the class loses when a window's content is not known."""

from __future__ import annotations

import itertools
import math
from dataclasses import KW_ONLY, dataclass, field

import numpy as np
import torch
from torch import Tensor, nn

from afmi.errors import UsageError
from afmi.gradients.passes import BatchRunner
from afmi.methods.black_box import SampledMethod
from afmi.methods.work import Work
from afmi.network.randomness import image_generator
from afmi.network.trial import meaning_of
from afmi.pictures.dimensions import beside, places
from afmi.pictures.matrices import unfolded
from afmi.pictures.references import Reference
from afmi.progress import track

__all__ = ["PredictionDifference"]


@dataclass(frozen=True)
class PredictionDifference(SampledMethod):
    """Show each pixel's evidence for (positive) or against (negative) the class.

    For a window w of k × k pixels, WE_w = log2 odds p(c | x) − log2 odds p(c | x∖w) with
    odds(p) = p / (1 − p) and p(c | x∖w) = 1/S Σ_s p_c(x with sample s in place of w). Each p is
    Laplace-corrected to (p n + 1) / (n + K) for n training images and K classes. S_ij is the mean
    of WE_w over the windows that cover the pixel. p_c is the softmax probability.

    Samples are drawn from a Gaussian model of l × l patches, given the ring of l − k pixels around
    the window (conditional sampling), channel by channel. Windows are intervals of signals, and
    cubes of volumes, where the model is fitted to 20,000 patches at most, as by the authors'
    program.

    Paper: Zintgraf, Cohen, Adel & Welling, *Visualizing Deep Neural Network Decisions: Prediction
    Difference Analysis*, ICLR 2017, Eq. 1–6. Differs: windows move by half their side instead of
    by one pixel (``stride=1`` does as the paper, at 25 times the cost); the Gaussian is fitted to
    the patches of the image itself, which halves the deviation of what is drawn, unless
    ``patches`` gives other images (the program fits it to 20,000 patches of the images in its
    folder); samples are clipped to the range of all pixels that the model was fitted to, where
    the program clips each place to its own; n is that of the paper's network, where the program
    takes 100,000.
    Cost: 2 forwards + ``samples`` forwards per window and image, whatever the number of classes:
    19,362 at 224 × 224.

    Args:
        model: see `Method`.
        window: k, in pixels; at most a third of the image's shorter side.
        stride: from a window to the next, in pixels; at most a window, so that none are left out.
            None: half a window.
        padding: width of the ring, so that l = k + 2 · padding; at the image's edges the l × l
            patch is moved inwards.
        samples: S.
        images: n of the Laplace correction; the default is ImageNet's.
        patches: images (R, C, *spatial) that the Gaussian is fitted to. None: the image itself.
        reference: where the replacements come from instead: S = R images, whose content at the
            same place is shown in the window. Training images give the paper's marginal
            sampling; a single black image gives occlusion.
        seed: of the samples, which also depend on the image.
        batch_size: see `BlackBoxMethod`.

    Example:
        >>> model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(300, 4))
        >>> PredictionDifference(model, samples=2).attribute(torch.rand(2, 3, 10, 10)).shape
        torch.Size([2, 1, 10, 10])
    """

    name = "Prediction difference"
    aliases = ("pda",)
    family = "region"
    scores = "perturbation"
    signed = True
    paper = "Zintgraf et al., Visualizing Deep Neural Network Decisions, ICLR 2017"

    _: KW_ONLY
    window: int = 10
    stride: int | None = None
    padding: int = 2
    samples: int = 10
    images: int = 1_281_167
    patches: Reference | None = field(default=None)
    reference: Reference | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        stride = 1 if self.stride is None else self.stride
        if min(self.window, stride, self.samples, self.images) < 1 or self.padding < 0:
            raise UsageError(
                "expected a window, stride, samples and images of at least 1 and a padding of at "
                f"least 0, got {self.window}, {self.stride}, {self.samples}, {self.images} and "
                f"{self.padding}"
            )

    def work(self, inputs: Tensor) -> Work:
        """See `Method.work`."""
        side = self._side(inputs)
        stride = min(self.stride or max(1, side // 2), side)
        windows = math.prod(len(_positions(n, side, stride)) for n in inputs.shape[2:])
        samples = self.samples if self.reference is None else self.reference.count(inputs)
        return Work(windows * samples + 2)

    def _class_maps(
        self, inputs: Tensor, classes: Tensor, runner: BatchRunner
    ) -> tuple[Tensor, Tensor | None]:
        images = None if self.reference is None else self.reference.for_each(inputs)
        shared = None
        if images is None and self.patches is not None:
            shared = self._model(self.patches(inputs), inputs)
        maps = []
        for n, image in enumerate(inputs):
            if images is not None:
                sampler = _OtherImages(images[n])
            else:
                model = shared or self._model(image[None], inputs)
                sampler = _Conditional(model, image, image_generator(self.seed, image))
            maps.append(self._one(image, sampler, classes[:, n], runner))
        return torch.stack(maps, 1)[:, :, None], None

    def _side(self, inputs: Tensor) -> int:
        return min(self.window, max(1, min(inputs.shape[2:]) // 3))

    def _model(self, images: Tensor, inputs: Tensor) -> _PatchModel:
        side = self._side(inputs)
        outer = min(side + 2 * self.padding, *inputs.shape[2:])
        return _PatchModel(images, side, outer, self.padding, self.samples)

    def _one(
        self,
        image: Tensor,
        sampler: _OtherImages | _Conditional,
        classes: Tensor,
        runner: BatchRunner,
    ) -> Tensor:
        """Return maps (T, *spatial) of one image (C, *spatial)."""
        size = image.shape[1:]
        side = self._side(image[None])
        stride = min(self.stride or max(1, side // 2), side)
        windows = [
            tuple(slice(start, start + side) for start in corner)
            for corner in itertools.product(*(_positions(n, side, stride) for n in size))
        ]
        # Values have no odds: their own difference is the evidence.
        is_value = meaning_of(self.model, image[None]) == "value"
        evidence_of = nn.Identity() if is_value else self._log_odds
        whole = evidence_of(runner.responses(image[None].clone()))[:, classes.cpu()]
        evidence = whole.new_zeros(len(classes), *size)
        covered = whole.new_zeros(size)
        count = sampler.count
        group = max(1, runner.size // count)
        for start in track(range(0, len(windows), group), self.name):
            some = windows[start : start + group]
            changed = image.repeat(len(some) * count, *[1] * image.dim())
            for i, window in enumerate(some):
                changed[(slice(i * count, (i + 1) * count), slice(None), *window)] = sampler(window)
            chance = runner.responses(changed).unflatten(0, (-1, count)).mean(1)
            change = whole - evidence_of(chance)[:, classes.cpu()]
            for window, weight in zip(some, change, strict=True):
                evidence[(slice(None), *window)] += beside(weight, evidence)
                covered[window] += 1
        return (evidence / covered).to(image)

    def _log_odds(self, probability: Tensor) -> Tensor:
        """Return log2 odds of Laplace-corrected probabilities (N, K)."""
        total, classes = self.images, probability.shape[1]
        # log(p + 1/n) − log(1 − p + (K − 1)/n): the correction's denominators cancel.
        return (probability * total + 1).log2() - ((1 - probability) * total + classes - 1).log2()


_Window = tuple[slice, ...]


def _positions(size: int, side: int, stride: int) -> list[int]:
    """Return where windows start along an axis, so that they cover all of it."""
    starts = list(range(0, size - side + 1, stride))
    return starts if starts[-1] == size - side else [*starts, size - side]


class _OtherImages:
    """Shows other images' content in the window."""

    def __init__(self, images: Tensor) -> None:
        self.images = images
        self.count = len(images)

    def __call__(self, window: _Window) -> Tensor:
        return self.images[(slice(None), slice(None), *window)]


_MOST_PATCHES = 20_000
"""Of a volume, whose patches hold thousands of voxels each."""


class _PatchModel:
    """A Gaussian over the l × l patches of each channel, and its conditionals.

    Args:
        images: (R, C, *spatial), whose patches it is fitted to.
        side: k.
        outer: l.
        padding: from the outer patch's edge to the window's, where the image's edge is far.
        count: samples to draw at a time.
    """

    def __init__(self, images: Tensor, side: int, outer: int, padding: int, count: int) -> None:
        pixels = images.to("cpu", torch.float64)
        self.side, self.outer, self.padding, self.count = side, outer, padding, count
        self.sides = images.dim() - 2
        over = (0, *places(pixels))
        self.low, self.high = pixels.amin(over), pixels.amax(over)
        means, covariances = [], []
        for channel in pixels.unbind(1):
            patches = self._patches(channel)
            means.append(patches.mean(0))
            centred = patches - means[-1]
            covariances.append(centred.T @ centred / max(len(patches) - 1, 1))
        self.mean, self.covariance = torch.stack(means), torch.stack(covariances)
        self._known: dict[tuple[int, ...], tuple[Tensor, Tensor, Tensor, Tensor]] = {}

    def _patches(self, channel: Tensor) -> Tensor:
        """Return the patches of images (R, *spatial), (P, l^d)."""
        if self.sides < 3:
            return unfolded(channel, self.outer).permute(0, 2, 1).flatten(0, 1)
        starts = [size - self.outer + 1 for size in channel.shape[1:]]
        count = len(channel) * math.prod(starts)
        step = -(-count // _MOST_PATCHES)
        windows = channel
        for dimension in range(1, channel.dim()):
            windows = windows.unfold(dimension, self.outer, 1)
        chosen = np.unravel_index(np.arange(0, count, step), (len(channel), *starts))
        return windows[tuple(map(torch.from_numpy, chosen))].flatten(1)

    def conditional(self, offset: tuple[int, ...]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return what draws the window at an offset inside the outer patch, given the rest.

        Returns:
            inside (k²) and outside (l² − k²), flat positions in the patch; the gain
            (C, k², l² − k²) and the square root (C, k², k²) of the conditional covariance.
        """
        if offset not in self._known:
            mask = torch.zeros([self.outer] * self.sides, dtype=torch.bool, device="cpu")
            mask[tuple(slice(start, start + self.side) for start in offset)] = True
            inside, outside = mask.flatten().nonzero()[:, 0], (~mask).flatten().nonzero()[:, 0]
            covariance = self.covariance
            cross = covariance[:, inside][:, :, outside]
            # A little white noise keeps the inverse stable where patches are few or smooth.
            level = covariance.diagonal(dim1=1, dim2=2).mean(1)[:, None] * 1e-6 + 1e-12
            ring = covariance[:, outside][:, :, outside]
            ring.diagonal(dim1=1, dim2=2).add_(level)
            gain = torch.linalg.solve(ring, cross.mT).mT if len(outside) else cross
            left = covariance[:, inside][:, :, inside] - gain @ cross.mT
            values, vectors = torch.linalg.eigh((left + left.mT) / 2)
            root = vectors * values.clamp(min=0).sqrt()[:, None]
            self._known[offset] = (inside, outside, gain, root)
        return self._known[offset]


class _Conditional:
    """Draws a window's content given what surrounds it in one image."""

    def __init__(self, model: _PatchModel, image: Tensor, generator: torch.Generator) -> None:
        self.model, self.generator = model, generator
        self.image = image.to("cpu", torch.float64)
        self.count = model.count

    def __call__(self, window: _Window) -> Tensor:
        model = self.model
        starts = [
            min(max(part.start - model.padding, 0), size - model.outer)
            for part, size in zip(window, self.image.shape[1:], strict=True)
        ]
        offset = tuple(part.start - start for part, start in zip(window, starts, strict=True))
        inside, outside, gain, root = model.conditional(offset)
        around = (slice(start, start + model.outer) for start in starts)
        patch = self.image[(slice(None), *around)].flatten(1)
        ring = (patch - model.mean)[:, outside]
        mean = model.mean[:, inside] + (gain @ ring[:, :, None])[:, :, 0]
        shape = (self.count, *mean.shape)
        noise = torch.randn(shape, generator=self.generator, dtype=mean.dtype, device=mean.device)
        drawn = mean + (root @ noise[..., None])[..., 0]
        drawn = torch.minimum(torch.maximum(drawn, model.low[:, None]), model.high[:, None])
        return drawn.unflatten(2, [model.side] * model.sides)
