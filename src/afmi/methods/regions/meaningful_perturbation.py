"""Meaningful perturbation: the smallest smooth blur that makes the class vanish."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass

import torch
from torch import Tensor

from afmi.errors import UsageError
from afmi.gradients.passes import BatchRunner
from afmi.methods.base import Attribution, Method
from afmi.methods.work import Work
from afmi.network.classifier import classify
from afmi.network.outputs import responses
from afmi.network.randomness import generator_of
from afmi.network.trial import meaning_of
from afmi.pictures.dimensions import places
from afmi.pictures.matrices import CellsToPixels, at_224, crops, gaussian, interpolation
from afmi.pictures.references import Blurred, Reference
from afmi.progress import track
from afmi.targets import Columns

__all__ = ["MeaningfulPerturbation"]


@dataclass(frozen=True)
class MeaningfulPerturbation(Method):
    """Show what must be blurred to make the class vanish (the deletion game).

    S = 1 − m*, m* = argmin_m λ1 Σ_u (1 − m_u) + λ2 Σ_u |∇m_u|_β^β + E_τ p_c(Φ(x; m, τ)) / q
    with q = 1, or p_c(x) where ``relative``, a coarse mask m in [0, 1], one cell u for δ × δ
    pixels, and
    Φ(x; m, τ) = M ⊙ x + (1 − M) ⊙ x̄, M = g_σ ∗ (m interpolated bilinearly and shifted by τ).
    x̄ is the image blurred, p_c the probability of the class; of another target it is the share
    (f(x) − f(x̄)) of its value f that is left.

    Found by Adam; each step draws τ along each side from 0 … jitter − 1 pixels. m starts as
    the smallest centred disc of zeros that suppresses the class by 99 % compared with x̄, and is
    clipped to [0, 1] after each step.

    A class that stays probable when most of the image is blurred, as among eleven classes, leaves
    a diffuse map: deleting costs λ1 a cell, and 10⁻⁴ is little. That is the method's own.
    ``relative=True`` with λ1 = 10⁻³ deletes less there, and ranks pixels otherwise.

    Paper: Fong & Vedaldi, *Interpretable Explanations of Black Boxes by Meaningful Perturbation*,
    ICCV 2017, Eq. 6 and Section 4.3. Defaults are those of the authors' program (λ1 = 10⁻⁴ and
    λ2 = 0.01 for sums over 28 × 28 cells, β = 3, 300 steps of 0.1, δ = 8, σ = 5, a blur of 10, a
    jitter of 4). For localisation they take λ1 = 10⁻³, β = 2 and the sum of the five most probable
    classes. Differs: the program upsamples the mask by nearest neighbours and rounds it to 8 bits
    before the blur, passes gradients around the blur as if it were not there, sums ‖∇m_u‖_2^β
    where the paper and we sum ‖∇m_u‖_β^β, and shifts the image where we shift the mask; we
    differentiate what is computed. Lengths in pixels hold for images whose shorter side is 224 and
    scale with it, but a cell has at least 2 pixels.
    Cost: ``iterations`` forwards + backwards + 22 forwards per image.

    Args:
        model: see `Method`.
        iterations: steps of Adam.
        learning_rate: of Adam.
        area: λ1.
        relative: whether the probability is taken relative to p_c(x), so that λ1 weighs the same
            whether the network is sure of the class or not.
        smoothness: λ2.
        power: β.
        cell: δ, in pixels at 224.
        blur: σ of the mask's Gaussian, in pixels at 224.
        jitter: in pixels at 224; 1: none.
        reference: x̄. None: the image blurred with σ = 10 pixels at 224. `Mean` gives the paper's
            constant and `Random` its noise perturbation.
        seed: of the jitter.
        batch_size: see `afmi.gradients.passes.BatchRunner`.

    Example:
        >>> model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(768, 4))
        >>> method = MeaningfulPerturbation(model, iterations=5)
        >>> method.attribute(torch.rand(2, 3, 16, 16)).shape
        torch.Size([2, 1, 16, 16])
    """

    name = "Meaningful perturbation"
    aliases = ("mp",)
    family = "region"
    scores = "perturbation"
    signed = False
    paper = "Fong & Vedaldi, Interpretable Explanations of Black Boxes, ICCV 2017"

    _: KW_ONLY
    iterations: int = 300
    learning_rate: float = 0.1
    area: float = 1e-4
    relative: bool = False
    smoothness: float = 1e-2
    power: float = 3.0
    cell: float = 8.0
    blur: float = 5.0
    jitter: int = 4
    reference: Reference | None = None
    seed: int = 0
    batch_size: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        sizes = min(self.learning_rate, self.power, self.cell, self.blur)
        if self.iterations < 1 or self.jitter < 1 or not sizes > 0:
            raise UsageError(
                "expected at least 1 iteration and a jitter of at least 1, and a learning_rate, "
                "power, cell and blur above 0, got "
                f"iterations={self.iterations}, jitter={self.jitter}, "
                f"learning_rate={self.learning_rate}, power={self.power}, cell={self.cell}, "
                f"blur={self.blur}"
            )

    def work(self, inputs: Tensor) -> Work:
        """See `Method.work`."""
        return self.iterations * Work(1, 1) + Work(22)

    def _attribute(self, inputs: Tensor, columns: Columns) -> Attribution:
        logits = classify(self.model, inputs)
        classes = columns.of(logits)
        runner = BatchRunner(self.model, inputs, self.batch_size)
        reference = self.reference or Blurred(at_224(10, inputs))
        plain = reference.for_each(inputs).mean(1)
        scene = _Scene(self, inputs, plain)
        meaning = meaning_of(self.model, inputs)
        before = responses(logits, meaning).gather(1, classes[:, None])[:, 0]
        hidden = scene.responses(runner, scene.plain.clone(), classes)
        unit = before if self.relative else torch.ones_like(before)
        if meaning == "value":  # in units of what there is to lose, as a probability is
            unit = before - hidden
        tiny = torch.finfo(unit.dtype).tiny
        unit = torch.where(unit.abs() < tiny, torch.full_like(unit, tiny), unit)[:, None]
        mask = self._start(scene, classes, before, hidden, runner).requires_grad_(True)
        optimizer = torch.optim.Adam([mask], lr=self.learning_rate)
        generator = generator_of(self.seed)
        offsets = torch.randint(
            0,
            scene.jitter,
            (self.iterations, len(scene.cells)),
            generator=generator,
            device="cpu",
        )

        def slope(logits: Tensor, start: int, stop: int) -> Tensor:
            with torch.enable_grad():
                leaf = logits.detach().requires_grad_(True)
                chosen = responses(leaf, meaning).gather(1, classes[start:stop, None]).sum()
            (by_logits,) = torch.autograd.grad(chosen, leaf)
            return by_logits / unit[start:stop]

        for offset in track(offsets.tolist(), self.name):
            with torch.enable_grad():
                penalty = self._penalty(mask)
            (from_penalty,) = torch.autograd.grad(penalty, mask)
            spread = scene.shifted(offset)
            _, gradient = runner.gradients(scene.shown(spread(mask.detach())), slope)
            mask.grad = from_penalty + spread.pull_back(scene.by_mask(gradient))
            optimizer.step()
            mask.clamp_(0, 1)
        maps = (1 - scene.mean(mask.detach())).clamp(0, 1)
        return Attribution(maps, classes, logits)

    def _penalty(self, mask: Tensor) -> Tensor:
        """Return λ1 Σ (1 − m) + λ2 Σ |∇m|^β, summed over masks (N, *cells)."""
        steps = [mask.diff(dim=side).abs() for side in places(mask, 1)]
        rough = torch.stack([(step**self.power).sum() for step in steps]).sum()
        return self.area * (1 - mask).sum() + self.smoothness * rough

    def _start(
        self,
        scene: _Scene,
        classes: Tensor,
        before: Tensor,
        hidden: Tensor,
        runner: BatchRunner,
    ) -> Tensor:
        """Return for each image the smallest centred disc of zeros that hides the class.

        It is an interval of a signal, and a ball in a volume.
        """
        square = torch.zeros((), dtype=torch.float64, device="cpu")
        for size in scene.cells:
            place = (torch.arange(size, dtype=torch.float64, device="cpu") + 0.5) * 2 / size - 1
            square = square[..., None] + place**2
        radius, corner, steps = square.sqrt(), square.dim() ** 0.5, 20
        # The last disc covers the corners.
        discs = torch.stack([(radius > corner * (k + 1) / steps) for k in range(steps)])
        discs = discs.to(scene.images)

        # A value may rise where it is hidden; what was lost is then what it rose by.
        is_value = meaning_of(self.model, scene.images) == "value"
        sign = (before - hidden).sign() if is_value else 1
        start = torch.zeros_like(discs[:1]).repeat(len(classes), *[1] * square.dim())
        missing = torch.ones_like(classes, dtype=torch.bool)
        for disc in discs:
            masks = disc.expand(len(classes), *disc.shape)
            shown = scene.responses(runner, scene.shown(scene.mean(masks)), classes)
            suppressed = sign * (shown - hidden) <= sign * 0.01 * (before - hidden)
            start[suppressed & missing] = disc
            missing &= ~suppressed
        return start


class _Scene:
    """Images, what they are blended with, and how coarse masks become pixels."""

    def __init__(self, method: MeaningfulPerturbation, images: Tensor, plain: Tensor) -> None:
        self.images, self.plain = images, plain
        self.jitter = max(1, round(at_224(method.jitter, images)))
        cell = max(at_224(method.cell, images), 2.0)
        self.cells = tuple(max(1, round(size / cell)) for size in images.shape[2:])
        sigma = at_224(method.blur, images)
        self.sides = [
            self._axis(cells, size, sigma).to(images)
            for cells, size in zip(self.cells, images.shape[2:], strict=True)
        ]
        self.mean = CellsToPixels(tuple(side.mean(0) for side in self.sides))
        """Averaged over the shifts."""

    def _axis(self, cells: int, size: int, sigma: float) -> Tensor:
        """Return the matrices (jitter, size, cells) from cells to pixels, one for each shift."""
        long = size + self.jitter - 1
        return crops(gaussian(long, sigma) @ interpolation(cells, long), size)

    def shifted(self, offset: Sequence[int]) -> CellsToPixels:
        """Return what makes coarse masks to pixels, shifted by so many of them along each side."""
        return CellsToPixels(tuple(s[by] for s, by in zip(self.sides, offset, strict=True)))

    def shown(self, masks: Tensor) -> Tensor:
        """Return the images (N, C, *spatial) blended by masks (N, 1, *spatial)."""
        return torch.lerp(self.plain, self.images, masks)

    @staticmethod
    def responses(runner: BatchRunner, shown: Tensor, classes: Tensor) -> Tensor:
        """Return the probability of each image's class, or its value, (N,)."""
        found = runner.responses(shown, shown.dtype, shown.device)
        return found.gather(1, classes[:, None])[:, 0]

    def by_mask(self, gradient: Tensor) -> Tensor:
        """Return the gradient by the masks, (N, 1, *spatial), given the one by the images shown."""
        return (gradient * (self.images - self.plain)).sum(1, keepdim=True)
