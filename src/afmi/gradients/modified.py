"""Modified gradients of the logits by feature maps, against references whose runs are kept."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from afmi.errors import CompletenessWarning, ShapeError
from afmi.gradients.forward_pass import ForwardPass, forward_pass
from afmi.gradients.interception import Rules
from afmi.gradients.rules import MODIFIED_GRADIENT
from afmi.gradients.stages import StageMaps
from afmi.gradients.tape import Tape
from afmi.network.channels_last import is_fast
from afmi.network.layers import FinerStage, LayerChoice, Place, check_place
from afmi.network.trace import Remembered, Trace, form_of
from afmi.pictures.dimensions import places
from afmi.pictures.references import Reference

__all__ = ["ModifiedGradient", "ReferenceRun", "StageTerms", "modified_gradient", "traced_gradient"]


@dataclass(frozen=True)
class ReferenceRun:
    """What one reference image gave.

    Attributes:
        tape: what each nonlinear operation behind the layer saw and gave.
        features: feature maps Ā (1 or N, K, h, w).
        extra_tokens: tokens (1 or N, P, K) that stand for no place, such as a class token.
        logits: (1 or N, C).
        stages: what each stage behind the layer gave.
    """

    tape: Tape
    features: Tensor
    extra_tokens: Tensor
    logits: Tensor
    stages: tuple[StageMaps, ...] = ()


@dataclass(frozen=True)
class StageTerms:
    """What the change of the score is made of at one stage.

    Attributes:
        gradient: ∂_σ y_c/∂A, (T, N, K, *spatial).
        change: A − Ā, (N, K, *spatial).
        extra_tokens: what class and register tokens contribute, (T, N).
    """

    gradient: Tensor
    change: Tensor
    extra_tokens: Tensor

    @property
    def exact(self) -> Tensor:
        """The exact maps Σ_k ∂_σ y_c/∂A^k ⊙ (A^k − Ā^k), (T, N, 1, *spatial)."""
        return (self.gradient * self.change).sum(2, keepdim=True)

    @property
    def importance(self) -> Tensor:
        """FMI (Eq. 6), the mean of each map's gradient over places, (T, N, K)."""
        return self.gradient.mean(places(self.gradient, 3))

    @property
    def contribution(self) -> Tensor:
        """What of the score's change goes through each map, Σ_ij ∂_σ y_c/∂A^k ⊙ (A^k − Ā^k).

        (T, N, K); with what the extra tokens contribute it sums to the change.
        """
        return (self.gradient * self.change).flatten(3).sum(3)

    @property
    def averaged(self) -> Tensor:
        """The maps whose gradients are averaged over places (Eq. 6–7), (T, N, 1, *spatial)."""
        weights = self.gradient.mean(places(self.gradient, 3), keepdim=True)
        return (weights * self.change).sum(2, keepdim=True)


@dataclass(frozen=True)
class ModifiedGradient:
    """The images' run, ready to give modified gradients towards any class.

    Attributes:
        run: features A (N, K, h, w) and logits (N, C) of the images.
        references: the runs that the images are compared with.
    """

    run: ForwardPass
    references: tuple[ReferenceRun, ...]

    def gradients(self, targets: Tensor, reference: int = 0, *, last: bool = False) -> Tensor:
        """Return ∂_σ y_c/∂A (Eq. 4), (T, N, K, h, w).

        Args:
            targets: classes, int64 (T, N).
            reference: index into ``references``.
            last: whether no other gradients will be asked for, so that the run can be freed.
        """
        return self.split(targets, reference, last=last)[0]

    def split(
        self, targets: Tensor, reference: int = 0, *, last: bool = False
    ) -> tuple[Tensor, Tensor]:
        """Return the gradients, and what the extra tokens contribute to the logit's change.

        Args:
            targets: classes, int64 (T, N).
            reference: index into ``references``.
            last: as in `gradients`.

        Returns:
            ∂_σ y_c/∂A (T, N, K, h, w), and Σ gradient·Δ over class and register tokens (T, N),
            which is 0 where the layer has none.
        """
        gradients, of_extra_tokens = self.run.split_gradients(targets, reference, last=last)
        change = self.run.extra_tokens - self.references[reference].extra_tokens
        return gradients, (of_extra_tokens * change).flatten(2).sum(2)

    def stage_terms(
        self, targets: Tensor, reference: int = 0, *, last: bool = False
    ) -> list[StageTerms]:
        """Return what each stage gives, and first what the run begins with, such as the images."""
        gradients = self.run.stage_gradients(targets, reference, last=last)
        sides = self.run.features.dim() - 2
        compared = self.references[reference]
        maps = [StageMaps(self.run.features, self.run.extra_tokens)]
        maps += [stage.maps(sides) for stage in self.run.stages]
        others = [StageMaps(compared.features, compared.extra_tokens), *compared.stages]
        return [
            StageTerms(
                gradient,
                own.features - other.features,
                (of_extra_tokens * (own.extra_tokens - other.extra_tokens)).flatten(2).sum(2),
            )
            for (gradient, of_extra_tokens), own, other in zip(gradients, maps, others, strict=True)
        ]

    def change(self, reference: int = 0) -> Tensor:
        """Return A − Ā (N, K, h, w)."""
        return self.run.features - self.references[reference].features

    def output_change(self, targets: Tensor, reference: int = 0) -> Tensor:
        """Return y_c(x) − y_c(x̄), (T, N)."""
        logits = self.references[reference].logits.expand_as(self.run.logits)
        return self.run.logits.gather(1, targets.T).T - logits.gather(1, targets.T).T

    def check(self, explained: Tensor, targets: Tensor, reference: int = 0) -> None:
        """Warn when Σ gradient·(A − Ā) misses y_c(x) − y_c(x̄) by more than rounding.

        Args:
            explained: Σ gradient·(A − Ā), (T, N).
            targets: classes, int64 (T, N).
            reference: index into ``references``.
        """
        change = self.output_change(targets, reference)
        logits = torch.cat([self.run.logits, self.references[reference].logits])
        scale = torch.maximum(change.abs(), logits.abs().max())
        error = ((explained - change).abs() / scale.clamp_min(1e-30)).max()
        device = explained.device.type
        autocast = torch.is_autocast_enabled(device)
        dtype = torch.get_autocast_dtype(device) if autocast else explained.dtype
        allowed = torch.finfo(dtype).eps ** 0.5
        if not float(error) <= allowed:
            warnings.warn(
                "the modified gradients sum to the change of the logit only within "
                f"{float(error):.1e} of the logits' size (expected below {allowed:.0e}): either "
                "other paths lead around the layer, or a part of the network is ill-conditioned "
                "at this reference, such as a normalisation of constant maps; choose another layer "
                "or reference",
                CompletenessWarning,
                stacklevel=3,
            )


