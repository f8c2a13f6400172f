"""timm's classifiers, ``timm:resnet18.a1_in1k``, prepared as in timm's evaluation."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

from torch import nn

from afmi.errors import ModelError, near_matches
from afmi.models.building import (
    ModelEntry,
    build_with_weights,
    call,
    quiet,
    weights_path,
)
from afmi.models.hub import fetching
from afmi.models.weights import read_weights
from afmi.network.in_hand import of_timm
from afmi.network.preprocessing import Preprocessing
from afmi.packages import imported

__all__ = ["PREFIX", "build", "entries"]

PREFIX = "timm"

_INSTEAD = "pass weights= a local file, or weights=None for random weights"


def entries() -> list[ModelEntry]:
    """Return an entry for each set of weights, and for each architecture that has none."""
    timm: Any = imported("timm", "a network of timm")
    names = timm.list_models(pretrained=True)
    names += sorted({*timm.list_models()} - {name.partition(".")[0] for name in names})
    return [_entry(name, timm.get_pretrained_cfg(name)) for name in sorted(names)]


def _entry(name: str, config: Any) -> ModelEntry:
    size = config.input_size[1] if config and config.input_size else None
    weights = config and (config.hf_hub_id or (config.url or "").rpartition("/")[2])
    return ModelEntry(f"{PREFIX}:{name}", None, None, size, weights or None)


def build(name: str, weights: object, options: dict[str, Any]) -> tuple[nn.Module, Preprocessing]:
    """Return the network that timm gives a name, with its weights, a file's or random ones.

    Args:
        name: of an architecture, or of one with a tag that says which weights.
        weights: "default", None or a file.
        options: for ``timm.create_model``.

    Raises:
        ModelError: timm is not installed, has no such model, or its weights cannot be loaded.
    """
    timm: Any = imported("timm", "a network of timm")
    name = name.lower()
    known = timm.list_models(pretrained=True)
    if not timm.is_model(name.partition(".")[0]) or ("." in name and name not in known):
        raise ModelError(
            f"timm has no model called {name!r}"
            + (
                near_matches(name, [*timm.list_models(), *known])
                or f"; `afmi models {PREFIX}:` lists them"
            )
        )

    def made(**more: Any) -> nn.Module:
        with quiet("timm"):
            return call(f"{PREFIX}:{name}", partial(timm.create_model, name), {**options, **more})

    if weights is None:
        network = made()
    elif weights == "default":
        network = _pretrained(timm, name, options)
    else:
        path = weights_path(weights)
        source = f"the file {str(path)!r}"
        network = build_with_weights(made, read_weights(path), source, options, _classes)
    if not _classes(network):
        raise ModelError(
            f"{PREFIX}:{name} gives features and has no classes; for weights of yours that have "
            "some, pass num_classes= too"
        )
    return network, of_timm(network, options.get("img_size"))


def _classes(network: nn.Module) -> int:
    return int(network.num_classes)  # type: ignore[arg-type]


def _pretrained(timm: Any, name: str, options: Mapping[str, Any]) -> nn.Module:
    config = timm.get_pretrained_cfg(name)
    if config is None or not config.has_weights:
        raise ModelError(f"timm has no weights for {name!r}; {_INSTEAD}")
    classes = options.get("num_classes", config.num_classes)
    if classes != config.num_classes:
        raise ModelError(
            f"the weights of {PREFIX}:{name} are for {config.num_classes} classes, not {classes}; "
            "pass weights= a file of yours that fits, or weights=None"
        )
    title = f"{PREFIX}:{name}"
    with (
        quiet("timm", "huggingface_hub"),
        fetching(config.hf_hub_id, f"the weights of {title}", _INSTEAD),
    ):
        build = partial(timm.create_model, name, pretrained=True)
        return call(title, build, options, passing=OSError)
