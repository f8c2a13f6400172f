"""What the methods share that only ever see the network's outputs."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass

import torch
from torch import Tensor

from afmi.gradients.passes import BatchRunner
from afmi.methods.base import Attribution, Method, relative_residual
from afmi.network.classifier import classify
from afmi.targets import Columns

__all__ = ["BlackBoxMethod", "SampledMethod"]


@dataclass(frozen=True)
class BlackBoxMethod(Method):
    """A method that calls the network on perturbed images and looks at its outputs only.

    Every class is explained from the same forward passes, so `attribute_classes` costs no more
    than `attribute`.

    Args:
        batch_size: the most images per call of the network; see
            `afmi.gradients.passes.BatchRunner`.
    """

    _: KW_ONLY
    batch_size: int | None = None

    def _attribute(self, inputs: Tensor, columns: Columns) -> Attribution:
        logits = classify(self.model, inputs)
        return self._from_passes(inputs, columns.of(logits)[None], logits)[0]

    def _attribute_classes(self, inputs: Tensor, classes: Tensor) -> list[Attribution]:
        logits = classify(self.model, inputs)
        rows = [Columns(row).of(logits) for row in classes]
        return self._from_passes(inputs, torch.stack(rows), logits)

    def _from_passes(self, inputs: Tensor, classes: Tensor, logits: Tensor) -> list[Attribution]:
        """Return an attribution for each row of classes (T, N), all from the same forwards."""
        runner = BatchRunner(self.model, inputs, self.batch_size)
        maps, change = self._class_maps(inputs, classes, runner)
        residual: Sequence[Tensor | None] = [None] * len(classes)
        if change is not None:
            residual = list(relative_residual(maps, change))
        return [
            Attribution(m, c, logits, r) for m, c, r in zip(maps, classes, residual, strict=True)
        ]

    @abstractmethod
    def _class_maps(
        self, inputs: Tensor, classes: Tensor, runner: BatchRunner
    ) -> tuple[Tensor, Tensor | None]:
        """Return maps (T, N, 1, *spatial) for classes (T, N), and what they should sum to.

        The latter is (T, N), or None where the maps need not sum to anything.
        """


@dataclass(frozen=True)
class SampledMethod(BlackBoxMethod):
    """A `BlackBoxMethod` whose perturbations are drawn.

    Args:
        seed: of everything drawn.
    """

    _: KW_ONLY
    seed: int = 0
