"""Gradients at points on the straight ways from references to images."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from afmi.errors import CompletenessWarning, UsageError
from afmi.gradients.passes import BatchRunner
from afmi.pictures.dimensions import beside, places
from afmi.pictures.references import Reference
from afmi.progress import track

__all__ = [
    "MOST_STEPS",
    "Integrated",
    "check_steps",
    "gradients_on_the_way",
    "integrated_gradients",
]

MOST_STEPS = 10_000
"""Beyond this many steps of a way, a tolerance is given up."""

_USUAL_TOLERANCE = 0.05
"""Within which Sundararajan et al. (2017, Section 5) expect 20 to 300 steps to come."""


def gradients_on_the_way(
    runner: BatchRunner,
    inputs: Tensor,
    references: Tensor,
    classes: Tensor,
    which: Tensor,
    alpha: Tensor,
    *,
    description: str,
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Yield ∂y_c/∂x at x̄ + α (x − x̄), batch by batch, for as many points of each image x.

    Args:
        runner: of the network.
        inputs: images x (N, C, *spatial).
        references: images x̄ (R, C, *spatial).
        classes: c, int64 (N,).
        which: index of each point's reference, int64 (N · points,), image by image.
        alpha: how far each point lies on its way, (N · points,).
        description: what progress is reported as.

    Yields:
        For B points at a time: the index of each one's image, int64 (B,), its way x − x̄ and its
        gradient, (B, C, *spatial).
    """
    points = torch.arange(which.numel(), device=inputs.device)
    for chunk in track(points.split(runner.size), description):
        image = chunk // (which.numel() // inputs.shape[0])
        start = references[which[chunk]]
        way = inputs[image] - start
        x = torch.addcmul(start, beside(alpha[chunk], way), way)
        yield image, way, runner.class_gradients(x, classes[image])


@dataclass(frozen=True)
class Integrated:
    """Integrated gradients, with what was learned on the way.

    Attributes:
        gradients: (x − x̄) · ∫ ∂y_c/∂x at x̄ + α (x − x̄) dα, the mean over the references,
            (N, C, *spatial).
        classes: c, int64 (N,).
        logits: of the images, (N, K).
        change: y_c(x) − y_c(x̄), the mean over the references, (N,).
    """

    gradients: Tensor
    classes: Tensor
    logits: Tensor
    change: Tensor


def check_steps(steps: int, tolerance: float | None) -> None:
    """Raise a `UsageError` where `integrated_gradients` cannot take these values."""
    if steps < 1:
        raise UsageError(f"expected at least 1 step, got steps={steps}")
    if tolerance is not None and not 0 < tolerance < 1:
        raise UsageError(
            "expected a tolerance between 0 and 1, a share of the change of the score, or None, "
            f"got tolerance={tolerance}"
        )


def integrated_gradients(
    runner: BatchRunner,
    inputs: Tensor,
    reference: Reference,
    choose: Callable[[Tensor], Tensor],
    *,
    steps: int,
    tolerance: float | None,
    description: str,
) -> Integrated:
    """Integrate gradients from references to images: (1/m) Σ_s ∂y_c/∂x at α_s = (s − ½)/m.

    With a tolerance m is tripled for each image whose gradients miss the change of its score by
    more, up to `MOST_STEPS`. The midpoints of m steps are among those of 3 m, so that nothing is
    computed twice.

    Args:
        runner: of the network.
        inputs: images x (N, C, *spatial).
        reference: gives the x̄ where the ways begin, R for each image.
        choose: returns the classes c, int64 (N,), of the images' logits (N, K).
        steps: m, points on each way.
        tolerance: the most that |Σ gradients − change| may be, as a share of |change|, both the
            mean over the references; None: ``steps`` are all there are.
        description: what progress is reported as.

    Warns:
        CompletenessWarning: where an image's gradients miss the change by more than the
            tolerance, or without one by more than 5 %, rounding apart.
    """
    starts, references = reference.for_each(inputs).transpose(0, 1), reference(inputs)
    ends = runner.logits(torch.cat([inputs, references]))
    logits, at_references = ends.split([len(inputs), len(references)])
    classes = choose(logits)
    # (R, N, K), with R = 1 where each image has its own reference.
    at_references = at_references.unsqueeze(0 if reference.per_image else 1)
    before = at_references.expand(len(starts), *logits.shape)
    before = before.gather(2, classes.expand(len(starts), -1)[..., None])[..., 0].to(inputs)
    after = logits.gather(1, classes[:, None])[:, 0].to(inputs)
    change = after - before
    rounding = torch.finfo(logits.dtype).eps ** 0.5 * torch.maximum(after.abs(), before.abs())

    sums, integrated = torch.zeros_like(starts), torch.zeros_like(starts)
    misses = torch.zeros_like(after)
    allowed = _USUAL_TOLERANCE if tolerance is None else tolerance
    left = torch.arange(len(inputs), device=inputs.device)  # the images that miss their change
    alpha, count = _midpoints(steps), 0
    while True:
        for r, start in enumerate(starts[:, left]):
            sums[r, left] += _summed(runner, inputs[left], start, classes[left], alpha, description)
        count += len(alpha)
        integrated[:, left] = sums[:, left] / count * (inputs[left] - starts[:, left])
        error = (integrated[:, left].sum(places(integrated)) - change[:, left]).abs() - rounding[
            :, left
        ]
        misses[left] = error.clamp_min(0).mean(0) / change[:, left].abs().mean(0)
        left = left[misses[left] > allowed]
        if not len(left) or tolerance is None or 3 * count > MOST_STEPS:
            break
        third = 1 / (3 * count)
        alpha = torch.cat([_midpoints(count) - third, _midpoints(count) + third])
    if len(left):
        _warn_of_misses(misses, left, allowed, count, description, refined=tolerance is not None)
    return Integrated(integrated.mean(0), classes, logits, change.mean(0))


def _midpoints(steps: int) -> Tensor:
    return (torch.arange(steps, dtype=torch.float64, device="cpu") + 0.5) / steps


def _summed(
    runner: BatchRunner,
    inputs: Tensor,
    starts: Tensor,
    classes: Tensor,
    alpha: Tensor,
    description: str,
) -> Tensor:
    """Return Σ_α ∂y_c/∂x at x̄ + α (x − x̄) of images x and their starts x̄, (N, C, *spatial) each."""
    total = torch.zeros_like(inputs)
    which = torch.arange(len(inputs), device=inputs.device).repeat_interleave(len(alpha))
    alpha = alpha.to(inputs).repeat(len(inputs))
    for image, _, gradients in gradients_on_the_way(
        runner, inputs, starts, classes, which, alpha, description=description
    ):
        total.index_add_(0, image, gradients)
    return total


def _warn_of_misses(
    misses: Tensor, where: Tensor, allowed: float, steps: int, description: str, *, refined: bool
) -> None:
    worst = int(where[misses[where].argmax()])
    others = f" (and {len(where) - 1} more by less)" if len(where) > 1 else ""
    advice = (
        "its gradients change too sharply on the way; choose another reference or a larger "
        "tolerance"
        if refined
        else "pass more steps, or a tolerance, which triples an image's steps until it is met"
    )
    warnings.warn(
        f"{description} misses the change of the score by {float(misses[worst]):.0%} of it for "
        f"image {worst}{others}, after {steps} steps (expected at most {allowed:.2g}): {advice}",
        CompletenessWarning,
        stacklevel=4,
    )
