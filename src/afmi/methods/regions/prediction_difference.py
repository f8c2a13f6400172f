"""Prediction difference analysis: what the class loses when a window's content is not known."""

from __future__ import annotations

import math
from dataclasses import KW_ONLY, dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from afmi.errors import UsageError
from afmi.gradients.passes import BatchRunner
from afmi.methods.black_box import BlackBoxMethod
from afmi.methods.work import Work
from afmi.network.randomness import image_generator
from afmi.network.trial import meaning_of
from afmi.pictures.references import Reference
from afmi.progress import track

__all__ = ["PredictionDifference"]


@dataclass(frozen=True)
class PredictionDifference(BlackBoxMethod):
    """Show each pixel's evidence for (positive) or against (negative) the class.

    For a window w of k × k pixels, WE_w = log2 odds p(c | x) − log2 odds p(c | x∖w) with
    odds(p) = p / (1 − p) and p(c | x∖w) = 1/S Σ_s p_c(x with sample s in place of w). Each p is
    Laplace-corrected to (p n + 1) / (n + K) for n training images and K classes. S_ij is the mean
    of WE_w over the windows that cover the pixel. p_c is the softmax probability.

    Samples are drawn from a Gaussian model of l × l patches, given the ring of l − k pixels around
    the window (conditional sampling), channel by channel.

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
        patches: images (R, C, H, W) that the Gaussian is fitted to. None: the image itself.
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
        windows = math.prod(len(_positions(n, side, stride)) for n in inputs.shape[-2:])
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
        return min(self.window, max(1, min(inputs.shape[-2:]) // 3))

    def _model(self, images: Tensor, inputs: Tensor) -> _PatchModel:
        side = self._side(inputs)
        outer = min(side + 2 * self.padding, *inputs.shape[-2:])
        return _PatchModel(images, side, outer, self.padding, self.samples)

    def _one(
        self,
        image: Tensor,
        sampler: _OtherImages | _Conditional,
        classes: Tensor,
        runner: BatchRunner,
    ) -> Tensor:
        """Return maps (T, H, W) of one image (C, H, W)."""
        height, width = image.shape[1:]
        side = self._side(image)
        stride = min(self.stride or max(1, side // 2), side)
        corners = [
            (top, left)
            for top in _positions(height, side, stride)
            for left in _positions(width, side, stride)
        ]
        # Values have no odds: their own difference is the evidence.
        is_value = meaning_of(self.model, image[None]) == "value"
        evidence_of = nn.Identity() if is_value else self._log_odds
        whole = evidence_of(runner.responses(image[None].clone()))[:, classes.cpu()]
        evidence = whole.new_zeros(len(classes), height, width)
        covered = whole.new_zeros(height, width)
        count = sampler.count
        group = max(1, runner.size // count)
        for start in track(range(0, len(corners), group), self.name):
            some = corners[start : start + group]
            changed = image.repeat(len(some) * count, 1, 1, 1)
            for i, (top, left) in enumerate(some):
                rows = changed[i * count : (i + 1) * count]
                rows[:, :, top : top + side, left : left + side] = sampler(top, left, side)
            chance = runner.responses(changed).unflatten(0, (-1, count)).mean(1)
            change = whole - evidence_of(chance)[:, classes.cpu()]
            for (top, left), weight in zip(some, change, strict=True):
                evidence[:, top : top + side, left : left + side] += weight[:, None, None]
                covered[top : top + side, left : left + side] += 1
        return (evidence / covered).to(image)

    def _log_odds(self, probability: Tensor) -> Tensor:
        """Return log2 odds of Laplace-corrected probabilities (N, K)."""
        total, classes = self.images, probability.shape[1]
        # log(p + 1/n) − log(1 − p + (K − 1)/n): the correction's denominators cancel.
        return (probability * total + 1).log2() - ((1 - probability) * total + classes - 1).log2()


def _positions(size: int, side: int, stride: int) -> list[int]:
    """Return where windows start along an axis, so that they cover all of it."""
    starts = list(range(0, size - side + 1, stride))
    return starts if starts[-1] == size - side else [*starts, size - side]


class _OtherImages:
    """Shows other images' content in the window."""

    def __init__(self, images: Tensor) -> None:
        self.images = images
        self.count = len(images)

    def __call__(self, top: int, left: int, side: int) -> Tensor:
        return self.images[:, :, top : top + side, left : left + side]


class _PatchModel:
    """A Gaussian over the l × l patches of each channel, and its conditionals.

    Args:
        images: (R, C, H, W), whose patches it is fitted to.
        side: k.
        outer: l.
        padding: from the outer patch's edge to the window's, where the image's edge is far.
        count: samples to draw at a time.
    """

    def __init__(self, images: Tensor, side: int, outer: int, padding: int, count: int) -> None:
        pixels = images.to("cpu", torch.float64)
        self.side, self.outer, self.padding, self.count = side, outer, padding, count
        self.low, self.high = pixels.amin((0, 2, 3)), pixels.amax((0, 2, 3))
        means, covariances = [], []
        for channel in pixels.unbind(1):
            patches = F.unfold(channel[:, None], outer).permute(0, 2, 1).flatten(0, 1)
            means.append(patches.mean(0))
            centred = patches - means[-1]
            covariances.append(centred.T @ centred / max(len(patches) - 1, 1))
        self.mean, self.covariance = torch.stack(means), torch.stack(covariances)
        self._known: dict[tuple[int, int], tuple[Tensor, Tensor, Tensor, Tensor]] = {}

    def conditional(self, down: int, right: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return what draws the window at an offset inside the outer patch, given the rest.

        Returns:
            inside (k²) and outside (l² − k²), flat positions in the patch; the gain
            (C, k², l² − k²) and the square root (C, k², k²) of the conditional covariance.
        """
        if (down, right) not in self._known:
            mask = torch.zeros(self.outer, self.outer, dtype=torch.bool, device="cpu")
            mask[down : down + self.side, right : right + self.side] = True
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
            self._known[down, right] = (inside, outside, gain, root)
        return self._known[down, right]


class _Conditional:
    """Draws a window's content given what surrounds it in one image."""

    def __init__(self, model: _PatchModel, image: Tensor, generator: torch.Generator) -> None:
        self.model, self.generator = model, generator
        self.image = image.to("cpu", torch.float64)
        self.count = model.count

    def __call__(self, top: int, left: int, side: int) -> Tensor:
        model = self.model
        height, width = self.image.shape[1:]
        y = min(max(top - model.padding, 0), height - model.outer)
        x = min(max(left - model.padding, 0), width - model.outer)
        inside, outside, gain, root = model.conditional(top - y, left - x)
        patch = self.image[:, y : y + model.outer, x : x + model.outer].flatten(1)
        ring = (patch - model.mean)[:, outside]
        mean = model.mean[:, inside] + (gain @ ring[:, :, None])[:, :, 0]
        shape = (self.count, *mean.shape)
        noise = torch.randn(shape, generator=self.generator, dtype=mean.dtype, device=mean.device)
        drawn = mean + (root @ noise[..., None])[..., 0]
        drawn = torch.minimum(torch.maximum(drawn, model.low[:, None]), model.high[:, None])
        return drawn.unflatten(2, (side, side))
