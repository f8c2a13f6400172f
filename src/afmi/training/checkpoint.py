"""Checkpoints of a training: tensors and numbers in one file, written whole or not at all."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from afmi.errors import UsageError, first_line
from afmi.files import as_json, parse_json, write_files

__all__ = ["read_checkpoint", "write_checkpoint"]


def write_checkpoint(
    path: Path,
    network: nn.Module,
    optimiser: torch.optim.Optimizer,
    step: int,
    training: Mapping[str, Any],
) -> None:
    """Write what a training needs to resume after ``step`` steps, in place of what was there.

    Args:
        path: of the file.
        network: that is trained.
        optimiser: of its parameters.
        step: how many steps were made.
        training: what must be the same to resume, as JSON holds it.
    """
    tensors = {f"network.{name}": tensor for name, tensor in network.state_dict().items()}
    for index, state in optimiser.state_dict()["state"].items():
        tensors |= {f"optimiser.{index}.{name}": tensor for name, tensor in state.items()}
    on_cpu = {name: tensor.detach().to("cpu").contiguous() for name, tensor in tensors.items()}
    metadata = {"step": as_json(step), "training": as_json(training)}
    write_files({path: safetensors.torch.save(on_cpu, metadata)})


def read_checkpoint(
    path: Path,
    network: nn.Module,
    optimiser: torch.optim.Optimizer,
    training: Mapping[str, Any],
) -> int:
    """Restore network and optimiser from a checkpoint, if there is one; return the steps made.

    Raises:
        UsageError: when it is of another training, or damaged.
    """
    if not path.exists():
        return 0
    advice = "give the same options to resume it, write elsewhere with --out, or delete the file"
    try:
        with safe_open(path, "pt") as file:
            metadata = {key: parse_json(text) for key, text in (file.metadata() or {}).items()}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError, ValueError) as error:
        raise UsageError(
            f"the checkpoint {str(path)!r} cannot be read ({first_line(error)}); delete it to "
            "begin again"
        ) from error
    before, now = metadata.get("training") or {}, parse_json(as_json(training))
    changed = [key for key in sorted({*before, *now}) if before.get(key) != now.get(key)]
    if changed:
        key = changed[0]
        raise UsageError(
            f"the checkpoint {str(path)!r} is of a training with {key} {before.get(key)!r}, and "
            f"this one has {now.get(key)!r}; {advice}"
        )
    network.load_state_dict(_of(tensors, "network."))
    state: dict[int, dict[str, Tensor]] = {}
    for name, tensor in _of(tensors, "optimiser.").items():
        index, _, key = name.partition(".")
        state.setdefault(int(index), {})[key] = tensor
    optimiser.load_state_dict({**optimiser.state_dict(), "state": state})
    return int(metadata["step"])


def _of(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {n.removeprefix(prefix): t for n, t in tensors.items() if n.startswith(prefix)}
