"""Measure what explanations cost, and write the numbers, a table and a picture.

    python -m benchmarks.speed                          # some 20 minutes on two quiet cores
    python -m benchmarks.speed --quick                  # a few minutes
    python -m benchmarks.speed feature-maps --networks resnet50 --batch 1 8 32
    python -m benchmarks.speed --device cuda --precision float32 bf16 --layout usual channels-last

All contenders run in turn in one process, and each ratio is taken within a round, so that a busy
machine slows both sides alike. Printed are the median of the rounds' ratios and the middle half.
Rows of scenarios that are not run stay in the CSV file as they are.
"""

from __future__ import annotations

import argparse
import sys
import time
import warnings
from pathlib import Path

import torch

from afmi.evaluation.meter import processor

from . import feature_maps, growth, masked, options, picture, pixels
from .bench import Bench, versions
from .harness import CLOCKS, Plan
from .record import HEADS, Row, cells, merged, read, write
from .settings import LAYOUTS, PRECISIONS, Setting

SCENARIOS = {
    "feature-maps": feature_maps.by_network,
    "sizes": feature_maps.by_size,
    "pixels": pixels.pixels,
    "masked": masked.masked,
    "growth": growth.growth,
    "options": options.options,
}
RESULTS = Path("docs/results")


def parser() -> argparse.ArgumentParser:
    """Return the command line's parser."""
    assert __doc__ is not None
    found = argparse.ArgumentParser(
        prog="python -m benchmarks.speed",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = found.add_argument
    add("scenarios", nargs="*", help=f"of {', '.join(SCENARIOS)}; default: all")
    level = found.add_mutually_exclusive_group()
    level.add_argument("--quick", action="store_const", const="quick", dest="level")
    level.add_argument("--full", action="store_const", const="full", dest="level", help="hours")
    add("--networks", nargs="+", help="of torchvision, or photos; default: the scenario's")
    add("--batch", nargs="+", type=int, help="images per call; default: the scenario's")
    add("--size", nargs="+", type=int, help="sides of the images in pixels")
    add("--device", nargs="+", default=None, help="default: cpu, and cuda where there is one")
    add("--layout", nargs="+", choices=LAYOUTS, default=["usual"])
    add("--precision", nargs="+", choices=PRECISIONS, default=["float32"], help="by autocast")
    add("--seconds", type=float, help="for the rounds of one group of contenders")
    add("--rounds", type=int, nargs=2, metavar=("LEAST", "MOST"), help="of such a group")
    add("--threads", type=int, default=torch.get_num_threads())
    add(
        "--clock",
        choices=CLOCKS,
        default="wall",
        help="cpu: this process's own seconds, for machines that others use too; events: CUDA's",
    )
    add("--out", type=Path, default=RESULTS, help="folder of benchmarks.csv and the pictures")
    return found


def settings(given: argparse.Namespace) -> list[Setting]:
    """Return each combination of device, layout and precision."""
    names = given.device or ["cpu", *["cuda"] * torch.cuda.is_available()]
    return [
        Setting(torch.device(device), layout, precision)
        for device in names
        for layout in given.layout
        for precision in given.precision
    ]


def plan(given: argparse.Namespace) -> Plan:
    """Return how long groups of contenders run."""
    own = {"quick": Plan(6, 3, 9), "standard": Plan(15, 4, 31), "full": Plan(120, 9, 61)}
    chosen = own[given.level or "standard"]
    least, most = given.rounds or (chosen.least, chosen.most)
    return Plan(chosen.seconds if given.seconds is None else given.seconds, least, most)


def main(arguments: list[str] | None = None) -> None:
    """Measure and write."""
    found = parser()
    given = found.parse_args(arguments)
    unknown = set(given.scenarios) - set(SCENARIOS)
    if unknown:
        found.error(f"unknown scenario {', '.join(unknown)}; known: {', '.join(SCENARIOS)}")
    torch.set_num_threads(given.threads)
    warnings.simplefilter("ignore")
    bench = Bench(
        plan=plan(given),
        clock=given.clock,
        level=given.level or "standard",
        settings=settings(given),
        networks=given.networks,
        batches=given.batch,
        sizes=given.size,
        show=_printed,
    )
    print(f"{processor()}, {given.threads} threads, {given.clock} clock; {versions()}")
    for name in given.scenarios or SCENARIOS:
        print(f"\n## {name}\n\n| {' | '.join(HEADS)} |\n|{'---|' * len(HEADS)}", flush=True)
        start = time.monotonic()
        SCENARIOS[name](bench)
        print(f"{name}: {time.monotonic() - start:.0f} s", file=sys.stderr, flush=True)
    table = given.out / "benchmarks.csv"
    rows = merged(read(table) if table.exists() else [], bench.rows)
    write(table, rows)
    pictures = picture.draw(rows, given.out)
    print("\n" + "\n".join(str(path) for path in (table, *pictures)))


def _printed(row: Row) -> None:
    print(f"| {' | '.join(cells(row))} |", flush=True)


if __name__ == "__main__":
    main()
