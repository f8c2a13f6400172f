"""Modified gradients of the logits by feature maps, against references that run only once."""

from __future__ import annotations

import threading
import warnings
import weakref
from collections import OrderedDict
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from afmi.errors import CompletenessWarning, ShapeError
from afmi.gradients.forward_pass import ForwardPass, forward_pass
from afmi.gradients.interception import Rules
from afmi.gradients.rules import MODIFIED_GRADIENT
from afmi.gradients.tape import Tape
from afmi.network.channels_last import is_fast
from afmi.network.fingerprint import Fingerprint, fingerprint
from afmi.network.folding import FoldedExecution, folded_execution
from afmi.network.layers import Layer
from afmi.pictures.references import Reference

__all__ = ["ModifiedGradient", "ReferenceRun", "modified_gradient"]

_CACHED_RUNS = 8
"""Reference runs kept for each model; the least recently used is dropped."""


@dataclass(frozen=True)
class ReferenceRun:
    """What one reference image gave.

    Attributes:
        tape: what each nonlinear operation behind the layer saw and gave.
        features: feature maps Ā (1 or N, K, h, w).
        extra_tokens: tokens (1 or N, P, K) that stand for no place, such as a class token.
        logits: (1 or N, C).
    """

    tape: Tape
    features: Tensor
    extra_tokens: Tensor
    logits: Tensor


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


class _Cache:
    """The most recent reference runs of each living model."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._runs: weakref.WeakKeyDictionary[nn.Module, OrderedDict[object, list[ReferenceRun]]]
        self._runs = weakref.WeakKeyDictionary()

    def get(self, model: nn.Module, key: object) -> list[ReferenceRun] | None:
        with self._lock:
            runs = self._runs.get(model)
            if runs is None or key not in runs:
                return None
            runs.move_to_end(key)
            return runs[key]

    def put(self, model: nn.Module, key: object, value: list[ReferenceRun]) -> None:
        with self._lock:
            runs = self._runs.setdefault(model, OrderedDict())
            runs[key] = value
            while len(runs) > _CACHED_RUNS:
                runs.popitem(last=False)


_cache = _Cache()


def _autocast(device: str) -> torch.dtype | None:
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else None


def _record(
    model: nn.Module,
    image: Tensor,
    layer: tuple[nn.Module, Layer] | None,
    rules: Rules,
    *,
    fast: bool,
    folded: FoldedExecution | None,
) -> ReferenceRun:
    tape = Tape()
    done = forward_pass(
        model,
        image,
        layer=layer,
        rules=rules,
        recording=tape,
        fast=fast,
        folded=folded,
    )
    return ReferenceRun(tape, done.features, done.extra_tokens, done.logits)


def _reference_runs(
    model: nn.Module,
    inputs: Tensor,
    layer: tuple[nn.Module, Layer] | None,
    reference: Reference,
    rules: Rules,
    *,
    per_image: bool,
    weights: Fingerprint,
    folded: FoldedExecution | None,
) -> list[ReferenceRun]:
    fast = is_fast(model, inputs)  # as the images, so that the tape lies as their numbers do

    def record(images: Tensor) -> ReferenceRun:
        return _record(model, images, layer, rules, fast=fast, folded=folded)

    if reference.per_image:
        return [record(reference(inputs))]
    batch = inputs.shape[0] if per_image else 1
    key = (
        layer and layer[1],
        reference,
        frozenset(rules.by_name.items()),
        (batch, *inputs.shape[1:]),
        inputs.dtype,
        inputs.device,
        _autocast(inputs.device.type),
        fast,
        weights,
    )
    runs = _cache.get(model, key)
    if runs is None:
        runs = [record(image.expand(batch, *image.shape)) for image in reference(inputs)]
        _cache.put(model, key, runs)
    return runs


def modified_gradient(
    model: nn.Module,
    inputs: Tensor,
    *,
    layer: tuple[nn.Module, Layer] | None,
    reference: Reference,
    rules: Rules = MODIFIED_GRADIENT,
) -> ModifiedGradient:
    """Run the images against the reference, whose own run is made once and kept.

    Args:
        model: maps (N, C, H, W) to logits.
        inputs: images (N, C, H, W).
        layer: where the feature maps are taken; None: at the inputs.
        reference: what the images are compared with.
        rules: a rule for each operation behind the layer.
    """
    # Up to a layer, folding saves less time than intercepting every operation takes.
    folded = folded_execution(model) if layer is None else None
    weights = folded.weights if folded else fingerprint(model, closely=False)

    def against(*, per_image: bool) -> ModifiedGradient:
        runs = _reference_runs(
            model,
            inputs,
            layer,
            reference,
            rules,
            per_image=per_image,
            weights=weights,
            folded=folded,
        )
        run = forward_pass(
            model,
            inputs,
            layer=layer,
            rules=rules,
            tapes=[run.tape for run in runs],
            folded=folded,
        )
        return ModifiedGradient(run, tuple(runs))

    try:
        return against(per_image=False)
    except ShapeError:
        # Some networks fold the batch into other dimensions, where one reference image does not
        # broadcast; a reference for each image always fits.
        if inputs.shape[0] == 1 or reference.per_image:
            raise
        return against(per_image=True)
