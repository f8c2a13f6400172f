"""Whether a window of a stream costs the same at its beginning and at its end.

    python -m benchmarks.streams [--windows 50 200]

Evaluates the method Random on tiny tensors that come one after the other, in windows of 64, with
one worker, which is this process. Printed are for each length the milliseconds of processor that a
window takes: the median of the first tenth of the windows, and of the last.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import tempfile
import time
from collections.abc import Iterator

import torch
from torch import Tensor, nn

import afmi
from afmi.evaluation.plan import smallest_window


def stream(count: int) -> Iterator[tuple[Tensor, int]]:
    """Yield random pictures with classes."""
    generator = torch.Generator().manual_seed(0)
    for number in range(count):
        yield torch.rand(3, 6, 6, generator=generator), number % 2


def measured(windows: int) -> tuple[float, float]:
    """Return the seconds of processor of an early window, and of a late one."""
    torch.manual_seed(0)
    body = [nn.Conv2d(3, 2, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(2, 2)]
    begun: list[float] = []
    with tempfile.TemporaryDirectory() as out:
        afmi.evaluate(
            *(nn.Sequential(*body), stream(smallest_window() * windows), out),
            methods="random",
            metrics="completeness",
            batch_size=smallest_window(),
            examples=0,
            on_begin=lambda *_: begun.append(time.process_time()),
        )
    seconds = [after - before for before, after in itertools.pairwise(begun)]
    tenth = max(len(seconds) // 10, 1)
    return statistics.median(seconds[:tenth]), statistics.median(seconds[-tenth:])


def main() -> None:
    parser = argparse.ArgumentParser(description=str(__doc__).split("\n")[0])
    parser.add_argument("--windows", type=int, nargs="+", default=[50, 200], help="lengths")
    options = parser.parse_args()
    torch.set_num_threads(1)
    print("| windows | first tenth, ms | last tenth, ms |\n|---|---|---|")
    for windows in options.windows:
        first, last = measured(windows)
        print(f"| {windows} | {1000 * first:.1f} | {1000 * last:.1f} |")


if __name__ == "__main__":
    main()
