"""Gradient SHAP: Shapley values of the pixels, estimated by gradients between random points."""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass, field

import torch
from torch import Tensor

from afmi.errors import UsageError
from afmi.gradients.integrated import gradients_on_the_way
from afmi.gradients.passes import BatchRunner, check_batch_size
from afmi.methods.base import Attribution, Method, relative_residual
from afmi.methods.work import Work
from afmi.network.randomness import image_generator
from afmi.pictures.references import Black, Reference, Several, White
from afmi.targets import Columns

__all__ = ["GradientSHAP"]


@dataclass(frozen=True)
class GradientSHAP(Method):
    """Show each pixel's share of the class score's change from what a reference scores on average.

    S_ij = Σ_k E[(x_kij − x̄_kij) · ∂y_c/∂x_kij at x̄ + α (x − x̄)] over the colour channels k, where
    x̄ is drawn from the reference images and α from [0, 1). Signed; the map sums to
    y_c(x) − E[y_c(x̄)] but for the error of sampling, which is reported as the residual.

    Paper: Lundberg & Lee, *A Unified Approach to Interpreting Model Predictions*, NeurIPS 2017;
    Erion et al., *Improving Performance of Deep Learning Models with Axiomatic Attribution Priors
    and Expected Gradients*, Nature Machine Intelligence 2021, Eq. 2. Differs: they draw x̄ from the
    training images, of which none are at hand here, so the default is black and white, the ends
    of every pixel's range; pass ``reference=Image(tensor)`` with training images (R, C, *spatial).
    The authors' package draws 200 samples.
    Cost: ``samples`` forwards + backwards, and 1 forward for the image and for each reference.

    Args:
        model: see `Method`.
        samples: how many points to draw for each image.
        reference: the images that x̄ is drawn from.
        seed: of the generator, which also depends on the image.
        batch_size: the most points that go through the network at once; see
            `afmi.gradients.passes.BatchRunner`.

    Example:
        >>> model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(12, 2))
        >>> GradientSHAP(model, samples=5).attribute(torch.rand(4, 3, 2, 2)).shape
        torch.Size([4, 1, 2, 2])
    """

    name = "Gradient SHAP"
    family = "pixel"
    scores = "integrated gradients"
    signed = True
    paper = "Lundberg & Lee, A Unified Approach to Interpreting Model Predictions, NeurIPS 2017"

    _: KW_ONLY
    samples: int = 100
    reference: Reference = field(default_factory=lambda: Several([Black(), White()]))
    seed: int = 0
    batch_size: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.samples < 1:
            raise UsageError(f"expected at least 1 sample, got samples={self.samples}")
        check_batch_size(self.batch_size)

    def work(self, inputs: Tensor) -> Work:
        """See `Method.work`."""
        return self.samples * Work(1, 1) + Work(1 + self.reference.count(inputs))

    def _attribute(self, inputs: Tensor, columns: Columns) -> Attribution:
        references = self.reference(inputs)
        runner = BatchRunner(self.model, inputs, self.batch_size)
        both = runner.logits(torch.cat([inputs, references]))
        logits, at_reference = both.split([len(inputs), len(references)])
        classes = columns.of(logits)
        which, alpha = self._draw(inputs, references)
        total = torch.zeros_like(inputs)
        for image, way, gradient in gradients_on_the_way(
            runner, inputs, references, classes, which, alpha, description=self.name
        ):
            total.index_add_(0, image, way * gradient)
        maps = (total / self.samples).sum(1, keepdim=True)
        if not self.reference.per_image:
            at_reference = at_reference.mean(0, keepdim=True).expand_as(logits)
        change = (logits - at_reference).gather(1, classes[:, None])[:, 0]
        return Attribution(maps, classes, logits, relative_residual(maps, change))

    def _draw(self, inputs: Tensor, references: Tensor) -> tuple[Tensor, Tensor]:
        """Return for each image's samples the reference's index and α, both (N · samples,)."""
        which, alpha = [], []
        for i, image in enumerate(inputs):
            generator = image_generator(self.seed, image)
            drawn = torch.randint(
                len(references), (self.samples,), generator=generator, device="cpu"
            )
            which.append(torch.full_like(drawn, i) if self.reference.per_image else drawn)
            alpha.append(
                torch.rand(self.samples, generator=generator, dtype=torch.float32, device="cpu")
            )
        return torch.cat(which).to(inputs.device), torch.cat(alpha).to(inputs)
