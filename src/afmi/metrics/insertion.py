"""Insertion: does the network know the class from the map's top pixels alone?"""

from __future__ import annotations

from dataclasses import dataclass

from afmi.metrics.masking import ClassMaskedMetric, masking_columns

__all__ = ["Insertion"]


@dataclass(frozen=True)
class Insertion(ClassMaskedMetric):
    """Classify the picture with only the top PI of its map's pixels kept, the rest black.

    Accuracy@PI = (1/N) Σ I(ĉ = c), Softmax Ratio@PI = (1/N) Σ p̂_c / p_c, where p̂ belongs to the
    masked picture; both areas under the curves are trapezoids over PI. Masks and canvas live in
    pixel space, before the model's normalisation. The number of pixels kept is PI·H·W to the
    nearest whole one; pixels of equal value are ranked in reading order.

    Paper: *A-FMI*, ICLR 2021 submission, Appendix A.3, Eq. 8–9. Differs: nothing with a black
    canvas; PI = 0, which the paper does not measure, has no part in the areas.
    Cost: 20 forwards per image with the paper's fractions: 19 and the whole picture, less those of
    masked pictures that were classified already.

    Args:
        fractions: PI, shares of the pixels, rising within [0, 1].
        canvas: what replaces the pixels that are not kept. One other than black shows whether a
            ranking of methods depends on it; it should not where it is not their reference.
        batch_size: masked pictures per pass; None: as many as are fast (see `BatchRunner`).

    Example:
        >>> import torch
        >>> from torch import nn
        >>> model = nn.Sequential(nn.Conv2d(1, 2, 2), nn.Flatten())
        >>> with torch.no_grad():
        ...     model[0].weight.copy_(torch.tensor([[[[1.0, 0], [0, 0]]], [[[0, 0], [0, 0.5]]]]))
        ...     model[0].bias.zero_()
        Parameter containing:...
        >>> curves = Insertion(fractions=(0.25, 0.5, 0.75, 1)).curves(
        ...     model, torch.ones(1, 1, 2, 2), torch.tensor([0]),
        ...     torch.tensor([[[[1.0, 2.0], [3.0, 4.0]]]]),
        ... )
        >>> curves.accuracy.tolist()
        [0.0, 0.0, 0.0, 1.0]
        >>> curves.accuracy_auc
        0.125
    """

    name = "Insertion"
    columns = masking_columns(
        "how often the network recognises the class from the top pixels alone: the share of the "
        "images classified as labelled, as the area under its curve",
        higher_is_better=True,
        over="PI: share of the pixels kept",
    )
    paper = "A-FMI: Learning Attributions from Deep Networks via Feature Map Importance, 2021"
    standard = True
    ranks = True

    @property
    def keep_top(self) -> bool:
        """See `MaskedMetric`."""
        return True
