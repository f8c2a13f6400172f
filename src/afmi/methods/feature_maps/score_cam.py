"""Score-CAM: feature maps weighted by the class's probability for what each of them leaves."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from afmi.errors import UsageError
from afmi.gradients import ForwardPass
from afmi.gradients.passes import BatchRunner
from afmi.methods.per_map import PerMapMethod
from afmi.methods.work import Work
from afmi.network.classifier import network_zero
from afmi.pictures.dimensions import places
from afmi.pictures.maps import INTERPOLATION
from afmi.progress import track

__all__ = ["ScoreCAM"]

_WEIGHTS = ("probability", "softmax")


@dataclass(frozen=True)
class ScoreCAM(PerMapMethod):
    """Show where the feature maps are active that, as masks of the image, keep the class.

    S = ReLU(Σ_k w_k A^k) with w_k = p_c(x ⊙ H^k), where H^k is the map A^k interpolated to the
    image's size and brought to [0, 1] by its smallest and largest number. p_c is the probability of
    the class, or the value of another target. A map that is the same everywhere counts for nothing.

    Paper: Wang et al., *Score-CAM: Score-Weighted Visual Explanations for Convolutional Neural
    Networks*, CVPR Workshops 2020, Eq. 6–7 and Section 3.3. Differs: the paper's w_k is the
    increase of p_c over that of a baseline image; the authors' program leaves the baseline out,
    and so do we. Its Algorithm 1 takes the softmax over k of the increases; ``weights="softmax"``
    does that with y_c, as other packages do, and the baseline cancels there. The program multiplies
    the normalised image by the mask, which hides with the mean colour of the network's
    normalisation; so do we, where the model is a `Classifier`.
    Cost: 1 forward + 1 forward for each feature map, whatever the number of classes.

    Args:
        model: see `Method`.
        layer: see `LayerMethod`.
        weights: ``"probability"``: w_k = p_c(x ⊙ H^k). ``"softmax"``: w_k = exp(y_c(x ⊙ H^k)) /
            Σ_l exp(y_c(x ⊙ H^l)).
        batch_size: see `PerMapMethod`.

    Example:
        >>> model = torch.nn.Sequential(
        ...     torch.nn.Conv2d(3, 5, 3), torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten()
        ... )
        >>> ScoreCAM(model, layer="0").attribute(torch.rand(2, 3, 6, 6)).shape
        torch.Size([2, 1, 6, 6])
    """

    name = "Score-CAM"
    family = "feature map"
    scores = "perturbation"
    signed = False
    paper = "Wang et al., Score-CAM, CVPR Workshops 2020"
    per_map = "1 forward + 1 forward for each feature map"

    weights: Literal["probability", "softmax"] = "probability"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.weights not in _WEIGHTS:
            raise UsageError(
                f"expected weights of {' or '.join(map(repr, _WEIGHTS))}, got {self.weights!r}"
            )

    def _work(self, maps: Tensor) -> Work:
        return Work(1 + maps.shape[1])

    def _weights(self, inputs: Tensor, run: ForwardPass, classes: Tensor) -> Tensor:
        runner = BatchRunner(self.model, inputs, self.batch_size)
        zero = network_zero(self.model, inputs)
        scores = [
            self._scores(inputs[n : n + 1], run.features[n], zero, classes[:, n], runner)
            for n in range(len(inputs))
        ]
        return torch.stack(scores, 1)

    def _scores(
        self, image: Tensor, features: Tensor, zero: Tensor, classes: Tensor, runner: BatchRunner
    ) -> Tensor:
        """Return w (T, K) of one image with feature maps (K, *spatial) and classes (T,)."""
        wide = torch.promote_types(image.dtype, torch.float32)
        parts = []
        for start, stop in track(runner.ranges(len(features)), self.name):
            masks = _masks(features[start:stop], image)
            shown = torch.lerp(zero, image, masks)
            if self.weights == "softmax":
                scores = runner.logits(shown).to(wide)
            else:
                scores = runner.responses(shown, wide, image.device)
            parts.append(scores[:, classes].T)
        scores = torch.cat(parts, 1)
        flat = features.flatten(1)
        constant = flat.amax(1) == flat.amin(1)
        if self.weights == "softmax":
            scores = scores.masked_fill(constant, -torch.inf).softmax(1).nan_to_num(0.0)
        return scores.masked_fill(constant, 0.0)


def _masks(features: Tensor, image: Tensor) -> Tensor:
    """Return feature maps (K, *spatial) as masks of the image's size in [0, 1], (K, 1, …)."""
    mode = INTERPOLATION[image.dim() - 2]
    size = image.shape[2:]
    large = torch.nn.functional.interpolate(
        features[:, None].to(image), size=size, mode=mode, align_corners=False
    )
    low, high = (
        extreme(large, places(large), keepdim=True) for extreme in (torch.amin, torch.amax)
    )
    return (large - low) / (high - low).clamp_min(torch.finfo(large.dtype).tiny)
