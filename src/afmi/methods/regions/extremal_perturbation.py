"""Extremal perturbation: the smooth region of a given area that serves the class best."""

from __future__ import annotations

import math
from dataclasses import KW_ONLY, dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from afmi.errors import UsageError
from afmi.gradients.passes import BatchRunner
from afmi.methods.base import Attribution, Method
from afmi.methods.work import Work
from afmi.network.classifier import classify, network_zero
from afmi.pictures.dimensions import plane
from afmi.pictures.matrices import CellsToPixels, along_each, at_224, gaussian, unfolded
from afmi.progress import track
from afmi.targets import Columns

__all__ = ["ExtremalPerturbation"]


@dataclass(frozen=True)
class ExtremalPerturbation(Method):
    """Show what part of the image, when kept sharp, gives the highest class score.

    For each area a, m_a = argmax_m y_c(m ⊗ x) − λ R_a(m), R_a(m) = mean (vecsort(m) − r_a)²,
    where r_a is the sorted mask that is 1 on the share a of the places and 0 elsewhere. m ⊗ x
    blurs each place u by a Gaussian of σ = σ_max (1 − m(u)), interpolated in a pyramid of blurred
    images. m is smooth by construction: a max-convolution m(u) = smax_v k(u − v) m̄(v) of free
    values m̄ in [0, 1] on a lattice over the image, 0 outside it, with
    smax f = Σ f e^{f/T} / Σ e^{f/T} and the kernel k(u) = exp(−2 max(0, |u|/σ − ½)²), cut off one
    lattice step beyond σ. S = g ∗ Σ_a m_a. y_c is the logit.

    Kernel, areas, edges and defaults are those of the authors' program, where these differ from the
    paper's (whose kernel is flat over one lattice step and falls to 1/e at σ). There, the places
    include a margin around the image, of σ less half a lattice step, into which the kernel
    reaches; at 224 pixels a region well inside the image is a third larger than the area says.
    Blurs take what lies outside the image as what the network takes as 0, the mean colour of a
    `Classifier`, and g takes it as 0.

    Paper: Fong, Patrick & Vedaldi, *Understanding Deep Networks via Extremal Perturbations and
    Smooth Masks*, ICCV 2019, Eq. 2–9, in the preservation game. SGD with momentum, v ← μ v +
    (1 − μ) ∇ as in the authors' program (TorchRay); λ grows geometrically, which enforces the
    area, so that masks of far fewer iterations are too large. The areas, and the Gaussian g over
    their sum, are those of the paper's pointing game on VOC. m̄ starts at 1. Differs: m and R_a
    are computed on the lattice, and m is interpolated linearly between its points; equal values
    share their entries of r_a; lengths in pixels hold for images whose shorter side is 224 and
    scale with it. The program mirrors what it shows at every other step; we do not unless
    ``mirror`` is set, because a mirrored digit or letter is another one. Volumes are refused: their
    lattice has so many places that an image would take hours.
    Cost: ``iterations`` forwards + backwards per image and area, 1 forward.

    Args:
        model: see `Method`.
        areas: shares of the image and its margin to keep, each above 0 and below 1; one
            suffices, and costs that much less.
        iterations: steps of SGD.
        learning_rate: of SGD.
        momentum: μ.
        weight: λ at the start.
        growth: what λ is multiplied by after each step.
        sigma: σ, in pixels at 224.
        step: s, in pixels at 224.
        temperature: T.
        blur: σ_max, in pixels at 224.
        levels: images in the pyramid, the sharp one included.
        smoothing: standard deviation of g, as a share of the image's shorter side; 0: none.
        mirror: whether every other step shows the network the blurred image mirrored.
        batch_size: see `afmi.gradients.passes.BatchRunner`.

    Example:
        >>> model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(768, 4))
        >>> method = ExtremalPerturbation(model, areas=(0.1, 0.3), iterations=5)
        >>> method.attribute(torch.rand(2, 3, 16, 16)).shape
        torch.Size([2, 1, 16, 16])
    """

    name = "Extremal perturbation"
    aliases = ("ep",)
    family = "region"
    scores = "perturbation"
    signed = False
    sides = (1, 2)
    paper = "Fong et al., Understanding Deep Networks via Extremal Perturbations, ICCV 2019"

    _: KW_ONLY
    areas: tuple[float, ...] = (0.025, 0.05, 0.1, 0.2)
    iterations: int = 800
    learning_rate: float = 1e-2
    momentum: float = 0.9
    weight: float = 300.0
    growth: float = 1.0035
    sigma: float = 21.0
    step: float = 7.0
    temperature: float = 0.05
    blur: float = 20.0
    levels: int = 8
    smoothing: float = 0.09
    mirror: bool = False
    batch_size: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "areas", tuple(self.areas))
        if not self.areas or not all(0 < area < 1 for area in self.areas):
            raise UsageError(f"expected areas above 0 and below 1, got {self.areas}")
        if self.iterations < 1 or self.levels < 2 or not self.sigma > self.step > 0:
            raise UsageError(
                "expected at least 1 iteration and 2 levels, and a sigma above the step, got "
                f"iterations={self.iterations}, levels={self.levels}, sigma={self.sigma}, "
                f"step={self.step}"
            )

    def work(self, inputs: Tensor) -> Work:
        """See `Method.work`."""
        return len(self.areas) * self.iterations * Work(1, 1) + Work(1)

    def _attribute(self, inputs: Tensor, columns: Columns) -> Attribution:
        logits = classify(self.model, inputs)
        classes = columns.of(logits)
        masks = self._masks(inputs, classes)
        total = masks.unflatten(0, (len(inputs), len(self.areas))).sum(1)
        if self.smoothing > 0:
            total = blurred(total, self.smoothing * plane(inputs))
        return Attribution(total, classes, logits)

    def _masks(self, inputs: Tensor, classes: Tensor) -> Tensor:
        """Return the masks (N · A, 1, *spatial), areas varying fastest."""
        runner = BatchRunner(self.model, inputs, self.batch_size)
        areas = len(self.areas)
        row_class = classes.repeat_interleave(areas)
        pyramid = _Pyramid(self, inputs)
        lattice = _Lattice(self, inputs)
        goal = torch.stack([lattice.ranked(area) for area in self.areas]).repeat(len(inputs), 1)
        free = lattice.start(len(row_class))
        velocity: Tensor | None = None

        weight = self.weight
        for step in track(range(self.iterations), self.name):
            flipped = [-1] if self.mirror and step % 2 == 0 else []
            leaf = free.detach().requires_grad_(True)
            with torch.enable_grad():
                mask = lattice.smooth(leaf)
            full = lattice.pixels(mask.detach())
            shown = pyramid.shown(full).flip(flipped)
            gradient = runner.class_gradients(shown, row_class).flip(flipped)
            by_mask = lattice.pixels.pull_back(pyramid.pull_back(gradient, full))
            by_mask = weight * area_slope(mask.detach(), goal) - by_mask
            (by_free,) = torch.autograd.grad(mask, leaf, by_mask)
            # A running mean of the gradients, which begins with the first.
            velocity = by_free if velocity is None else by_free.lerp(velocity, self.momentum)
            free.sub_(self.learning_rate * velocity).clamp_(0, 1)
            weight *= self.growth
        return lattice.pixels(lattice.smooth(free))


