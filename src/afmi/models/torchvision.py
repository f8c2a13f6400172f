"""torchvision's classifiers."""

from __future__ import annotations

import http.client
import importlib
import os
import pickle
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from afmi.errors import ModelError, first_line, near_matches
from afmi.models.building import (
    ModelEntry,
    build_error,
    build_with_weights,
    call,
    weights_path,
)
from afmi.models.weights import WEIGHT_SUFFIXES, read_weights
from afmi.network.in_hand import of_torchvision
from afmi.network.preprocessing import Preprocessing, with_classes

__all__ = ["build", "entries", "names"]


def _zoo() -> ModuleType:
    """Return torchvision's models; importing them takes seconds, and "photos" needs none."""
    return importlib.import_module("torchvision.models")


def names() -> list[str]:
    """Return the names of the classifiers."""
    return _zoo().list_models(module=_zoo())


def entries() -> list[ModelEntry]:
    """Return an entry for each of `names`, building nothing."""
    return [_entry(name) for name in names()]


def _entry(name: str) -> ModelEntry:
    weights = _zoo().get_model_weights(name).DEFAULT  # type: ignore[attr-defined]
    count = weights.meta.get("num_params")
    top1 = weights.meta.get("_metrics", {}).get("ImageNet-1K", {}).get("acc@1")
    size = of_torchvision(weights).crop
    return ModelEntry(
        name,
        count / 1e6 if count else None,
        top1,
        size if isinstance(size, int) else None,
        _file_name(weights.url),
    )


def build(name: str, weights: object, options: dict[str, Any]) -> tuple[nn.Module, Preprocessing]:
    """Return the network of a name in `names`, with torchvision's weights, a file's or random."""
    known = _zoo().get_model_weights(name)
    builder = _zoo().get_model_builder(name)
    # Auxiliary heads only serve training, and their initial weights take long to draw.
    quiet: dict[str, Any] = {}
    if name in ("googlenet", "inception_v3"):
        quiet = {"aux_logits": False, "init_weights": False}
    chosen = _known_weights(name, known, weights)
    size = None

    def made(**more: Any) -> nn.Module:
        return call(name, builder, {**quiet, "weights": None, **options, **more})

    if weights is None:
        network = made()
    elif chosen is not None:
        quiet.pop("init_weights", None)
        network = _downloaded(name, builder, chosen, {**quiet, **options})
    else:
        path = weights_path(weights)
        state = _current_names(name, read_weights(path))
        chosen = next((w for w in known if Path(_file_name(w.url)).stem == path.stem), None)
        size = _vit_size(state) if name.startswith("vit_") else None
        if size is not None:
            options = {"image_size": size, **options}
        if quiet:  # torchvision's weights, and so what is trained on from them, expect this
            options = {"transform_input": True, **options}
        network = build_with_weights(made, state, f"the file {str(path)!r}", options)
    preprocessing = of_torchvision(chosen or known.DEFAULT)  # type: ignore[attr-defined]
    if size is not None and preprocessing.crop != size:
        preprocessing = replace(preprocessing, crop=size, resize=size)
    return network, with_classes(preprocessing, network)


def _known_weights(name: str, known: Any, weights: object) -> Any:
    """Return torchvision's record of the weights named, or None where a file is meant."""
    if isinstance(weights, known):
        return weights
    if not isinstance(weights, str):
        if weights is None or isinstance(weights, os.PathLike):
            return None
        raise ModelError(
            f"expected weights for {name!r} that are 'default', None, a file or one of "
            f"{', '.join(known.__members__)}; got {weights!r}"
        )
    entry = weights.rpartition(".")[2] if weights.startswith(known.__name__) else weights
    if entry.upper() in known.__members__:
        return known[entry.upper()]
    if Path(weights).exists() or weights.lower().endswith(WEIGHT_SUFFIXES) or "/" in weights:
        return None
    choices = ["default", *known.__members__]
    raise ModelError(
        f"{name!r} has no weights called {weights!r}, and no such file exists"
        + (near_matches(weights, choices) or f"; it has {', '.join(choices)}")
    )


def _downloaded(name: str, builder: Any, chosen: Any, options: dict[str, Any]) -> nn.Module:
    what = f"{_file_name(chosen.url)}, the weights of {name!r},"
    otherwise = "pass weights= a local file, or weights=None for random weights"
    try:
        return builder(**options, weights=chosen)
    except (OSError, http.client.HTTPException) as error:
        reason = getattr(error, "reason", None) or error
        raise ModelError(f"{what} cannot be downloaded ({reason}); {otherwise}") from error
    except (RuntimeError, EOFError, pickle.UnpicklingError) as error:
        folder = Path(torch.hub.get_dir()) / "checkpoints"
        raise ModelError(
            f"{what} cannot be loaded ({first_line(error)}); remove the file from {folder} to "
            f"download it again; or {otherwise}"
        ) from error
    except Exception as error:
        raise ModelError(build_error(name, options, error)) from error


def _file_name(url: str) -> str:
    return url.rpartition("/")[2]


_OLD_DENSENET = re.compile(r"^(.*denselayer\d+\.(?:norm|relu|conv))\.([12]\..*)$")


def _current_names(name: str, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Leave out auxiliary heads, and name DenseNet's weights as today's torchvision does."""
    if name in ("googlenet", "inception_v3"):
        auxiliary = re.compile(r"^(module\.|model\.)*(aux1|aux2|AuxLogits)\.")
        return {key: tensor for key, tensor in state.items() if not auxiliary.match(key)}
    if name.startswith("densenet"):
        return {_OLD_DENSENET.sub(r"\1\2", key): tensor for key, tensor in state.items()}
    return state


def _vit_size(state: Mapping[str, Tensor]) -> int | None:
    """Return the side in pixels of the images that a vision transformer's weights are for."""
    position = next((t for k, t in state.items() if k.endswith("encoder.pos_embedding")), None)
    patches = next((t for k, t in state.items() if k.endswith("conv_proj.weight")), None)
    if position is None or patches is None or position.dim() != 3 or patches.dim() != 4:
        return None
    return round((position.shape[1] - 1) ** 0.5) * patches.shape[-1]
