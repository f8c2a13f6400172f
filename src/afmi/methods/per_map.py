"""PerMapMethod: what the methods share that run the network once for each feature map."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import KW_ONLY, dataclass
from typing import ClassVar

import torch
from torch import Tensor

from afmi.errors import AfmiError
from afmi.gradients import ForwardPass, layer_pass
from afmi.gradients.passes import check_batch_size
from afmi.methods.base import Attribution, LayerMethod
from afmi.methods.work import Work
from afmi.network.layers import LayerChoice
from afmi.targets import Columns

__all__ = ["PerMapMethod"]


@dataclass(frozen=True)
class PerMapMethod(LayerMethod):
    """A method that adds up feature maps by weights that take a run of the network for each.

    S = ReLU(Σ_k w_k A^k). Every class is explained from the same runs.

    Args:
        layer: see `LayerMethod`.
        batch_size: the most images per call of the network; see
            `afmi.gradients.passes.BatchRunner`.
    """

    per_map: ClassVar[str]
    """The cost in words, which depends on the number of the layer's maps."""

    _: KW_ONLY
    batch_size: int | None = None

    def __post_init__(self) -> None:
        """See `Method`."""
        super().__post_init__()
        check_batch_size(self.batch_size)

    @property
    def cost(self) -> str:
        """The work for one image of any size, in words."""
        return self.per_map

    @abstractmethod
    def _work(self, maps: Tensor) -> Work:
        """Return the work for an image whose feature maps are like these, (1, K, *spatial)."""

    def work(self, inputs: Tensor) -> Work:
        """See `Method.work`. The layer is run once to count its maps."""
        try:
            with self._session(inputs[:1], None) as (images, _):
                return self._work(layer_pass(self.model, images, LayerChoice(self.layer)).features)
        except AfmiError:  # the method will refuse the network, too
            return Work(1)

    def _attribute(self, inputs: Tensor, columns: Columns) -> Attribution:
        run = self._run(inputs)
        return self._attributions(inputs, run, columns.of(run.logits)[None])[0]

    def _attribute_classes(self, inputs: Tensor, classes: Tensor) -> list[Attribution]:
        run = self._run(inputs)
        rows = [Columns(row).of(run.logits) for row in classes]
        return self._attributions(inputs, run, torch.stack(rows))

    def _run(self, inputs: Tensor) -> ForwardPass:
        return layer_pass(self.model, inputs, LayerChoice(self.layer))

    def _attributions(self, inputs: Tensor, run: ForwardPass, classes: Tensor) -> list[Attribution]:
        """Return an attribution for each row of classes (T, N), all from the same runs."""
        weights = self._weights(inputs, run, classes).to(run.features)
        maps = torch.einsum("tnk,nk...->tn...", weights, run.features).relu().unsqueeze(2)
        return [
            Attribution(m, c, run.logits, layer=run.layer)
            for m, c in zip(maps, classes, strict=True)
        ]

    @abstractmethod
    def _weights(self, inputs: Tensor, run: ForwardPass, classes: Tensor) -> Tensor:
        """Return w (T, N, K) for classes (T, N)."""
