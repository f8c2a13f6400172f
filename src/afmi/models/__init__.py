"""Build classifiers by name: the package's own, torchvision's, timm's, transformers', the user's.

One file per source; each has ``build``, which returns a network and its `Preprocessing`.
"""

from __future__ import annotations

from afmi.models.building import ModelEntry
from afmi.models.listing import describe_models, model_names
from afmi.models.load import load_model

__all__ = ["ModelEntry", "describe_models", "load_model", "model_names"]
