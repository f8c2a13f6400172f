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

__all__ = ["read_checkpoint", "refuse_another", "write_checkpoint"]


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
    try:
        with safe_open(path, "pt") as file:
            metadata = {key: parse_json(text) for key, text in (file.metadata() or {}).items()}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError, ValueError) as error:
        raise _unreadable(path, first_line(error)) from error
    refuse_another(
        f"the checkpoint {str(path)!r}",
        metadata.get("training"),
        training,
        "give the same options to resume it, write elsewhere with --out, or delete the file",
    )
    try:
        return _restore(network, optimiser, tensors, metadata)
    except (LookupError, TypeError, ValueError, RuntimeError) as error:
        raise _unreadable(path, f"it holds no whole checkpoint: {first_line(error)}") from error


def refuse_another(what: str, before: Any, now: Mapping[str, Any], advice: str) -> None:
    """Raise unless a file is of the same training.

    Args:
        what: the file.
        before: the training that it is of, read from it.
        now: the training that is wanted.
        advice: what to do.

    Raises:
        UsageError: when it is of another.
    """
    old = before if isinstance(before, dict) else {}
    new = parse_json(as_json(dict(now)))
    for key in sorted({*old, *new}):
        if old.get(key) != new.get(key):
            raise UsageError(
                f"{what} is of a training with {key} {old.get(key)!r}, and this one has "
                f"{new.get(key)!r}; {advice}"
            )


def _unreadable(path: Path, why: str) -> UsageError:
    return UsageError(
        f"the checkpoint {str(path)!r} cannot be read ({why}); delete it to begin again"
    )


def _restore(
    network: nn.Module,
    optimiser: torch.optim.Optimizer,
    tensors: Mapping[str, Tensor],
    metadata: Mapping[str, Any],
) -> int:
    """Put what a checkpoint holds where it belongs, and return the steps made."""
    state: dict[int, dict[str, Tensor]] = {}
    for name, tensor in _of(tensors, "optimiser.").items():
        index, _, key = name.partition(".")
        state.setdefault(int(index), {})[key] = tensor
    parameters = [p for group in optimiser.param_groups for p in group["params"]]
    for index, kept in state.items():
        for key, tensor in kept.items():
            if tensor.dim() and tensor.shape != parameters[index].shape:
                raise ValueError(f"{key} of parameter {index} has another shape")
    step = int(metadata["step"])
    network.load_state_dict(_of(tensors, "network."))
    optimiser.load_state_dict({**optimiser.state_dict(), "state": state})
    return step


def _of(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {n.removeprefix(prefix): t for n, t in tensors.items() if n.startswith(prefix)}
