"""Occlusion: how much the class's probability drops where a patch covers the image."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass

import torch
from torch import Tensor

from afmi.errors import UsageError
from afmi.gradients.passes import BatchRunner
from afmi.methods.black_box import BlackBoxMethod
from afmi.methods.work import Work
from afmi.network.classifier import network_zero
from afmi.pictures.references import Reference
from afmi.progress import track

__all__ = ["Occlusion"]

_PATCHES = 7
"""Patches that a side has room for, unless another size is given."""


@dataclass(frozen=True)
class Occlusion(BlackBoxMethod):
    """Show how much the probability of the class drops when a patch covers a place.

    S_ij = the mean of p_c(x) − p_c(x covered by P) over the patches P that cover ij. p_c is the
    probability of the class, or the value of another target. Patches stand ``stride`` pixels apart,
    the last one of a row at the image's edge, so that every pixel is covered. Signed: where the
    probability rises, the covered place spoke against the class.

    Paper: Zeiler & Fergus, *Visualizing and Understanding Convolutional Networks*, ECCV 2014,
    Section 4.2. Differs: the paper states neither the patch's size nor its steps, and shows p_c at
    each patch's place; we take drops, and their mean where patches overlap, as other programs do.
    Its grey is the colour that the network takes as 0, the mean of a `Classifier`'s normalisation.
    Cost: 2 forwards + 1 forward for each patch (169 with the defaults), whatever the number of
    classes.

    Args:
        model: see `Method`.
        patch: the patch's sides in pixels; None: a 7th of the image's, rounded up (32 at 224).
        stride: pixels from one patch to the next; None: half the patch, rounded up.
        reference: what the patch shows; the mean of several. None: the image that the network
            takes as 0, see `afmi.network.classifier.network_zero`.
        batch_size: see `BlackBoxMethod`.

    Example:
        >>> model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(300, 4))
        >>> Occlusion(model, patch=4).attribute(torch.rand(2, 3, 10, 10)).shape
        torch.Size([2, 1, 10, 10])
    """

    name = "Occlusion"
    family = "region"
    scores = "perturbation"
    signed = True
    paper = "Zeiler & Fergus, Visualizing and Understanding Convolutional Networks, ECCV 2014"

    _: KW_ONLY
    patch: int | None = None
    stride: int | None = None
    reference: Reference | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if min(self.patch or 1, self.stride or 1) < 1 or 0 in (self.patch, self.stride):
            raise UsageError(
                "expected a patch and a stride of at least 1 pixel, or None, got "
                f"patch={self.patch}, stride={self.stride}"
            )
        if self.patch is not None and self.stride is not None and self.stride > self.patch:
            raise UsageError(
                f"expected a stride of at most the patch's {self.patch} pixels, which leaves no "
                f"pixel out, got stride={self.stride}"
            )

    def work(self, inputs: Tensor) -> Work:
        """See `Method.work`."""
        return Work(2 + len(self._patches(inputs.shape[2:])))

    def _patches(self, sides: Sequence[int]) -> list[tuple[slice, ...]]:
        """Return where the patches lie."""
        return list(itertools.product(*(self._along(side) for side in sides)))

    def _along(self, side: int) -> list[slice]:
        patch = min(self.patch or -(-side // _PATCHES), side)
        stride = self.stride or -(-patch // 2)
        if self.patch is None and stride > patch:
            raise UsageError(
                f"expected a stride of at most the patch's {patch} pixels, which leaves no pixel "
                f"out, got stride={stride}; pass patch= as well"
            )
        starts = [*range(0, side - patch, stride), side - patch]
        return [slice(start, start + patch) for start in starts]

    def _class_maps(
        self, inputs: Tensor, classes: Tensor, runner: BatchRunner
    ) -> tuple[Tensor, Tensor | None]:
        wide = torch.promote_types(inputs.dtype, torch.float32)
        covers = self._covers(inputs)
        plain = runner.responses(inputs, wide, inputs.device)
        score = plain.gather(1, classes.T).T
        patches = self._patches(inputs.shape[2:])
        maps = torch.zeros(*classes.shape, 1, *inputs.shape[2:], dtype=wide, device=inputs.device)
        covered = torch.zeros(inputs.shape[2:], dtype=wide, device=inputs.device)
        for where in patches:
            covered[where] += 1
        for start, stop in track(runner.ranges(len(patches)), self.name):
            for n, image in enumerate(inputs):
                batch = image.repeat(stop - start, *[1] * image.dim())
                for row, where in zip(batch, patches[start:stop], strict=True):
                    row[(slice(None), *where)] = covers[n][(slice(None), *where)]
                drops = score[:, n] - runner.responses(batch, wide, inputs.device)[:, classes[:, n]]
                for drop, where in zip(drops, patches[start:stop], strict=True):
                    at = maps[(slice(None), n, 0, *where)]
                    at += drop.view(-1, *[1] * len(where))
        return maps / covered, None

    def _covers(self, inputs: Tensor) -> Tensor:
        """Return what a patch shows of each image, (N, C, *spatial)."""
        if self.reference is None:
            return network_zero(self.model, inputs).expand_as(inputs)
        return self.reference.for_each(inputs).mean(1).expand_as(inputs)
