"""Time contenders beside each other: in turn, in one process, each ratio taken within a round.

So a busy machine slows both sides of a ratio alike. One run of each warms up, another one measures
its memory (the same, where runs are long), and then the rounds come, each of which begins with
another contender.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch

from afmi.evaluation.meter import measured

__all__ = ["CLOCKS", "Plan", "Ratio", "Run", "Stopwatch", "Timings", "error_line", "measure"]

Run = Callable[[], object]
Stopwatch = Callable[[Run], float]
"""Runs something once and returns the seconds that it took."""

MIB = 2.0**20
LONG = 2.0
"""Seconds from which on a run is warm-up and measurement of the memory in one."""


def _wall(device: torch.device) -> Stopwatch:
    """By the clock on the wall, until the device has finished."""

    def watch(run: Run) -> float:
        _finish(device)
        start = time.perf_counter()
        run()
        _finish(device)
        return time.perf_counter() - start

    return watch


def _cpu(device: torch.device) -> Stopwatch:
    """By the processor's seconds of this process, all threads together."""

    def watch(run: Run) -> float:
        _finish(device)
        start = time.process_time()
        run()
        _finish(device)
        return time.process_time() - start

    return watch


def _events(device: torch.device) -> Stopwatch:
    """By a CUDA device's own clock, from the first kernel to the last."""
    if device.type != "cuda":
        raise SystemExit(f"expected a CUDA device for --clock events, got {device}")

    def watch(run: Run) -> float:
        start = torch.cuda.Event(enable_timing=True)
        stop = torch.cuda.Event(enable_timing=True)
        start.record()
        run()
        stop.record()
        _finish(device)
        return start.elapsed_time(stop) / 1000

    return watch


CLOCKS: dict[str, Callable[[torch.device], Stopwatch]] = {
    "wall": _wall,
    "cpu": _cpu,
    "events": _events,
}


def _finish(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


@dataclass(frozen=True)
class Plan:
    """How often contenders run.

    Attributes:
        seconds: what all rounds may take together; ``least`` rounds are run in any case.
        least: rounds, at least 1.
        most: rounds.
    """

    seconds: float = 30.0
    least: int = 3
    most: int = 25

    def goes_on(self, rounds: int, spent: float) -> bool:
        """Tell whether another round follows ``rounds`` that took ``spent`` seconds."""
        if rounds < self.least:
            return True
        return rounds < self.most and spent * (rounds + 1) / rounds <= self.seconds


@dataclass(frozen=True)
class Ratio:
    """The median of the rounds' ratios and their middle half."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: list[float]) -> Ratio:
        """Return the statistics of at least one value."""
        if len(values) == 1:
            return cls(values[0], values[0], values[0])
        low, median, high = statistics.quantiles(values, n=4, method="inclusive")
        return cls(median, low, high)


@dataclass
class Timings:
    """What the contenders took.

    Attributes:
        seconds: of each contender in each round.
        peak: MiB that one run had in use at most beside what was in use before.
        failures: one line for each contender that raised; it takes no further part.
    """

    seconds: dict[str, list[float]] = field(default_factory=dict)
    peak: dict[str, float] = field(default_factory=dict)
    failures: dict[str, str] = field(default_factory=dict)

    def median(self, name: str) -> float:
        """Return a contender's median seconds."""
        return statistics.median(self.seconds[name])

    def fastest(self, names: list[str]) -> str | None:
        """Return which of these has the least median, or None where none of them ran."""
        return min((name for name in names if name in self.seconds), key=self.median, default=None)

    def ratio(self, above: str, below: str, scale: float = 1.0) -> Ratio | None:
        """Return ``scale`` · above / below, or None where one of them failed."""
        if above not in self.seconds or below not in self.seconds:
            return None
        pairs = zip(self.seconds[above], self.seconds[below], strict=True)
        return Ratio.of([scale * a / b for a, b in pairs])


def measure(runs: Mapping[str, Run], plan: Plan, watch: Stopwatch, device: torch.device) -> Timings:
    """Run contenders in turn until the plan is fulfilled.

    A contender that raises is recorded as failed, and the others go on without it.
    """
    timings = Timings()
    for name, run in runs.items():
        try:
            with measured(device) as took:
                run()
            if took.seconds < LONG:
                # What the first run makes once and keeps is not what later ones need.
                with measured(device) as took:
                    run()
        except Exception as error:
            timings.failures[name] = error_line(error)
        else:
            timings.seconds[name] = []
            timings.peak[name] = took.peak_bytes / MIB
    rounds, start = 0, time.monotonic()
    while timings.seconds and plan.goes_on(rounds, time.monotonic() - start):
        names = list(timings.seconds)
        first = rounds % len(names)
        for name in names[first:] + names[:first]:
            try:
                seconds = watch(runs[name])
            except Exception as error:
                timings.failures[name] = error_line(error)
                del timings.seconds[name], timings.peak[name]
            else:
                timings.seconds[name].append(seconds)
        rounds += 1
    return timings


def error_line(error: Exception) -> str:
    """Return an exception's kind and the first line of what it says."""
    lines = str(error).strip().splitlines()
    details = f": {lines[0].strip()}" if lines else ""
    return f"{type(error).__name__}{details}"[:160]
