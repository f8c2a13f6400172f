"""What commanding workers costs the driver: where a run of a million pieces saturates it.

    python -m benchmarks.cluster_simulation [--pieces 1000000] [--workers 100 1000 10000]

Pieces go through the real `WorkerPool`; its workers are simulated in this process and answer after
a simulated time. The driver's own time is real, and a simulated clock adds to it the time that it
waits. A sample of the pieces is committed for real: a result of 64 pictures, as an evaluation by
one method has it, is unpickled and written as a Parquet piece into a temporary folder; the clock
is charged their mean for all others. The driver's time for a task's way to a real worker and back
is measured with tasks that do nothing.

Printed are the seconds of the driver for a piece and its memory, and for each number of workers how
long a piece must take for the driver to keep up with them: workers × seconds of the driver.
"""

from __future__ import annotations

import argparse
import heapq
import pickle
import random
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from afmi.engines import Engine, Local, Ray
from afmi.engines.job import Job
from afmi.engines.workers import Shared, Worker, WorkerPool
from afmi.evaluation import ShardResult
from afmi.evaluation.folder import ResultsFolder
from benchmarks.evaluation_memory import status

PIECE = 64
"""Pictures of a piece."""
METRICS = ("blank", "insertion/accuracy_auc", "insertion/probability_auc", "completeness/residual")
CURVES = tuple(f"insertion/correct@{percent}%" for percent in range(5, 101, 5))
SAMPLE = 500
"""Pieces that are committed for real."""


class Nothing(Job[Any, Any]):
    """Returns a task at once."""

    def run(self, task: Any) -> Any:
        return task

    def parts(self, task: Any) -> Sequence[Any]:
        return ()

    def joined(self, task: Any, results: Sequence[Any]) -> Any:
        return results[0]

    def lost(self, task: Any, reason: str) -> Any:
        raise SystemExit(f"a worker died: {reason}")


@dataclass
class Clock:
    """The driver's time: what passes on this machine, and what is added to it."""

    added: float = 0.0
    waited: float = 0.0
    begun: float = field(default_factory=time.perf_counter)

    def now(self) -> float:
        return time.perf_counter() - self.begun + self.added

    def wait_until(self, moment: float) -> None:
        idle = max(moment - self.now(), 0.0)
        self.waited += idle
        self.added += idle


class _Simulated(Worker):
    """Answers a task so many seconds after it was given."""

    def __init__(self, pool: SimulatedPool) -> None:
        self._pool = pool
        self.answer: Any = None

    def start(self) -> None:
        self._answer_at(self._pool.clock.now(), None)

    def send(self, task: object) -> None:
        # Spread, or all workers would answer at once, which costs the driver less.
        spread = self._pool.drawn.uniform(0.5, 1.5)
        self._answer_at(self._pool.clock.now() + self._pool.seconds * spread, task)

    def stop(self) -> None:
        pass

    def _answer_at(self, moment: float, answer: Any) -> None:
        self.answer = answer
        heapq.heappush(self._pool.answers, (moment, id(self), self))


class SimulatedPool(WorkerPool[Any, Any]):
    """Workers that need no processor.

    Args:
        workers: how many.
        seconds: that a task takes, on average.
    """

    def __init__(self, workers: int, seconds: float) -> None:
        self.clock = Clock()
        self.seconds = seconds
        self.drawn = random.Random(0)
        self.answers: list[tuple[float, int, _Simulated]] = []
        super().__init__(Nothing(), [_Simulated(self) for _ in range(workers)], retries=0)

    def wait(self, busy: list[Worker], seconds: float | None) -> list[tuple[Worker, Any]]:
        if seconds is None:
            self.clock.wait_until(self.answers[0][0])
        now = self.clock.now()
        answered: list[tuple[Worker, Any]] = []
        while self.answers and self.answers[0][0] <= now:
            worker = heapq.heappop(self.answers)[2]
            answered.append((worker, worker.answer))
        return answered

    def share(self, value: object) -> Shared:
        raise NotImplementedError


