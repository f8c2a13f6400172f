"""Multiscale A-FMI: modified gradients at pixels and feature maps of two sizes, added up."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass, field

import torch
from torch import Tensor

from afmi.errors import UsageError
from afmi.gradients import ModifiedGradient, modified_gradient
from afmi.methods.base import Attribution, LayerMethod, relative_residual
from afmi.methods.work import Work
from afmi.network.layers import FinerStage, LayerChoice
from afmi.pictures.dimensions import beside, places
from afmi.pictures.maps import upsample
from afmi.pictures.matrices import BLUR_SHARE, along_each, blurring
from afmi.pictures.references import Black, Reference
from afmi.targets import Columns

__all__ = ["MultiscaleAFMI"]


@dataclass(frozen=True)
class MultiscaleAFMI(LayerMethod):
    """Show where the image raised the class score, by what pixels and feature maps say together.

    S = Σ_g w_g S_g over three granularities g. S_1 is A-FMI's map at ``layer`` (Eq. 7). S_2 is the
    exact map Σ_k ∂_σ y_c/∂A^k ⊙ (A^k − Ā^k) of the last stage before it whose maps have more
    places, and S_3 that of the pixels, which is DeepLIFT's; both are blurred by a Gaussian that
    keeps their sums at the borders too. A constant is added to each, so that it sums to
    y_c(x) − y_c(x̄): to S_1 what averaging lost, and to all what class and register tokens and the
    rounding of an interpolation carry. So the residual is 0, and it is a warning that tells where a
    granularity's own terms miss the change. The weights w_g ∝ 1/std(S_g), which sum to 1, give each
    granularity an equal say, so S sums to the same. Signed.

    Paper: none; A-FMI's modified gradient (Eq. 2–5) at several granularities.
    Cost: 1 forward per image + 1 backward for each reference image, whose own forward pass is made
    once for a model and image size, and kept.

    Args:
        model: see `Method`.
        layer: see `LayerMethod`; of the coarsest maps.
        reference: what the image is compared with; where it gives several images, the maps
            against each are averaged.
        blur: standard deviation of the Gaussian, in shorter sides of the image.

    Raises:
        OperationError: when the network has an operation without a rule.

    Example:
        >>> model = torch.nn.Sequential(
        ...     torch.nn.Conv2d(3, 5, 3), torch.nn.ReLU(), torch.nn.MaxPool2d(2),
        ...     torch.nn.Conv2d(5, 5, 3), torch.nn.ReLU(), torch.nn.Flatten(),
        ...     torch.nn.Linear(45, 4),
        ... )
        >>> image = torch.rand(1, 3, 12, 12)
        >>> map = MultiscaleAFMI(model).attribute(image, target=1)
        >>> change = model(image) - model(torch.zeros_like(image))
        >>> torch.allclose(map.sum(), change[0, 1], atol=1e-5)
        True
    """

    name = "Multiscale A-FMI"
    family = "feature map"
    scores = "modified gradients"
    signed = True
    paper = "after A-FMI: Learning Attributions from Deep Networks via Feature Map Importance, 2021"

    _: KW_ONLY
    reference: Reference = field(default_factory=Black)
    blur: float = BLUR_SHARE

    def __post_init__(self) -> None:
        """See `Method`."""
        super().__post_init__()
        if not 0 < self.blur < math.inf:
            raise UsageError(
                f"expected a blur above 0 shorter sides, such as {BLUR_SHARE}, got {self.blur}"
            )

    def work(self, inputs: Tensor) -> Work:
        """See `Method.work`."""
        return Work(1 + self.reference.per_image, self.reference.count(inputs))

    def _attribute(self, inputs: Tensor, columns: Columns) -> Attribution:
        run = self._run(inputs)
        return self._maps(inputs, run, columns.of(run.run.logits)[None])[0]

    def _attribute_classes(self, inputs: Tensor, classes: Tensor) -> list[Attribution]:
        run = self._run(inputs)
        rows = torch.stack([Columns(row).of(run.run.logits) for row in classes])
        return self._maps(inputs, run, rows)

    def _run(self, inputs: Tensor) -> ModifiedGradient:
        layer = LayerChoice(self.layer)
        return modified_gradient(
            self.model,
            inputs,
            layer=None,
            stages=[FinerStage(layer), layer],
            reference=self.reference,
        )

    def _maps(self, inputs: Tensor, run: ModifiedGradient, classes: Tensor) -> list[Attribution]:
        """Return the attribution for each row of classes (T, N)."""
        # At a pixel a map is Δy over the number of pixels, which 16 bits do not hold.
        wide = inputs.to(torch.promote_types(inputs.dtype, torch.float32))
        matrices = [matrix.T for matrix in blurring(wide, self.blur)]
        count = len(run.references)
        maps, changes = [], []
        for r in range(count):
            change = run.output_change(classes, r)
            terms = run.stage_terms(classes, r, last=r == count - 1)
            for one in terms:
                run.check(one.exact.sum(places(one.exact)) + one.extra_tokens, classes, r)
            *fine, coarse = terms
            each = [one.to(wide) for one in (coarse.averaged, *(one.exact for one in fine))]
            rows = [
                _together(each_of, change[t].to(wide), matrices)
                for t, each_of in enumerate(zip(*each, strict=True))
            ]
            maps.append(torch.stack(rows))
            changes.append(change)
        mean = torch.stack(maps).mean(0)
        residual = relative_residual(mean, torch.stack(changes).mean(0))
        layer = run.run.stages[-1].place[1]
        return [
            Attribution(m, c, run.run.logits, r, layer)
            for m, c, r in zip(mean, classes, residual, strict=True)
        ]


def _together(maps: Sequence[Tensor], change: Tensor, matrices: list[Tensor]) -> Tensor:
    """Return the weighted mean (N, 1, *spatial) of the coarsest map and the finer ones.

    Args:
        maps: (N, 1, h, w) each, the coarsest first.
        change: what they sum to, (N,).
        matrices: that blur along each side, without losing anything at the borders.
    """
    size = [len(matrix) for matrix in matrices]
    coarse, *finer = [_spread(one, size, change) for one in maps]
    all_maps = torch.stack([coarse, *(along_each(matrices, one) for one in finer)])
    deviation = all_maps.flatten(2).std(2, correction=0)
    # A map that is the same everywhere, but for rounding, ranks nothing and gets no weight.
    least = deviation.amax(0) * torch.finfo(deviation.dtype).eps ** 0.5
    inverse = torch.where(deviation > least, 1 / deviation, 0)
    blank = (inverse == 0).all(0)
    inverse = torch.where(blank, torch.ones_like(inverse), inverse)
    weights = inverse / inverse.sum(0)
    return (weights.view(*weights.shape, *[1] * (coarse.dim() - 1)) * all_maps).sum(0)


def _spread(maps: Tensor, size: Sequence[int], change: Tensor) -> Tensor:
    """Return maps (N, 1, h, w) at the images' size, with a constant added so that they sum so."""
    pixels = math.prod(size)
    large = upsample(maps, size) * (maps[0].numel() / pixels)
    rest = (change - large.sum(places(large, 1))) / pixels
    return large + beside(rest, large)
