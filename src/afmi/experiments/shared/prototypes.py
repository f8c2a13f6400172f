"""RQ1's measurement: does FMI alone tell an image's class? In parts that are kept when done."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from afmi.errors import AfmiError, UsageError
from afmi.evaluation import LabelledImages
from afmi.evaluation.folder import ResultsFolder
from afmi.evaluation.identity import identity_of
from afmi.files import write_files
from afmi.methods import AFMI
from afmi.metrics import FMIPrototypes
from afmi.metrics.fmi_prototypes import shuffled
from afmi.network.classifier import classify, labels_of
from afmi.network.randomness import generator_of
from afmi.pictures.batches import neighbours
from afmi.progress import track

__all__ = ["measure_agreement"]

_PART = 512
"""Pictures whose FMI is computed and kept at a time."""


def measure_agreement(
    method: AFMI, training: LabelledImages, validation: LabelledImages, folder: Path, *, batch: int
) -> dict[str, Any]:
    """Average each class's FMI over the training pictures, and classify the others by it.

    FMI vectors are computed in parts of 512 pictures, each kept as soon as it is done: the same
    call resumes where the last one stopped.

    Args:
        method: gives FMI; its model is the network.
        training: every picture counts for the prototype of its own class.
        validation: of these, the correctly predicted count.
        folder: for the parts.
        batch: pictures that go through the network at once.

    Returns:
        A line of a table. Its shares are of the correctly predicted validation pictures: those
        whose FMI is nearest to the prototype of their class; the same with the entries of each FMI
        shuffled, when only the sizes and signs of the entries are left; and the same with the FMI
        of another of these pictures, drawn at random, which is chance.

    Raises:
        UsageError: when the folder holds another run's parts, or no picture is predicted
            correctly.
    """
    model = method.model
    classes = len(labels_of(model))
    ResultsFolder.begin(
        folder,
        run=identity_of(model, validation, {}, batch)
        | {"training": training.fingerprint, "method": repr(method), "layer": str(method.layer)},
        images=(validation.keys, [int(label) for label in validation.labels]),
        about={"metrics": {}},
    )
    total: FMIPrototypes | None = None
    unreadable = 0
    for part in _parts(method, training, folder / "training", batch):
        unreadable += int(part["unreadable"])
        if part["importance"].shape[1]:
            some = FMIPrototypes.of(part["importance"], part["labels"], classes)
            total = some if total is None else total + some
    validated = control = 0
    predicted_classes: list[Tensor] = []
    true_classes: list[Tensor] = []
    for number, part in enumerate(_parts(method, validation, folder / "validation", batch)):
        unreadable += int(part["unreadable"])
        right = part["predicted"] == part["labels"]
        validated += len(right)
        if total is None or not bool(right.any()):
            continue
        importance, labels = part["importance"][right], part["labels"][right]
        predicted_classes.append(total.classify(importance))
        true_classes.append(labels)
        keys = torch.arange(len(right), device="cpu")[right][:, None] + number * _PART
        control += int(total.agreement(shuffled(importance, keys=keys), labels).sum())
    if total is None or not true_classes:
        raise UsageError(
            f"expected pictures that {model.name} predicts correctly, got none of {validated}; "
            "choose the data that it was trained for, or another network"
        )
    predicted, true = torch.cat(predicted_classes), torch.cat(true_classes)
    exchanged = torch.randperm(len(true), generator=generator_of(0), device="cpu")
    _, layer = method.resolved_layer(validation.first())
    return {
        "network": model.name,
        "layer": str(layer),
        "feature maps": total.sums.shape[1],
        "training pictures": int(total.counts.sum()),
        "validation pictures": validated,
        "unreadable pictures": unreadable,
        "network's accuracy": len(true) / validated,
        "agreement of FMI": int((predicted == true).sum()) / len(true),
        "control: entries shuffled": control / len(true),
        "control: FMI of another picture": int((predicted[exchanged] == true).sum()) / len(true),
    }


def _parts(
    method: AFMI, images: LabelledImages, folder: Path, batch: int
) -> Iterator[dict[str, Tensor]]:
    """Yield the FMI of all pictures, a part at a time, computed or read again."""
    starts = range(0, len(images), _PART)
    for start in track(starts, f"FMI of {images.name}"):
        path = folder / f"{start:08d}.npz"
        if not path.exists():
            part = _computed(method, images, start, min(start + _PART, len(images)), batch)
            buffer = io.BytesIO()
            arrays: dict[str, Any] = {name: tensor.numpy() for name, tensor in part.items()}
            np.savez(buffer, **arrays)
            write_files({path: buffer.getvalue()})
        with np.load(path) as kept:
            yield {name: torch.from_numpy(kept[name]) for name in kept.files}


def _computed(
    method: AFMI, images: LabelledImages, start: int, stop: int, batch: int
) -> dict[str, Tensor]:
    importance, labels, predicted = [], [], []
    unreadable = 0

    def readable() -> Iterator[tuple[Tensor, int]]:
        nonlocal unreadable
        for index in range(start, stop):
            try:
                yield images.read(index), int(images.labels[index])
            except AfmiError:
                unreadable += 1

    for pairs in neighbours(readable(), batch, lambda pair: pair[0].shape):
        inputs = torch.cat([picture for picture, _ in pairs])
        classes = torch.tensor(
            [label for _, label in pairs], dtype=torch.int64, device=inputs.device
        )
        importance.append(method.feature_map_importance(inputs, classes).float().cpu())
        predicted.append(classify(method.model, inputs).argmax(1).cpu())
        labels.append(classes.cpu())
    no_class = torch.empty(0, dtype=torch.int64, device="cpu")
    return {
        "importance": torch.cat(importance) if importance else no_class.new_zeros(0, 0).float(),
        "labels": torch.cat([no_class, *labels]),
        "predicted": torch.cat([no_class, *predicted]),
        "unreadable": no_class.new_tensor(unreadable),
    }
