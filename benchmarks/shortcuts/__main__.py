"""Train networks on photographs with planted shortcuts, and see which descriptions find them.

    python -m benchmarks.shortcuts --data photos11/train --networks DIR [--seeds 5] [--shares …]

Five classes of each network have a plant in a share of their images, in training and in the audit;
in the others 8 % of the labels are wrong. Networks, and what is measured of them, are kept in DIR,
so that a run that was stopped resumes; one takes about three minutes on one core. Every
description is grouped as `afmi.audit` does (`afmi.auditing.grouping`), but for SpRAy's own spectral
clustering. Printed are, with 95 % intervals over the networks (percentile bootstrap):

- what the network learned: how many more images of other classes become the plant's class when it
  is put into them;
- how well the group that is furthest apart is the images with the plant (adjusted Rand index; of
  SpRAy the best of its groups, which nobody would know), and the area under the ROC curve when
  images are ranked by how far out they are;
- what `afmi.audit` says of the classes with a plant, and of those without.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.metrics import adjusted_rand_score, roc_auc_score
from torch import Tensor, nn

import afmi
from afmi import Classifier
from afmi.auditing.grouping import ISOLATED, grouping_of
from afmi.report.statistics import means
from benchmarks.shortcuts.plants import PLANTS
from benchmarks.shortcuts.rivals import DESCRIPTIONS, spectral_groups
from benchmarks.shortcuts.training import HEADS, Case, Photographs, Planted, network_of

_FOUND = 0.5
"""Adjusted Rand index from which a plant counts as found."""
_LEARNED = 0.5
"""Share of other images that a plant takes over from which it counts as learned."""
_EVERY = 4
"""One in so many images of other classes is planted to see what was learned."""
_SPRAY = ("Grad-CAM maps", "LRP maps")
_OURS = ("contributions", "exact maps")
"""What `afmi.audit` describes images by."""
_TOLD = ("learned", "outliers")


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="one folder a class")
    parser.add_argument("--networks", type=Path, required=True, help="where networks are kept")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--shares", type=float, nargs="+", default=[0.4, 0.1, 0.05])
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    photographs = Photographs.load(arguments.data)
    tables = _Tables()
    for seed in arguments.seeds:
        for share in arguments.shares:
            for head in HEADS:
                case = Case(head, share, seed)
                kept = arguments.networks / f"{case.stem}.json"
                if not kept.exists():
                    planted = Planted(photographs, case)
                    network = network_of(case, planted, arguments.networks)
                    kept.write_text(json.dumps(measured(case, planted, network)))
                tables.add(case, json.loads(kept.read_text()))
    print(tables)


def measured(case: Case, planted: Planted, network: nn.Module) -> dict[str, Any]:
    """Return what is measured of a network, as JSON holds it."""
    names = planted.photographs.names
    model = Classifier(network, labels=list(names), mean=[0.5] * 3, std=[1.0] * 3)
    numbers = planted.audited
    generator = torch.Generator().manual_seed(case.seed)
    images = planted.images(numbers, generator, augmented=False)
    labels = planted.labels[numbers]
    carries = planted.carries[numbers] & (labels == planted.photographs.labels[numbers])
    found: dict[str, Any] = {
        "accuracy": float((_predicted(model, images) == labels).float().mean()),
        "plants": {
            plant: {
                "learned": _taken_over(model, images, labels, carries, label, plant),
                "index": {},
            }
            for label, plant in planted.plants.items()
        },
        "isolation": {name: [] for name in _OURS},
    }
    members = {label: labels == label for label in range(len(names))}
    for name, describe in DESCRIPTIONS.items():
        for label, of_class in members.items():
            plant = planted.plants.get(label)
            if plant is None and name not in _OURS:
                continue
            described = describe(model, images[of_class], labels[of_class])
            # The furthest group of the class, apart or not.
            grouping = grouping_of(described, isolated=-1, resamples=0)
            if plant is None:
                found["isolation"][name].append(grouping.nearest)
                continue
            carried = carries[of_class].numpy()
            one = found["plants"][plant]
            one["index"][name] = float(adjusted_rand_score(carried, grouping.groups == 1))
            if name == "contributions":
                one["outliers"] = float(roc_auc_score(carried, grouping.distances))
            if name in _SPRAY:
                groups = spectral_groups(described, case.seed)
                each = [adjusted_rand_score(carried, groups == group) for group in set(groups)]
                one["index"][f"SpRAy on {name}"] = float(max(each))
    _audit(found, case, planted, model, images, labels, carries)
    return found


def _audit(
    found: dict[str, Any],
    case: Case,
    planted: Planted,
    model: Classifier,
    images: Tensor,
    labels: Tensor,
    carries: Tensor,
) -> None:
    """Add what `afmi.audit` says of the network."""
    data = list(zip(images, labels.tolist(), strict=True))
    with tempfile.TemporaryDirectory() as folder:
        record = afmi.audit(model, data, folder, batch_size=32, seed=case.seed)
    found["clean"] = []
    for one in record.classes:
        groups = [group for group in one.groups if group.suspicious]
        row: dict[str, Any] = {"suspicious": one.suspicious, "confirmed": one.confirmed}
        row["effects"] = [group.effect for group in one.groups]
        plant = planted.plants.get(one.index)
        if plant is None:
            found["clean"].append(row)
            continue
        if groups:
            inside = [int(key.rpartition("/")[2]) for key in groups[0].images]
            row["pure"] = float(carries[inside].float().mean())
            done = groups[0].intervention
            if done is not None and done.pasted is not None:
                row["marked"], row["control"] = done.pasted.marked.value, done.pasted.control.value
        found["plants"][plant]["audit"] = row


class _Tables:
    """Collects what was measured of each network."""

    def __init__(self) -> None:
        self.plants: dict[tuple[str, float, str], list[dict[str, Any]]] = defaultdict(list)
        self.isolation: dict[str, list[float]] = defaultdict(list)
        self.clean: list[dict[str, Any]] = []
        self.accuracy: list[float] = []

    def add(self, case: Case, found: dict[str, Any]) -> None:
        """Add a network."""
        for plant, one in found["plants"].items():
            self.plants[case.head, case.share, plant].append(one)
        for name, values in found["isolation"].items():
            self.isolation[name] += values
        self.clean += found["clean"]
        self.accuracy.append(found["accuracy"])

    def __str__(self) -> str:
        parts = [
            f"Networks: {len(self.accuracy)}, accuracy {min(self.accuracy):.0%} to "
            f"{max(self.accuracy):.0%}.",
            self._learned_table() if self.plants else "",
            self._found_table() if self.plants else "",
            self._audit_table() if self.plants else "",
            self._clean_words(),
        ]
        return "\n\n".join(part for part in parts if part)

    @property
    def _keys(self) -> list[tuple[str, float, str]]:
        return sorted(self.plants, key=_order)

    def _learned_table(self) -> str:
        rows = [
            [
                *_named(key),
                *(_interval([one[name] for one in self.plants[key]]) for name in _TOLD),
            ]
            for key in self._keys
        ]
        return _table(["head", "share", "plant", "takes over", "outliers, AUROC"], rows)

    def _found_table(self) -> str:
        names = [*next(iter(self.plants.values()))[0]["index"]]
        rows = []
        for key in self._keys:
            values = [[one["index"][name] for one in self.plants[key]] for name in names]
            best = max(np.mean(each) for each in values)
            rows.append(
                [
                    *_named(key),
                    *(_mean(each, strong=np.mean(each) >= best - 0.005) for each in values),
                ]
            )
        every = [one for key in self._keys for one in self.plants[key]]
        learned = [one for one in every if one["learned"] >= _LEARNED]
        hits = [sum(one["index"][name] >= _FOUND for one in learned) for name in names]
        cells = [f"{count} of {len(learned)}" for count in hits]
        rows.append(["all that are learned", "", f"index ≥ {_FOUND}", *cells])
        return _table(["head", "share", "plant", *names], rows)

    def _audit_table(self) -> str:
        headings = ["head", "share", "plant", "learned", "suspicious", "confirmed"]
        headings += ["plants in the group", "pasted, marked", "pasted, control"]
        rows = []
        for key in self._keys:
            audits = [one["audit"] for one in self.plants[key]]
            learned = sum(one["learned"] >= _LEARNED for one in self.plants[key])
            counts = [sum(one[name] for one in audits) for name in ("suspicious", "confirmed")]
            shares = (
                [one.get(name, np.nan) for one in audits] for name in ("pure", "marked", "control")
            )
            rows.append(
                [
                    *_named(key),
                    *(f"{count} of {len(audits)}" for count in (learned, *counts)),
                    *(_mean(each) for each in shares),
                ]
            )
        return _table(headings, rows)

    def _clean_words(self) -> str:
        said = []
        for name, values in self.isolation.items():
            ordered = np.sort(values)[::-1]
            above = int((ordered >= ISOLATED).sum())
            said.append(
                f"isolation by {name} {np.median(ordered):.2f} in the median, "
                f"{np.quantile(ordered, 0.95):.2f} at 95 %, {ordered[0]:.2f} at most, "
                f"{above} at {ISOLATED} or higher"
            )
        suspicious, confirmed = (
            sum(one[name] for one in self.clean) for name in ("suspicious", "confirmed")
        )
        return (
            f"Classes without a plant: {len(self.clean)}; {'; '.join(said)}; suspicious "
            f"{suspicious}, confirmed {confirmed}."
        )


def _predicted(model: nn.Module, images: Tensor) -> Tensor:
    with torch.no_grad():
        return torch.cat([model(some) for some in images.split(256)]).argmax(1)


def _taken_over(
    model: nn.Module, images: Tensor, labels: Tensor, carries: Tensor, label: int, plant: str
) -> float:
    """Return how many more images of other classes are predicted as a class with its plant."""
    others = images[(labels != label) & ~carries][::_EVERY]
    generator = torch.Generator().manual_seed(label)
    before = _predicted(model, others) == label
    after = _predicted(model, PLANTS[plant](others, generator)) == label
    return float(after.float().mean() - before.float().mean())


def _order(key: tuple[str, float, str]) -> tuple[int, float, int]:
    head, share, plant = key
    return HEADS.index(head), -share, [*PLANTS].index(plant)


def _named(key: tuple[str, float, str]) -> list[str]:
    head, share, plant = key
    return [head, f"{share:.0%}", plant]


def _interval(values: Sequence[float], strong: bool = False) -> str:
    estimate = means(np.array(values, dtype=float)[:, None])[0]
    if not estimate.known:
        return "–"
    mark = "**" if strong else ""
    text = f"{mark}{estimate.value:.2f}{mark}"
    if np.isfinite(estimate.low):
        text += f" ({estimate.low:.2f} to {estimate.high:.2f})"
    return text.replace("-", "−")


def _mean(values: Sequence[float], strong: bool = False) -> str:
    return _interval(values, strong).partition(" (")[0]


def _table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [headings, ["---"] * len(headings), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


if __name__ == "__main__":
    main()