def blurred(images: Tensor, sigma: float) -> Tensor:
    """Return images (N, C, *spatial) blurred by a Gaussian, as if 0 lay beyond their edges."""
    sides = [gaussian(side, sigma, edges="zero").to(images) for side in images.shape[2:]]
    return along_each(sides, images)


def area_slope(masks: Tensor, goal: Tensor) -> Tensor:
    """Return the gradient of R_a = mean (vecsort(m) − r_a)² by masks (B, *cells).

    Equal values share their goals: their order is arbitrary, and must not choose the region.
    """
    flat = masks.flatten(1)
    ordered, order = flat.sort(dim=1, stable=True)
    apart = 8 * torch.finfo(flat.dtype).eps
    group = F.pad((ordered.diff(dim=1) > apart).cumsum(1), (1, 0))
    zeros = torch.zeros_like(goal)
    size = zeros.scatter_add(1, group, torch.ones_like(goal))
    shared = (zeros.scatter_add(1, group, goal) / size).gather(1, group)
    slope = torch.empty_like(flat).scatter_(1, order, 2 * (ordered - shared) / flat.shape[1])
    return slope.view_as(masks)


class _Lattice:
    """The free values m̄, the smooth mask m on their lattice and a margin, and m at pixel size."""

    def __init__(self, method: ExtremalPerturbation, inputs: Tensor) -> None:
        step = max(at_224(method.step, inputs), 1.0)
        self.size = tuple(max(1, round(side / step)) for side in inputs.shape[2:])
        self.like, self.temperature = inputs, method.temperature
        # Lengths in lattice steps. The margin ends at its outermost places.
        sigma = method.sigma / method.step
        self.reach = 1 + math.ceil(sigma)
        self.margin = math.ceil(sigma - 0.5)
        self.places = math.prod(cells + 2 * sigma - 1 for cells in self.size)
        line = torch.arange(-self.reach, self.reach + 1, dtype=torch.float64, device="cpu")
        square = torch.zeros((), dtype=torch.float64, device="cpu")
        for _ in self.size:
            square = square[..., None] + line**2
        kernel = torch.exp(-2 * (square.sqrt() / sigma - 0.5).clamp(min=0) ** 2)
        self.kernel = kernel.flatten()[:, None].to(inputs)
        self.pixels = CellsToPixels(
            tuple(
                self._axis(cells, side).to(inputs)
                for cells, side in zip(self.size, inputs.shape[2:], strict=True)
            )
        )

    def _axis(self, cells: int, side: int) -> Tensor:
        """Return the matrix from the lattice with its margin to pixels, (side, cells + 2 margin).

        It interpolates linearly, at the edge towards the margin.
        """
        place = (torch.arange(side, dtype=torch.float64, device="cpu") + 0.5) * cells / side - 0.5
        lattice = torch.arange(-self.margin, cells + self.margin, dtype=torch.float64, device="cpu")
        return (1 - (place[:, None] - lattice).abs()).clamp(min=0)

    def start(self, count: int) -> Tensor:
        """Return the first m̄, (B, *cells): the whole image sharp, where its gradient tells most."""
        return self.like.new_ones(count, *self.size)

    def ranked(self, area: float) -> Tensor:
        """Return r_a: zeros, then ones on the share ``area``, at least one place."""
        count = math.prod(cells + 2 * self.margin for cells in self.size)
        ones = min(max(round(area * self.places), 1), count)
        return (torch.arange(count, dtype=torch.int64, device="cpu") >= count - ones).to(self.like)

    def smooth(self, free: Tensor) -> Tensor:
        """Return m with its margin, the max-convolution of m̄ (B, *cells)."""
        size = [cells + 2 * self.margin for cells in free.shape[1:]]
        padded = F.pad(free, (self.reach + self.margin,) * (2 * len(size)))
        around = unfolded(padded, 2 * self.reach + 1) * self.kernel
        share = torch.softmax(around / self.temperature, 1)
        return (around * share).sum(1).view(-1, *size)


