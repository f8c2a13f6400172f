"""Remove and retrain: what can still be learned once the pixels that a map ranks first are gone."""

from __future__ import annotations

import io
import json
import math
import time
import zipfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from matplotlib.figure import Figure
from torch import Tensor

from afmi.errors import AfmiError, UsageError
from afmi.evaluation import LabelledImages
from afmi.evaluation.folder import ResultsFolder
from afmi.evaluation.identity import identity_of
from afmi.experiments.shared.base import Experiment, Request, Result, write_csv
from afmi.experiments.shared.controls import Sobel, SquaredGradient
from afmi.files import as_json, write_files
from afmi.methods import Method, Random, SmoothGrad
from afmi.network.classifier import Classifier
from afmi.network.randomness import keeping_random_state
from afmi.pictures import figures
from afmi.pictures.batches import neighbours
from afmi.pictures.maps import top_mask
from afmi.progress import duration, track
from afmi.report.words import counted
from afmi.specs import key_of

__all__ = [
    "FINDING",
    "PAPER",
    "SHARES",
    "Pictures",
    "Recipe",
    "Roar",
    "controls",
    "finished",
    "remove",
    "train",
]

PAPER = "Hooker et al., NeurIPS 2019, which Section 4.4 cites"
FINDING = (
    "on photographs Gradient, Integrated Gradients and Guided Backprop find the pixels that count "
    "no better than chance, and of their ensembles only the squared ones (SmoothGrad²) do"
)

SHARES = (0.1, 0.3, 0.5, 0.7, 0.9)
"""The shares of the pixels that are removed, as in Hooker et al., Section 4."""
_PART = 512
"""Pictures whose maps are computed and kept at a time."""
_BATCH = 32
"""Pictures that are explained at once."""


@dataclass(frozen=True)
class Recipe:
    """How the networks are trained: AdamW, the rate along one cycle.

    Attributes:
        epochs: through the training pictures.
        batch: pictures to a step.
        rate: the highest rate of learning.
        runs: trainings for each cell, with seeds 0, 1, …; the paper has 5.
    """

    epochs: int
    batch: int = 32
    rate: float = 2e-3
    runs: int = 3


@dataclass(frozen=True)
class Pictures:
    """Pictures (N, C, H, W) in [0, 1], their classes (N,) and their keys, in memory."""

    images: Tensor
    labels: Tensor
    keys: tuple[str, ...]

    @classmethod
    def read(cls, pictures: LabelledImages) -> Pictures:
        """Read them; those that cannot be read are left out.

        Raises:
            UsageError: when they have several sizes, or none can be read.
        """
        images, labels, keys = [], [], []
        for index in track(range(len(pictures)), f"reading {pictures.name}"):
            try:
                images.append(pictures.read(index))
                labels.append(int(pictures.labels[index]))
                keys.append(pictures.keys[index])
            except AfmiError:
                continue
        if len({image.shape for image in images}) != 1:
            raise UsageError(
                f"expected pictures of one size in {pictures.name}, got "
                f"{sorted({tuple(image.shape[2:]) for image in images}) or 'none'}; choose a "
                "network that crops them, or give --crop"
            )
        stacked = torch.cat(images)
        classes = torch.tensor(labels, dtype=torch.int64, device=stacked.device)
        return cls(stacked, classes, tuple(keys))

    def without(self, removed: Tensor, colour: Tensor) -> Pictures:
        """Return them with the marked pixels (N, 1, H, W) in one colour (1, C, 1, 1)."""
        return replace(self, images=remove(self.images, removed, colour))


def remove(images: Tensor, removed: Tensor, colour: Tensor) -> Tensor:
    """Replace the marked pixels, bool (N, 1, H, W), in all channels by a colour (1, C, 1, 1)."""
    return torch.where(removed, colour, images)


def train(
    fresh: Callable[[], Classifier], pictures: Pictures, recipe: Recipe, seed: int
) -> Classifier:
    """Return a network that was trained from new weights, in evaluation mode.

    Args:
        fresh: makes the network; its weights are drawn from PyTorch's global random state.
        pictures: to learn from.
        recipe: how.
        seed: of the weights, the order and the dropout. PyTorch's random state stays as it was.
    """
    device = pictures.images.device
    with keeping_random_state(device), torch.inference_mode(False), torch.enable_grad():
        torch.manual_seed(seed)
        model = fresh().to(device).train()
        optimizer = torch.optim.AdamW(model.parameters(), lr=recipe.rate)
        steps = recipe.epochs * math.ceil(len(pictures.labels) / recipe.batch)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, recipe.rate, max(steps, 2))
        for _ in range(recipe.epochs):
            order = torch.randperm(len(pictures.labels), device="cpu").to(device)
            for batch in order.split(recipe.batch):
                if len(batch) > 1:  # of one picture batch norm makes nothing
                    optimizer.zero_grad()
                    outputs = model(pictures.images[batch])
                    F.cross_entropy(outputs, pictures.labels[batch]).backward()
                    optimizer.step()
                schedule.step()
    return model.eval()


