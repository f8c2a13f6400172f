"""Which networks are explained exactly, at which layer, and for how many forward passes.

    python benchmarks/networks.py --out docs/results/networks.csv
    python benchmarks/networks.py --only 'timm:.*vit'

Goes through torchvision's classifiers, one network of each timm family and small configurations of
transformers' image classifiers, with random weights (seed 0; what an initialisation left at zero
drawn anew) and batch norms that know photographs. For each, on one photograph against black:

- the layer that is found, and its maps;
- |Σ multiplier·Δ − Δy| over the larger of |Δy| and the largest |logit|, at that layer and at the
  input, in float32; where that is above 1e-5, in float64 as well, which tells rounding from error;
- the cost of A-FMI over that of a bare forward pass: the median over rounds that alternate.

What raises or warns is the network's limitation, and its row says which.
"""

from __future__ import annotations

import argparse
import csv
import re
import statistics
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
import torchvision
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))  # how the tests measure it

from completeness import errors, photographs, torchvision_classifier
from zoo import TIMM, TRANSFORMERS, timm_classifier, transformers_classifier

from afmi import Classifier
from afmi.evaluation.meter import processor
from afmi.gradients import modified_gradient
from afmi.methods import AFMI
from afmi.network.layers import resolve_layer
from afmi.pictures.references import Black

COLUMNS = ("network", "family", "parameters (M)", "side", "layer", "maps", "error at stage",
           "error at input", "A-FMI / forward", "limitation")  # fmt: skip
BOUND = 1e-5
WARNED = torch.finfo(torch.float32).eps ** 0.5  # above it, methods warn of incompleteness
SMALLER = {"qwen3_vit_88m": 256}  # at its own 768 pixels it takes minutes


def networks() -> Iterator[tuple[str, str, Callable[[], tuple[Classifier, int]]]]:
    """Give each network's name, its family and what builds it, with its pictures' side."""
    for name in torchvision.models.list_models(module=torchvision.models):
        yield f"torchvision:{name}", re.sub(r"[_\d].*", "", name), lambda n=name: _torchvision(n)
    for family, name in TIMM.items():
        size = SMALLER.get(name)
        yield f"timm:{name}", family, lambda n=name, s=size: timm_classifier(n, s)
    for name in TRANSFORMERS:
        yield f"hf:{name}", name, lambda n=name: transformers_classifier(n)


def _torchvision(name: str) -> tuple[Classifier, int]:
    transforms = torchvision.models.get_model_weights(name).DEFAULT.transforms()
    size = int(transforms.crop_size[0])
    return torchvision_classifier(name, size), size


def _parameters(name: str) -> float:
    """Return the millions of parameters that torchvision states, before anything is built."""
    source, _, weights_name = name.partition(":")
    if source != "torchvision":
        return 0.0
    return torchvision.models.get_model_weights(weights_name).DEFAULT.meta["num_params"] / 1e6


def _error(model: Classifier, images: Tensor, layer: Any) -> str:
    """Return the error in float32, and in float64 where that is large."""
    error = errors(model, images, Black(), layer).of_logits
    if error <= BOUND:
        return f"{error:.0e}"
    try:
        wide = errors(model.double(), images.double(), Black(), layer).of_logits
    finally:
        model.float()
    text = f"{error:.0e} ({wide:.0e} in float64)"
    if not wide <= BOUND:
        raise ArithmeticError(f"the multipliers do not sum to delta: {text}")
    return text


def _ratio(model: Classifier, images: Tensor, rounds: int) -> str:
    """Return the median of the rounds' ratios of A-FMI to a bare forward pass."""
    afmi = AFMI(model)

    def forward() -> None:
        with torch.inference_mode():
            model(images)

    runs = (lambda: afmi.attribute(images), forward)
    ratios = []
    for _ in range(rounds + 1):
        seconds = []
        for run in runs:
            start = time.perf_counter()
            run()
            seconds.append(time.perf_counter() - start)
        ratios.append(seconds[0] / seconds[1])
    return f"{statistics.median(ratios[1:]):.2f}"


def _sentence(error: BaseException | Warning) -> str:
    """Return one line that says what went wrong."""
    return f"{type(error).__name__}: {' '.join(str(error).split())}"[:300]


def row(
    name: str, family: str, build: Callable[[], tuple[Classifier, int]], rounds: int
) -> dict[str, str]:
    """Return one network's line of the table; what fails leaves its cell empty and is named."""
    cells = dict.fromkeys(COLUMNS, "") | {"network": name, "family": family}
    limits: list[str] = []
    try:
        model, side = build()
    except Exception as error:
        return cells | {"limitation": f"not built: {_sentence(error)}"}
    images = photographs(side, 1)
    count = sum(p.numel() for p in model.parameters()) / 1e6
    cells |= {"side": str(side), "parameters (M)": f"{count:.1f}"}

    def place() -> str:
        module, layer = resolve_layer(model, None, images)
        cells["layer"] = str(layer)
        gradient = modified_gradient(model, images, layer=(module, layer), reference=Black())
        return "×".join(map(str, gradient.run.features.shape[1:]))

    measures: dict[str, Callable[[], str]] = {
        "maps": place,
        "error at stage": lambda: _error(model, images, None),
        "error at input": lambda: _error(model, images, "inputs"),
        "A-FMI / forward": lambda: _ratio(model, images, rounds),
    }
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for column, measure in measures.items():
            try:
                cells[column] = measure()
            except Exception as error:
                limits.append(f"{column}: {_sentence(error)}")
    for column in ("error at stage", "error at input"):
        if cells[column] and float(cells[column].split()[0]) > WARNED:
            limits.append(f"{column}: float32 has too few digits for it, float64 has enough")
    limits += [_sentence(w.message) for w in caught if isinstance(w.message, Warning)]
    # The layer's error comes back in whatever needs it.
    causes = {limit.partition(": ")[2]: limit for limit in reversed(limits)}
    return cells | {"limitation": " / ".join(reversed(causes.values()))}


def _row_within(
    options: argparse.Namespace,
    name: str,
    family: str,
    build: Callable[[], tuple[Classifier, int]],
) -> dict[str, str]:
    """Return one network's line, which for the largest says only that they are left out."""
    if _parameters(name) <= options.max_parameters:
        return row(name, family, build, options.rounds)
    return dict.fromkeys(COLUMNS, "") | {
        "network": name,
        "family": family,
        "parameters (M)": f"{_parameters(name):.1f}",
        "limitation": "not measured, for its size",
    }


def main() -> None:
    """Print the table as Markdown while it grows, and write it as CSV."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", default="", help="a regular expression for names to measure")
    parser.add_argument("--out", type=Path, help="CSV to write")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument(
        "--max-parameters",
        type=float,
        default=150,
        help="torchvision's networks of more millions are named, but not measured",
    )
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    print(f"{processor()}, {options.threads} threads, torch {torch.__version__}\n")
    print(f"| {' | '.join(COLUMNS)} |\n|{'---|' * len(COLUMNS)}")
    chosen = [n for n in networks() if re.search(options.only, n[0])]
    with ExitStack() as stack:
        table = None
        if options.out:
            file = stack.enter_context(options.out.open("w", encoding="utf-8", newline=""))
            table = csv.DictWriter(file, COLUMNS, lineterminator="\n")
            table.writeheader()
        for name, family, build in chosen:
            row = _row_within(options, name, family, build)
            print(f"| {' | '.join(row[c].replace('|', '/') for c in COLUMNS)} |", flush=True)
            if table is not None:
                table.writerow(row)
                file.flush()


if __name__ == "__main__":
    main()
