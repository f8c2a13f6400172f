"""Read files of weights without running code from them, and put them into networks."""

from __future__ import annotations

import os
import zipfile
from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from afmi.errors import ModelError, first_line
from afmi.files import regular_file_size

__all__ = [
    "WEIGHT_SUFFIXES",
    "classes_in_file",
    "fit_names",
    "load_weights",
    "read_weights",
    "refuse_misfits",
    "refuse_other_numbers",
    "reshaped",
]

WEIGHT_SUFFIXES = (".safetensors", ".pth", ".pt", ".bin", ".ckpt", ".tar")
"""How the names of files of weights usually end."""

# Where training scripts put the weights among other things, and what wrappers put before names.
_NESTED = ("state_dict", "model_state_dict", "model", "model_ema", "net", "network", "weights")
_PREFIXES = ("module", "model", "network", "net", "_orig_mod")


def read_weights(path: str | os.PathLike[str]) -> dict[str, Tensor]:
    """Read a state dict from a .safetensors, .pth or .pt file, onto the CPU.

    The file's content says which kind it is. Nothing in the file is executed: a pickle that holds
    anything but tensors and plain values is refused.

    Args:
        path: the file; a checkpoint may hold the state dict under ``state_dict``, ``model`` or the
            like.

    Returns:
        Tensors by name, as stored.

    Raises:
        ModelError: the file is missing, damaged, of another kind, or would have to run code.
    """
    file = Path(path).expanduser()
    try:
        regular_file_size(file)
        with file.open("rb") as stream:
            head = stream.read(64)
    except (OSError, ValueError) as error:  # ValueError: a null byte in the path
        raise ModelError(
            f"the weights {str(file)!r} cannot be read: {getattr(error, 'strerror', error)}; "
            "pass weights= a .safetensors or .pth file"
        ) from error
    if head[8:9] == b"{":
        try:
            return load_file(file, device="cpu")
        except (SafetensorError, OSError, ValueError) as error:
            raise ModelError(f"{_damaged(file)} ({first_line(error)})") from error
    if head[:2] not in (b"PK", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05"):
        raise ModelError(
            f"{str(file)!r} is {_what(head)}; expected weights in a .safetensors, .pth or .pt file"
        )
    if head[:2] == b"PK":
        _check_unpacked_size(file)
    return _state_dict(_unpickle(file), file)


def _check_unpacked_size(file: Path) -> None:
    """Refuse an archive that unpacks to much more than it is, which could fill the memory."""
    try:
        with zipfile.ZipFile(file) as archive:
            unpacked = sum(entry.file_size for entry in archive.infolist())
    except Exception as error:  # damaged files raise errors of many types
        raise ModelError(f"{_damaged(file)} ({first_line(error)})") from error
    size = file.stat().st_size
    # PyTorch compresses nothing; of weights, other programs save a tenth or so.
    if unpacked > 2 * size + 2**20:
        raise ModelError(
            f"the weights {str(file)!r} have {size} bytes, but unpack to {unpacked}; expected an "
            "archive as torch.save writes it, which is not compressed: save them again, or as "
            ".safetensors"
        )


def _unpickle(file: Path) -> object:
    try:
        return torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # damaged files raise errors of many types
        text = str(error)
        if "weights_only" in text or "Unsupported" in text or "GLOBAL" in text:
            raise ModelError(
                f"{str(file)!r} holds more than weights, and reading it would run code from it; "
                "save the weights alone, with torch.save(model.state_dict(), file) or as "
                ".safetensors, or name a factory that builds the network"
            ) from error
        raise ModelError(f"{_damaged(file)} ({first_line(error)})") from error


def _state_dict(loaded: object, file: Path) -> dict[str, Tensor]:
    if isinstance(loaded, Mapping):
        if loaded and all(isinstance(v, Tensor) for v in loaded.values()):
            return {str(key): value for key, value in loaded.items()}
        for key in _NESTED:
            if isinstance(loaded.get(key), Mapping):
                return _state_dict(loaded[key], file)
        content = "a dictionary with " + (", ".join(map(repr, list(loaded)[:5])) or "nothing in it")
    else:
        content = f"a {type(loaded).__name__}"
    raise ModelError(
        f"{str(file)!r} holds {content}; expected tensors by name, as model.state_dict() gives "
        f"them, alone or under one of {', '.join(map(repr, _NESTED[:3]))}"
    )


def _what(head: bytes) -> str:
    if not head:
        return "an empty file"
    if head.startswith(b"version https://git-lfs"):
        return "a Git LFS pointer and not the file itself (run git lfs pull)"
    if head.lstrip()[:1] == b"<":
        return "a web page"
    return "no file of weights"


def _damaged(file: Path) -> str:
    return f"the weights {str(file)!r} are cut short or damaged; get the file again"


def fit_names(state: Mapping[str, Tensor], network: nn.Module) -> dict[str, Tensor]:
    """Strip wrappers' prefixes (``module.``, ``model.``) where the network has none of them."""
    expected = network.state_dict().keys()
    fitted = dict(state)
    while fitted and not expected & fitted.keys():
        firsts = {name.partition(".")[0] for name in fitted}
        first = firsts.pop()
        if firsts or first not in _PREFIXES:
            return dict(state)
        fitted = {name.partition(".")[2]: tensor for name, tensor in fitted.items()}
    return fitted


def reshaped(
    state: Mapping[str, Tensor], network: nn.Module
) -> dict[str, tuple[torch.Size, torch.Size]]:
    """Return the shapes, in a file and in a network, of the weights whose shapes differ."""
    expected = network.state_dict()
    shapes = {name: (state[name].shape, expected[name].shape) for name in expected if name in state}
    return {name: pair for name, pair in shapes.items() if pair[0] != pair[1]}


def classes_in_file(
    shapes: Iterable[tuple[Sequence[int], Sequence[int]]], classes: int | None
) -> int | None:
    """Return the number of classes in a file of weights, where the network's number differs.

    Args:
        shapes: those of weights, in the file and in the network, that differ, as `reshaped` finds.
        classes: how many the network has. Its heads have as many rows.

    Returns:
        None where no head differs, or the file's heads do not agree.
    """
    rows = {
        stored[0]
        for stored, expected in shapes
        if stored and expected and (expected[0], *stored[1:]) == (classes, *expected[1:])
    }
    return rows.pop() if len(rows) == 1 else None


def load_weights(network: nn.Module, state: Mapping[str, Tensor], source: str) -> None:
    """Copy weights into a network, all of them and into all of it, in the network's precision.

    Args:
        network: changed in place.
        state: tensors by name, as `fit_names` gives them.
        source: the weights' name in errors.

    Raises:
        ModelError: a weight is missing, left over, of another shape, or would lose its meaning.
    """
    refuse_other_numbers(source, network, state)
    expected = network.state_dict()
    # Checkpoints from before PyTorch 0.4.1 do not count batches; nothing here reads the count.
    missing = [k for k in expected if k not in state and not k.endswith("num_batches_tracked")]
    unexpected = [k for k in state if k not in expected]
    shapes = reshaped(state, network)
    if not (missing or unexpected or shapes):
        fitting = OrderedDict(state)
        # Some networks (MNASNet) ask for the version of their layout, which few files carry.
        fitting._metadata = getattr(expected, "_metadata", {})  # type: ignore[attr-defined]
        network.load_state_dict(fitting, strict=False)
        return
    refuse_misfits(source, network, missing, unexpected, shapes)


def refuse_other_numbers(source: str, network: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Raise where a weight would lose its imaginary part, or its scale.

    Args:
        source: what to call the weights in errors.
        network: what they are meant for.
        state: tensors by name.

    Raises:
        ModelError: the file has complex numbers for real ones, or whole numbers for fractions.
    """
    for name, expected in network.state_dict().items():
        stored = state.get(name, expected)
        if expected.is_floating_point() and not stored.is_floating_point():
            raise ModelError(
                f"{source} holds {name!r} as {stored.dtype}, but {type(network).__name__} as "
                f"{expected.dtype}, and converting it would lose what it means; save the weights "
                "as real, unquantised numbers, or build the network that they belong to"
            )


def refuse_misfits(
    source: str,
    network: nn.Module,
    missing: Sequence[str],
    unexpected: Sequence[str],
    shapes: Mapping[str, tuple[torch.Size, torch.Size]],
) -> None:
    """Raise a `ModelError` where a file's weights do not fit a network.

    Args:
        source: the weights' name in errors.
        network: that the weights are meant for.
        missing: names that the file lacks.
        unexpected: names that the network lacks.
        shapes: those in the file and in the network, of weights where they differ.
    """
    if not (missing or unexpected or shapes):
        return
    expected = network.state_dict()
    head = list(expected)[-2:]
    if not (missing or unexpected) and set(shapes) <= set(head):
        stored, classes = (shape[0] for shape in shapes[max(shapes, key=head.index)])
        raise ModelError(
            f"{source} is for {stored} classes, but the network has {classes}; build the network "
            "with as many classes as the file has"
        )
    parts = [
        f"{len(names)} {kind} ({', '.join(names[:3])}{', …' if len(names) > 3 else ''})"
        for kind, names in (
            ("missing", missing),
            ("unexpected", unexpected),
            ("of another shape", [f"{k} {_shapes(*pair)}" for k, pair in shapes.items()]),
        )
        if names
    ]
    raise ModelError(
        f"{source} does not fit the network {type(network).__name__}, which has {len(expected)} "
        f"weights: {'; '.join(parts)}; is it the weights of another architecture?"
    )


def _shapes(stored: torch.Size, expected: torch.Size) -> str:
    return f"{'×'.join(map(str, stored))} for {'×'.join(map(str, expected))}"