@dataclass
class Commits:
    """Writes real pieces of an evaluation, each of the same size."""

    path: Path
    pieces: int
    entry: dict[str, Any] = field(default_factory=dict)
    result: bytes = b""
    bytes_per_piece: float = 0.0

    def __post_init__(self) -> None:
        names = METRICS + CURVES
        rows = [
            (image, name, (image * 31 + place) % 97 / 97, None)
            for image in range(PIECE)
            for place, name in enumerate(names)
        ]
        self.result = pickle.dumps(ShardResult(rows=rows, explained=PIECE))
        self.entry = {"key": "a-fmi", "class": "AFMI", "parameters": {}, "images_per_piece": PIECE}
        count = self.pieces * PIECE
        keys = [f"n01440764/n01440764_{number:08d}.JPEG" for number in range(count)]
        self.folder = ResultsFolder.begin(
            self.path, run={}, images=(keys, [0] * count), about={"metrics": {}}
        )
        self.folder.add_method("A-FMI", self.entry)

    def commit(self, piece: int) -> None:
        result = pickle.loads(self.result).shifted(piece * PIECE)
        self.folder.write_piece("A-FMI", self.entry, piece * PIECE, result.rows, {})

    def seconds(self) -> float:
        """Commit all, and return the mean seconds; the first, which reads tables, apart."""
        self.commit(0)
        begun = time.perf_counter()
        for piece in range(1, self.pieces):
            self.commit(piece)
        mean = (time.perf_counter() - begun) / (self.pieces - 1)
        sizes = [path.stat().st_size for path in self.folder.piece_paths()]
        self.bytes_per_piece = sum(sizes) / len(sizes)
        return mean

    def resume_seconds(self) -> float:
        """Return the mean seconds in which a finished piece is found again."""
        begun = time.perf_counter()
        for piece in range(self.pieces):
            assert self.folder.has_piece("A-FMI", self.entry, piece * PIECE)
        return (time.perf_counter() - begun) / self.pieces


def committed() -> tuple[float, float, float]:
    """Return seconds to commit a piece, its bytes, and seconds to find it again."""
    with tempfile.TemporaryDirectory() as folder:
        commits = Commits(Path(folder) / "results", SAMPLE)
        return commits.seconds(), commits.bytes_per_piece, commits.resume_seconds()


@dataclass(frozen=True)
class Simulation:
    """What a simulated run came to.

    Attributes:
        driver: real seconds of the pool for a piece, commits apart.
        clock: simulated seconds of the whole run.
        used: share of the workers' time that was spent on pieces.
        memory: MiB that the pieces take that wait.
    """

    driver: float
    clock: float
    used: float
    memory: float


def simulated(pieces: int, workers: int, seconds: float, commit_seconds: float) -> Simulation:
    """Run so many pieces of so many seconds on simulated workers."""
    pool = SimulatedPool(workers, seconds)
    done = 0

    def commit(task: Any, result: Any) -> None:
        nonlocal done
        done += 1
        pool.clock.added += commit_seconds

    before, begun = status("VmRSS"), time.perf_counter()
    for piece in range(pieces):
        pool.submit((piece * PIECE, piece * PIECE + PIECE))
    memory = status("VmRSS") - before
    pool.work(commit)
    real = time.perf_counter() - begun
    assert done == pieces
    clock = pool.clock.now()
    return Simulation(real / pieces, clock, pieces * seconds / (workers * clock), memory)


def on_engine(engine: Engine, tasks: int) -> float:
    """Return the processor seconds of this process for a task's way to a worker and back."""
    result = pickle.loads(pickle.dumps((0, PIECE)))
    with engine.pool(Nothing()) as pool:
        for _ in range(2 * engine.workers):  # until all have started
            pool.submit(result)
        pool.work(lambda task, answer: None)
        begun = time.process_time()  # others may be on the way meanwhile
        for piece in range(tasks):
            pool.submit((piece, piece + 1))
        pool.work(lambda task, answer: None)
        return (time.process_time() - begun) / tasks


def main() -> None:
    """Print the driver's costs, and where it saturates."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pieces", type=int, default=1_000_000)
    parser.add_argument("--workers", nargs="+", type=int, default=[100, 1000, 10_000])
    parser.add_argument("--seconds", nargs="+", type=float, default=[1.0, 10.0, 60.0])
    parser.add_argument("--tasks", type=int, default=2000, help="of the real engines")
    parser.add_argument("--engines", nargs="*", default=["local", "ray"])
    options = parser.parse_args()
    write, size, found = committed()
    print(f"a piece of {PIECE} pictures committed: {1e3 * write:.2f} ms, {size:.0f} bytes")
    print(f"found again when the run resumes: {1e3 * found:.2f} ms")
    travel = 0.0
    for name in options.engines:
        engine: Engine = Ray(workers=2) if name == "ray" else Local(workers=2)
        travel = on_engine(engine, options.tasks)
        print(f"to a worker of {name} and back: {1e3 * travel:.2f} ms a task")
    print("\n| workers | piece, s | pool, µs a piece | run, h | workers busy | memory, MiB |")
    print("|---|---|---|---|---|---|")
    for workers in options.workers:
        for seconds in options.seconds:
            run = simulated(options.pieces, workers, seconds, write + travel)
            print(
                f"| {workers} | {seconds:g} | {1e6 * run.driver:.1f} | {run.clock / 3600:.2f} | "
                f"{run.used:.0%} | {run.memory:.0f} |",
                flush=True,
            )
    total = write + travel + run.driver
    print(f"\nthe driver: {1e3 * total:.2f} ms a piece, {1 / total:.0f} pieces a second")


if __name__ == "__main__":
    main()
