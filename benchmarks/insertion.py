"""What insertion costs beside the forward passes that it cannot do without, 20 for each image.

    python benchmarks/insertion.py [--networks squeezenet1_0 photos] [--images 4] [--rounds 9]

The bare passes are those of the same masked pictures, made beforehand, in batches as insertion
chooses them (see `afmi.perturbation.Passes`) and in batches of 1, 4, 8 and 16, each in PyTorch's
usual layout of images and with channels last, as insertion runs them on a CPU. The fastest of all
counts. All contenders run in turn, and each ratio is taken within a round, so that a busy
machine slows both sides alike. Printed are the median of the rounds' ratios and the middle half.

Goal: at most 1.15 × the bare passes.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from afmi import Classifier, load_model
from afmi.evaluation.measuring import processor
from afmi.images import find_images, read_image
from afmi.maps import top_mask
from afmi.metrics import Insertion
from afmi.perturbation import Passes

BATCHES = (1, 4, 8, 16)
LAYOUTS = {"": torch.contiguous_format, ", channels last": torch.channels_last}
GOAL = 1.15


def pictures(model: Classifier, data: Path | None, count: int) -> Tensor:
    """Return images (N, 3, H, W): of a folder, or random."""
    if data is None:
        size = model.prepare(Image.new("RGB", (300, 300))).shape[-2:]
        return torch.rand(count, 3, *size)
    found = list(find_images(data))[:count]
    if len(found) < count:
        raise SystemExit(f"expected {count} pictures in {data}, got {len(found)}")
    return torch.cat([model.prepare(read_image(path)) for path in found])


def contenders(model: Classifier, images: Tensor) -> tuple[dict[str, Callable[[], object]], int]:
    """Return what is timed, by name, and the size of insertion's own batches."""
    insertion = Insertion()
    maps = torch.rand(len(images), 1, *images.shape[-2:])
    targets = torch.zeros(len(images), dtype=torch.int64)
    masked = torch.cat([images * top_mask(maps, fraction) for fraction in insertion.fractions])

    def forwards(size: int, layout: torch.memory_format) -> object:
        with torch.inference_mode():
            parts = masked.split(size)
            return [model(part.contiguous(memory_format=layout)) for part in parts]

    own = Passes(model, images).size
    runs: dict[str, Callable[[], object]] = {
        "Insertion": lambda: insertion.curves(model, images, targets, maps)
    }
    for name, layout in LAYOUTS.items():
        for size in sorted({own, *BATCHES}):
            run = f"batches of {size}{name}"
            runs[run] = lambda size=size, layout=layout: forwards(size, layout)
    return runs, own


def main() -> None:
    """Print a row for each network and each size of the bare passes' batches."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--networks", nargs="+", default=["squeezenet1_0", "photos"])
    parser.add_argument("--weights", help="of the first network; else random but for photos")
    parser.add_argument("--data", type=Path, help="folder of pictures; else random pixels")
    parser.add_argument("--images", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument(
        "--clock",
        choices=["wall", "cpu"],
        default="wall",
        help="cpu: this process's own seconds, for machines that others use too",
    )
    options = parser.parse_args()
    clock = time.process_time if options.clock == "cpu" else time.perf_counter
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    print(f"{processor()}, {options.threads} threads, torch {torch.__version__}, ", end="")
    print(f"{options.images} images, {options.rounds} alternating rounds, {options.clock} clock\n")
    print("| network | insertion / bare passes in | median | middle half | seconds | goal |")
    print("|---|---|---|---|---|---|")
    for number, name in enumerate(options.networks):
        given = options.weights if number == 0 else None
        model = load_model(name, weights=given or ("default" if name == "photos" else None))
        runs, own = contenders(model, pictures(model, options.data, options.images))
        seconds: dict[str, list[float]] = {run: [] for run in runs}
        for turn in range(options.rounds + 1):
            for run, call in runs.items():
                start = clock()
                call()
                if turn:  # the first turn warms up
                    seconds[run].append(clock() - start)
        bare = [run for run in runs if run != "Insertion"]
        best = min(bare, key=lambda run: statistics.median(seconds[run]))
        for run in bare:
            ratios = [a / b for a, b in zip(seconds["Insertion"], seconds[run], strict=True)]
            low, middle, high = statistics.quantiles(ratios, n=4)
            notes = ["as insertion's"] * run.startswith(f"batches of {own},") + ["fastest"] * (
                run == best
            )
            told = f"{run} ({', '.join(notes)})" if notes else run
            print(
                f"| {name} | {told} | {middle:.3f} "
                f"| {low:.3f}–{high:.3f} | {statistics.median(seconds[run]):.3f} "
                f"| {f'≤ {GOAL}' if notes else ''} |",
                flush=True,
            )
        print(
            f"| {name} | insertion itself | | | {statistics.median(seconds['Insertion']):.3f} | |"
        )


if __name__ == "__main__":
    main()
