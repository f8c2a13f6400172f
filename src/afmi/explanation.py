"""Explanation: the record of why a network gave a class its score; it shows and saves itself."""

from __future__ import annotations

import base64
import functools
import hashlib
import html
import io
import json
import math
import os
import platform
import re
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import metadata
from itertools import count
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import numpy as np
import PIL.Image
import torch
from torch import Tensor

import afmi
from afmi import specs
from afmi.files import write_files
from afmi.methods import Attribution, Method
from afmi.network.classifier import class_label
from afmi.pictures import figures, plots
from afmi.pictures.maps import Scale, display_range
from afmi.pictures.transforms import to_image

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["INSERTED", "Explanation", "explanation_of"]

INSERTED = 0.1
"""Share of the pixels that figures show on black: the paper's Figure 1."""


@dataclass(frozen=True, repr=False, eq=False)
class Explanation:
    """Why a network gave one class its score for one picture.

    Attributes:
        image: (3, H, W) in [0, 1], on the CPU: what the network saw, cropped and resized.
        map: (H, W), on the CPU, in the method's own units.
        signed: whether negative values of the map are evidence against the class; pictures then
            part their colours at zero. As the method declares it.
        target: the class explained.
        label: its name.
        probability: the network's softmax probability of it.
        predicted: the class with the highest probability.
        predicted_label: its name.
        predicted_probability: its probability.
        method: the method's name.
        parameters: its hyperparameters, as JSON can hold them.
        layer: where feature maps were taken; None for methods that take none.
        reference: what the picture was compared with; None for methods that compare with nothing.
        residual: (Σ map − Δy) / |Δy| at the layer's size, where Δy is the change of the class
            score from the reference: 0 when the map accounts for all of it. None where the
            method promises no such sum, or it was not computed.
        model: the model's name.
        source: the file; None for pictures from memory.
        versions: of afmi, torch, torchvision and python.
    """

    image: Tensor
    map: Tensor
    signed: bool
    target: int
    label: str
    probability: float
    predicted: int
    predicted_label: str
    predicted_probability: float
    method: str
    parameters: dict[str, Any]
    layer: str | None = None
    reference: str | None = None
    residual: float | None = None
    model: str = ""
    source: str | None = None
    versions: dict[str, str] = field(default_factory=lambda: dict(_versions()))

    @property
    def scale(self) -> Scale:
        """What the colours of its pictures span."""
        return display_range(self.map, signed=self.signed)

    def overlay(self) -> PIL.Image.Image:
        """Return the map over the photograph; see `afmi.plots.overlay`."""
        return plots.overlay(self.image, self.map, signed=self.signed)

    def heatmap(self) -> PIL.Image.Image:
        """Return the map by itself; see `afmi.plots.heatmap`."""
        return plots.heatmap(self.map, signed=self.signed)

    def insertion(self, fraction: float = INSERTED) -> PIL.Image.Image:
        """Return the most important ``fraction`` of the pixels on black."""
        return plots.insertion(self.image, self.map, fraction)

    def figure(self) -> Figure:
        """Return photograph, overlay, map and insertion view side by side, with their titles."""
        panels = [
            figures.Panel(to_image(self.image), "What the network saw"),
            figures.Panel(self.overlay(), "Where its evidence lies"),
            figures.Panel(
                self.heatmap(),
                "For (red), against (blue)" if self.signed else "The map",
                scale=self.scale,
            ),
            figures.Panel(self.insertion(), f"Top {INSERTED:.0%} of the pixels"),
        ]
        return figures.grid([panels], title=self._title(), note=self._note(), side=400)

    def _title(self) -> str:
        title = f"{self.label}, {_percent(self.probability)}"
        if self.predicted != self.target:
            title += f" (predicted: {self.predicted_label}, {_percent(self.predicted_probability)})"
        return f"{title} — {self.method}"

    def _note(self) -> str:
        parts = [self.model and f"model {self.model}", self.layer and f"layer {self.layer}"]
        parts.append(self.reference and f"reference {self.reference}")
        if self.residual is not None:
            parts.append(f"residual {self.residual:+.1%}".replace("-", "−"))
        parts.append(self.source and Path(self.source).name)
        return " · ".join(part for part in parts if part)

    def to_dict(self) -> dict[str, Any]:
        """Return the record as JSON holds it: all but the pixels of image and map.

        Numbers that are not finite become None, which JSON can hold.
        """
        pixels = self.image.contiguous().numpy().tobytes()
        height, width = self.map.shape
        return {
            "source": self.source,
            "image": {
                "height": height,
                "width": width,
                "digest": hashlib.blake2b(pixels, digest_size=16).hexdigest(),
            },
            "target": self.target,
            "label": self.label,
            "probability": _finite(self.probability),
            "predicted": self.predicted,
            "predicted_label": self.predicted_label,
            "predicted_probability": _finite(self.predicted_probability),
            "method": self.method,
            "signed": self.signed,
            "parameters": self.parameters,
            "layer": self.layer,
            "reference": self.reference,
            "residual": _finite(self.residual),
            "model": self.model,
            "versions": self.versions,
        }

    def save(self, folder: str | os.PathLike[str], stem: str | None = None) -> dict[str, Path]:
        """Write figure, overlay, map and record to a folder, which is made where missing.

        Files are named ``<stem>-<label>-<method>…``. Saving the same explanation again replaces
        its files; another one that would get the same names is numbered (``…-2``). The four are
        written aside and then take their names, the record last: no file is ever half written,
        and where a record is, the others are too.

        Args:
            folder: where to.
            stem: the beginning of the names; None: the source's name, or ``image``.

        Returns:
            The paths: ``figure`` and ``overlay`` (PNG), ``map`` (float32 .npy), ``record`` (JSON).

        Raises:
            AfmiError: when the files cannot be written.
        """
        folder = Path(folder)
        if stem is None:
            stem = Path(self.source).stem if self.source else "image"
        parts = (_slug(stem, 80), _slug(self.label, 40).lower(), _slug(self.method, 40).lower())
        record = self.to_dict()
        files = _free_files(folder, "-".join(part for part in parts if part), record)
        record["files"] = {kind: path.name for kind, path in files.items()}
        text = json.dumps(record, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
        figure, overlay = self.figure(), self.overlay()

        def write_map(file: IO[bytes]) -> None:
            # Not np.save, which reports a full disk with an error of its own on real files.
            buffer = io.BytesIO()
            np.save(buffer, self.map.numpy().astype(np.float32))
            file.write(buffer.getvalue())

        write_files(
            {
                files["figure"]: lambda file: figures.figure_png(figure, file),
                files["overlay"]: lambda file: overlay.save(file, "PNG"),
                files["map"]: write_map,
                files["record"]: text.encode(errors="backslashreplace"),
            }
        )
        return files

    @functools.cached_property
    def _png(self) -> bytes:
        # Notebooks ask for PNG and HTML one after the other; drawing twice would be a waste.
        buffer = io.BytesIO()
        figures.figure_png(self.figure(), buffer)
        return buffer.getvalue()

    def _repr_png_(self) -> bytes:
        return self._png

    def _repr_html_(self) -> str:
        picture = base64.b64encode(self._png).decode()
        alt = html.escape(f"{self._title()}. {self._note()}", quote=True)
        return f'<img alt="{alt}" style="max-width:100%" src="data:image/png;base64,{picture}">'

    def __repr__(self) -> str:
        height, width = self.map.shape
        return (
            f"Explanation({self.label!r} {_percent(self.probability)}, {self.method}, "
            f"{width}×{height}" + (f", {self.source!r})" if self.source else ")")
        )

    def __str__(self) -> str:
        return f"{self._title()} ({self._note()})"


def explanation_of(
    method: Method,
    attribution: Attribution,
    row: int,
    image: Tensor,
    logits: Tensor,
    source: str | None,
) -> Explanation:
    """Make the record of one image of a batch.

    Args:
        method: that explained the batch.
        attribution: of the batch.
        row: of the image in it.
        image: (C, H, W), as the network saw it.
        logits: (C,), of the image.
        source: its file.
    """
    model, target, residual = method.model, int(attribution.target[row]), attribution.residual
    probabilities = logits.detach().double().softmax(0)
    predicted = int(logits.argmax())
    # The layer apart: the record's own `layer` says which it was.
    parameters = {k: v for k, v in specs.parameters(method).items() if k != "layer"}
    reference = getattr(method, "reference", None)
    return Explanation(
        image=_for_display(image),
        map=attribution.maps[row, 0].detach().cpu().clone(),
        signed=method.signed,
        target=target,
        label=class_label(model, target),
        probability=float(probabilities[target]),
        predicted=predicted,
        predicted_label=class_label(model, predicted),
        predicted_probability=float(probabilities[predicted]),
        method=method.name,
        parameters=parameters,
        layer=None if attribution.layer is None else str(attribution.layer),
        reference=None if reference is None else specs.text(reference),
        residual=None if residual is None else float(residual[row]),
        model=str(getattr(model, "name", type(model).__name__)),
        source=source,
    )


def _for_display(image: Tensor) -> Tensor:
    """Return an image (3, H, W) in [0, 1]; a bare network's own range is stretched to that."""
    shown = image.detach().to("cpu", torch.float32, copy=True)
    low, high = float(shown.min()), float(shown.max())
    if low < -1e-3 or high > 1 + 1e-3:
        shown = (shown - low) / (high - low)
    return shown.clamp(0, 1).expand(3, -1, -1).contiguous()


def _percent(probability: float) -> str:
    if 0.999 < probability < 1:
        return "over 99.9%"
    return "under 0.1%" if 0 < probability < 0.001 else f"{probability:.1%}"


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None


@functools.cache
def _versions() -> Mapping[str, str]:
    versions = {"afmi": afmi.__version__, "torch": torch.__version__}
    try:
        versions["torchvision"] = metadata.version("torchvision")  # without the wait for its import
    except metadata.PackageNotFoundError:
        versions["torchvision"] = "not installed"
    return {**versions, "python": platform.python_version()}


def _slug(text: str, limit: int) -> str:
    """Return letters, digits, dots, and single dashes or underscores; ``limit`` bytes at most."""
    text = unicodedata.normalize("NFC", text).replace("++", "-plus-plus")
    text = re.sub(r"-{2,}", "-", re.sub(r"[^\w.]+", "-", text))
    return text.encode()[:limit].decode(errors="ignore").strip("-.")


def _free_files(folder: Path, stem: str, record: dict[str, Any]) -> dict[str, Path]:
    """Return names that are free, or that an earlier save of the same explanation took."""
    for number in count(1):
        base = stem if number == 1 else f"{stem}-{number}"
        path = folder / f"{base}.json"
        if not os.path.lexists(path) or _is_record_of(path, record):
            break
    endings = {"figure": ".png", "overlay": "-overlay.png", "map": "-map.npy", "record": ".json"}
    return {kind: folder / f"{base}{ending}" for kind, ending in endings.items()}


def _is_record_of(path: Path, record: dict[str, Any]) -> bool:
    """Tell whether a file is the record of the same explanation, its numbers apart."""
    try:
        earlier = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return False
    same = ("source", "image", "target", "method", "parameters", "layer", "model")
    return isinstance(earlier, dict) and all(earlier.get(key) == record[key] for key in same)
