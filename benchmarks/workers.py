"""How much faster an evaluation is with more workers, and whether memory grows with the pictures.

    python -m benchmarks.workers [--workers 2] [--pictures 3072] [--repeats 7] [--engine local]
    python -m benchmarks.workers --memory 1000 5000 20000

Give it a machine that does nothing else. Every process computes with one thread. The first form
evaluates A-FMI on the embedded network with one worker, which is a process of its own like the
others, and with several, in turn; printed are pictures a second, once all workers have started,
the ratio of each pair of neighbouring runs, their median, and their spread. The second form
evaluates tiny pictures on a tiny network with two workers, each number of pictures in a process of
its own, and prints the most memory that the driver and its workers held at any moment (Linux;
sampled).
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import afmi
from afmi import Classifier
from afmi.engines import Engine, Local, Ray
from afmi.engines.job import Job
from afmi.engines.local import _ProcessPool
from afmi.engines.workers import WorkerPool
from afmi.evaluation import Piece, evaluate

CLASSES = 4
SIDE = 32


class Pictures:
    """Random pictures with classes, made when asked for."""

    def __init__(self, count: int, side: int, classes: int) -> None:
        self.targets = [number % classes for number in range(count)]
        self.side = side

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, number: int) -> tuple[Tensor, int]:
        generator = torch.Generator().manual_seed(number)
        return torch.rand(3, self.side, self.side, generator=generator), self.targets[number]


@dataclass(frozen=True)
class Processes(Local):
    """Processes of this machine, also where there is one only: what several are compared with."""

    def pool(self, job: Job[Any, Any], device: str = "cpu") -> WorkerPool[Any, Any]:
        return _ProcessPool(job, self.workers, self.retries, device)


def engine_of(name: str, workers: int) -> Engine:
    """Return an engine whose workers are processes, one or several."""
    return Ray(workers=workers) if name == "ray" else Processes(workers=workers)


def rate(model: Classifier, pictures: int, engine: Engine) -> float:
    """Return the pictures a second of an evaluation, its beginning apart.

    The clock starts when the piece after the first two of each worker is given out: by then all
    have started and warmed up.
    """
    size = model.crop if isinstance(model.crop, int) else 224
    data = Pictures(pictures, size, len(model.labels))
    begun: list[float] = []
    pieces: list[Piece] = []

    def note(piece: Piece, done: float, total: float) -> None:
        begun.append(time.perf_counter())
        pieces.append(piece)

    with tempfile.TemporaryDirectory() as folder:
        options: dict[str, Any] = {"methods": "a-fmi", "metrics": "completeness", "examples": 0}
        evaluate(model, data, Path(folder) / "out", engine=engine, on_begin=note, **options)
        ended = time.perf_counter()
    first = 2 * engine.workers
    counted = sum(piece.stop - piece.start for piece in pieces[first:])
    # What is left of the pieces that are being done when the clock starts does not count, which
    # favours a single worker.
    return counted / (ended - begun[first])


def compare(options: argparse.Namespace) -> None:
    """Print the rates of one and of several workers, in turn, and their ratio."""
    torch.set_num_threads(1)
    model = afmi.load_model(options.model)
    one, several = (engine_of(options.engine, workers) for workers in (1, options.workers))
    print(f"| run | 1 worker, pictures/s | {options.workers} workers, pictures/s | ratio |")
    print("|---|---|---|---|")
    ratios = []
    for run in range(options.repeats):
        # Which comes first alternates, so that a machine that slows down favours neither.
        order = [one, several] if run % 2 == 0 else [several, one]
        rates = {engine.workers: rate(model, options.pictures, engine) for engine in order}
        ratios.append(rates[options.workers] / rates[1])
        row = (run + 1, rates[1], rates[options.workers], ratios[-1])
        print("| {} | {:.2f} | {:.2f} | {:.3f} |".format(*row), flush=True)
    low, high = min(ratios), max(ratios)
    print(f"\nratio: median {statistics.median(ratios):.3f}, {low:.3f} to {high:.3f}")


def resident(pid: str) -> float:
    """Return a process's resident memory in MiB; 0 where it is gone."""
    try:
        pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    except (OSError, IndexError):
        return 0.0
    return pages * 4096 / 2**20


def children() -> list[str]:
    """Return the processes that this one started, in any of its threads."""
    found: list[str] = []
    for path in Path("/proc/self/task").glob("*/children"):
        try:
            found += path.read_text().split()
        except OSError:  # the thread has ended
            continue
    return found


def one_memory(count: int, workers: int) -> None:
    """Evaluate, and print the most memory of the driver and of a worker, and seconds."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    body = [nn.Conv2d(3, 8, 3, 2), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    labels = [f"class {number}" for number in range(CLASSES)]
    network = nn.Sequential(*body, nn.Linear(8, CLASSES))
    model = Classifier(network, labels=labels, resize=SIDE, crop=SIDE).eval()
    most = {"driver": 0.0, "worker": 0.0}
    ended = threading.Event()

    def watch() -> None:
        while not ended.wait(0.05):
            most["driver"] = max(most["driver"], resident("self"))
            most["worker"] = max(most["worker"], *map(resident, children()), 0.0)

    watcher = threading.Thread(target=watch)
    watcher.start()
    begun = time.perf_counter()
    try:
        with tempfile.TemporaryDirectory() as folder:
            evaluate(
                *(model, Pictures(count, SIDE, CLASSES), Path(folder) / "out"),
                methods="gradient,a-fmi",
                metrics="completeness",
                examples=0,
                engine=Local(workers=workers),
            )
    finally:
        ended.set()
        watcher.join()
    print(most["driver"], most["worker"], time.perf_counter() - begun)


def memory(counts: list[int], workers: int) -> None:
    """Print the memory for each number of pictures, and its growth."""
    print("| pictures | driver, MiB | largest worker, MiB | seconds |")
    print("|---|---|---|---|")
    rows = []
    for count in counts:
        command = [sys.executable, "-m", "benchmarks.workers", "--one", str(count)]
        command += ["--workers", str(workers)]
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
        rows.append([float(word) for word in done.stdout.split()[-3:]])
        driver, worker, seconds = rows[-1]
        print(f"| {count} | {driver:.1f} | {worker:.1f} | {seconds:.0f} |", flush=True)
    driver, worker = (rows[-1][n] - rows[0][n] for n in (0, 1))
    more = counts[-1] - counts[0]
    print(f"\n{more} pictures more: driver {driver:+.1f} MiB, worker {worker:+.1f} MiB")


def main() -> None:
    """Compare the rates, or the memory."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--pictures", type=int, default=3072)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--model", default="photos")
    parser.add_argument("--engine", choices=["local", "ray"], default="local")
    parser.add_argument("--memory", nargs="+", type=int, metavar="PICTURES")
    parser.add_argument("--one", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one is not None:
        one_memory(options.one, options.workers)
    elif options.memory:
        memory(options.memory, options.workers)
    else:
        compare(options)


if __name__ == "__main__":
    main()
