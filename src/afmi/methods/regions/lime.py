"""LIME: a linear model of the network around one image, over superpixels."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import KW_ONLY, dataclass, field

import numpy as np
import torch
from torch import Tensor

from afmi.errors import UsageError
from afmi.gradients.passes import BatchRunner
from afmi.methods.black_box import SampledMethod
from afmi.methods.work import Work
from afmi.network.randomness import image_generator
from afmi.pictures.references import Reference
from afmi.pictures.superpixels import Quickshift, Segmentation, superpixels
from afmi.progress import track

__all__ = ["LIME"]


@dataclass(frozen=True)
class LIME(SampledMethod):
    """Show each superpixel's weight in a linear model of the class probability.

    Samples z ∈ {0, 1}^d keep superpixel j where z_j = 1 and hide it elsewhere; the weights solve
    min_{w, b} Σ_i π(z_i) (p_c(x_{z_i}) − w·z_i − b)² + α |w|² with π(z) = exp(−D(z)² / (2 κ²))
    and D(z) = 1 − √(|z|/d), the cosine distance between z and the whole image. S is w_j on
    superpixel j. Signed. p_c is the probability of the class, or the value of another target.

    Paper: Ribeiro, Singh & Guestrin, *"Why Should I Trust You?"*, KDD 2016, Section 3. The
    defaults are those of the authors' package for images: quickshift superpixels, 1,000 samples
    the first of which is the whole image, κ = 0.25, ridge regression with α = 1, a hidden
    superpixel takes its own mean colour. Differs: all superpixels get a weight (the paper's K
    largest would leave the rest of the map unranked), as by default in the package.
    Cost: 1 forward + ``samples`` forwards per image, whatever the number of classes.

    Args:
        model: see `Method`.
        samples: how many.
        segmentation: cuts the image into superpixels; see `afmi.pictures.superpixels`.
        kernel_width: κ.
        ridge: α.
        reference: what hidden superpixels show (the mean over the images, where it gives
            several). None: the superpixel's mean colour.
        seed: of the samples, which also depend on the image.
        batch_size: see `BlackBoxMethod`.

    Example:
        >>> model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(768, 4))
        >>> LIME(model, samples=50).attribute(torch.rand(2, 3, 16, 16)).shape
        torch.Size([2, 1, 16, 16])
    """

    name = "LIME"
    family = "region"
    scores = "perturbation"
    signed = True
    paper = 'Ribeiro et al., "Why Should I Trust You?", KDD 2016'

    _: KW_ONLY
    samples: int = 1000
    segmentation: Segmentation | Callable[[np.ndarray], np.ndarray] = field(
        default_factory=Quickshift
    )
    kernel_width: float = 0.25
    ridge: float = 1.0
    reference: Reference | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.samples < 2 or not self.kernel_width > 0 or not self.ridge >= 0:
            raise UsageError(
                "expected at least 2 samples, a kernel_width above 0 and a ridge of at least 0, "
                f"got samples={self.samples}, kernel_width={self.kernel_width}, "
                f"ridge={self.ridge}"
            )

    def work(self, inputs: Tensor) -> Work:
        """See `Method.work`."""
        return Work(self.samples + 1)

    def _class_maps(
        self, inputs: Tensor, classes: Tensor, runner: BatchRunner
    ) -> tuple[Tensor, Tensor | None]:
        maps = [
            self._one(image, hidden, classes[:, n], runner)
            for n, (image, hidden) in enumerate(zip(inputs, self._hidden(inputs), strict=True))
        ]
        return torch.stack(maps, 1)[:, :, None], None

    def _hidden(self, inputs: Tensor) -> list[Tensor | None]:
        if self.reference is None:
            return [None] * len(inputs)
        return list(self.reference.for_each(inputs).mean(1))

    def _one(
        self, image: Tensor, hidden: Tensor | None, classes: Tensor, runner: BatchRunner
    ) -> Tensor:
        """Return maps (T, *spatial) of one image (C, *spatial)."""
        labels = superpixels(self.segmentation, image)
        count = int(labels.max()) + 1
        if hidden is None:
            hidden = mean_colors(image, labels, count)
        generator = image_generator(self.seed, image)
        kept = torch.randint(
            0, 2, (self.samples, count), generator=generator, dtype=torch.bool, device="cpu"
        )
        kept[0] = True
        scores = torch.empty(self.samples, len(classes), dtype=torch.float64, device="cpu")
        for start, stop in track(runner.ranges(self.samples), self.name):
            visible = kept[start:stop].to(image.device)[:, labels][:, None]
            shown = torch.where(visible, image, hidden)
            scores[start:stop] = runner.responses(shown)[:, classes.cpu()]
        design = kept.to("cpu", torch.float64)
        distance = 1 - (design.sum(1) / count).sqrt()
        closeness = torch.exp(-(distance**2) / (2 * self.kernel_width**2))
        weights = weighted_ridge(design, scores, closeness, self.ridge)
        return weights.T.to(image)[:, labels]


def mean_colors(image: Tensor, labels: Tensor, count: int) -> Tensor:
    """Return the image (C, *spatial) with each superpixel's mean colour in place of its pixels."""
    flat, label = image.flatten(1).to("cpu", torch.float64), labels.flatten().cpu()
    sums = flat.new_zeros(flat.shape[0], count).index_add_(1, label, flat)
    means = sums / torch.bincount(label, minlength=count)
    return means.to(image)[:, labels]


def weighted_ridge(design: Tensor, values: Tensor, weight: Tensor, ridge: float) -> Tensor:
    """Return w (d, T) of min Σ_i weight_i (values_i − design_i·w − b)² + ridge |w|²; b is free.

    Args:
        design: (n, d).
        values: (n, T).
        weight: (n,).
        ridge: at least 0; with 0 and too few samples, the shortest solution.
    """
    share = (weight / weight.sum())[:, None]
    design = design - (share * design).sum(0)
    values = values - (share * values).sum(0)
    root = weight.sqrt()[:, None]
    normal = (root * design).T @ (root * design)
    normal.diagonal().add_(ridge)
    return torch.linalg.pinv(normal, hermitian=True) @ ((weight[:, None] * design).T @ values)
