"""FMI prototypes of any number of training pictures, by any number of workers (RQ1)."""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

import afmi
from afmi import specs
from afmi.data.labelled import LabelledImages, open_images
from afmi.data.witness import Witness
from afmi.engines import EngineLike, as_engine
from afmi.errors import UsageError
from afmi.evaluation.folder import ResultsFolder
from afmi.evaluation.identity import code_of, identity_of
from afmi.evaluation.parts import PART, PartsJob, all_parts
from afmi.files import Location, location
from afmi.methods.feature_maps.afmi import AFMI
from afmi.metrics.fmi_prototypes import FMIPrototypes, PrototypesOrigin
from afmi.network.classifier import classify, device_of
from afmi.network.fingerprint import fingerprint_of
from afmi.network.wrappers import runnable
from afmi.stores import RemotePath

__all__ = ["PROTOTYPES", "fmi_prototypes", "parts_folder"]

PROTOTYPES = "prototypes.safetensors"
"""The file in the folder of the results."""


def fmi_prototypes(
    method: AFMI | nn.Module,
    data: Any,
    out: str | os.PathLike[str] | RemotePath,
    *,
    limit: int | None = None,
    image_key: str | None = None,
    label_key: str | None = None,
    batch_size: int = 8,
    engine: EngineLike = None,
) -> FMIPrototypes:
    """Average the FMI of each class's training pictures.

    Pictures are taken in parts of 512. Workers add up the FMI vectors of a part by class, and each
    part is kept as soon as it is done: the same call on the same folder resumes, however the last
    one stopped. Then the parts are added in the order of the pictures, so that the file
    ``prototypes.safetensors`` has the same bytes with each engine. Memory does not grow with the
    number of pictures, their names apart. A part holds the classes that it has pictures of: of
    pictures that are sorted by class one or two.

    Args:
        method: gives FMI, or a network for `afmi.AFMI` with its defaults.
        data: labelled pictures, as `afmi.evaluation.open_images` takes them.
        out: folder of the parts and of the file, or its URL in a store (``"s3://bucket/fmi"``),
            where one call writes at a time; new, empty, or of the same run.
        limit: take this many of the pictures, the classes in turn.
        image_key: see `open_images`.
        label_key: see `open_images`.
        batch_size: pictures that go through the network at once.
        engine: as in `afmi.evaluate`.

    Returns:
        The prototypes, with their origin. Pictures that cannot be read or explained are missing
        from them, and counted there; the parts say why.

    Raises:
        UsageError: when the folder holds another run's results, or no picture could be explained.
        SourceError: when the data can be read no further; what was finished is kept.
        AfmiError: when a file cannot be written; what was finished is kept.

    Example:
        >>> import tempfile
        >>> body = [nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
        >>> network = nn.Sequential(*body, nn.Linear(4, 2))
        >>> pairs = [(torch.rand(3, 8, 8), number % 2) for number in range(10)]
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     prototypes = fmi_prototypes(network, pairs, folder)
        >>> prototypes.counts.tolist(), tuple(prototypes.sums.shape)
        ([5, 5], (2, 4))
    """
    method = method if isinstance(method, AFMI) else AFMI(runnable(method))
    if isinstance(data, LabelledImages):
        images = data if limit is None else data.limited(limit)
    else:
        images = open_images(
            data, method.model, limit=limit, image_key=image_key, label_key=label_key
        )
    placed = as_engine(engine)
    device = placed.device(device_of(method.model).type)
    folder = location(out)
    parts_folder(folder, method, images, batch_size, device)
    first = images.first()
    fingerprint = fingerprint_of(method.model)
    job = _SumsJob(method, images, batch_size, fingerprint, Witness.of(images))
    classes = classify(method.model, first).shape[1]
    total: FMIPrototypes | None = None
    unread = 0
    for part in all_parts(job, folder / "parts", placed, device, f"FMI of {images.name}"):
        unread += len(part.failures)
        total = _added(total, part.tensors, classes)
    if total is None:
        raise UsageError(
            f"expected pictures that can be explained, got none of the {len(images)} in "
            f"{images.name}; the files in {str(folder / 'parts')!r} say why: delete them to "
            "try again"
        )
    origin = PrototypesOrigin(
        fingerprint=fingerprint,
        layer=str(method.resolved_layer(first)[1]),
        reference=specs.text(method.reference),
        labels=tuple(getattr(method.model, "labels", ())),
        data=images.fingerprint,
        unread=unread,
        versions={
            "afmi": afmi.__version__,
            "torch": torch.__version__,
            "python": platform.python_version(),
        },
    )
    prototypes = FMIPrototypes(total.sums, total.counts, origin)
    prototypes.save(folder / PROTOTYPES)
    return prototypes


def parts_folder(
    path: Location,
    method: AFMI,
    images: LabelledImages,
    batch_size: int,
    device: str,
    **more: Any,
) -> None:
    """Begin the folder of a run over pictures in parts, or see that it is the same run's.

    Args:
        path: of the folder.
        method: see `fmi_prototypes`.
        images: the pictures.
        batch_size: pictures that go through the network at once.
        device: type of the device.
        **more: what else must be the same for the run to resume.

    Raises:
        UsageError: when it holds another run's results.
    """
    about = {
        "method": specs.to_json(method),
        "method's code": code_of(method),
        "layer": str(method.resolved_layer(images.first())[1]),
        "images_per_part": PART,
    }
    ResultsFolder.begin(
        path,
        run=identity_of(method.model, images, {}, batch_size, device) | about | more,
        images=(images.keys, [int(label) for label in images.labels]),
        about={"metrics": {}},
    )


@dataclass(frozen=True)
class _SumsJob(PartsJob):
    """Adds up FMI vectors by class."""

    def measure(self, numbers: Tensor, inputs: Tensor, labels: Tensor) -> dict[str, Tensor]:
        method = cast("AFMI", self.method)
        importance = method.feature_map_importance(inputs, labels).detach()
        importance = importance.to("cpu", torch.float64)
        if not bool(importance.isfinite().all()):
            raise UsageError("its FMI is not finite")
        return {"importance": importance, "labels": labels.cpu()}

    def reduce(self, rows: Mapping[str, Tensor]) -> dict[str, Tensor]:
        if not rows:
            return {
                "classes": torch.zeros(0, dtype=torch.int64, device="cpu"),
                "counts": torch.zeros(0, dtype=torch.int64, device="cpu"),
                "sums": torch.zeros(0, 0, dtype=torch.float64, device="cpu"),
            }
        classes, places = rows["labels"].unique(return_inverse=True)
        sums = FMIPrototypes.of(rows["importance"], places, len(classes))
        return {"classes": classes, "counts": sums.counts, "sums": sums.sums}


def _added(
    total: FMIPrototypes | None, part: Mapping[str, Tensor], n_classes: int
) -> FMIPrototypes | None:
    """Add a part's sums in place; None as long as there is none."""
    if not len(part["classes"]):
        return total
    if total is None:
        shape = (n_classes, part["sums"].shape[1])
        total = FMIPrototypes(
            torch.zeros(shape, dtype=torch.float64, device="cpu"),
            torch.zeros(n_classes, dtype=torch.int64, device="cpu"),
        )
    total.sums.index_add_(0, part["classes"], part["sums"])
    total.counts.index_add_(0, part["classes"], part["counts"])
    return total
