"""Kernel SHAP: Shapley values of superpixels by a weighted linear regression."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import KW_ONLY, dataclass, field
from itertools import combinations

import numpy as np
import torch
from torch import Tensor

from afmi.errors import UsageError
from afmi.gradients.passes import BatchRunner
from afmi.methods.black_box import SampledMethod
from afmi.methods.work import Work
from afmi.network.randomness import image_generator
from afmi.pictures.references import Black, Reference
from afmi.pictures.superpixels import Segmentation, Slic, superpixels
from afmi.progress import track

__all__ = ["KernelSHAP"]


@dataclass(frozen=True)
class KernelSHAP(SampledMethod):
    """Show how the change of the class score from the reference is shared among superpixels.

    φ solves min_φ Σ_z π(z) (y_c(x_z) − y_c(x̄) − φ·z)² subject to Σ_j φ_j = y_c(x) − y_c(x̄),
    where z ∈ {0, 1}^d is a coalition of superpixels, x_z shows these and the reference x̄
    elsewhere, and π(z) = (d − 1) / (C(d, |z|) |z| (d − |z|)). Over all coalitions φ are the
    Shapley values. S_ij = φ_k / |k| on the |k| pixels of superpixel k, so that the map sums to
    y_c(x) − y_c(x̄) exactly. Signed. y_c is the logit.

    Paper: Lundberg & Lee, *A Unified Approach to Interpreting Model Predictions*, NeurIPS 2017,
    Theorem 2. Coalitions as in the authors' package: the smallest and largest sizes are taken
    whole while their share of the kernel's weight pays for them, the rest is drawn, each with its
    complement; with at least 2^d − 2 samples the values are exact. Superpixels as in the package's
    example for images: about 50 by SLIC. Differs: the reference is black by default, no l1
    selection.
    Cost: 1 forward + ``samples`` forwards per image and reference image, whatever the number of
    classes.

    Args:
        model: see `Method`.
        samples: coalitions to evaluate, but for the empty and the whole one. None: the package's
            2 d + 2048.
        segmentation: cuts the image into superpixels; see `afmi.pictures.superpixels`.
        reference: x̄; where it gives several images, y_c(x_z) is the mean over them.
        seed: of the coalitions, which also depend on the image.
        batch_size: see `BlackBoxMethod`.

    Example:
        >>> model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(192, 4))
        >>> KernelSHAP(model, samples=60).attribute(torch.rand(2, 3, 8, 8)).shape
        torch.Size([2, 1, 8, 8])
    """

    name = "Kernel SHAP"
    family = "pixel"
    scores = "perturbation"
    signed = True
    paper = "Lundberg & Lee, A Unified Approach to Interpreting Model Predictions, NeurIPS 2017"

    _: KW_ONLY
    samples: int | None = None
    segmentation: Segmentation | Callable[[np.ndarray], np.ndarray] = field(default_factory=Slic)
    reference: Reference = field(default_factory=Black)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.samples is not None and self.samples < 2:
            raise UsageError(f"expected at least 2 samples, or None, got {self.samples}")

    def work(self, inputs: Tensor) -> Work:
        """See `Method.work`; for the superpixels of the first image."""
        kept, _ = self._coalitions(superpixels(self.segmentation, inputs[0]), inputs[0])
        return Work(1 + self.reference.count(inputs) * len(kept))

    def _class_maps(
        self, inputs: Tensor, classes: Tensor, runner: BatchRunner
    ) -> tuple[Tensor, Tensor | None]:
        references = self.reference.for_each(inputs)
        maps, changes = zip(
            *(
                self._one(inputs[n], references[n], classes[:, n], runner)
                for n in range(len(inputs))
            ),
            strict=True,
        )
        return torch.stack(maps, 1)[:, :, None], torch.stack(changes, 1)

    def _coalitions(self, labels: Tensor, image: Tensor) -> tuple[Tensor, Tensor]:
        """Return the coalitions, the empty and the whole one first, and the others' weights."""
        count = int(labels.max()) + 1
        samples = 2 * count + 2048 if self.samples is None else self.samples
        kept, weight = coalitions(count, samples, image_generator(self.seed, image))
        empty_and_whole = torch.tensor([[False], [True]], dtype=torch.bool, device="cpu")
        return torch.cat([empty_and_whole.expand(2, count), kept]), weight

    def _one(
        self, image: Tensor, references: Tensor, classes: Tensor, runner: BatchRunner
    ) -> tuple[Tensor, Tensor]:
        """Return maps (T, *spatial) and y_c(x) − y_c(x̄) (T,) of one image (C, *spatial)."""
        labels = superpixels(self.segmentation, image)
        kept, weight = self._coalitions(labels, image)
        scores = torch.zeros(len(kept), len(classes), dtype=torch.float64, device="cpu")
        for start, stop in track(runner.ranges(len(kept)), self.name):
            visible = kept[start:stop].to(image.device)[:, labels][:, None]
            for reference in references:
                logits = runner.logits(torch.where(visible, image, reference))
                scores[start:stop] += logits[:, classes].to("cpu", torch.float64)
        scores /= len(references)
        change = scores[1] - scores[0]  # the constraint
        values = shapley_regression(kept[2:].to(scores), scores[2:] - scores[0], weight, change)
        pixels = torch.bincount(labels.flatten().cpu(), minlength=kept.shape[1])
        each = (values / pixels[:, None]).T.to(image)
        return each[:, labels], change.to(image)


