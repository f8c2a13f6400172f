"""What an audit costs beside the forward passes of its images, and whether memory grows.

    python -m benchmarks.audit --data photos11/train [--model photos] [--images 10000] [--halves 2]
    python -m benchmarks.audit --data photos11/train --memory 1000 10000

The first form audits the images in one process with one thread, and runs the network alone on the
same images, read in the same way, in turn; printed are seconds, and the ratio. The second form
prints the most memory of a process that audits so many images (resident, sampled by the system).
"""

from __future__ import annotations

import argparse
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch

import afmi
from afmi.data.labelled import LabelledImages, open_images

_BATCH = 32


def forward_passes(images: LabelledImages) -> None:
    """Read all images, and run the network on them."""
    with torch.inference_mode():
        for start in range(0, len(images), _BATCH):
            stop = min(start + _BATCH, len(images))
            images.model(torch.cat([images.read(n) for n in range(start, stop)]))


def audited(images: LabelledImages) -> None:
    """Audit all images into a folder of its own."""
    with tempfile.TemporaryDirectory() as folder:
        print(afmi.audit(images.model, images, folder, batch_size=_BATCH).finding, file=sys.stderr)


def seconds(call: Callable[[LabelledImages], None], images: LabelledImages) -> float:
    """Return how long a call takes."""
    began = time.perf_counter()
    call(images)
    return time.perf_counter() - began


def memory(data: Path, name: str, count: int) -> float:
    """Return the most memory that an audit of so many images needs, MiB."""
    text = f"from benchmarks.audit import peak; print(peak({str(data)!r}, {name!r}, {count}))"
    printed = subprocess.run([sys.executable, "-c", text], capture_output=True, text=True)
    if printed.returncode:
        raise SystemExit(printed.stderr)
    return float(printed.stdout)


def peak(data: str, name: str, count: int) -> float:
    """Audit so many images in this process, and return its most memory, MiB."""
    torch.set_num_threads(1)
    audited(open_images(data, afmi.load_model(name), limit=count))
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--model", default="photos")
    parser.add_argument("--images", type=int, default=10_000)
    parser.add_argument("--halves", type=int, default=2, help="how often both are timed")
    parser.add_argument("--memory", type=int, nargs="+")
    arguments = parser.parse_args()
    if arguments.memory:
        print("| images | most memory, MiB |\n|---|---|")
        for count in arguments.memory:
            print(f"| {count:,} | {memory(arguments.data, arguments.model, count):.0f} |")
        return
    torch.set_num_threads(1)
    model = afmi.load_model(arguments.model)
    images = open_images(arguments.data, model, limit=arguments.images)
    ratios = []
    print("| forward passes, s | audit, s | ratio |\n|---|---|---|")
    for _ in range(arguments.halves):
        passes, audit = seconds(forward_passes, images), seconds(audited, images)
        ratios.append(audit / passes)
        print(f"| {passes:.1f} | {audit:.1f} | {ratios[-1]:.2f} |", flush=True)
    print(f"\n{len(images):,} images, {arguments.model}: median {statistics.median(ratios):.2f} ×")


if __name__ == "__main__":
    main()
