"""DeepLIFT: each pixel's share of the change of the class score from a reference image."""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass, field

from torch import Tensor

from afmi.gradients import modified_gradient
from afmi.methods.base import Attribution, Method
from afmi.methods.gradient_methods import changes_from_references
from afmi.methods.work import Work
from afmi.pictures.references import Black, Reference
from afmi.targets import Columns

__all__ = ["DeepLIFT"]


@dataclass(frozen=True)
class DeepLIFT(Method):
    """Show each pixel's share of the change of the class score from the reference's to the image's.

    S_ij = Σ_k m_kij · (x_kij − x̄_kij) over the colour channels k, with the modified gradient
    m = ∂_σ y_c/∂x: by the rescale rule every derivative of a nonlinear operation is the slope of
    the chord from the reference's activation to the image's. Signed, and the map sums to
    y_c(x) − y_c(x̄).

    Paper: Shrikumar, Greenside & Kundaje, *Learning Important Features Through Propagating
    Activation Differences*, ICML 2017, Eq. 1–3 and 3.5.2 (rescale rule). Differs: max pooling,
    products and normalisations, which the paper leaves open, have rules that keep the sum
    (`afmi.gradients`), so it is exact on residual, squeeze-and-excite and dense networks. The
    authors' program by default has the RevealCancel rule (3.5.3) behind dense layers, and the
    rescale rule behind convolutions alone.
    Cost: 1 forward per image + 1 backward for each reference image, whose own forward pass is made
    once for a model and image size, and kept.

    Args:
        model: see `Method`.
        reference: what the image is compared with; where it gives several images, the maps
            against each are averaged.

    Raises:
        OperationError: when the network has an operation without a rule.

    Example:
        >>> import torch
        >>> model = torch.nn.Sequential(
        ...     torch.nn.Flatten(), torch.nn.Linear(12, 5), torch.nn.ReLU(), torch.nn.Linear(5, 2)
        ... )
        >>> image = torch.rand(1, 3, 2, 2)
        >>> map = DeepLIFT(model).attribute(image, target=1)
        >>> change = model(image) - model(torch.zeros_like(image))
        >>> torch.allclose(map.sum(), change[0, 1], atol=1e-6)
        True
    """

    name = "DeepLIFT"
    family = "pixel"
    scores = "modified gradients"
    signed = True
    paper = "Shrikumar et al., Learning Important Features, ICML 2017"

    _: KW_ONLY
    reference: Reference = field(default_factory=Black)

    def work(self, inputs: Tensor) -> Work:
        """See `Method.work`."""
        return Work(1 + self.reference.per_image, self.reference.count(inputs))

    def _attribute(self, inputs: Tensor, columns: Columns) -> Attribution:
        run = modified_gradient(self.model, inputs, layer=None, reference=self.reference)
        return changes_from_references(run, columns.of(run.run.logits)[None])[0]
