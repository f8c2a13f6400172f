"""Deletion: does the network lose the class when the map's top pixels are gone?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from torch import Tensor, nn

from afmi.methods.base import Method, Work
from afmi.metrics.base import Case, Metric
from afmi.metrics.masking import FRACTIONS, Curves, check_fractions, masked_curves
from afmi.references import Black, Reference

__all__ = ["Deletion"]


@dataclass(frozen=True)
class Deletion(Metric):
    """Classify the picture with the top PI of its map's pixels made black.

    The same curves as `Insertion`, but of the pixels that are left; a good map makes them fall
    early. Off unless asked for. The paper leaves it out, citing Hooker et al. (2019): a picture
    with holes is like none that the network was trained on, so a fall may be due to the holes and
    not to what they hid. A few scattered black pixels already fool many networks, and grainy maps
    gain by that.

    Paper: Petsiuk, Das & Saenko, *RISE: Randomized Input Sampling for Explanation of Black-box
    Models*, BMVC 2018. Differs: the fractions are the A-FMI paper's; accuracy beside probability.
    Cost: 20 forwards per image, less those whose masked picture was classified already.

    Args:
        fractions: shares of the pixels that are removed, rising within [0, 1].
        canvas: what takes their place.
        batch_size: masked pictures per pass; None: as many as are fast (see `Passes`).

    Example:
        >>> import torch
        >>> model = nn.Sequential(nn.Conv2d(1, 2, 2), nn.Flatten())
        >>> curves = Deletion(fractions=(0.5, 1)).curves(
        ...     model, torch.ones(1, 1, 2, 2), torch.tensor([0]), torch.rand(1, 1, 2, 2)
        ... )
        >>> curves.correct.shape
        torch.Size([1, 2])
    """

    name = "Deletion"
    measures = "how long the network still knows the class while the top pixels go"
    headline = "accuracy_auc"
    higher_is_better = False
    paper = "Petsiuk, Das & Saenko, RISE: Randomized Input Sampling for Explanation, BMVC 2018"

    fractions: Sequence[float] = FRACTIONS
    canvas: Reference = field(default_factory=Black)
    batch_size: int | None = field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        check_fractions(self.fractions)

    def curves(
        self,
        model: nn.Module,
        images: Tensor,
        targets: Tensor,
        maps: Tensor,
        *,
        logits: Tensor | None = None,
    ) -> Curves:
        """Return the curves of these maps; arguments as in `Insertion.curves`."""
        return masked_curves(
            model,
            images,
            targets,
            maps,
            fractions=self.fractions,
            canvas=self.canvas,
            keep_top=False,
            logits=logits,
            batch_size=self.batch_size,
        )

    def measure(self, case: Case) -> dict[str, Tensor]:
        """Return ``accuracy_auc``, ``softmax_ratio_auc``, ``correct@PI``, ``probability@PI``, …."""
        found = self.curves(case.model, case.inputs, case.targets, case.maps, logits=case.logits)
        return found.values()

    def work(self, method: Method, inputs: Tensor) -> Work:
        """Return the forwards for one image, at most."""
        return Work(sum(fraction > 0 for fraction in self.fractions))
