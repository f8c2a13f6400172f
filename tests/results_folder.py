"""Write the folder of an evaluation without evaluating anything: numbers made up, or given."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from afmi.evaluation.folder import ResultsFolder
from afmi.metrics import Completeness, Cost, GridPointing, Insertion

Row = tuple[int, str, float, str | None]

PERCENTS = tuple(range(5, 101, 5))
FACTS = {
    "insertion": Insertion().facts().as_dict(),
    "completeness": Completeness().facts().as_dict(),
    "cost": Cost().facts().as_dict(),
    "grid_pointing": GridPointing().facts().as_dict(),
}
_FAMILIES = {
    "feature map": ("A-FMI", "A-FMI (averaged=false)", "Grad-CAM", "Grad-CAM++", "CAM"),
    "region": ("XRAI", "RISE", "LIME", "Extremal Perturbation", "Meaningful Perturbation"),
    "pixel": (
        *("Gradient", "DeepLIFT", "Integrated Gradients", "LRP", "SmoothGrad", "DeconvNet"),
        *("Guided Backprop", "Input×Gradient", "Gradient SHAP", "Kernel SHAP"),
    ),
    "control": ("Random",),
}
SIX = ("Random", "Gradient", "DeepLIFT", "XRAI", "Grad-CAM", "A-FMI")
ALL = tuple(label for labels in _FAMILIES.values() for label in labels)


def key(label: str) -> str:
    """Return a method's key: ``A-FMI (averaged=false)`` is ``a-fmi-averaged-false``."""
    words = "".join(c if c.isalnum() else " " for c in label.lower().replace("+", " plus"))
    return "-".join(words.split())


def write_piece(folder: Path, method: str, start: int, rows: Iterable[Row]) -> Path:
    """Write one piece, as an evaluation does."""
    files = ResultsFolder(folder)
    entry = files.manifest()["methods"][method]
    files.write_piece(method, entry, start, list(rows), {})
    return files.piece_path(entry["key"], start)


def write_folder(
    folder: Path,
    methods: Mapping[str, Mapping[str, Any]],
    keys: Sequence[str],
    labels: Sequence[int],
    **manifest: Any,
) -> Path:
    """Write manifest and pictures of an evaluation; ``manifest`` replaces parts of the first."""
    folder.mkdir(parents=True, exist_ok=True)
    families = {label: family for family, members in _FAMILIES.items() for label in members}
    entries = {
        label: {
            "class": "".join(c for c in label if c.isalnum()),
            "key": key(label),
            "parameters": {},
            "images_per_piece": 32,
            "paper": "",
            "family": families.get(label, ""),
            "refused": None,
            **facts,
        }
        for label, facts in methods.items()
    }
    run = {
        "afmi": "0.1.0",
        "torch": "2.15.0",
        "model": {"name": "squeezenet", "weights": "abc123", "labels": ["cat", "dog", "bus"]},
        "data": {"name": "photographs", "fingerprint": "def456", "images": len(keys)},
        "metrics": {"insertion": {"class": "Insertion", "fractions": [0.05, 1.0]}},
        "seed": 0,
    }
    record = {
        "run": run,
        "methods": entries,
        "metrics": FACTS,
        "machine": {"processor": "a processor", "cores": 2, "device": "cpu", "python": "3.12.1"},
        "command": "afmi evaluate photographs --out results",
        "created": "2026-01-02T03:04:05+00:00",
        **manifest,
    }
    (folder / "manifest.json").write_text(json.dumps(record), encoding="utf-8")
    ResultsFolder.begin(folder, record["run"], (keys, labels), {})
    return folder


def make_results(
    folder: Path,
    methods: Sequence[str] = SIX,
    images: int = 40,
    *,
    done: Mapping[str, int] | None = None,
    failed: Sequence[int] = (),
    examples: int = 2,
    refused: Mapping[str, str] | None = None,
) -> Path:
    """Make up an evaluation: the later a method in ``methods``, the better it is.

    Args:
        folder: where to.
        methods: labels.
        images: how many pictures.
        done: how many of them, for methods that are not finished.
        failed: pictures that could not be read.
        examples: how many pictures are drawn.
        refused: unsupported methods and the reasons.
    """
    random = np.random.default_rng(0)
    keys = [f"photo{i:03d}.jpg" for i in range(images)]
    labels = [i % 3 for i in range(images)]
    listed = {label: {"parameters": {"steps": 100}} for label in methods}
    listed |= {label: {"refused": why} for label, why in (refused or {}).items()}
    write_folder(folder, listed, keys, labels)
    shares = np.array(PERCENTS) / 100
    hard = random.normal(0, 1, images)
    whole = 1 / (1 + np.exp(hard - 1.8 + random.normal(0, 0.4, images)))
    for rank, label in enumerate(methods):
        quality = 0.3 + 2.2 * rank / max(len(methods) - 1, 1)
        rows: list[Row] = []
        for image in range((done or {}).get(label, images)):
            if image in failed:
                rows.append((image, "error", np.nan, f"'{keys[image]}' is cut short"))
                continue
            height = quality + random.normal(0, 0.5) - hard[image]
            known = 1 / (1 + np.exp(-(6 * shares - 3 + height)))
            probability = np.append(known[:-1], whole[image])
            rows += curve_rows(image, probability > 0.5, probability)
            rows.append((image, "cost/seconds", float(0.01 * (1 + rank) ** 2), None))
            rows.append((image, "grid_pointing/own_share", float(random.uniform(0.2, 0.9)), None))
            if label in ("A-FMI", "DeepLIFT"):
                rows.append((image, "completeness/residual", float(random.normal(0, 0.1)), None))
        for start in range(0, images, 32):
            part = [row for row in rows if start <= row[0] < start + 32]
            if part:
                write_piece(folder, label, start, part)
    (folder / "examples").mkdir(exist_ok=True)
    for image in range(examples):
        ramp = np.linspace(0, 255, 96)[None, :, None] * np.linspace(0.3, 1, 96)[:, None, None]
        picture = np.broadcast_to(ramp, (96, 96, 3)).astype(np.uint8)
        Image.fromarray(picture).save(folder / "examples" / f"{image:08d}-picture.png")
        for label in methods:
            for kind, scale in (("map", (1, 0.6, 0.2)), ("insertion", (0.2, 0.2, 0.2))):
                drawn = Image.fromarray((picture * scale).astype(np.uint8))
                drawn.save(folder / "examples" / f"{image:08d}-{key(label)}-{kind}.png")
    return folder


def curve_rows(image: int, correct: Sequence[bool], probability: Sequence[float]) -> list[Row]:
    """Return a picture's rows of insertion at PI from 5 % to 100 %, its areas included."""
    right, p = np.asarray(correct, float), np.asarray(probability, float)
    values = {f"correct@{pi}%": value for pi, value in zip(PERCENTS, right, strict=True)}
    values |= {f"probability@{pi}%": value for pi, value in zip(PERCENTS, p, strict=True)}
    values["accuracy_auc"] = _area(right)
    values["softmax_ratio_auc"] = _area(p / p[-1])
    values["original_correct"], values["original_probability"] = right[-1], p[-1]
    return [(image, f"insertion/{name}", float(value), None) for name, value in values.items()]


def _area(heights: np.ndarray) -> float:
    return float((0.05 * (heights[1:] + heights[:-1]) / 2).sum())
