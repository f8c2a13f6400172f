"""A-FMI: feature maps' change from a reference, weighted by feature map importance."""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass, field

import torch
from torch import Tensor

from afmi.gradients import ModifiedGradient, modified_gradient
from afmi.methods.base import Attribution, LayerMethod, Target, TargetLike, relative_residual
from afmi.network.layers import Layer
from afmi.pictures.references import Black, Reference

__all__ = ["AFMI"]


@dataclass(frozen=True)
class AFMI(LayerMethod):
    """Show which places of the image raised (or lowered) the class score above the reference's.

    S^c = Σ_k FMI_k^c · (A^k − Ā^k) with FMI_k^c = (1/hw) Σ_ij ∂_σ y_c/∂A^k_ij, where ∂_σ is the
    modified gradient: every derivative of a nonlinear operation is the slope of the chord from
    the reference's activation to the image's. Signed, no ReLU.

    Paper: *A-FMI: Learning Attributions from Deep Networks via Feature Map Importance*, ICLR 2021
    submission, Eq. 2–7. Differs: nothing with ``averaged=True``.
    Cost: 1 forward + 1 backward through the layers after ``layer``; the reference's forward pass
    is made once for a model, layer, image size and reference, and kept.

    Args:
        model: see `Method`.
        layer: see `LayerMethod`.
        reference: what the image is compared with; where it gives several images, the maps
            against each are averaged.
        averaged: whether each map's modified gradients are averaged over its positions (Eq. 6).
            False keeps them apart: S^c = Σ_k ∂_σ y_c/∂A^k ⊙ (A^k − Ā^k), which sums to
            y_c(x) − y_c(x̄) exactly on every network, less what a transformer's class token
            carries. With averaging that holds exactly where the head is global average pooling
            and one linear layer, and about so elsewhere.

    Example:
        >>> model = torch.nn.Sequential(
        ...     torch.nn.Conv2d(3, 5, 3), torch.nn.ReLU(), torch.nn.AdaptiveAvgPool2d(1),
        ...     torch.nn.Flatten(), torch.nn.Linear(5, 4),
        ... )
        >>> method = AFMI(model)
        >>> method.attribute(torch.rand(2, 3, 6, 6)).shape
        torch.Size([2, 1, 6, 6])
        >>> method.feature_map_importance(torch.rand(2, 3, 6, 6), target=1).shape
        torch.Size([2, 5])
    """

    name = "A-FMI"
    family = "feature map"
    scores = "modified gradients"
    cost = "1 forward + 1 backward behind the layer"
    paper = "A-FMI: Learning Attributions from Deep Networks via Feature Map Importance, 2021"

    _: KW_ONLY
    reference: Reference = field(default_factory=Black)
    averaged: bool = True

    def feature_map_importance(self, inputs: Tensor, target: TargetLike = None) -> Tensor:
        """Return FMI (Eq. 6): how much each feature map counts for the class.

        Args:
            inputs: images (N, C, H, W).
            target: as in `attribute`.

        Returns:
            (N, K), signed; the mean over the references where there are several.
        """
        with self._session(inputs, target) as (own, wanted):
            gradient, _ = self._run(own)
            classes = wanted.of(gradient.run.logits)[None]
            importance = [
                _importance(gradient.gradients(classes, r)[0])
                for r in range(len(gradient.references))
            ]
            return torch.stack(importance).mean(0)[:, :, 0, 0]

    def _attribute(self, inputs: Tensor, target: Target) -> Attribution:
        gradient, layer = self._run(inputs)
        classes = target.of(gradient.run.logits)
        return self._maps(gradient, classes[None], layer)[0]

    def _attribute_classes(self, inputs: Tensor, classes: Tensor) -> list[Attribution]:
        # All classes from one forward pass and one batched backward pass.
        gradient, layer = self._run(inputs)
        rows = [Target(row).of(gradient.run.logits) for row in classes]
        return self._maps(gradient, torch.stack(rows), layer)

    def _run(self, inputs: Tensor) -> tuple[ModifiedGradient, Layer]:
        layer = self.resolved_layer(inputs)
        run = modified_gradient(self.model, inputs, layer=layer, reference=self.reference)
        return run, layer[1]

    def _maps(self, gradient: ModifiedGradient, classes: Tensor, layer: Layer) -> list[Attribution]:
        """Return an attribution for each row of classes (T, N)."""
        maps, changes = [], []
        count = len(gradient.references)
        for r in range(count):
            slopes, extra_contribution = gradient.split(classes, r, last=r == count - 1)
            delta = gradient.change(r)
            exact = (slopes * delta).sum(2, keepdim=True)
            gradient.check(exact.sum((2, 3, 4)) + extra_contribution, classes, r)
            averaged = (_importance(slopes) * delta).sum(2, keepdim=True)
            maps.append(averaged if self.averaged else exact)
            changes.append(gradient.output_change(classes, r))
        mean, change = torch.stack(maps).mean(0), torch.stack(changes).mean(0)
        residual = relative_residual(mean, change)
        logits = gradient.run.logits
        return [
            Attribution(m, c, logits, r, layer)
            for m, c, r in zip(mean, classes, residual, strict=True)
        ]


def _importance(gradients: Tensor) -> Tensor:
    """Average modified gradients (…, K, h, w) over positions (Eq. 6): (…, K, 1, 1)."""
    return gradients.mean((-2, -1), keepdim=True)
