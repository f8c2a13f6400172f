"""What the maps of a few methods sum to, and how far their numbers can be trusted.

    python benchmarks/sums.py --model photos
    python benchmarks/sums.py --model tf_efficientnet_lite0 --weights FILE

Prints, for four photographs that scikit-image ships and the classes predicted of them: what
Integrated Gradients misses of the change of the score by steps; what LRP's map sums to, beside the
score; how alike LRP with ε → 0 and Input×Gradient are with one zero and with two; how alike two
seeds of Kernel SHAP are; and whether DeconvNet tells images apart. Then, without a network, the
error of Kernel SHAP's values on a game whose values are known.
"""

from __future__ import annotations

import argparse
import platform
import warnings
from collections.abc import Iterable

import torch
from speed.subjects import photographs
from torch import Tensor

from afmi import Classifier, load_model
from afmi.methods import LRP, DeconvNet, InputXGradient, IntegratedGradients, KernelSHAP
from afmi.methods.pixels.kernel_shap import coalitions, shapley_regression
from afmi.pictures.maps import rank_correlation
from afmi.pictures.references import Black
from afmi.pictures.superpixels import Grid


def _line(name: str, values: Iterable[float], form: str = "{:+.2f}") -> None:
    print(f"| {name} | " + " | ".join(form.format(float(v)) for v in values) + " |", flush=True)


def _alike(first: Tensor, second: Tensor) -> list[float]:
    return rank_correlation(first, second).tolist()


def sums(model: Classifier, images: Tensor) -> None:
    """Print the table of a network, a column for each image."""
    print("| | cat | coffee | rocket | astronaut |\n|---|---|---|---|---|")
    with torch.no_grad():
        scores, classes = model(images).max(1)
    for steps in (100, 300, 900):
        attribution = IntegratedGradients(model, steps=steps).attribution(images, classes)
        assert attribution.residual is not None
        _line(f"Integrated Gradients, {steps} steps: residual", attribution.residual)
    for epsilon in (0.25, 0.0):
        total = LRP(model, epsilon=epsilon).attribute(images, classes).sum((1, 2, 3))
        _line(f"LRP, ε = {epsilon:g}: sum / score", total / scores)
    relevance = LRP(model, epsilon=0).attribute(images, classes)
    same = InputXGradient(model).attribute(images, classes)
    black = InputXGradient(model, reference=Black()).attribute(images, classes)
    _line("LRP, ε = 0, and Input×Gradient: ρ", _alike(relevance, same))
    _line("the same, the latter against black: ρ", _alike(relevance, black))
    one, other = (
        KernelSHAP(model, segmentation=Grid(6), seed=seed).attribute(images, classes)
        for seed in (0, 1)
    )
    _line("Kernel SHAP, 36 superpixels, two seeds: ρ", _alike(one, other))
    maps = DeconvNet(model).attribute(torch.cat([images, images * 0]), int(classes[0]))
    _line("DeconvNet's map, and that of black: ρ", _alike(maps[:-4], maps[-4:]))


def known_game(players: int, seeds: int = 5) -> float:
    """Return the mean relative error of Kernel SHAP's values at its default number of samples."""
    generator = torch.Generator().manual_seed(0)
    teams = torch.zeros(200, players, dtype=torch.bool)
    for team in teams:
        size = int(torch.randint(1, 7, (1,), generator=generator))
        team[torch.randperm(players, generator=generator)[:size]] = True
    adds = torch.randn(200, generator=generator, dtype=torch.float64)
    values = (teams.double() / teams.sum(1, keepdim=True)).T @ adds
    errors = []
    for seed in range(seeds):
        draw = torch.Generator().manual_seed(seed)
        members, weight = coalitions(players, 2 * players + 2048, draw)
        worth = ((~members).double() @ teams.double().T == 0).double() @ adds[:, None]
        estimate = shapley_regression(members.double(), worth, weight, adds.sum()[None])[:, 0]
        errors.append(float((estimate - values).norm() / values.norm()))
    return sum(errors) / seeds


def main() -> None:
    """Print both tables as Markdown."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", default="photos")
    parser.add_argument("--weights")
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    print(f"{args.model}, torch {torch.__version__}, {platform.machine()}, float32\n")
    model = load_model(args.model, weights=args.weights) if args.weights else load_model(args.model)
    sums(model, photographs(model))
    print("\n| players of a known game | Kernel SHAP's relative error |\n|---|---|")
    for players in (20, 36, 40, 45, 49, 60):
        _line(str(players), [known_game(players)], "{:.2f}")


if __name__ == "__main__":
    main()
