"""Time RISE and Extremal Perturbation against the bare passes of the network that they need, and
XRAI against its authors' package.

Runs alternate, so that other load on the machine meets both sides, and medians are compared:

    python benchmarks/region_methods.py --network squeezenet1_0 --rounds 5

prints, for instance, ``RISE … 1.04 (goal ≤ 1.10)``. Weights are random; they do not change times.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import numpy as np
import torch
import torchvision
from skimage.data import chelsea
from skimage.transform import resize
from torch import Tensor, nn

from afmi.methods.regions.extremal_perturbation import ExtremalPerturbation
from afmi.methods.regions.rise import RISE
from afmi.methods.regions.xrai import XRAI


def seconds(run: Callable[[], object], device: str) -> float:
    """Return how long one call takes, in seconds: of the processor on a CPU, else of the clock."""
    clock = time.process_time if device == "cpu" else time.perf_counter
    if device != "cpu":
        torch.cuda.synchronize()
    start = clock()
    run()
    if device != "cpu":
        torch.cuda.synchronize()
    return clock() - start


def alternate(ours: Callable[[], object], bare: Callable[[], object], args) -> tuple[float, float]:
    """Return the median seconds of both, and warm both up first."""
    ours(), bare()
    pairs = [(seconds(ours, args.device), seconds(bare, args.device)) for _ in range(args.rounds)]
    return tuple(statistics.median(side) for side in zip(*pairs, strict=True))


def bare_forwards(model: nn.Module, image: Tensor, count: int, batch: int) -> None:
    """Run ``count`` images through the model, ``batch`` at a time, as fast as PyTorch can."""
    with torch.inference_mode():
        many = image.repeat(batch, 1, 1, 1)
        for start in range(0, count, batch):
            model(many[: min(batch, count - start)])


def bare_backwards(model: nn.Module, image: Tensor, rows: int, batch: int, rounds: int) -> None:
    """Run forwards and backwards to the input, ``rows`` images ``rounds`` times."""
    for _ in range(rounds):
        for start in range(0, rows, batch):
            leaf = image.repeat(min(batch, rows - start), 1, 1, 1).requires_grad_(True)
            torch.autograd.grad(model(leaf)[:, 0].sum(), leaf)


def compare_xrai(model: nn.Module, args: argparse.Namespace) -> None:
    """Print how much faster XRAI is than its authors' package, with the same number of steps."""
    try:
        from saliency import core
    except ImportError:
        print("XRAI: not compared; pip install saliency")
        return
    picture = resize(chelsea() / 255, (224, 224), anti_aliasing=True)
    image = torch.from_numpy(np.moveaxis(picture, -1, 0)).float()[None].to(args.device)

    def gradients(batch, call_model_args=None, expected_keys=None):
        x = torch.from_numpy(np.moveaxis(batch, -1, 1)).float().to(args.device).requires_grad_()
        (found,) = torch.autograd.grad(model(x)[:, 0].sum(), x)
        return {core.base.INPUT_OUTPUT_GRADIENTS: np.moveaxis(found.cpu().numpy(), 1, -1)}

    ends = [np.zeros_like(picture), np.ones_like(picture)]
    settings = core.XRAIParameters(steps=args.steps)
    ours, theirs = alternate(
        lambda: XRAI(model, steps=args.steps).attribute(image, 0),
        lambda: core.XRAI().GetMask(
            picture, gradients, baselines=ends, batch_size=10, extra_parameters=settings
        ),
        argparse.Namespace(device=args.device, rounds=max(1, args.rounds // 2)),
    )
    print(
        f"XRAI, 2 × {args.steps} steps on {args.network}: {ours:.2f} s; the saliency package: "
        f"{theirs:.2f} s; {theirs / ours:.1f} times as fast (goal ≥ 4)"
    )


def main() -> None:
    """Print the ratios."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--network", default="squeezenet1_0", help="of torchvision")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--masks", type=int, default=500)
    parser.add_argument("--iterations", type=int, default=50)
    parser.add_argument("--steps", type=int, default=8, help="of XRAI's integrated gradients")
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 2, 4, 8, 16])
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    model = torchvision.models.get_model(args.network).eval().to(args.device)
    image = torch.rand(1, 3, 224, 224, device=args.device)

    few = min(args.masks, 4 * max(args.batches))
    times = {b: [] for b in args.batches}
    for _ in range(3):
        for b in args.batches:
            times[b].append(seconds(lambda b=b: bare_forwards(model, image, few, b), args.device))
    best = min(args.batches, key=lambda b: statistics.median(times[b]))
    rise = RISE(model, masks=args.masks)
    ours, bare = alternate(
        lambda: rise.attribute(image, 0),
        lambda: bare_forwards(model, image, args.masks, best),
        args,
    )
    print(
        f"RISE, {args.masks} masks on {args.network}: {ours:.2f} s; bare forwards in batches of "
        f"{best}: {bare:.2f} s; ratio {ours / bare:.3f} (goal ≤ 1.10)"
    )

    extremal = ExtremalPerturbation(model, iterations=args.iterations)
    rows = len(extremal.areas)
    ours, bare = alternate(
        lambda: extremal.attribute(image, 0),
        lambda: bare_backwards(model, image, rows, rows, args.iterations),
        args,
    )
    print(
        f"Extremal perturbation, {rows} areas × {args.iterations} iterations on {args.network}: "
        f"{ours:.2f} s; bare forwards and backwards: {bare:.2f} s; ratio {ours / bare:.3f} "
        "(goal ≤ 1.15)"
    )
    compare_xrai(model, args)


if __name__ == "__main__":
    main()
