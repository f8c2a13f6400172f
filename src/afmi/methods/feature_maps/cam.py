"""CAM: feature maps weighted by the last layer's own weights for the class."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from afmi.errors import LayerError, OperationError
from afmi.gradients import Interception, Operation, Rules, UnseenError, layer_pass
from afmi.gradients.rule_sets import linear_rules
from afmi.methods.base import Attribution, LayerMethod
from afmi.network.checking import opaque_part
from afmi.network.layers import LayerChoice
from afmi.network.operations import Trait, operations_with
from afmi.pictures.dimensions import places
from afmi.targets import Columns

__all__ = ["CAM"]

_NEEDS = (
    "CAM needs global average pooling and one linear layer behind the feature maps, but {}; "
    "use GradCAM or AFMI on this network, or another layer"
)


@dataclass(frozen=True)
class CAM(LayerMethod):
    """Show where the feature maps are active that the last layer weighs for the class.

    S = Σ_k w_k^c A^k, with the weights w^c of the linear layer that follows global average
    pooling. Signed, no ReLU. The head is not taken apart: it must be affine in the maps and treat
    all places alike, which is checked, and its derivative is then w_k^c/(h·w).

    Paper: Zhou et al., *Learning Deep Features for Discriminative Localization*, CVPR 2016, Eq. 2.
    Differs: nothing.
    Cost: 1 forward + 1 backward through the head.

    Args:
        model: see `Method`.
        layer: see `LayerMethod`.

    Raises:
        LayerError: when the layers behind the maps are anything but such a head.

    Example:
        >>> model = torch.nn.Sequential(
        ...     torch.nn.Conv2d(3, 5, 3), torch.nn.ReLU(), torch.nn.AdaptiveAvgPool2d(1),
        ...     torch.nn.Flatten(), torch.nn.Linear(5, 4),
        ... )
        >>> CAM(model).attribute(torch.rand(2, 3, 6, 6)).shape
        torch.Size([2, 1, 6, 6])
    """

    name = "CAM"
    family = "feature map"
    scores = "last layer's weights"
    signed = True
    paper = "Zhou et al., Learning Deep Features for Discriminative Localization, CVPR 2016"

    def _attribute(self, inputs: Tensor, columns: Columns) -> Attribution:
        try:
            run = layer_pass(self.model, inputs, LayerChoice(self.layer), _affine_head())
        except UnseenError:
            raise
        except OperationError as error:
            if opaque_part(self.model) is not None:
                raise
            raise LayerError(
                _NEEDS.format("the operations behind the layer are not all linear")
            ) from error
        classes = columns.of(run.logits)
        gradient = run.gradient(classes, last=True)
        mean = gradient.mean(places(gradient), keepdim=True)
        uneven = (gradient - mean).abs().amax()
        if uneven > torch.finfo(gradient.dtype).eps ** 0.5 * gradient.abs().amax():
            raise LayerError(_NEEDS.format(f"the layers behind {run.layer} tell places apart"))
        weights = mean
        for size in gradient.shape[2:]:
            weights = weights * size
        maps = (weights * run.features).sum(1, keepdim=True)
        return Attribution(maps, classes, run.logits, layer=run.layer)


_DIVISOR = {"div": 1, "rdiv": 0}
"""Where the divisor stands among the operands."""


def _affine_head() -> Rules:
    """Return rules for operations that are linear, or products with a constant."""
    products = operations_with(Trait.PRODUCT)
    return Rules({**dict.fromkeys(products, _times_constant), **linear_rules()})


def _times_constant(state: Interception, operation: Operation) -> Any:
    operands = [*operation.args, *operation.kwargs.values()]
    dependent = [i for i, v in enumerate(operands) if isinstance(v, Tensor) and v.requires_grad]
    if len(dependent) > 1 or _DIVISOR.get(operation.name) in dependent:
        raise OperationError(f"{operation.name!r} of the maps with one another, or by them")
    return operation()
