"""DeepLIFT: each pixel's share of the change of the class score from a reference image."""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass, field

import torch
from torch import Tensor

from afmi.gradients import modified_gradient
from afmi.methods.base import Attribution, Method, Target, Work, relative_residual
from afmi.pictures.references import Black, Reference

__all__ = ["DeepLIFT"]


@dataclass(frozen=True)
class DeepLIFT(Method):
    """Show each pixel's share of the change of the class score from the reference's to the image's.

    S_ij = Σ_k m_kij · (x_kij − x̄_kij) over the colour channels k, with the multipliers
    m = ∂_σ y_c/∂x: by the rescale rule every derivative of a nonlinear operation is the slope of
    the chord from the reference's activation to the image's. Signed, and the map sums to
    y_c(x) − y_c(x̄).

    Paper: Shrikumar, Greenside & Kundaje, *Learning Important Features Through Propagating
    Activation Differences*, ICML 2017, Eq. 1–3 and 3.5.2 (rescale rule). Differs: max pooling,
    products and normalisations, which the paper leaves open, have rules that keep the sum
    (`afmi.gradients`), so it is exact on residual, squeeze-and-excite and dense networks.
    Cost: 1 forward + 1 backward per image; the reference's forward pass is made once for a model,
    image size and reference, and kept.

    Args:
        model: see `Method`.
        reference: what the image is compared with; where it gives several images, the maps
            against each are averaged.

    Raises:
        OperationError: when the network has an operation without a rule.

    Example:
        >>> model = torch.nn.Sequential(
        ...     torch.nn.Flatten(), torch.nn.Linear(12, 5), torch.nn.ReLU(), torch.nn.Linear(5, 2)
        ... )
        >>> image = torch.rand(1, 3, 2, 2)
        >>> map = DeepLIFT(model).attribute(image, target=1)
        >>> change = model(image) - model(torch.zeros_like(image))
        >>> torch.allclose(map.sum(), change[0, 1], atol=1e-6)
        True
    """

    name = "DeepLIFT"
    family = "pixel"
    scores = "modified gradients"
    cost = "1 forward + 1 backward"
    paper = "Shrikumar et al., Learning Important Features, ICML 2017"

    _: KW_ONLY
    reference: Reference = field(default_factory=Black)

    def work(self, inputs: Tensor) -> Work:
        """See `Method.work`."""
        return Work(1, 1)

    def _attribute(self, inputs: Tensor, target: Target) -> Attribution:
        gradient = modified_gradient(self.model, inputs, layer=None, reference=self.reference)
        classes = target.of(gradient.run.logits)
        maps, changes = [], []
        count = len(gradient.references)
        for r in range(count):
            slopes = gradient.gradients(classes[None], r, last=r == count - 1)[0]
            against = (slopes * gradient.change(r)).sum(1, keepdim=True)
            gradient.check(against.sum((1, 2, 3))[None], classes[None], r)
            maps.append(against)
            changes.append(gradient.output_change(classes[None], r)[0])
        mean = torch.stack(maps).mean(0)
        change = torch.stack(changes).mean(0)
        residual = relative_residual(mean, change)
        return Attribution(mean, classes, gradient.run.logits, residual)
