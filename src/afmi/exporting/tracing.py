"""Record the operations that give outputs and maps of images, for any number of images."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import reduce
from typing import Any

import torch
from torch import Tensor, nn
from torch._dispatch.python import enable_python_dispatcher
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.export import Dim, ExportedProgram
from torch.fx import GraphModule
from torch.fx.experimental.proxy_tensor import make_fx
from torch.fx.experimental.symbolic_shapes import (
    DimDynamic,
    ShapeEnv,
    StatelessSymbolicContext,
)

from afmi.exporting.decompositions import DECOMPOSITIONS, MeansOfWholeSides, by_rows, untraced
from afmi.gradients.modified import ModifiedGradient, ReferenceRun, traced_gradient
from afmi.network.layers import Place
from afmi.pictures.dimensions import beside, places
from afmi.pictures.matrices import interpolation

__all__ = ["OUTPUTS", "Explained", "exported_program"]

OUTPUTS = ("outputs", "map", "target", "residual", "completeness_error")
"""What a file gives, in this order."""

TRACED_BATCH = 7
"""Images of the batch that is traced: a number that no network has of its own, so that it shows
where it stays."""


@dataclass(frozen=True)
class Explained:
    """What is computed of images (N, C, *spatial): outputs, and maps of T classes.

    Attributes:
        model: the network, which has run images of this form.
        place: of the layer.
        references: the runs that images are compared with.
        pixels: of the references, (R, C, *spatial).
        averaged: as in `afmi.methods.AFMI`.
        classes: T classes; None: the one predicted, or given with the images.
    """

    model: nn.Module
    place: Place
    references: tuple[ReferenceRun, ...]
    pixels: Tensor
    averaged: bool
    classes: tuple[int, ...] | None = None

    def __call__(self, images: Tensor, classes: Tensor | None = None) -> tuple[Tensor, ...]:
        """Return what `OUTPUTS` names.

        Args:
            images: (N, C, *spatial).
            classes: int64 (N,), −1 where the predicted class is meant; None: everywhere.

        Returns:
            Outputs (N, K), maps (N, T, *spatial), classes (N, T), and two kinds of error (N, T):
            the residual, as `Attribution` has it, and by how much the modified gradients miss the
            change of the output, relative to the largest of the outputs. A number that is no class,
            below −1 or from K, cannot raise here: the map and the errors are NaN, the class is −1.
        """
        run = traced_gradient(self.model, images, self.place, self.references)
        outputs = run.run.logits
        rows, unknown = self._rows(outputs, classes)
        maps, residuals, errors = zip(*(self._class(run, row) for row in rows), strict=True)
        coarse = torch.cat(maps, 1)
        target, residual, error = (torch.stack(each, 1) for each in (rows, residuals, errors))
        # As `Method.attribution` has it of an image that is a reference: what is left is rounding.
        same = self._same_as_reference(images, coarse, outputs)
        residual = torch.where(same[:, None], torch.nan, residual)
        coarse = torch.where(beside(same, coarse), 0.0, coarse)
        if unknown is not None:
            coarse = torch.where(beside(unknown, coarse), torch.nan, coarse)
            residual, error = (
                torch.where(unknown[:, None], torch.nan, x) for x in (residual, error)
            )
            target = torch.where(unknown[:, None], -1, target)
        with untraced():
            sizes = zip(coarse.shape[2:], images.shape[2:], strict=True)
            matrices = [interpolation(*sides).to(images.device, images.dtype) for sides in sizes]
        return outputs, by_rows(matrices, coarse), target, residual, error

    def _rows(self, outputs: Tensor, classes: Tensor | None) -> tuple[list[Tensor], Tensor | None]:
        """Return T rows of classes (N,), and where those that were given are none, bool (N,)."""
        predicted = outputs.argmax(1)
        if self.classes is not None:
            return [torch.full_like(predicted, index) for index in self.classes], None
        if classes is None:
            return [predicted], None
        unknown = (classes < -1) | (classes >= outputs.shape[1])
        return [torch.where((classes == -1) | unknown, predicted, classes)], unknown

    def _class(self, run: ModifiedGradient, classes: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the coarse maps (N, 1, *sides) of a class for each image, and the errors (N,).

        Sums over maps and places are products of matrices here, at which runtimes are faster.
        """
        maps, changes, errors = [], [], []
        for r, reference in enumerate(self.references):
            (terms,) = run.stage_terms(classes[None], r)
            gradient, features = terms.gradient[0], terms.change
            change = run.output_change(classes[None], r)[0]
            total = (gradient.flatten(1)[:, None] @ features.flatten(1)[:, :, None])[:, 0, 0]
            if 0 not in run.run.extra_tokens.shape[1:]:
                total = total + terms.extra_tokens[0]
            if self.averaged:
                summed = terms.importance[0][:, None] @ features.flatten(2)
                maps.append(summed.unflatten(2, features.shape[2:]))
            else:
                maps.append(terms.exact[0])
            changes.append(change)
            scale = run.run.logits.abs().amax(1).maximum(reference.logits.abs().amax(1))
            missed = (total - change).abs()
            errors.append(missed / scale.maximum(change.abs()).clamp_min(1e-30))
        mean, change = _mean(maps), _mean(changes)
        residual = (mean.sum(places(mean, 1)) - change) / change.abs()
        residual = torch.where(change == 0, torch.nan, residual)
        return mean, residual, reduce(torch.maximum, errors)

    def _same_as_reference(self, images: Tensor, maps: Tensor, outputs: Tensor) -> Tensor:
        """Tell of each image whether it equals all references within rounding, bool (N,)."""
        eps = torch.finfo(images.dtype).eps
        small = maps.abs().amax(places(maps, 1)) <= eps**0.5 * outputs.abs().amax(1)
        with untraced():
            pixels = list(self.pixels)
            levels = [_level(one) for one in pixels]
        # By the ends of each channel, so that no copy of the images is made for an even reference.
        apart = [
            _furthest(images - one) if level is None else _furthest(images, level)
            for one, level in zip(pixels, levels, strict=True)
        ]
        furthest = reduce(torch.maximum, apart)
        return small & (furthest <= 4 * eps * _furthest(images).clamp_min(1))