def coalitions(count: int, samples: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Choose coalitions of ``count`` players, neither empty nor whole, and their weights.

    A size, with that of the complements, is taken whole where its share of the kernel's weight
    that is left pays for all its coalitions, of the samples that are left. A size that the samples
    would only just cover would leave too few of them for the other sizes, whose weight would then
    rest on a handful of coalitions.

    Returns:
        Members, bool (n, count), with n ≤ ``samples``, and weights, float64 (n,), of sum 1: the
        Shapley kernel where all coalitions of a size are there, and the rest of its weight
        shared by those that were drawn, in proportion to how often each was.
    """
    # The weight of all coalitions of a size and of their complements, C(d, k) π(z) up to a factor.
    shares = {k: len({k, count - k}) / (k * (count - k)) for k in range(1, count // 2 + 1)}
    members = [torch.zeros(0, count, dtype=torch.bool, device="cpu")]
    weights = [torch.zeros(0, dtype=torch.float64, device="cpu")]
    left = samples
    for size in list(shares):
        number = math.comb(count, size) * len({size, count - size})
        if left * shares[size] / sum(shares.values()) < number * (1 - 1e-8):  # but for rounding
            break
        whole = _whole_size(count, size)
        members.append(whole)
        weights.append(weights[0].new_full((number,), shares.pop(size) / number))
        left -= number
    if shares and left >= 2:
        drawn, times = _draw(shares, count, left // 2, generator)
        members.append(drawn)
        weights.append(sum(shares.values()) * times / times.sum())
    weight = torch.cat(weights)
    return torch.cat(members), weight / weight.sum()


def _whole_size(count: int, size: int) -> Tensor:
    """Return all coalitions of a size, and of their complements' size, bool (n, count)."""
    players = torch.tensor(list(combinations(range(count), size)), dtype=torch.int64, device="cpu")
    members = torch.zeros(len(players), count, dtype=torch.bool, device="cpu")
    members.scatter_(1, players, True)
    return members if 2 * size == count else torch.cat([members, ~members])


def _draw(
    shares: dict[int, float], count: int, pairs: int, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Draw coalitions with their complements, sizes by their shares, until ``pairs`` differ.

    Returns:
        Members, bool (n, count), n ≤ 2 ``pairs`` where few are left to be drawn, and how often each
        was drawn, float64 (n,).
    """
    sizes = list(shares)
    weights = torch.tensor(list(shares.values()), dtype=torch.float64, device="cpu")
    picks = torch.multinomial(weights, 4 * pairs, replacement=True, generator=generator)
    times: dict[tuple[bool, ...], int] = {}
    for pick in picks.tolist():
        coalition = torch.zeros(count, dtype=torch.bool, device="cpu")
        players = torch.randperm(count, generator=generator, device="cpu")
        coalition[players[: sizes[pick]]] = True
        # Of a coalition and its complement, the one without the first player stands for both.
        pair = tuple((coalition ^ coalition[0]).tolist())
        times[pair] = times.get(pair, 0) + 1
        if len(times) == pairs:
            break
    drawn = torch.tensor(list(times), dtype=torch.bool, device="cpu")
    each = torch.tensor(list(times.values()), dtype=torch.float64, device="cpu")
    return torch.cat([drawn, ~drawn]), each.repeat(2)


def shapley_regression(members: Tensor, gains: Tensor, weight: Tensor, total: Tensor) -> Tensor:
    """Return φ (d, T) of min Σ_i weight_i (gains_i − members_i·φ)² with Σ_j φ_j = total.

    Args:
        members: (n, d), 0 or 1.
        gains: the coalition's score less the empty one's, (n, T).
        weight: (n,).
        total: the whole coalition's gain, (T,).
    """
    count = members.shape[1]
    if not len(members):
        return total.expand(count, -1) / count
    # The residual of an even share is regressed on centred members: the constraint is then that
    # the corrections sum to zero, which the shortest solution obeys by itself.
    even = total / count
    rest = gains - members.sum(1, keepdim=True) * even
    centred = members - members.mean(1, keepdim=True)
    normal = centred.T @ (weight[:, None] * centred)
    # It maps an even share to 0 but for rounding, which pinv's own tolerance takes for a number.
    inverse = torch.linalg.pinv(normal, hermitian=True, rtol=1e-10)
    return even + inverse @ (centred.T @ (weight[:, None] * rest))
