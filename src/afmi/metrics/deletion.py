"""Deletion: does the network lose the class when the map's top pixels are gone?"""

from __future__ import annotations

from dataclasses import dataclass

from afmi.metrics.masking import ClassMaskedMetric, masking_columns

__all__ = ["Deletion"]


@dataclass(frozen=True)
class Deletion(ClassMaskedMetric):
    """Classify the picture with the top PI of its map's pixels made black.

    The same curves as `Insertion`, but of the pixels that are left; a good map makes them fall
    early. Off by default. The paper leaves it out, citing Hooker et al. (2019): a picture with
    holes is unlike those that the network was trained on, so a fall may be due to the holes and not
    to what they hide. A few scattered black pixels already fool many networks, and grainy maps
    benefit from that.

    Paper: Petsiuk, Das & Saenko, *RISE: Randomized Input Sampling for Explanation of Black-box
    Models*, BMVC 2018. Differs: the fractions are the A-FMI paper's; accuracy beside probability.
    Cost: 20 forwards per image, less those of masked pictures that were classified already.

    Args:
        fractions: shares of the pixels that are removed, rising within [0, 1].
        canvas: what takes their place.
        batch_size: masked pictures per pass; None: as many as are fast (see `BatchRunner`).

    Example:
        >>> import torch
        >>> from torch import nn
        >>> model = nn.Sequential(nn.Conv2d(1, 2, 2), nn.Flatten())
        >>> curves = Deletion(fractions=(0.5, 1)).curves(
        ...     model, torch.ones(1, 1, 2, 2), torch.tensor([0]), torch.rand(1, 1, 2, 2)
        ... )
        >>> curves.correct.shape
        torch.Size([1, 2])
    """

    name = "Deletion"
    columns = masking_columns(
        "how long the network still recognises the class while the top pixels are removed: the "
        "share of the images classified as labelled, as the area under its curve",
        higher_is_better=False,
        over="PI: share of the pixels removed",
    )
    paper = "Petsiuk, Das & Saenko, RISE: Randomized Input Sampling for Explanation, BMVC 2018"

    @property
    def keep_top(self) -> bool:
        """See `MaskedMetric`."""
        return False
