"""What the adapters to Captum's call shapes share: loose inputs, baselines and targets in."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, TypeAlias

import torch
from torch import Tensor, nn

from afmi.compat.as_given import as_given
from afmi.errors import ShapeError, TargetError, UsageError
from afmi.methods import Attribution, Method
from afmi.network.arguments import rows_of
from afmi.network.classifier import classify, with_arguments
from afmi.network.scored import Scored
from afmi.pictures.references import Black, Image, Reference
from afmi.targets import Scalar, Target

__all__ = ["Adapter", "Baseline", "Distribution", "distribution", "one_or_none"]

Baseline: TypeAlias = "Tensor | float | tuple[Tensor | float] | None"
Distribution: TypeAlias = "Tensor | Callable[..., Tensor]"


class Adapter:
    """What all of them share: one tensor in, one of Captum's shape out.

    Args:
        forward_func: the network, an ``nn.Module``.
    """

    _of_layer: ClassVar = False
    """Attributions are like a layer's one output, and never in a tuple as the inputs may be."""

    def __init__(self, forward_func: nn.Module) -> None:
        self.forward_func = forward_func
        self._network = as_given(forward_func)
        self._shared = Image(torch.zeros(1, 1, dtype=torch.float32, device="cpu"))

    def has_convergence_delta(self) -> bool:
        """Tell whether ``return_convergence_delta`` is taken."""
        return False

    def attributed(
        self,
        make: Callable[[nn.Module, Reference], Method],
        inputs: Any,
        target: Any,
        additional_forward_args: Any,
        baselines: Any = None,
        *,
        delta: bool = False,
        of: Callable[[Attribution], Tensor | None] = lambda attribution: attribution.maps,
    ) -> Any:
        """Explain by a method, and return what of its attribution is asked for.

        Args:
            make: returns the method for a network and a baseline.
            inputs: as in Captum, as are the next three.
            target: see `_target`.
            additional_forward_args: what else the network takes.
            baselines: see `_rows`.
            delta: whether to return as well by how much the sums miss the change of the outputs.
            of: takes from the attribution what is returned.
        """
        images = self.one(inputs)
        parts, deltas = [], []
        rows = _rows(images, one_or_none(baselines))
        for part in _parts(self._network, images, rows, _target(target), additional_forward_args):
            reference = self._reference(part, shared=len(part.images) == len(images))
            attribution = make(part.network, reference).attribution(part.images, part.target)
            found = of(attribution)
            assert found is not None
            parts.append(found)
            if delta:
                start = (
                    torch.zeros_like(part.images[:1]) if part.baseline is None else part.baseline
                )
                change = _scores(part.network, part.images, attribution)
                change = change - _scores(part.network, start, attribution)
                deltas.append(found.flatten(1).sum(1) - change)
        attributions = torch.cat(parts)
        in_tuple = isinstance(inputs, tuple) and not self._of_layer
        shaped = (attributions,) if in_tuple else attributions
        return (shaped, torch.cat(deltas)) if delta else shaped

    def _reference(self, part: _Part, *, shared: bool) -> Reference:
        if part.baseline is None:
            return Black()
        if not shared:
            return _Own(part.baseline)
        # The same object for the same baseline, so that the reference's own run is made once.
        kept = self._shared
        if not _equal(kept.source, part.baseline):
            kept = self._shared = Image(part.baseline.clone())
        return kept

    def one(self, inputs: Any) -> Tensor:
        """Return the one tensor that was given, perhaps in a tuple as Captum takes it."""
        several = isinstance(inputs, tuple)
        one = inputs[0] if several and len(inputs) == 1 else inputs
        if not isinstance(one, Tensor):
            got = f"a tuple of {len(inputs)}" if several else type(inputs).__name__
            raise UsageError(
                f"expected one tensor of images (N, C, H, W) as inputs, got {got}; what else the "
                "network takes goes into additional_forward_args"
            )
        return one

    def refuse(self, **given: tuple[Any, Any, str]) -> None:
        """Raise for the first argument that is not the one value which can be served."""
        for name, (value, served, why) in given.items():
            if value is not served and value != served:
                raise UsageError(
                    f"{type(self).__name__} of afmi.compat.captum takes {name}={served!r} only, "
                    f"got {value!r:.80}: {why}"
                )


@dataclass(frozen=True, eq=False)
class _Own(Reference):
    """The baseline of one image, whose run is not kept."""

    row: Tensor
    per_image = True

    def __call__(self, inputs: Tensor) -> Tensor:
        return self.row.expand_as(inputs)


def _equal(kept: object, baseline: Tensor) -> bool:
    if not isinstance(kept, Tensor) or kept.shape != baseline.shape:
        return False
    same = (kept.dtype, kept.device) == (baseline.dtype, baseline.device)
    return same and torch.equal(kept, baseline)