@torch.no_grad()
def accuracy(model: Classifier, pictures: Pictures) -> float:
    """Return the share of the pictures that the network gets right."""
    pairs = zip(pictures.images.split(256), pictures.labels.split(256), strict=True)
    right = sum(int((model(images).argmax(1) == labels).sum()) for images, labels in pairs)
    return right / len(pictures.labels)


def controls(model: Classifier) -> dict[str, Method]:
    """Return what methods are compared with: chance, edges, and the paper's winner."""
    squared = SmoothGrad(model, base=SquaredGradient(model), samples=15)
    return {"Random": Random(model), "Sobel": Sobel(model), "SmoothGrad squared": squared}


@dataclass(frozen=True)
class Roar:
    """Retrain networks on pictures without the pixels that a method ranks first.

    Every training and test picture loses the share t of its pixels with the highest values of its
    map: they get the mean colour of the training pictures. A network with new weights learns from
    what is left, and is tested on what is left. Its accuracy falls where the removed pixels held
    what it takes to tell the classes, and nothing else could tell them. All maps are of the class
    that the explained network predicts: a label would show in the shape of what is removed.

    Paper: Hooker et al., *A Benchmark for Interpretability Methods in Deep Neural Networks*,
    NeurIPS 2019, Section 3. Differs: small networks and few pictures, so that it takes minutes; 3
    runs instead of 5; signed maps are ranked by value, evidence against the class last.

    Attributes:
        explained: gives the maps.
        fresh: makes a network like it, untrained.
        training: pictures to learn from.
        test: pictures to test on.
        methods: by label, all of the network explained.
        recipe: of the trainings.
        folder: where maps and cells are kept as soon as they are done; the same call resumes.
        report: called with each line that the user is to see.
    """

    explained: Classifier
    fresh: Callable[[], Classifier]
    training: LabelledImages
    test: LabelledImages
    methods: Mapping[str, Method]
    recipe: Recipe
    folder: Path
    report: Callable[[str], object] = print

    def run(self) -> list[dict[str, Any]]:
        """Return a line for each method, with mean and standard deviation over the runs.

        Raises:
            UsageError: when the folder holds another run's results.
        """
        ResultsFolder.begin(
            self.folder,
            run=identity_of(self.explained, self.test, {}, _BATCH)
            | {"training": self.training.fingerprint, **asdict(self.recipe), "shares": SHARES},
            images=(self.test.keys, [int(label) for label in self.test.labels]),
            about={"metrics": {}},
        )
        training, test = Pictures.read(self.training), Pictures.read(self.test)
        colour = training.images.mean((0, 2, 3), keepdim=True)
        cells = _Cells(self)
        whole = cells.of("nothing removed", 0.0, lambda: (training, test))
        rows = []
        for label, method in self.methods.items():
            levels = [
                self._levels(label, method, part, pictures)
                for part, pictures in (("training", training), ("test", test))
            ]
            found = {0.0: whole}
            for place, share in enumerate(SHARES):

                def left(place: int = place, levels: list[Tensor] = levels) -> Any:
                    removed = [(level <= place).to(colour.device) for level in levels]
                    return training.without(removed[0], colour), test.without(removed[1], colour)

                found[share] = cells.of(label, share, left)
            rows.append(_row(label, self.recipe.runs, found))
        return rows

    def _levels(self, label: str, method: Method, part: str, pictures: Pictures) -> Tensor:
        """Return for each pixel at how many of the shares it stays, uint8 (N, 1, H, W).

        It is removed at the share of place j where that number is j or less.
        """
        folder = self.folder / "levels" / key_of(label) / part
        images, levels = pictures.images, []
        starts = range(0, len(images), _PART)
        for start in track(starts, f"{label}: maps of the {part} pictures"):
            path = folder / f"{start:08d}.npz"
            keys = np.array(pictures.keys[start : start + _PART])
            kept = _kept_levels(path, keys)
            if kept is None:
                kept = torch.cat([_stays(method, some) for some in _batches(images, start)])
                buffer = io.BytesIO()
                np.savez_compressed(buffer, levels=kept.numpy(), keys=keys)
                write_files({path: buffer.getvalue()})
            levels.append(kept)
        return torch.cat(levels)


