"""Input×Gradient: what each pixel adds to the class score, to first order."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from afmi.methods.gradient_methods import GradientMethod

__all__ = ["InputXGradient"]


@dataclass(frozen=True)
class InputXGradient(GradientMethod):
    """Show what each pixel adds to the class score, to first order, compared with black.

    S_ij = Σ_k x_kij · ∂y_c/∂x_kij over the colour channels k. Signed.

    Paper: Shrikumar et al., *Not Just a Black Box: Learning Important Features Through Propagating
    Activation Differences*, 2016, Section 3. Differs: nothing; x is the image as the model takes
    it, so a `Classifier`'s black pixels get 0, while a bare network that takes normalised images
    gives 0 to pixels of the mean colour.
    Cost: 1 forward + 1 backward per image.

    Args:
        model: see `Method`.

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

    def _reduce(self, inputs: Tensor, gradient: Tensor) -> Tensor:
        return (inputs * gradient).sum(1, keepdim=True)