def one_or_none(baselines: Any) -> Any:
    """Return the baselines of the one tensor, perhaps in a tuple as Captum takes them."""
    several = isinstance(baselines, tuple)
    if several and len(baselines) != 1:
        raise UsageError(
            f"expected baselines for one tensor of inputs, got a tuple of {len(baselines)}"
        )
    return baselines[0] if several else baselines


@dataclass(frozen=True)
class _Part:
    """Images that are explained at once."""

    network: nn.Module
    images: Tensor
    baseline: Tensor | None
    target: Any


def _parts(
    network: nn.Module, images: Tensor, rows: Tensor | None, target: Any, arguments: Any
) -> Iterator[_Part]:
    """Yield all images at once, or each by itself where each has a baseline or arguments."""
    count = len(images)
    if arguments is not None and not isinstance(arguments, tuple):
        arguments = (arguments,)
    each = None if arguments is None else rows_of(arguments, count)
    if each is None and (rows is None or len(rows) == 1):
        if arguments is not None:
            network = with_arguments(network, arguments)
        yield _Part(network, images, rows, target)
        return
    for n in range(count):
        own = arguments if each is None else each[n]
        yield _Part(
            network if own is None else with_arguments(network, own),
            images[n : n + 1],
            rows if rows is None or len(rows) == 1 else rows[n : n + 1],
            _of_row(target, n, count),
        )


def _rows(images: Tensor, baselines: Any) -> Tensor | None:
    """Return the baselines as a tensor (1, C, …) or (N, C, …); None: zeros."""
    if baselines is None:
        return None
    if type(baselines) in (int, float):
        return torch.full_like(images[:1], float(baselines))
    rows = (1, len(images))
    if not _are_like(images, baselines) or len(baselines) not in rows:
        got = tuple(baselines.shape) if isinstance(baselines, Tensor) else repr(baselines)[:80]
        raise ShapeError(
            f"expected baselines as a number, or a tensor with 1 or {len(images)} rows like the "
            f"inputs {tuple(images.shape)}, got {got}"
        )
    return baselines.detach().to(images)


def _are_like(images: Tensor, baselines: object) -> bool:
    return isinstance(baselines, Tensor) and baselines.shape[1:] == images.shape[1:]


def _target(target: Any) -> Any:
    """Return a target as our methods take it; outputs of more dimensions are indexed by tuples."""
    if isinstance(target, tuple):
        return _indexed(target)
    if isinstance(target, list) and any(isinstance(one, tuple) for one in target):
        return [_indexed(one) if isinstance(one, tuple) else one for one in target]
    return target


def _indexed(index: tuple[Any, ...]) -> Any:
    if not index or not all(type(one) is int for one in index):
        raise TargetError(
            f"expected a target as an index, or a tuple of indices into an image's outputs, got "
            f"{index!r}; a list has one for each image"
        )
    if len(index) == 1:
        return index[0]

    def score(outputs: Tensor) -> Tensor:
        try:
            return outputs[(slice(None), *index)]
        except IndexError:
            raise TargetError(
                f"expected indices into an image's outputs of the shape "
                f"{tuple(outputs.shape[1:])}, got {index!r}"
            ) from None

    return Scalar(score, name=f"output {list(index)}")


def _of_row(target: Any, n: int, count: int) -> Any:
    """Return the target of image n, where there is one for each."""
    several = isinstance(target, list) or (isinstance(target, Tensor) and target.dim())
    return target[n : n + 1] if several and len(target) == count else target


def _scores(network: nn.Module, images: Tensor, attribution: Attribution) -> Tensor:
    """Return the explained outputs of images, one or as many as were explained, (N,)."""
    if attribution.target is not None:
        outputs = classify(network, images)
        outputs = outputs.expand(len(attribution.target), -1)
        return outputs.gather(1, attribution.target[:, None])[:, 0]
    targets: Sequence[Target] = attribution.targets or ()
    return torch.cat(
        [
            classify(Scored(network, target), images[n : n + 1] if len(images) > 1 else images)[
                :, 0
            ]
            for n, target in enumerate(targets)
        ]
    )


def distribution(inputs: Any, images: Tensor, baselines: Any) -> Tensor:
    """Return the baselines (B, C, *spatial) to average over.

    Args:
        inputs: as the user passed them, and as Captum hands them to a function of baselines.
        images: the one tensor of them.
        baselines: a tensor, or a function of the inputs or of nothing; perhaps in tuples.
    """
    if callable(baselines) and not isinstance(baselines, Tensor):
        takes = inspect.signature(baselines).parameters
        baselines = baselines(inputs) if takes else baselines()
    baselines = one_or_none(baselines)
    if not _are_like(images, baselines) or not len(baselines):
        got = tuple(baselines.shape) if isinstance(baselines, Tensor) else repr(baselines)[:80]
        raise ShapeError(
            "expected baselines as a tensor of images, or a function that returns one, of the "
            f"inputs' shape but for the first dimension, {tuple(images.shape)}, got {got}"
        )
    return baselines.detach().to(images)
