"""Jobs whose tasks are ranges of numbers, and some of which do their workers harm."""

from __future__ import annotations

import os
import signal
import time
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from afmi.engines.job import Job
from afmi.errors import DeviceError

Task = tuple[int, int]


@dataclass
class Doubling(Job[Task, "list[object]"]):
    """Doubles numbers."""

    weights: Tensor
    deadly: frozenset[int] = frozenset()
    deadly_once: frozenset[int] = frozenset()
    broken_once: frozenset[int] = frozenset()
    too_large: int = 10**9
    wrong: frozenset[int] = frozenset()
    marks: Path | None = None
    _broken: bool = False

    def run(self, task: Task) -> list[object]:
        numbers = range(*task)
        if self.deadly & {*numbers} or self._first_time(self.deadly_once & {*numbers}):
            os.kill(os.getpid(), signal.SIGKILL)
        if broken := self._broken or self._first_time(self.broken_once & {*numbers}):
            self._broken = broken  # as a device is for good, as far as a process knows
            raise DeviceError(f"cuda:0 works no longer since {task[0] + 1}")
        if len(numbers) > self.too_large:
            raise torch.OutOfMemoryError("out of memory")
        if self.wrong & {*numbers}:
            raise ValueError(f"wrong numbers in {task}")
        if 7 in numbers:
            warnings.warn("seven is odd", UserWarning, stacklevel=1)
        return [number * float(self.weights[1]) for number in numbers]

    def _first_time(self, numbers: frozenset[int]) -> bool:
        new = [n for n in numbers if self.marks and not (self.marks / str(n)).exists()]
        for number in new:
            (self.marks / str(number)).touch()  # type: ignore[operator]
        return bool(new)

    def parts(self, task: Task) -> Sequence[Task]:
        start, stop = task
        middle = (start + stop) // 2
        return () if stop - start == 1 else ((start, middle), (middle, stop))

    def joined(self, task: Task, results: Sequence[list[object]]) -> list[object]:
        return [number for result in results for number in result]

    def lost(self, task: Task, reason: str) -> list[object]:
        return [reason]


def doubling(**options: object) -> Doubling:
    return replace(Doubling(torch.arange(3.0) * 2), **options)  # type: ignore[arg-type]


class Where(Job[int, str]):
    """Says where it runs, after half a second."""

    def run(self, task: int) -> str:
        import ray

        time.sleep(0.5)
        return ray.util.get_node_ip_address()

    def parts(self, task: int) -> Sequence[int]:
        return ()

    def joined(self, task: int, results: Sequence[str]) -> str:
        return results[0]

    def lost(self, task: int, reason: str) -> str:
        return reason
