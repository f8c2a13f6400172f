"""``afmi doctor``: print what a report of a fault needs, and see whether an image is explained."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import re
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

import afmi
from afmi.cli.group import debug_option
from afmi.cli.options import json_option
from afmi.cli.terminal import echo, echo_json
from afmi.errors import one_line

__all__ = ["doctor"]

BROKEN = 1
"""Exit code: the image could not be explained, or not right."""

_EXACT = 1e-3
"""The most that the un-averaged map of the package's network may leave unexplained."""

_VARIABLES = (
    *("OMP_NUM_THREADS", "MKL_NUM_THREADS", "CUDA_VISIBLE_DEVICES", "PYTORCH_ENABLE_MPS_FALLBACK"),
    *("TORCH_HOME", "HF_HOME", "HF_HUB_OFFLINE", "MPLCONFIGDIR"),
)


@click.command(short_help="Print what a report of a fault needs.")
@json_option("Print one JSON object.")
@debug_option
@click.pass_context
def doctor(ctx: click.Context, json_wanted: bool) -> None:
    """Print versions, devices, caches and extras, and explain one image to see that it works.

    The image is explained by the network that comes with the package, offline, in about a second.
    Its map must sum to the change of the score; if it does not, or anything fails, the last line
    says so. Nothing is sent anywhere; the paths may hold your name.

    \b
    Examples:
      afmi doctor
      afmi doctor --json > report.json

    \b
    Exit codes: 0 all works, 1 the image could not be explained.
    """
    facts = _facts()
    if json_wanted:
        echo_json(facts)
    else:
        for title, value in facts.items():
            _show(title, value)
    if not facts["check"]["works"]:
        ctx.exit(BROKEN)


def _show(title: str, value: Any, indent: str = "") -> None:
    if isinstance(value, Mapping):
        echo(f"{indent}{title}:")
        for key, item in value.items():
            _show(key, item, indent + "  ")
        return
    if isinstance(value, bool):
        value = "yes" if value else "no"
    elif isinstance(value, list):
        value = ", ".join(map(str, value)) or "none"
    echo(f"{indent}{title}: {'unknown' if value is None else value}")


def _facts() -> dict[str, Any]:
    needed, extras = _requirements()
    return {
        "afmi": {"version": afmi.__version__, "place": str(Path(afmi.__file__).parent)},
        "python": {"version": platform.python_version(), "program": sys.executable},
        "platform": {"system": platform.platform(), "machine": platform.machine()},
        "packages": {name: _version(name) for name in needed},
        "extras": {extra: _state(names) for extra, names in extras.items()},
        **_machine(),
        "caches": _caches(),
        "variables": {name: os.environ[name] for name in _VARIABLES if name in os.environ},
        "check": _check(),
    }


def _state(names: list[str]) -> str:
    """Return which packages of an extra are missing, or the versions of all of them."""
    versions = {name: _version(name) for name in names}
    missing = [name for name, version in versions.items() if version is None]
    if missing:
        return f"missing {', '.join(missing)}"
    return ", ".join(f"{name} {version}" for name, version in versions.items()) or "nothing more"


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _requirements() -> tuple[list[str], dict[str, list[str]]]:
    """Return the packages that afmi needs, and those of each extra, as its metadata says."""
    try:
        lines = importlib.metadata.requires("afmi") or []
    except importlib.metadata.PackageNotFoundError:  # its source is run where it lies
        return ["torch", "numpy", "pillow"], {}
    needed: list[str] = []
    extras: dict[str, list[str]] = {}
    for line in lines:
        name = re.match(r"[\w.-]+", line)
        extra = re.search(r"extra\s*==\s*['\"]([\w-]+)['\"]", line)
        if name is None or name[0] == "afmi":
            continue
        names = needed if extra is None else extras.setdefault(extra[1], [])
        names.append(name[0])
    return needed, extras


def _machine() -> dict[str, Any]:
    import torch

    cuda = torch.cuda.is_available()
    devices = ["cpu"]
    for number in range(torch.cuda.device_count()):
        devices.append(f"cuda:{number} {torch.cuda.get_device_name(number)}")
    if torch.backends.mps.is_available():
        devices.append("mps")
    return {
        "devices": devices,
        "cuda": {"available": cuda, "built for": torch.version.cuda or "no CUDA"},
        "threads": {
            "cores": os.cpu_count(),
            "within operations": torch.get_num_threads(),
            "between operations": torch.get_num_interop_threads(),
        },
    }


def _caches() -> dict[str, str]:
    import matplotlib
    import torch

    hugging_face = os.environ.get("HF_HOME") or Path.home() / ".cache" / "huggingface"
    return {
        "weights of torchvision": str(Path(torch.hub.get_dir()) / "checkpoints"),
        "weights of timm and transformers": str(hugging_face),
        "fonts": matplotlib.get_cachedir(),
    }


def _check() -> dict[str, Any]:
    """Explain an image, and say whether the map sums to the change of the score."""
    start = time.perf_counter()
    try:
        facts = _explained()
    except Exception as error:  # whatever it is, it is what the report is about
        facts = {"works": False, "error": one_line(error)}
    return {**facts, "seconds": round(time.perf_counter() - start, 2)}


def _explained() -> dict[str, Any]:
    import torch

    from afmi.models import load_model

    ramp = torch.linspace(0, 1, 128, dtype=torch.float32, device="cpu").expand(128, -1)
    image = torch.stack([ramp, ramp.T, 1 - ramp])
    explanation = afmi.explain(load_model("photos"), image, averaged=False)
    residual = explanation.residual
    return {
        "works": residual is not None and abs(residual) <= _EXACT,
        "answer": explanation.answer,
        "residual": residual,
    }
