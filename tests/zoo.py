"""Networks of torchvision, timm and transformers with random weights that are worth measuring."""

from __future__ import annotations

from typing import Any

import torch
import torchvision
from completeness import photographs, settle_batch_norms
from torch import nn

from afmi.classifier import Classifier


def revived(network: nn.Module) -> nn.Module:
    """Draw anew what an initialisation left dead, so that no branch and no class is silent.

    Many networks start with last layers and position tables of zeros, and with branches weighted
    by 0 or 1e-6 (layer scale, the last norm's gain). A parameter that is one number of at most 0.1
    throughout gets random values: N(0, 0.02²) where it is a matrix, U(0.5, 1) where it is a gain
    for each channel. Biases stay, and so do gains of 1.
    """
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            constant = parameter.numel() and bool((parameter == parameter.flatten()[0]).all())
            if not constant or name.endswith("bias") or float(parameter.flatten()[0].abs()) > 0.1:
                continue
            if sum(side > 1 for side in parameter.shape) > 1:
                nn.init.normal_(parameter, std=0.02)
            else:
                nn.init.uniform_(parameter, 0.5, 1.0)
    return network


def classifier(network: nn.Module, size: int | tuple[int, int], name: str) -> Classifier:
    """Return the network in evaluation mode, revived, with batch norms that know photographs."""
    model = Classifier(
        revived(network).eval(), mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225), name=name
    )
    settle_batch_norms(model, photographs(size))
    return model
