"""Train what methods need beside the network that is explained."""

from __future__ import annotations

from afmi.training.masking_losses import MaskLosses
from afmi.training.masking_model import Recipe, train_masking_model

__all__ = ["MaskLosses", "Recipe", "train_masking_model"]