def _mean(each: Sequence[Tensor]) -> Tensor:
    return torch.stack(list(each)).mean(0) if len(each) > 1 else each[0]


def _level(image: Tensor) -> Tensor | None:
    """Return the one number of each channel of an image (C, *spatial), (C,); None: it has more."""
    numbers = image.flatten(1)
    return numbers[:, 0] if bool((numbers == numbers[:, :1]).all()) else None


def _furthest(images: Tensor, level: Tensor | float = 0.0) -> Tensor:
    """Return how far numbers (N, C, *spatial) are at most from the level of their channel, (N,)."""
    inside = places(images, 2)
    above, below = images.amax(inside) - level, level - images.amin(inside)
    return above.maximum(below).amax(1)


def exported_program(compute: Explained, images: Tensor, *, given: bool) -> ExportedProgram:
    """Return a program of what is computed of any number of images.

    Args:
        compute: what to record.
        images: one of the form that the program is to take, (1, C, *spatial).
        given: whether the program takes the classes as well.
    """
    arguments = [images.expand(TRACED_BATCH, *images.shape[1:]).contiguous()]
    if given:
        arguments.append(torch.full((TRACED_BATCH,), -1, dtype=torch.int64, device=images.device))
    graph = _graph(compute, arguments)
    batch = Dim("batch", min=1)
    forms = tuple({0: batch} for _ in arguments)
    return torch.export.export(graph, tuple(arguments), dynamic_shapes=forms)


def _graph(compute: Callable[..., Any], arguments: Sequence[Tensor]) -> GraphModule:
    """Record a computation, whose arguments have a first dimension of any length."""
    mode = FakeTensorMode(allow_non_fake_inputs=True, shape_env=ShapeEnv())
    fakes = [
        mode.from_tensor(
            argument,
            symbolic_context=StatelessSymbolicContext(
                dynamic_sizes=[DimDynamic.DUCK, *[DimDynamic.STATIC] * (argument.dim() - 1)]
            ),
        )
        for argument in arguments
    ]
    with mode, enable_python_dispatcher(), MeansOfWholeSides():
        graph = make_fx(compute, decomposition_table=DECOMPOSITIONS)(*fakes)
    graph.graph.eliminate_dead_code()
    graph.recompile()
    return graph
