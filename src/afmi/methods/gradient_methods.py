"""What the methods share that look at one backward pass: rules for it, then a reduction."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from afmi.gradients import ORDINARY, ModifiedGradient, Rules, forward_pass, layer_pass
from afmi.methods.base import Attribution, LayerMethod, Method, relative_residual
from afmi.methods.work import Work
from afmi.network.classifier import network_zero
from afmi.network.layers import LayerChoice
from afmi.pictures.dimensions import places
from afmi.pictures.maps import rank_correlation
from afmi.pictures.references import Reference
from afmi.targets import Columns

__all__ = [
    "GradientMethod",
    "WeightedMapsMethod",
    "change_of_pixels",
    "changes_from_references",
]


@dataclass(frozen=True)
class GradientMethod(Method):
    """A method that reduces the gradient at the pixels, by ordinary or other rules, to a map."""

    def work(self, inputs: Tensor) -> Work:
        """See `Method.work`."""
        return Work(1, 1)

    def _rules(self) -> Rules:
        """Return the rules of the backward pass."""
        return ORDINARY

    @abstractmethod
    def _reduce(self, inputs: Tensor, gradient: Tensor) -> Tensor:
        """Return maps (N, 1, *spatial) of images and their gradients, (N, C, *spatial)."""

    def _attribute(self, inputs: Tensor, columns: Columns) -> Attribution:
        run = forward_pass(self.model, inputs, layer=None, rules=self._rules())
        classes = columns.of(run.logits)
        maps = self._reduce(inputs, run.gradient(classes, last=True))
        return Attribution(maps, classes, run.logits)


@dataclass(frozen=True)
class WeightedMapsMethod(LayerMethod):
    """A method that adds up feature maps by weights from their gradients: S = ReLU(Σ_k w_k A^k)."""

    @abstractmethod
    def _weights(self, features: Tensor, gradient: Tensor) -> Tensor:
        """Return w (N, K, 1, …) of feature maps and their gradients, (N, K, *spatial).

        A weight for each place, (N, K, *spatial), does as well.
        """

    def _rectified(self, maps: Tensor) -> Tensor:
        """Return what becomes of the sum."""
        return maps.relu()

    def _attribute(self, inputs: Tensor, columns: Columns) -> Attribution:
        run = layer_pass(self.model, inputs, LayerChoice(self.layer))
        classes = columns.of(run.logits)
        weights = self._weights(run.features, run.gradient(classes, last=True))
        maps = self._rectified((weights * run.features).sum(1, keepdim=True))
        return Attribution(maps, classes, run.logits, layer=run.layer)


def change_of_pixels(model: nn.Module, inputs: Tensor, reference: Reference | None) -> Tensor:
    """Return x − x̄ (N, C, *spatial), which methods multiply by a gradient to first order.

    Args:
        model: that the gradient is of.
        inputs: images x (N, C, *spatial).
        reference: gives x̄; the mean of several. None: the image that the network itself takes as
            0. That is black for a bare network, and its normalisation's mean for a `Classifier`,
            so that x − x̄ is the normalised image but for its scale.
    """
    if reference is not None:
        return inputs - reference.for_each(inputs).mean(1)
    return inputs - network_zero(model, inputs)


def changes_from_references(
    run: ModifiedGradient, classes: Tensor, *, averaged: bool = False, vectors: bool = False
) -> list[Attribution]:
    """Return Σ_k g_k (A^k − Ā^k) for each row of classes, with g the modified gradient.

    The maps are averaged over the references. A warning tells where they should sum to the change
    of the logit and do not.

    Args:
        run: of the images, against their references.
        classes: int64 (T, N).
        averaged: whether each map's modified gradient is averaged over its positions (Eq. 6).
        vectors: whether the attributions also hold ``importance``, the mean of g_k over positions,
            and ``contribution``, the sum of g_k ⊙ (A^k − Ā^k) over them.
    """
    maps, exact, changes, of_maps = [], [], [], []
    count = len(run.references)
    for r in range(count):
        terms = run.stage_terms(classes, r, last=r == count - 1)[0]
        change = terms.exact
        run.check(change.sum(places(change)) + terms.extra_tokens, classes, r)
        exact.append(change)
        maps.append(terms.averaged if averaged else change)
        changes.append(run.output_change(classes, r))
        if vectors:
            of_maps.append((terms.importance, terms.contribution))
    mean = torch.stack(maps).mean(0)
    residual = relative_residual(mean, torch.stack(changes).mean(0))
    agreement: list[Tensor | None] = [None] * len(mean)
    if averaged:
        unaveraged = torch.stack(exact).mean(0)
        agreement = [rank_correlation(m, e) for m, e in zip(mean, unaveraged, strict=True)]
    means = [torch.stack(each).mean(0) for each in zip(*of_maps, strict=True)]
    named = dict(zip(("importance", "contribution"), means, strict=False))
    return [
        Attribution(
            *(mean[t], classes[t], run.run.logits, residual[t], run.run.layer),
            agreement=agreement[t],
            vectors={name: each[t] for name, each in named.items()},
        )
        for t in range(len(mean))
    ]
