"""Input×Gradient: what each pixel adds to the class score, to first order."""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass

from torch import Tensor

from afmi.methods.gradient_methods import GradientMethod, change_of_pixels
from afmi.pictures.references import Reference

__all__ = ["InputXGradient"]


@dataclass(frozen=True)
class InputXGradient(GradientMethod):
    """Show what each pixel adds to the class score, to first order.

    S_ij = Σ_k (x_kij − x̄_kij) · ∂y_c/∂x_kij over the colour channels k. Signed. x̄ is what the
    network itself takes as 0: the mean colour by which a `Classifier` normalises, or 0 for a bare
    network. On ReLU networks it is then `LRP` with ε → 0, which has the same zero.

    Paper: Shrikumar et al., *Not Just a Black Box: Learning Important Features Through Propagating
    Activation Differences*, 2016, Section 3. Differs: nothing.
    Cost: 1 forward + 1 backward per image.

    Args:
        model: see `Method`.
        reference: x̄, whose pixels get 0; the mean of several. ``Black()``: black pixels get 0, as
            in `DeepLIFT` and `IntegratedGradients`, of which this is then the first order. None:
            the network's own zero.

    Example:
        >>> import torch
        >>> model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(12, 2, bias=False))
        >>> image = torch.rand(1, 3, 2, 2)
        >>> map = InputXGradient(model).attribute(image, target=1)
        >>> torch.allclose(map.sum(), model(image)[0, 1])
        True
    """

    name = "Input×Gradient"
    aliases = ("ixg",)
    family = "pixel"
    scores = "gradients"
    signed = True
    paper = "Shrikumar et al., Not Just a Black Box, 2016"

    _: KW_ONLY
    reference: Reference | None = None

    def _reduce(self, inputs: Tensor, gradient: Tensor) -> Tensor:
        change = change_of_pixels(self.model, inputs, self.reference)
        return (change * gradient).sum(1, keepdim=True)
