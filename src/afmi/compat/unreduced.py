"""Our methods with a number for each channel of the input, as Captum gives them.

Their attributions have maps (N, C, *spatial) in place of (N, 1, *spatial).
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import KW_ONLY, dataclass, field

import numpy as np
import torch
from torch import Tensor

from afmi.errors import UsageError
from afmi.gradients import modified_gradient
from afmi.gradients.integrated import gradients_on_the_way
from afmi.gradients.passes import BatchRunner
from afmi.methods import DeconvNet, DeepLIFT, GradCAM, GradientSHAP, GuidedBackprop, Occlusion
from afmi.methods.base import Attribution, Method
from afmi.methods.gradient_methods import GradientMethod
from afmi.methods.work import Work
from afmi.pictures.dimensions import beside, places
from afmi.pictures.references import Black, Reference
from afmi.targets import Columns

__all__ = [
    "QUADRATURES",
    "DeconvNetSignal",
    "ExpectedGradients",
    "GuidedSignal",
    "InputGradient",
    "PathGradients",
    "RescaledDifferences",
    "SignedGradCAM",
    "SlidingWindows",
]


class InputGradient(GradientMethod):
    """The gradient itself, ∂y_c/∂x."""

    name = "Gradient"
    family = "pixel"
    scores = "gradients"
    paper = "Simonyan et al., Deep Inside Convolutional Networks, ICLR workshop 2014"

    def _reduce(self, inputs: Tensor, gradient: Tensor) -> Tensor:
        return gradient


class GuidedSignal(GuidedBackprop):
    """What Guided Backprop sends back to each channel."""

    def _reduce(self, inputs: Tensor, gradient: Tensor) -> Tensor:
        return gradient


class DeconvNetSignal(DeconvNet):
    """What a deconvolutional network sends back to each channel."""

    def _reduce(self, inputs: Tensor, gradient: Tensor) -> Tensor:
        return gradient


class SignedGradCAM(GradCAM):
    """Grad-CAM without its ReLU."""

    signed = True

    def _rectified(self, maps: Tensor) -> Tensor:
        return maps


@dataclass(frozen=True)
class RescaledDifferences(DeepLIFT):
    """DeepLIFT's m_k · (x_k − x̄_k) of each channel k.

    Args:
        model: see `Method`.
        reference: one image x̄.
        multiplied: whether the modified gradient m is multiplied by the change.
    """

    _: KW_ONLY
    multiplied: bool = True

    def _attribute(self, inputs: Tensor, columns: Columns) -> Attribution:
        run = modified_gradient(self.model, inputs, layer=None, reference=self.reference)
        classes = columns.of(run.run.logits)
        terms = run.stage_terms(classes[None], 0, last=True)[0]
        gradient = terms.gradient[0]
        product = gradient * terms.change
        run.check(product.sum(places(product, 1))[None], classes[None], 0)
        return Attribution(product if self.multiplied else gradient, classes, run.run.logits)


def _gauss_legendre(steps: int) -> tuple[np.ndarray, np.ndarray]:
    at, weights = np.polynomial.legendre.leggauss(steps)
    return (1 + at) / 2, weights / 2


def _riemann(first: float) -> Callable[[int], tuple[np.ndarray, np.ndarray]]:
    return lambda steps: ((np.arange(steps) + first) / steps, np.full(steps, 1 / steps))


def _trapezoid(steps: int) -> tuple[np.ndarray, np.ndarray]:
    # As Captum has it: n points, but 1/n apart in weight, which sums to (n − 1)/n.
    weights = np.full(steps, 1 / steps)
    weights[[0, -1]] /= 2
    return np.linspace(0, 1, steps), weights


QUADRATURES = {
    "gausslegendre": _gauss_legendre,
    "riemann_left": _riemann(0),
    "riemann_middle": _riemann(0.5),
    "riemann_right": _riemann(1),
    "riemann_trapezoid": _trapezoid,
}
"""Where on the way the gradient is taken, and how much each place counts, for a number of steps."""


@dataclass(frozen=True)
class PathGradients(Method):
    """Integrated gradients of each channel, by a rule of integration that is named.

    Args:
        model: see `Method`.
        steps: points on the way.
        rule: out of `QUADRATURES`.
        reference: one image x̄.
        multiplied: whether the integral is multiplied by x − x̄.
        batch_size: see `BatchRunner`.
    """

    name = "Integrated Gradients"
    family = "pixel"
    scores = "integrated gradients"
    paper = "Sundararajan et al., Axiomatic Attribution for Deep Networks, ICML 2017"

    _: KW_ONLY
    steps: int = 50
    rule: str = "gausslegendre"
    reference: Reference = field(default_factory=Black)
    multiplied: bool = True
    batch_size: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.rule not in QUADRATURES:
            raise UsageError(
                f"expected a method out of {', '.join(QUADRATURES)}, got {self.rule!r}"
            )
        least = 1 if self.rule == "gausslegendre" else 2
        if type(self.steps) is not int or self.steps < least:
            raise UsageError(
                f"expected n_steps from {least} with method={self.rule!r}, got {self.steps!r}"
            )

    def work(self, inputs: Tensor) -> Work:
        """See `Method.work`."""
        return Work(1) + self.steps * Work(1, 1)

    def _attribute(self, inputs: Tensor, columns: Columns) -> Attribution:
        runner = BatchRunner(self.model, inputs, self.batch_size)
        logits = runner.logits(inputs)
        classes = columns.of(logits)
        start = self.reference(inputs)
        alpha, weights = (
            torch.from_numpy(each).to(inputs).repeat(len(inputs))
            for each in QUADRATURES[self.rule](self.steps)
        )
        which = torch.zeros(len(alpha), dtype=torch.int64, device=inputs.device)
        total, done = torch.zeros_like(inputs), 0
        for image, _, gradient in gradients_on_the_way(
            runner, inputs, start, classes, which, alpha, description=self.name
        ):
            share = beside(weights[done : done + len(image)], gradient)
            total.index_add_(0, image, share * gradient)
            done += len(image)
        maps = total * (inputs - start) if self.multiplied else total
        return Attribution(maps, classes, logits)


class ExpectedGradients(GradientSHAP):
    """Gradient SHAP's values of each channel."""

    def _attribute(self, inputs: Tensor, columns: Columns) -> Attribution:
        references = self.reference(inputs)
        runner = BatchRunner(self.model, inputs, self.batch_size)
        logits = runner.logits(inputs)
        classes = columns.of(logits)
        which, alpha = self._draw(inputs, references)
        total = torch.zeros_like(inputs)
        for image, way, gradient in gradients_on_the_way(
            runner, inputs, references, classes, which, alpha, description=self.name
        ):
            total.index_add_(0, image, way * gradient)
        return Attribution(total / self.samples, classes, logits)


@dataclass(frozen=True)
class SlidingWindows(Occlusion):
    """Occlusion by windows that stand where Captum's do: the last ones are cut at the edge.

    Args:
        model: see `Method`.
        window: its sides in pixels.
        steps: pixels from one window to the next, along each side.
        reference: what the window shows.
        batch_size: see `BatchRunner`.
    """

    _: KW_ONLY
    window: tuple[int, ...] = ()
    steps: tuple[int, ...] = ()

    def _patches(self, sides: Sequence[int]) -> list[tuple[slice, ...]]:
        along = [
            [
                slice(start, min(start + window, side))
                for start in range(0, side - window + step, step)
            ]
            for side, window, step in zip(sides, self.window, self.steps, strict=True)
        ]
        return list(itertools.product(*along))
