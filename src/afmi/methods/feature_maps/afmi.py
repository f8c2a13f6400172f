"""A-FMI: feature maps' change from a reference, weighted by feature map importance."""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass, field

import torch
from torch import Tensor

from afmi.gradients import ModifiedGradient, modified_gradient
from afmi.methods.base import Attribution, LayerMethod
from afmi.methods.gradient_methods import changes_from_references
from afmi.methods.work import Work
from afmi.network.layers import LayerChoice
from afmi.pictures.dimensions import places
from afmi.pictures.references import Black, Reference
from afmi.targets import Columns, TargetLike, Targets, as_target

__all__ = ["AFMI"]


@dataclass(frozen=True)
class AFMI(LayerMethod):
    """Show which places of the image raised (or lowered) the class score above the reference's.

    S^c = Σ_k FMI_k^c · (A^k − Ā^k) with FMI_k^c = (1/hw) Σ_ij ∂_σ y_c/∂A^k_ij, where ∂_σ is the
    modified gradient: every derivative of a nonlinear operation is the slope of the chord from
    the reference's activation to the image's. Signed, no ReLU.

    Paper: *A-FMI: Learning Attributions from Deep Networks via Feature Map Importance*, ICLR 2021
    submission, Eq. 2–7. Differs: nothing with ``averaged=True``.
    Cost: 1 forward per image + 1 backward through the layers after ``layer`` for each reference
    image, whose own forward pass is made once for a model, layer and image size, and kept.

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
    signed = True
    vectors = ("importance", "contribution")
    paper = "A-FMI: Learning Attributions from Deep Networks via Feature Map Importance, 2021"

    _: KW_ONLY
    reference: Reference = field(default_factory=Black)
    averaged: bool = True

    def work(self, inputs: Tensor) -> Work:
        """See `Method.work`."""
        count = self.reference.count(inputs)
        return Work(1 + self.reference.per_image, layer_backwards=count)

    def feature_map_importance(self, inputs: Tensor, target: TargetLike = None) -> Tensor:
        """Return FMI (Eq. 6): how much each feature map counts for the class.

        Args:
            inputs: images (N, C, *spatial).
            target: as in `attribute`.

        Returns:
            (N, K), signed; the mean over the references where there are several.
        """
        chosen = as_target(self.model, target)
        if isinstance(chosen, Targets):
            parts = self._on(inputs, chosen)
            return torch.cat([one.feature_map_importance(images) for one, images, _ in parts])
        with self._session(inputs, chosen) as (images, wanted):
            run = self._run(images)
            classes = wanted.of(run.run.logits)[None]
            importance = [
                run.gradients(classes, r)[0].mean(places(run.run.features))
                for r in range(len(run.references))
            ]
            return torch.stack(importance).mean(0)

    def contribution_maps(self, inputs: Tensor, target: TargetLike = None) -> Tensor:
        """Return what of the score's change goes through each feature map, place by place.

        ∂_σ y_c/∂A^k ⊙ (A^k − Ā^k): their sum over maps is the exact map (``averaged=False``), and
        over places the vector ``contribution``.

        Args:
            inputs: images (N, C, *spatial).
            target: as in `attribute`.

        Returns:
            (N, K, *spatial of the layer), signed, in units of the score; the mean over the
            references where there are several.
        """
        chosen = as_target(self.model, target)
        if isinstance(chosen, Targets):
            parts = self._on(inputs, chosen)
            return torch.cat([one.contribution_maps(images) for one, images, _ in parts])
        with self._session(inputs, chosen) as (images, wanted):
            run = self._run(images)
            classes = wanted.of(run.run.logits)[None]
            each = (run.stage_terms(classes, r)[0] for r in range(len(run.references)))
            return torch.stack([terms.gradient[0] * terms.change for terms in each]).mean(0)

    def _attribute(self, inputs: Tensor, columns: Columns) -> Attribution:
        run = self._run(inputs)
        classes = columns.of(run.run.logits)[None]
        return changes_from_references(run, classes, averaged=self.averaged, vectors=True)[0]

    def _attribute_classes(self, inputs: Tensor, classes: Tensor) -> list[Attribution]:
        # All classes from one forward pass and one batched backward pass.
        run = self._run(inputs)
        rows = torch.stack([Columns(row).of(run.run.logits) for row in classes])
        return changes_from_references(run, rows, averaged=self.averaged, vectors=True)

    def _run(self, inputs: Tensor) -> ModifiedGradient:
        layer = LayerChoice(self.layer)
        return modified_gradient(self.model, inputs, layer=layer, reference=self.reference)
