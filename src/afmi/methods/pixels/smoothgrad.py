"""SmoothGrad: the mean of a method's maps over noisy copies of the image."""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass, replace

import torch
from torch import Tensor, nn

from afmi.errors import UsageError
from afmi.gradients.passes import BatchRunner, check_batch_size
from afmi.methods.base import Attribution, Method
from afmi.methods.work import Work
from afmi.network.randomness import image_generator
from afmi.pictures.dimensions import beside
from afmi.pictures.maps import channel_maximum
from afmi.targets import Columns

__all__ = ["SmoothGrad"]


@dataclass(frozen=True)
class SmoothGrad(Method):
    """Show a method's map without the flicker that tiny changes of the image give it.

    S = (1/n) Σ_s S_base(x + ε_s) with ε_s ~ N(0, σ²), σ = noise · (max x − min x). Without a base
    it is the plain gradient: S_ij = max_k |(1/n) Σ_s ∂y_c/∂x_kij at x + ε_s| over the colour
    channels k. The class is that of the clean image.

    Paper: Smilkov et al., *SmoothGrad: Removing Noise by Adding Noise*, 2017, Section 3. Differs:
    nothing from the paper without a base; with one, finished maps are averaged, that is,
    magnitudes where the base takes them. The authors' program (PAIR's saliency) takes 25 copies
    instead of the paper's 50, and by default averages squared gradients, which is another method
    (SmoothGrad²). The noisy copies are not clipped to the range of images, as in the paper.
    Cost: ``samples`` times the base method, and 1 forward for the class.

    Args:
        model: see `Method`.
        base: the method to smooth, on the same model; None: the plain gradient.
        samples: n, noisy copies of each image.
        noise: the noise's standard deviation as a share of the image's range, from 0 up.
        seed: of the generator, which also depends on the image.
        batch_size: the most noisy copies that are explained at once (see
            `afmi.gradients.passes.BatchRunner`); where there are more images than that, one copy of
            each.

    Example:
        >>> model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(12, 2))
        >>> SmoothGrad(model, samples=5).attribute(torch.rand(4, 3, 2, 2)).shape
        torch.Size([4, 1, 2, 2])
    """

    name = "SmoothGrad"
    aliases = ("sg",)
    family = "pixel"
    scores = "gradients"
    signed = False
    paper = "Smilkov et al., SmoothGrad, 2017"

    _: KW_ONLY
    base: Method | None = None
    samples: int = 50
    noise: float = 0.15
    seed: int = 0
    batch_size: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.samples < 1 or not self.noise >= 0:
            raise UsageError(
                "expected at least 1 sample and noise from 0 up, got "
                f"samples={self.samples}, noise={self.noise}"
            )
        check_batch_size(self.batch_size)
        if self.base is not None and self.base.model is not self.model:
            raise UsageError(
                f"expected a base method on the same model, got {self.base.name} on another; "
                "build both with one model"
            )
        if self.base is not None:
            object.__setattr__(self, "signed", self.base.signed)

    def on(self, model: nn.Module) -> SmoothGrad:
        """See `Method.on`."""
        base = None if self.base is None else self.base.on(model)
        return replace(self, model=model, base=base)

    def work(self, inputs: Tensor) -> Work:
        """See `Method.work`."""
        once = Work(1, 1) if self.base is None else self.base.work(inputs)
        return self.samples * once + Work(1)

    def _attribute(self, inputs: Tensor, columns: Columns) -> Attribution:
        runner = BatchRunner(self.model, inputs, self.batch_size)
        logits = runner.logits(inputs)
        classes = columns.of(logits)
        images = inputs.shape[0]
        spread = inputs.flatten(1).amax(1) - inputs.flatten(1).amin(1)
        sigma = beside(self.noise * spread, inputs)
        generators = [image_generator(self.seed, image) for image in inputs]
        at_once = max(1, runner.size // images)
        total: Tensor | None = None
        for done in range(0, self.samples, at_once):
            copies = min(at_once, self.samples - done)
            # One draw for each copy, so that the numbers do not depend on how many go together.
            noise = torch.stack(
                [
                    torch.randn(
                        inputs.shape[1:], generator=generator, dtype=torch.float32, device="cpu"
                    )
                    for _ in range(copies)
                    for generator in generators
                ]
            ).to(inputs)
            repeats = (copies, *[1] * (inputs.dim() - 1))
            noisy = inputs.repeat(repeats) + sigma.repeat(repeats) * noise
            saliency = self._saliency(runner, noisy, classes.repeat(copies))
            part = saliency.unflatten(0, (copies, images)).sum(0)
            total = part if total is None else total + part
        assert total is not None
        mean = total / self.samples
        return Attribution(channel_maximum(mean) if self.base is None else mean, classes, logits)

    def _saliency(self, runner: BatchRunner, noisy: Tensor, classes: Tensor) -> Tensor:
        """Return the base's maps (N, 1, *spatial), or gradients (N, C, *spatial) without a base."""
        if self.base is not None:
            return self.base.attribute(noisy, classes)
        return runner.class_gradients(noisy, classes)
