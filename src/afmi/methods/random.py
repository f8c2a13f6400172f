"""Random: the control that every method must beat."""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass

import torch
from torch import Tensor

from afmi.methods.base import Attribution, Method
from afmi.methods.work import Work
from afmi.network.classifier import classify
from afmi.network.randomness import image_generator
from afmi.targets import Columns

__all__ = ["Random"]


@dataclass(frozen=True)
class Random(Method):
    """Draw every pixel's saliency at random: what a ranking without knowledge scores.

    S_ij ~ U[0, 1), the same for an image whatever its batch.

    Paper: the control of A-FMI's Table 1.
    Cost: 1 forward, to know the class.

    Args:
        model: see `Method`.
        seed: of the generator, which also depends on the image.

    Example:
        >>> model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(12, 2))
        >>> Random(model).attribute(torch.rand(4, 3, 2, 2), target=1).shape
        torch.Size([4, 1, 2, 2])
    """

    name = "Random"
    family = "control"
    scores = "random"
    signed = False
    paper = "A-FMI: Learning Attributions from Deep Networks via Feature Map Importance, 2021"

    _: KW_ONLY
    seed: int = 0

    def work(self, inputs: Tensor) -> Work:
        """See `Method.work`."""
        return Work(1)

    def _attribute(self, inputs: Tensor, columns: Columns) -> Attribution:
        # The logits are needed to know the class, and to notice one that does not exist.
        logits = classify(self.model, inputs)
        size = (1, *inputs.shape[2:])
        maps = [
            torch.rand(
                size, generator=image_generator(self.seed, x), dtype=torch.float32, device="cpu"
            )
            for x in inputs
        ]
        return Attribution(torch.stack(maps).to(inputs), columns.of(logits), logits)
