"""Say which models there are, building none and downloading nothing."""

from __future__ import annotations

from afmi.models import imagenet, photos, timm, torchvision, transformers
from afmi.models.building import ModelEntry

__all__ = ["describe_models", "model_names"]


def model_names() -> list[str]:
    """Return the names without a prefix that `load_model` knows: those that need no download, then
    torchvision's."""
    return [*imagenet.NETWORKS, photos.NAME, *torchvision.names()]


def describe_models(prefix: str = "") -> list[ModelEntry]:
    """Return an entry for each model of a source, building nothing and downloading nothing.

    Args:
        prefix: "" for `model_names`; "timm" for timm's, each set of weights for itself; "hf" for
            the types of classifiers in transformers, which have no weights of their own.

    Raises:
        ModelError: the source is not installed.
    """
    if prefix == timm.PREFIX:
        return timm.entries()
    if prefix == transformers.PREFIX:
        return transformers.entries()
    return [*imagenet.entries(), photos.entry(), *torchvision.entries()]
