"""Print our methods beside their authors' programs, on your network and photographs.

    python -m benchmarks.authors
    python -m benchmarks.authors photograph.jpg other.jpg --model squeezenet1_0 --weights FILE
    python -m benchmarks.authors photograph.jpg --authors RISE=DIR TorchRay=DIR lime=DIR

Without photographs, the table of defaults, ours and theirs. With them, for each method:

- agreement: Spearman's ρ between our map and that of the authors' program, where ``--authors``
  names a checkout of it and `benchmarks.authors.programs` can call it, both with the settings of
  ours (but for what the other table says);
- seeds: ρ between two seeds of ours, which is what agreement can reach where maps are random;
- randomised: |ρ| between our map and that of the same network with all parameters random. Near 0:
  the map comes from what the network learned. Near 1: it shows the picture.

All are means over the photographs, for the class that the network predicts. ``--passes`` lowers the
number of masks, samples, steps and iterations, on both sides alike.
"""

from __future__ import annotations

import argparse
import dataclasses
import math
import statistics
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from afmi import Classifier, load_model
from afmi.errors import AfmiError
from afmi.methods import CATALOGUE
from afmi.methods.base import Method
from afmi.metrics import ParameterRandomisation
from afmi.metrics.base import Case
from afmi.pictures.images import read_image
from afmi.pictures.maps import rank_correlation
from benchmarks.authors.defaults import defaults_table
from benchmarks.authors.programs import CALLS, Call, lengths_as_theirs

PASSES = ("masks", "samples", "steps", "iterations")
COLUMNS = ("method", "settings", "agreement", "seeds", "randomised")


def settings(cls: type[Method], passes: int | None) -> dict[str, Any]:
    """Return the settings that lower a method's passes to at most ``passes``."""
    if passes is None:
        return {}
    defaults: dict[str, Any] = {each.name: each.default for each in dataclasses.fields(cls)}
    lowered = [key for key in PASSES if key in defaults]
    return {key: passes for key in lowered if defaults[key] is None or defaults[key] > passes}


def agreement(
    name: str, method: Method, image: Tensor, target: int, ours: Tensor, authors: dict[str, Path]
) -> float:
    """Return ρ between our map (1, 1, H, W) and the program's; NaN where it cannot be called."""
    program, run = CALLS.get(name, ("", None))
    if run is None or program not in authors:
        return math.nan
    torch.manual_seed(0)
    theirs = run(authors[program], Call(method, image, target)).detach()
    return float(rank_correlation(ours, theirs.reshape(ours.shape).to(ours)))


def row(
    name: str,
    model: Classifier,
    images: list[Tensor],
    passes: int | None,
    authors: dict[str, Path],
) -> list[str]:
    """Return one method's line of the table; what cannot be measured is a dash."""
    cls = CATALOGUE[name]
    chosen = settings(cls, passes)
    method = cls(model, **lengths_as_theirs(chosen, cls, images[0].shape[2]))
    seeded = any(each.name == "seed" for each in dataclasses.fields(cls))
    numbers: dict[str, list[float]] = {column: [] for column in COLUMNS[2:]}
    for image in images:
        target = int(model(image).argmax())
        attribution = method.attribution(image, target)
        maps = attribution.maps
        logits = model(image).detach()
        case = Case(method, image, torch.tensor([target]), attribution, logits)
        similarity = ParameterRandomisation(depths=(1,)).measure(case)["similarity"]
        numbers["randomised"].append(float(similarity))
        numbers["agreement"].append(agreement(name, method, image, target, maps, authors))
        if seeded:
            other = dataclasses.replace(method, seed=1).attribute(image, target)
            numbers["seeds"].append(float(rank_correlation(maps, other)))
    written = ", ".join(f"{key}={value}" for key, value in chosen.items()) or "defaults"
    return [cls.name, written, *(_mean(numbers[column]) for column in COLUMNS[2:])]


def _mean(numbers: list[float]) -> str:
    known = [number for number in numbers if not math.isnan(number)]
    return f"{statistics.fmean(known):.3f}" if known else "–"


def main() -> None:
    """Print the tables as Markdown."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("images", nargs="*", type=Path, help="photographs")
    parser.add_argument("--model", default="photos", help="as in `afmi explain --model`")
    parser.add_argument("--weights", default="default")
    parser.add_argument("--methods", nargs="+", choices=list(CATALOGUE), default=list(CATALOGUE))
    parser.add_argument("--passes", type=int, help="the most masks, samples, steps or iterations")
    parser.add_argument("--authors", nargs="+", default=[], help="NAME=DIR, checkouts of theirs")
    options = parser.parse_args()
    if not options.images:
        print("\n".join(defaults_table()))
        return
    authors = {name: Path(path) for name, _, path in (a.partition("=") for a in options.authors)}
    model = load_model(options.model, weights=options.weights)
    images = [model.prepare(read_image(path)) for path in options.images]
    print(f"{options.model}, {len(images)} photographs, torch {torch.__version__}\n")
    print(f"| {' | '.join(COLUMNS)} |\n|{'---|' * len(COLUMNS)}")
    warnings.simplefilter("ignore")
    for name in options.methods:
        try:
            cells = row(name, model, images, options.passes, authors)
        except AfmiError as error:
            cells = [CATALOGUE[name].name, f"refused: {error}", *["–"] * 3]
        print(f"| {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
