"""What the mask of a masking model is trained for: keep the class alone, in as little as needed."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from afmi.errors import UsageError
from afmi.network.outputs import Meaning
from afmi.pictures.matrices import along_each, at_224, gaussian

__all__ = ["MaskLosses", "area", "replacements", "total_variation"]


@dataclass(frozen=True)
class MaskLosses:
    """The terms of the loss of masks M of images x for classes c, and their weights.

    For a class that is there, L = λ1 mean(M) + λ2 TV(M) − log p_c(Φ(x, M)) +
    λ3 p_c(Φ(x, 1 − M))^λ4, with Φ(x, M) = x ⊙ M + x̄ ⊙ (1 − M). For a class that is not ("fake"),
    L = λ1 mean(M) + λ2 TV(M) − log(1 − p_c(Φ(x, M))), which is smallest for an empty mask.

    Paper: Dabkowski & Gal, *Real Time Image Saliency for Black Box Classifiers*, NeurIPS 2017,
    Eq. 3. Differs: the paper prints 10 for the total variation and 0.001 for the average of the
    mask, with which all pixels together would cost 0.001; here 10 weighs the area, and 0.001 the
    squared differences. The loss of the authors' program is another one, which this does not
    follow: its area is mean((M + 0.0005)^0.3), masks at the image's border are penalised, margins
    between logits (hinge losses) stand in place of probabilities, what is kept and what is deleted
    have replacements of their own, classes that are not there have a deletion term, too, and noise
    is added to what is kept as well.

    Args:
        area: λ1.
        smoothness: λ2.
        deletion: λ3.
        power: λ4.
    """

    area: float = 10.0
    smoothness: float = 1e-3
    deletion: float = 5.0
    power: float = 0.3

    def __post_init__(self) -> None:
        if min(self.area, self.smoothness, self.deletion, self.power) < 0:
            raise UsageError(f"expected weights from 0, got {self}")

    def of_masks(self, masks: Tensor) -> Tensor:
        """Return λ1 mean(M) + λ2 TV(M) of masks (N, 1, H, W) at the images' size, (N,)."""
        return self.area * area(masks) + self.smoothness * total_variation(masks)

    def of_preserved(
        self, scores: Tensor, classes: Tensor, fake: Tensor, meaning: Meaning
    ) -> Tensor:
        """Return −log p_c, or −log(1 − p_c) where the class is fake, of Φ(x, M), (N,).

        Args:
            scores: what the classifier gives for Φ(x, M), (N, K).
            classes: c, int64 (N,).
            fake: whether the class is not there, bool (N,).
            meaning: of the scores.
        """
        there, elsewhere = _log_probabilities(scores, classes, meaning)
        return -torch.where(fake, elsewhere, there)

    def of_deleted(self, scores: Tensor, classes: Tensor, meaning: Meaning) -> Tensor:
        """Return λ3 p_c^λ4 of Φ(x, 1 − M), (N,); arguments as of `of_preserved`."""
        there, _ = _log_probabilities(scores, classes, meaning)
        return self.deletion * (self.power * there).exp()


def _log_probabilities(scores: Tensor, classes: Tensor, meaning: Meaning) -> tuple[Tensor, Tensor]:
    """Return log p_c and log(1 − p_c), each (N,), also where p_c is nearly 0 or 1."""
    column = classes[:, None]
    if meaning == "logits":
        of_all = scores.log_softmax(1)
        others = of_all.scatter(1, column, -torch.inf).logsumexp(1)
        return of_all.gather(1, column)[:, 0], others
    score = scores.gather(1, column)[:, 0]
    if meaning == "sigmoid":
        return F.logsigmoid(score), F.logsigmoid(-score)
    if meaning == "probabilities":
        least = torch.finfo(score.dtype).tiny
        return score.clamp_min(least).log(), (1 - score).clamp_min(least).log()
    raise UsageError(
        "masks are trained for classes, and the network gives values; where these are classes' "
        "scores, say so: Classifier(network, output=…)"
    )


def area(masks: Tensor) -> Tensor:
    """Return the mean of each mask (N, 1, H, W), (N,)."""
    return masks.mean((1, 2, 3))


def total_variation(masks: Tensor) -> Tensor:
    """Return Σ_ij (M_ij − M_i,j+1)² + (M_ij − M_i+1,j)² of each mask (N, 1, H, W), (N,).

    Of a mask that was interpolated, the sum hardly depends on the size: edges grow in length as
    they do in width.
    """
    across = masks[..., 1:] - masks[..., :-1]
    down = masks[..., 1:, :] - masks[..., :-1, :]
    return across.square().sum((1, 2, 3)) + down.square().sum((1, 2, 3))


_BLUR = 11.0
"""σ in pixels at 224."""
_COLOR = 0.165
"""How far each channel of a colour may be from middle grey."""
_NOISE = 0.055
"""Standard deviation of the noise."""


def replacements(images: Tensor, generator: torch.Generator) -> Tensor:
    """Return what replaces the images (N, C, H, W) in [0, 1] where a mask hides them.

    For each image a coin decides between the image itself, blurred, and one colour near grey. Noise
    is added to both, so that the classifier cannot know a place by its smoothness.

    Paper: as of `MaskLosses`, Section 3.3, with the numbers of its authors' program, whose pixels
    are in [−1, 1]. Differs: the program adds this noise to the colour only, and a third of it
    to the image before it is blurred.

    Args:
        images: x.
        generator: on the CPU.
    """
    sigma = max(at_224(_BLUR, images), 0.5)
    matrices = [gaussian(side, sigma).to(images) for side in images.shape[2:]]
    blurred = along_each(matrices, images)
    count, channels = images.shape[:2]
    color = 0.5 + _COLOR * (
        2
        * torch.rand(count, channels, 1, 1, generator=generator, dtype=torch.float32, device="cpu")
        - 1
    )
    coin = torch.rand(count, 1, 1, 1, generator=generator, dtype=torch.float32, device="cpu") < 0.5
    noise = _NOISE * torch.randn(
        images.shape, generator=generator, dtype=torch.float32, device="cpu"
    )
    plain = torch.where(coin.to(images.device), blurred, color.to(images))
    return (plain + noise.to(images)).clamp(0, 1)
