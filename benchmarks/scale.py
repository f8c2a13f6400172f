"""What explaining very many pictures takes, from what one picture takes here (docs/scale.md).

    python -m benchmarks.scale --data photographs/ [--model imagenet] [--price 0.04]

Measured on this machine with one thread: processor seconds and bytes of a picture, for an
evaluation of A-FMI (local faithfulness) and for FMI prototypes; and the driver's seconds for a
piece (`benchmarks.cluster_simulation`). The rest is multiplication.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

import afmi
from afmi.data.listing import Files
from afmi.engines import Local, Ray
from afmi.evaluation import LabelledImages, evaluate, open_images
from afmi.evaluation.meter import processor
from afmi.evaluation.parts import PART
from afmi.network.classifier import Classifier
from benchmarks.cluster_simulation import PIECE, committed, on_engine, simulated
from benchmarks.evaluation_memory import status

SIZES = {"1.28 M": 1_281_167, "1 B": 1_000_000_000}
BATCH = 32


@dataclass(frozen=True)
class Work:
    """What a job takes.

    Attributes:
        name: of the job.
        seconds: of one core for a picture.
        size: bytes of the results for a picture.
        piece: pictures of a piece.
        driver: seconds of the driver for a piece.
    """

    name: str
    seconds: float
    size: float
    piece: int
    driver: float


def measured(
    run: Callable[[Path, LabelledImages], object], images: LabelledImages, files: str
) -> tuple[float, float]:
    """Return processor seconds and bytes of a picture.

    Half of the pictures are done, then all: the difference leaves out what is done once.
    """
    seconds, sizes = [], []
    for count in (len(images) // 2, len(images)):
        with tempfile.TemporaryDirectory() as folder:
            begun = time.process_time()
            run(Path(folder) / "out", images.limited(count))
            seconds.append(time.process_time() - begun)
            found = (Path(folder) / "out").glob(files)
            sizes.append(sum(path.stat().st_size for path in found))
    more = len(images) - len(images) // 2
    return (seconds[1] - seconds[0]) / more, sizes[1] / len(images)


def works(model: Classifier, data: str, images: LabelledImages) -> list[Work]:
    """Measure both jobs."""
    commit, _, _ = committed()
    travel = on_engine(Ray(workers=2), 1000)
    pool = simulated(100_000, 1000, 60.0, commit + travel).driver
    driver = commit + travel + pool

    def evaluation(out: Path, some: LabelledImages) -> object:
        options: dict[str, Any] = {"methods": "a-fmi", "metrics": "completeness", "examples": 0}
        return evaluate(model, data, out, limit=len(some), batch_size=BATCH, **options)

    features = 0

    def prototypes(out: Path, some: LabelledImages) -> None:
        nonlocal features
        made = afmi.fmi_prototypes(model, some, out, batch_size=BATCH, engine=Local())
        features = made.sums.shape[1]

    seconds, _ = measured(prototypes, images, "parts/*")
    classes = len(model.labels)
    # A part holds a sum in float64, a count and a number for each class that it has pictures of.
    drawn = classes * (1 - (1 - 1 / classes) ** PART)
    of_class = (8 * features + 16) / PART
    return [
        Work("evaluation", *measured(evaluation, images, "pieces/*/*"), PIECE, driver),
        Work("prototypes, sorted by class", seconds, 2 * of_class, PART, driver),
        Work("prototypes, shuffled", seconds, drawn * of_class, PART, driver),
    ]


def list_size(count: int = 1_000_000) -> float:
    """Return the bytes that a picture takes in the list of all, which the driver holds."""
    before = status("VmRSS")
    names = tuple(f"n01440764/n01440764_{number:08d}.JPEG" for number in range(count))
    labels, sizes = tuple(range(count)), tuple(100_000 + number for number in range(count))
    listed = LabelledImages("names", names, labels, sizes, torch.nn.Identity(), Files(Path()))
    assert len(listed) == count
    return (status("VmRSS") - before) * 2**20 / count


def quantity(value: float, units: tuple[tuple[float, str], ...]) -> str:
    """Return a number in the largest unit that it fills."""
    size, unit = next((one for one in units if value >= one[0]), units[-1])
    return f"{value / size:.3g} {unit}"


BYTES = ((1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "kB"))
HOURS = ((24 * 365, "years"), (48, "days"), (1, "h"), (1 / 60, "min"))


def main() -> None:
    """Print what was measured, and what follows from it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", required=True, help="labelled pictures")
    parser.add_argument("--model", default="imagenet")
    parser.add_argument("--pictures", type=int, default=200)
    parser.add_argument("--price", type=float, default=0.04, help="of a core for an hour")
    options = parser.parse_args()
    torch.set_num_threads(1)
    model = afmi.load_model(options.model)
    images = open_images(options.data, model, limit=options.pictures)
    print(f"{processor()}, one thread, PyTorch {torch.__version__}; network {model.name}\n")
    print("| job | core, ms a picture | bytes a picture | pictures a piece | driver, ms a piece |")
    print("|---|---|---|---|---|")
    jobs = works(model, options.data, images)
    for job in jobs:
        numbers = (1e3 * job.seconds, job.size, job.piece, 1e3 * job.driver)
        print("| {} | {:.1f} | {:.0f} | {} | {:.2f} |".format(job.name, *numbers))
    print(f"\nthe list of pictures, in the driver's memory: {list_size():.0f} bytes a picture")
    print("\n| job | pictures | one core | cost | results | pieces | driver | workers at most |")
    print("|---|---|---|---|---|---|---|---|")
    for job in jobs:
        for name, count in SIZES.items():
            hours, pieces = count * job.seconds / 3600, count / job.piece
            cells = (
                quantity(hours, HOURS),
                f"{hours * options.price:,.2f}",
                quantity(count * job.size, BYTES),
                f"{pieces:,.0f}",
                quantity(pieces * job.driver / 3600, HOURS),
                f"{job.piece * job.seconds / job.driver:,.0f}",
            )
            print(f"| {job.name} | {name} | {' | '.join(cells)} |")
    print(f"\nThe price of a core for an hour is {options.price:g}, as was given.")


if __name__ == "__main__":
    main()