def traced_gradient(
    model: nn.Module, images: Tensor, place: Place, references: Sequence[ReferenceRun]
) -> ModifiedGradient:
    """Run images whose operations are recorded, to be run again for others.

    Args:
        model: the network, which has run images of this form before.
        images: (N, C, *spatial), where N may be a symbol.
        place: of the layer, as found.
        references: the runs of references that do not depend on the image.
    """
    tapes = [reference.tape for reference in references]
    run = forward_pass(
        model, images, layer=place, rules=MODIFIED_GRADIENT, tapes=tapes, traced=True
    )
    return ModifiedGradient(run, tuple(references))


_SOUGHT = (LayerChoice, FinerStage)
_Choice = Place | LayerChoice | FinerStage | None
_Kept = tuple[list[Place | None], list[ReferenceRun] | None]
"""The layers, and the references' runs where they do not depend on the image."""

_remembered: Remembered[object, _Kept] = Remembered(8)


@dataclass(frozen=True)
class _Comparison:
    """Images that run through a network against a reference."""

    model: nn.Module
    inputs: Tensor
    reference: Reference
    rules: Rules

    def learn(self, chosen: Sequence[_Choice], batch: int) -> _Kept:
        """Find the layers, and run the references that do not depend on the image."""
        places = [
            one.resolve(self.model, self.inputs) if isinstance(one, _SOUGHT) else one
            for one in chosen
        ]
        if self.reference.per_image:
            return places, None
        images = [image.expand(batch, *image.shape) for image in self.reference(self.inputs)]
        return places, [self._record(image, places) for image in images]

    def run(self, kept: _Kept, trace: Trace | None) -> ModifiedGradient:
        """Run the images."""
        places, runs = kept
        for place in places:
            if place is not None:
                check_place(self.model, place)
        if runs is None:
            runs = [self._record(self.reference(self.inputs), places)]
        run = self._pass(self.inputs, places, tapes=[run.tape for run in runs], trace=trace)
        return ModifiedGradient(run, tuple(runs))

    def _record(self, images: Tensor, places: list[Place | None]) -> ReferenceRun:
        tape = Tape()
        # In the images' layout, so that the tape lies as their numbers do.
        fast = is_fast(self.model, self.inputs)
        run = self._pass(images, places, recording=tape, fast=fast)
        maps = tuple(stage.maps(images.dim() - 2) for stage in run.stages)
        return ReferenceRun(tape, run.features, run.extra_tokens, run.logits, maps)

    def _pass(self, images: Tensor, places: list[Place | None], **how: Any) -> ForwardPass:
        layer, *behind = places
        stages = [place for place in behind if place is not None]
        return forward_pass(self.model, images, layer=layer, stages=stages, rules=self.rules, **how)


def modified_gradient(
    model: nn.Module,
    inputs: Tensor,
    *,
    layer: Place | LayerChoice | None,
    reference: Reference,
    stages: Sequence[LayerChoice | FinerStage] = (),
    rules: Rules = MODIFIED_GRADIENT,
) -> ModifiedGradient:
    """Run the images against the reference.

    The layer that was found and the reference's own run are kept for the next images of this form,
    and found and made again where these run through another network: see `afmi.network.trace`.

    Args:
        model: maps (N, C, *spatial) to logits.
        inputs: images (N, C, *spatial).
        layer: where the feature maps are taken, as chosen or as found; None: at the inputs.
        reference: what the images are compared with.
        stages: layers behind that one whose modified gradients will be asked for as well. One
            that the network does not have is left out.
        rules: a rule for each operation behind the layer.
    """

    comparison = _Comparison(model, inputs, reference, rules)
    chosen: list[_Choice] = [layer, *stages]

    def compared(batch: int) -> ModifiedGradient:
        # The layer that is found is another choice than the inputs, which None stands for, too.
        layers = tuple(
            ("found", one.key(model)) if isinstance(one, _SOUGHT) else one for one in chosen
        )
        key = (layers, reference, frozenset(rules.by_name.items()), batch, *form_of(inputs))
        return _remembered.use(
            model,
            key,
            lambda: comparison.learn(chosen, batch),
            comparison.run,
            contents=not reference.per_image,
        )

    try:
        return compared(1)
    except ShapeError:
        # Some networks fold the batch into other dimensions, where one reference image does not
        # broadcast; a reference for each image always fits.
        if inputs.shape[0] == 1 or reference.per_image:
            raise
        return compared(inputs.shape[0])