def _kept_levels(path: Path, keys: np.ndarray) -> Tensor | None:
    """Return the levels in the file, None unless they are those of these pictures.

    A picture that could not be read the last time, or cannot now, moves all that follow it.
    """
    try:
        with path.open("rb") as stream, np.load(stream) as file:
            same = np.array_equal(file["keys"], keys)
            return torch.from_numpy(file["levels"]) if same else None
    except (OSError, ValueError, KeyError, zipfile.BadZipFile):  # there are none, or damaged
        return None


def _batches(images: Tensor, start: int) -> Iterator[Tensor]:
    part = images[start : start + _PART]
    for some in neighbours(part, _BATCH, lambda image: image.shape):
        yield torch.stack(some)


def _stays(method: Method, images: Tensor) -> Tensor:
    # Of the predicted class: the label must not show in what is removed.
    maps = method.attribute(images)
    stays = torch.stack([~top_mask(maps, share) for share in SHARES])
    return stays.sum(0).to("cpu", torch.uint8)


class _Cells:
    """The accuracies of each method and share, trained now unless they are kept already."""

    def __init__(self, roar: Roar) -> None:
        self.roar = roar
        cells = [("nothing removed", 0.0), *product(roar.methods, SHARES)]
        paths = [self._path(*cell, run) for cell in cells for run in range(roar.recipe.runs)]
        self.missing = sum(not path.exists() for path in paths)
        self.trained = 0
        self.seconds = 0.0

    def of(
        self, label: str, share: float, pictures: Callable[[], tuple[Pictures, Pictures]]
    ) -> list[float]:
        """Return the accuracy of each run, given what returns training and test pictures."""
        values: list[float] = []
        left: tuple[Pictures, Pictures] | None = None
        for run in range(self.roar.recipe.runs):
            path = self._path(label, share, run)
            if not path.exists():
                begun = time.perf_counter()
                left = left or pictures()
                model = train(self.roar.fresh, left[0], self.roar.recipe, run)
                cell = {"method": label, "share": share, "run": run}
                cell["accuracy"] = accuracy(model, left[1])
                write_files({path: as_json(cell).encode()})
                self.trained += 1
                self.missing -= 1
                self.seconds += time.perf_counter() - begun
            values.append(float(json.loads(path.read_text("utf-8"))["accuracy"]))
        text = f"{label}, {share:.0%} removed: {np.mean(values):.1%}"
        if self.trained and self.missing:
            seconds = self.seconds / self.trained * self.missing
            text += f"; about {duration(seconds)} of training left"
        self.roar.report(text)
        return values

    def _path(self, label: str, share: float, run: int) -> Path:
        return self.roar.folder / "cells" / key_of(label) / f"{100 * share:g}-{run}.json"


def _row(label: str, runs: int, found: Mapping[float, list[float]]) -> dict[str, Any]:
    row: dict[str, Any] = {"method": label, "runs": runs}
    for share, values in found.items():
        row[f"{share:.0%}"] = float(np.mean(values))
        row[f"{share:.0%} ±"] = float(np.std(values, ddof=1)) if runs > 1 else math.nan
    return row


def finished(experiment: Experiment, request: Request, roar: Roar) -> Result:
    """Measure, and write the table, the cells and the picture."""
    cells = counted((1 + len(roar.methods) * len(SHARES)) * roar.recipe.runs, "training")
    request.report(
        f"{cells} of {counted(roar.recipe.epochs, 'epoch')} through {len(roar.training)} pictures, "
        f"tested on {len(roar.test)}"
    )
    rows = roar.run()
    files = (
        write_csv(request.out / f"{experiment.name}.csv", rows),
        figures.save_png(_figure(rows, roar), request.out / f"{experiment.name}.png"),
    )
    return Result(files, tuple(rows))


def _figure(rows: list[dict[str, Any]], roar: Roar) -> Figure:
    figure = Figure(figsize=(6.4, 4.4), dpi=160, layout="constrained")
    axes = figure.subplots()
    shares = (0.0, *SHARES)
    for place, row in enumerate(rows):
        heights = [row[f"{share:.0%}"] for share in shares]
        spread = [row[f"{share:.0%} ±"] for share in shares]
        control = place < len(controls(roar.explained))
        axes.errorbar(
            [100 * share for share in shares],
            heights,
            yerr=None if math.isnan(spread[0]) else spread,
            label=row["method"],
            color=f"C{place % 10}",
            linestyle=":" if control else ("-", "--")[place // 10 % 2],
            linewidth=1.6,
            capsize=2,
        )
    axes.set_title(f"{roar.explained.name}, retrained", fontsize=11)
    axes.set_xlabel("share of the pixels removed (%), those ranked highest")
    axes.set_ylabel("accuracy of the retrained networks")
    axes.set_xlim(0, 100)
    axes.set_ylim(0, 1.02)
    axes.grid(color="0.92")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(fontsize=8, frameon=False)
    return figure
