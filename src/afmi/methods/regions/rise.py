"""RISE: the mean of random masks, weighted by how well the class survives each of them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass

import torch
from torch import Tensor

from afmi.errors import UsageError
from afmi.gradients.passes import BatchRunner
from afmi.methods.black_box import SampledMethod
from afmi.methods.work import Work
from afmi.network.classifier import network_zero
from afmi.network.randomness import generator_of
from afmi.pictures.matrices import CellsToPixels, crops, interpolation, product
from afmi.pictures.references import Reference
from afmi.progress import track

__all__ = ["RISE"]


@dataclass(frozen=True)
class RISE(SampledMethod):
    """Show which places, when visible, go with a high probability of the class.

    S = 1/(N p) Σ_i p_c(x ⊙ M_i + x̄ ⊙ (1 − M_i)) M_i over N random masks M_i in [0, 1]^(H×W). A
    mask is a grid of s × s cells, each 1 with probability p, interpolated bilinearly to
    (s + 1) C_H × (s + 1) C_W pixels for cells of C_H × C_W pixels (rounded up where s does not
    divide the side, so that the crop always fits), and cropped to H × W at a random offset of up
    to one cell. Signals and volumes have s cells along each side likewise. p_c is the probability
    of the class, or the value of another target; x̄ is what hidden places show.

    N p is only the expectation of Σ_i M_i. Where p_c barely depends on the mask, S is therefore p_c
    times how often each place happened to be visible, which is noise of the masks and not of the
    network. ``weighted_mean=True`` divides by Σ_i M_i instead and takes that noise away.

    Every image gets the same masks, as in the authors' code: they are made once for a batch, and
    an image's map does not depend on the others.

    Paper: Petsiuk, Das & Saenko, *RISE: Randomized Input Sampling for Explanation of Black-box
    Models*, BMVC 2018, Eq. 6 and Section 3.2. The paper takes 4,000 masks for VGG-16 and 8,000
    for ResNet-50, with s = 7 and p = 0.5; the authors' example program takes 6,000 with s = 8 and
    p = 0.1. Differs: within half a cell of the grid's edge the program mirrors the grid, where we
    repeat its outermost cells. The program multiplies the normalised image by the mask, which hides
    with the mean colour of the network's normalisation; so do we, where the model is a
    `Classifier` (any other network is called with x ⊙ M_i). The paper speaks of black:
    ``reference=Black()``.
    Cost: 1 forward + ``masks`` forwards per image, whatever the number of classes.

    Args:
        model: see `Method`.
        masks: N.
        cells: s, the grid's cells along each side.
        probability: p, that a cell is visible.
        reference: x̄ (the mean over the images, where it gives several). None: the image that the
            network takes as 0, see `afmi.network.classifier.network_zero`.
        weighted_mean: whether S is the mean of p_c weighted by the masks, Σ_i p_c M_i / Σ_i M_i;
            0 where no mask shows the place.
        seed: of the masks.
        batch_size: see `BlackBoxMethod`.

    Example:
        >>> model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(300, 4))
        >>> RISE(model, masks=50).attribute(torch.rand(2, 3, 10, 10)).shape
        torch.Size([2, 1, 10, 10])
    """

    name = "RISE"
    family = "region"
    scores = "perturbation"
    signed = False
    paper = "Petsiuk et al., RISE, BMVC 2018"

    _: KW_ONLY
    masks: int = 4000
    cells: int = 7
    probability: float = 0.5
    reference: Reference | None = None
    weighted_mean: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.masks < 1 or self.cells < 1 or not 0 < self.probability <= 1:
            raise UsageError(
                "expected at least 1 mask and 1 cell and a probability above 0 and up to 1, got "
                f"masks={self.masks}, cells={self.cells}, probability={self.probability}"
            )

    def work(self, inputs: Tensor) -> Work:
        """See `Method.work`."""
        return Work(self.masks + 1)

    def _class_maps(
        self, inputs: Tensor, classes: Tensor, runner: BatchRunner
    ) -> tuple[Tensor, Tensor | None]:
        count, _, *sides = inputs.shape
        masks = _Masks(self, sides, inputs)
        hidden = self._hidden(inputs)
        wide = torch.promote_types(inputs.dtype, torch.float32)
        total = torch.zeros(*classes.shape, math.prod(sides), dtype=wide, device=inputs.device)
        visible = torch.zeros(math.prod(sides), dtype=wide, device=inputs.device)
        for start, stop in track(runner.ranges(self.masks), self.name):
            batch = masks(start, stop)
            flat = batch.flatten(1).to(wide)
            visible += flat.sum(0)
            for n in range(count):
                shown = torch.lerp(hidden[n], inputs[n], batch)
                score = runner.responses(shown, wide, inputs.device)[:, classes[:, n]]
                total[:, n] += product(score.T, flat)
        if self.weighted_mean:
            maps = total / visible.clamp_min(torch.finfo(wide).tiny)
        else:
            maps = total / (self.masks * self.probability)
        return maps.view(*classes.shape, 1, *sides), None

    def _hidden(self, inputs: Tensor) -> Tensor:
        """Return what each image shows where it is hidden, (N, C, *spatial) or (N, C, 1, …)."""
        if self.reference is None:
            zero = network_zero(self.model, inputs)
            return zero.expand(len(inputs), *zero.shape[1:])
        return self.reference.for_each(inputs).mean(1)


class _Masks:
    """Makes the masks of any range when they are used; only their small grids are kept."""

    def __init__(self, method: RISE, sides: Sequence[int], like: Tensor) -> None:
        generator = generator_of(method.seed)
        cells, count = method.cells, method.masks
        grid = (count, *[cells] * len(sides))
        drawn = torch.rand(grid, generator=generator, dtype=torch.float32, device="cpu")
        self.grids = (drawn < method.probability).to(like)
        self.axes = [self._axis(size, cells, count, generator, like) for size in sides]

    @staticmethod
    def _axis(
        size: int, cells: int, count: int, generator: torch.Generator, like: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return the interpolation from each offset, (offsets, size, cells), and the offsets."""
        cell = -(-size // cells)
        full = interpolation(cells, (cells + 1) * cell)
        offset = torch.randint(0, cell, (count,), generator=generator, device="cpu")
        return crops(full[: cell + size - 1], size).to(like), offset.to(like.device)

    def __call__(self, start: int, stop: int) -> Tensor:
        """Return masks ``start`` to ``stop``, (B, 1, *spatial)."""
        spread = CellsToPixels(tuple(matrix[at[start:stop]] for matrix, at in self.axes))
        return spread(self.grids[start:stop])
