"""Build classifiers by name: the embedded one, torchvision's, timm's, transformers', one's own.

A file per source; each has ``build``, which gives a network and its `building.View`.
"""

from __future__ import annotations

from afmi.models.building import ModelEntry
from afmi.models.embedded import EMBEDDED
from afmi.models.listing import describe_models, model_names
from afmi.models.load import load_model

__all__ = ["EMBEDDED", "ModelEntry", "describe_models", "load_model", "model_names"]
