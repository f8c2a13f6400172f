"""What all scenarios share: how to measure, what was chosen on the command line, the rows."""

from __future__ import annotations

import datetime
import platform
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib import metadata
from typing import Literal, TypeVar

import torch
from torch import Tensor

from afmi.evaluation.meter import processor
from afmi.pictures.maps import rank_correlation, upsample

from .harness import CLOCKS, Plan, Run, Timings, measure
from .record import Row
from .settings import Setting

__all__ = ["Agreement", "Bench", "Level", "Pair", "agreement", "versions"]

Level = Literal["quick", "standard", "full"]
T = TypeVar("T")

PACKAGES = ("afmi", "torch", "torchvision", "captum", "grad-cam", "torchcam", "saliency", "shap")


@dataclass(frozen=True)
class Pair:
    """A ratio to report: of ``above`` to ``below``, times ``scale``, with what goes into its row.

    Attributes:
        above: contender.
        below: contender.
        target: what it should not exceed.
        scale: 1, or what makes it a ratio of costs per unit.
        details: other fields of the row.
    """

    above: str
    below: str
    target: float | None = None
    scale: float = 1.0
    details: Mapping[str, object] = field(default_factory=dict)


@dataclass(frozen=True)
class Agreement:
    """Rank correlations of two batches of maps: their mean and their least."""

    mean: float
    least: float


def agreement(ours: Tensor, theirs: Tensor) -> Agreement:
    """Compare maps (N, 1, h, w) of any two sizes, enlarged to the larger one as ours are."""
    size = max(tuple(ours.shape[2:]), tuple(theirs.shape[2:]))
    one, other = (upsample(maps.detach().float(), size) for maps in (ours, theirs))
    correlation = rank_correlation(one, other)
    return Agreement(float(correlation.mean()), float(correlation.min()))


def versions() -> str:
    """Return the versions of what is measured, as far as it is installed."""
    versions = [f"python {platform.python_version()}"]
    for package in PACKAGES:
        try:
            versions.append(f"{package} {metadata.version(package)}")
        except metadata.PackageNotFoundError:
            continue
    return ", ".join(versions)


@dataclass
class Bench:
    """One run of the command.

    Attributes:
        plan: how often contenders run.
        clock: a key of `harness.CLOCKS`.
        level: how much is measured where the command line does not say.
        settings: the devices, layouts and precisions to measure under.
        networks: instead of a scenario's own, where given.
        batches: likewise.
        sizes: likewise.
        show: called with each row as soon as there is one.
        rows: all so far.
    """

    plan: Plan
    clock: str = "wall"
    level: Level = "standard"
    settings: Sequence[Setting] = (Setting(torch.device("cpu")),)
    networks: Sequence[str] | None = None
    batches: Sequence[int] | None = None
    sizes: Sequence[int] | None = None
    show: Callable[[Row], None] = lambda row: None
    rows: list[Row] = field(default_factory=list)

    def at(self, *, quick: T, standard: T, full: T) -> T:
        """Return what belongs to the level."""
        return {"quick": quick, "standard": standard, "full": full}[self.level]

    def measure(self, runs: Mapping[str, Run], setting: Setting) -> Timings:
        """Time contenders under a setting."""
        under = {name: setting.under(run) for name, run in runs.items()}
        watch = CLOCKS[self.clock](setting.device)
        return measure(under, self.plan, watch, setting.device)

    def compare(
        self,
        timings: Timings,
        pairs: Sequence[Pair],
        setting: Setting,
        *,
        scenario: str,
        network: str,
        batch: int,
        size: int,
    ) -> None:
        """Add a row for each pair; where a side failed, with its error."""
        for pair in pairs:
            ratio = timings.ratio(pair.above, pair.below, pair.scale)
            row = Row(scenario, network, pair.above, pair.below, batch=batch, size=size)
            if ratio is not None:
                row = replace(
                    row,
                    ratio=ratio.median,
                    low=ratio.low,
                    high=ratio.high,
                    rounds=len(timings.seconds[pair.above]),
                    seconds=timings.median(pair.above),
                    peak_mib=timings.peak[pair.above],
                )
            if pair.target is not None:
                row = replace(row, target=pair.target)
            row = replace(row, **pair.details)
            failed = [n for n in (pair.above, pair.below) if n in timings.failures]
            errors = [f"{name} fails: {timings.failures[name]}" for name in failed]
            notes = [row.note] * bool(row.note) + errors
            self.add(replace(row, note="; ".join(notes)), setting)

    def add(self, row: Row, setting: Setting) -> None:
        """Keep a row, with where and when it was measured, and show it."""
        device = setting.device
        cuda = device.type == "cuda"
        row = replace(
            row,
            device=device.type,
            setting=setting.name,
            level=self.level,
            date=datetime.date.today().isoformat(),
            machine=torch.cuda.get_device_name(device) if cuda else processor(),
            threads=torch.get_num_threads(),
            clock=self.clock,
            versions=versions(),
        )
        self.rows.append(row)
        self.show(row)