class _Pyramid:
    """Each image at several blurs, and the operator ⊗ that chooses among them by place."""

    def __init__(self, method: ExtremalPerturbation, inputs: Tensor) -> None:
        widest = at_224(method.blur, inputs)
        steps = method.levels - 1
        zero = network_zero(method.model, inputs)
        levels = [widest * level / steps for level in range(1, method.levels)]
        plain = inputs - zero
        self.images = torch.stack([inputs, *(blurred(plain, s) + zero for s in levels)], 1)
        self.areas, self.steps = len(method.areas), steps

    def _ends(self, masks: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the sharper and the blurrier level at each place, and how far to go between."""
        position = ((1 - masks) * self.steps).clamp(0, self.steps)
        lower = position.floor().clamp(max=self.steps - 1)
        channels = self.images.shape[2]
        index = lower.long().expand(-1, channels, *lower.shape[2:])
        index = index.unflatten(0, (len(self.images), self.areas)).transpose(1, 2)
        # Levels of one image and channel, (N, C, L, *spatial), chosen for each of its areas.
        levels = self.images.transpose(1, 2)
        sharper, blurrier = (
            levels.gather(2, index + k).transpose(1, 2).flatten(0, 1) for k in (0, 1)
        )
        return sharper, blurrier, position - lower

    def shown(self, masks: Tensor) -> Tensor:
        """Return m ⊗ x, (B, C, *spatial), for masks (B, 1, *spatial)."""
        return torch.lerp(*self._ends(masks))

    def pull_back(self, gradient: Tensor, masks: Tensor) -> Tensor:
        """Return the gradient by the masks, (B, 1, *spatial), given the one by m ⊗ x."""
        sharper, blurrier, _ = self._ends(masks)
        return (gradient * (sharper - blurrier)).sum(1, keepdim=True) * self.steps
