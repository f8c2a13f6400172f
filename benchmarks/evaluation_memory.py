"""Whether the memory of an evaluation grows with the number of pictures.

    python benchmarks/evaluation_memory.py [--pictures 500 5000]

Each number of pictures is evaluated (gradient and A-FMI, insertion) in a process of its own, on a
tiny network, with pictures that are made when asked for. Printed is the most resident memory that
each process had. An evaluation itself resets the kernel's mark of that, for it measures what
explanations need; so the mark is read whenever a picture is asked for, which is before each reset.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from torch import Tensor, nn

from afmi import Classifier
from afmi.evaluation import evaluate

SIDE = 32
CLASSES = 4


def status(key: str) -> float:
    """Return a size from Linux's /proc/self/status, in MiB."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{key}:"):
            return float(line.split()[1]) / 1024
    raise SystemExit("this system does not tell a process's memory in /proc/self/status")


class Pictures:
    """Random pictures with classes, made when asked for."""

    def __init__(self, count: int) -> None:
        self.targets = [i % CLASSES for i in range(count)]
        self.peak = 0.0

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        self.note()
        generator = torch.Generator().manual_seed(index)
        return torch.rand(3, SIDE, SIDE, generator=generator), self.targets[index]

    def note(self) -> None:
        """Keep the highest mark of all."""
        self.peak = max(self.peak, status("VmHWM"))


def one(count: int) -> None:
    """Evaluate, and print the highest mark, the memory held before and at the end, seconds."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(3, 8, 3, 2),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(8, CLASSES),
    )
    labels = [f"class {i}" for i in range(CLASSES)]
    model = Classifier(network, labels=labels, resize=SIDE, crop=SIDE).eval()
    pictures = Pictures(count)
    before, start = status("VmRSS"), time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        evaluate(
            model,
            pictures,
            Path(folder) / "out",
            methods="gradient,a-fmi",
            metrics="insertion",
        )
    pictures.note()
    print(pictures.peak, before, status("VmRSS"), time.perf_counter() - start)


def main() -> None:
    """Print a row for each number of pictures, and how much more the last needs than the first."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pictures", nargs="+", type=int, default=[500, 5000])
    parser.add_argument("--one", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one is not None:
        one(options.one)
        return
    print("| pictures | highest, MiB | before, MiB | at the end, MiB | seconds |")
    print("|---|---|---|---|---|")
    peaks = []
    for count in options.pictures:
        command = [sys.executable, __file__, "--one", str(count)]
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
        peak, before, after, seconds = (float(word) for word in done.stdout.split()[-4:])
        peaks.append(peak)
        print(f"| {count} | {peak:.1f} | {before:.1f} | {after:.1f} | {seconds:.0f} |", flush=True)
    growth = peaks[-1] - peaks[0]
    print(f"\n{options.pictures[-1] - options.pictures[0]} pictures more: {growth:+.1f} MiB")


if __name__ == "__main__":
    main()
