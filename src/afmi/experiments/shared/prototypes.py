"""RQ1's measurement: does FMI alone tell an image's class? In parts that are kept when done."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from afmi.data.witness import Witness
from afmi.engines import Engine
from afmi.errors import UsageError
from afmi.evaluation import LabelledImages
from afmi.evaluation.parts import PartsJob, all_parts
from afmi.evaluation.prototypes import fmi_prototypes, parts_folder
from afmi.methods import AFMI
from afmi.metrics import FMIPrototypes
from afmi.metrics.fmi_prototypes import shuffled
from afmi.network.classifier import classify, device_of
from afmi.network.fingerprint import fingerprint_of
from afmi.network.randomness import generator_of

__all__ = ["measure_agreement"]


def measure_agreement(
    method: AFMI,
    training: LabelledImages,
    validation: LabelledImages,
    folder: Path,
    *,
    batch: int,
    engine: Engine,
) -> dict[str, Any]:
    """Average each class's FMI over the training pictures, and classify the others by it.

    Both are done in parts that are kept: the same call resumes where the last one stopped.

    Args:
        method: gives FMI; its model is the network.
        training: every picture counts for the prototype of its own class.
        validation: of these, the correctly predicted count.
        folder: for the parts, and the prototypes' file in its folder ``training``.
        batch: pictures that go through the network at once.
        engine: where the work is done.

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
    options = {"batch_size": batch, "engine": engine}
    prototypes = fmi_prototypes(method, training, folder / "training", **options)
    assert prototypes.origin is not None
    device = engine.device(device_of(model).type)
    tried = folder / "validation"
    parts_folder(tried, method, validation, batch, device, training=training.fingerprint)
    known = fingerprint_of(model), Witness.of(validation)
    job = _NearestJob(method, validation, batch, *known, prototypes)
    measured = list(all_parts(job, tried / "parts", engine, device, f"FMI of {validation.name}"))
    names = measured[0].tensors
    rows = {name: torch.cat([part.tensors[name] for part in measured]) for name in names}
    right = rows["predicted"] == rows["labels"]
    true, nearest = rows["labels"][right], rows["nearest"][right]
    if not len(true):
        raise UsageError(
            f"expected pictures that {model.name} predicts correctly, got none of {len(right)}; "
            "choose the data that it was trained for, or another network"
        )
    exchanged = torch.randperm(len(true), generator=generator_of(0), device="cpu")
    return {
        "network": model.name,
        "layer": prototypes.origin.layer,
        "feature maps": prototypes.sums.shape[1],
        "training pictures": int(prototypes.counts.sum()),
        "validation pictures": len(right),
        "unreadable pictures": prototypes.origin.unread
        + sum(len(part.failures) for part in measured),
        "network's accuracy": len(true) / len(right),
        "agreement of FMI": _share(nearest == true),
        "control: entries shuffled": _share(rows["nearest_shuffled"][right] == true),
        "control: FMI of another picture": _share(nearest[exchanged] == true),
    }


def _share(hits: Tensor) -> float:
    return int(hits.sum()) / len(hits)


@dataclass(frozen=True)
class _NearestJob(PartsJob):
    """Finds the class whose prototype is the nearest to a picture's FMI."""

    prototypes: FMIPrototypes

    def measure(self, numbers: Tensor, inputs: Tensor, labels: Tensor) -> dict[str, Tensor]:
        method = cast("AFMI", self.method)
        importance = method.feature_map_importance(inputs, labels)
        control = shuffled(importance, keys=numbers[:, None])
        return {
            "labels": labels.cpu(),
            "predicted": classify(method.model, inputs).argmax(1).cpu(),
            "nearest": self.prototypes.classify(importance),
            "nearest_shuffled": self.prototypes.classify(control),
        }

    def reduce(self, rows: Mapping[str, Tensor]) -> dict[str, Tensor]:
        none = torch.zeros(0, dtype=torch.int64, device="cpu")
        names = ("labels", "predicted", "nearest", "nearest_shuffled")
        return {name: rows.get(name, none) for name in names}
