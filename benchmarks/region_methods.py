"""Time RISE and Extremal Perturbation against the bare passes of the network that they need, and
XRAI against its authors' package.

Runs alternate, so that other load on the machine meets both sides, and medians are compared:

    python benchmarks/region_methods.py --network squeezenet1_0 --rounds 5

prints, for instance, ``RISE … 1.04 (goal ≤ 1.10)``. RISE and Extremal Perturbation take as long
with random weights. XRAI does not: its merging depends on the map, so give it trained weights,

    python benchmarks/region_methods.py --only xrai --weights squeezenet1_0.safetensors

or ``--network embedded``.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import numpy as np
import torch
import torchvision
from PIL import Image
from safetensors.torch import load_file
from skimage.data import chelsea
from torch import Tensor, nn

from afmi import Classifier, load_model
from afmi.images import read_image
from afmi.methods.regions.extremal_perturbation import ExtremalPerturbation
from afmi.methods.regions.rise import RISE
from afmi.methods.regions.xrai import XRAI


def elapsed(run: Callable[[], object], device: str) -> float:
    """Return how long one call takes by the clock, in seconds."""
    if device != "cpu":
        torch.cuda.synchronize()
    start = time.perf_counter()
    run()
    if device != "cpu":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def seconds(run: Callable[[], object], device: str) -> float:
    """Return how long one call takes, in seconds: of the processor on a CPU, else of the clock."""
    if device != "cpu":
        return elapsed(run, device)
    start = time.process_time()
    run()
    return time.process_time() - start


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


def load(args: argparse.Namespace) -> Classifier:
    """Return the network that the arguments name."""
    if args.network == "embedded":
        return load_model().to(args.device)
    network = torchvision.models.get_model(args.network)
    if args.weights is not None:
        network.load_state_dict(load_file(args.weights))
    return Classifier(network.eval()).to(args.device)


def photograph(model: Classifier, args: argparse.Namespace) -> Tensor:
    """Return the photograph that the arguments name, as the network sees it: (1, 3, H, W)."""
    photo = Image.fromarray(chelsea()) if args.image is None else read_image(args.image)
    return model.prepare(photo).to(args.device)


def compare_rise(model: Classifier, args: argparse.Namespace) -> None:
    """Print RISE's time beside that of as many bare forwards, in the fastest batches."""
    image = torch.rand_like(photograph(model, args))
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


def compare_extremal(model: Classifier, args: argparse.Namespace) -> None:
    """Print Extremal Perturbation's time beside that of as many forwards and backwards."""
    image = torch.rand_like(photograph(model, args))
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


def compare_xrai(model: Classifier, args: argparse.Namespace) -> None:
    """Print how much faster XRAI is than its authors' package, with the same number of steps.

    Both sides explain the predicted class of the same photograph, against black and white. The
    package takes one point at a time unless told otherwise, so that is measured too. Seconds are
    of the clock, because our segmentation runs beside the network's passes; those of the
    processor, all cores together, follow in brackets.
    """
    try:
        from saliency import core
    except ImportError:
        print("XRAI: not compared; pip install saliency")
        return
    image = photograph(model, args)
    picture = np.moveaxis(image[0].cpu().numpy(), 0, -1)
    target = int(model(image).argmax())
    for parameter in model.parameters():
        parameter.requires_grad_(False)

    def gradients(batch, call_model_args=None, expected_keys=None):
        x = torch.from_numpy(np.moveaxis(batch, -1, 1)).float().to(args.device).requires_grad_()
        (found,) = torch.autograd.grad(model(x)[:, target].sum(), x)
        return {core.base.INPUT_OUTPUT_GRADIENTS: np.moveaxis(found.cpu().numpy(), 1, -1)}

    ends = [np.zeros_like(picture), np.ones_like(picture)]

    def package(batch: int) -> object:
        return core.XRAI().GetMask(
            picture,
            gradients,
            baselines=ends,
            batch_size=batch,
            extra_parameters=core.XRAIParameters(steps=args.steps),
        )

    sides: dict[str, Callable[[], object]] = {
        "ours": lambda: XRAI(model, steps=args.steps).attribute(image, target)
    }
    for batch in args.package_batches:
        sides[f"package, batches of {batch}"] = lambda batch=batch: package(batch)
    times: dict[str, list[tuple[float, float]]] = {side: [] for side in sides}
    for _ in range(args.rounds):
        for side, run in sides.items():
            processor = time.process_time()
            times[side].append((elapsed(run, args.device), time.process_time() - processor))
    medians = {
        side: [statistics.median(kind) for kind in zip(*seen, strict=True)]
        for side, seen in times.items()
    }
    (clock, processor), *others = medians.values()
    print(
        f"XRAI, 2 × {args.steps} steps on {args.network}: {clock:.2f} s ({processor:.2f} s of the "
        "processor)"
    )
    for side, (their_clock, their_processor) in zip(list(medians)[1:], others, strict=True):
        print(
            f"  {side}: {their_clock:.2f} s ({their_processor:.2f} s); "
            f"{their_clock / clock:.1f} ({their_processor / processor:.1f}) times as long "
            "(goal ≥ 4)"
        )


def main() -> None:
    """Print the ratios."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--network", default="squeezenet1_0", help="of torchvision, or embedded")
    parser.add_argument("--weights", help="a safetensors file for that network; default: random")
    parser.add_argument("--image", help="a photograph for XRAI; default: scikit-image's cat")
    parser.add_argument(
        "--only",
        nargs="+",
        choices=["rise", "extremal", "xrai"],
        default=["rise", "extremal", "xrai"],
    )
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--masks", type=int, default=500)
    parser.add_argument("--iterations", type=int, default=50)
    parser.add_argument("--steps", type=int, default=8, help="of XRAI's integrated gradients")
    parser.add_argument("--package-batches", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 2, 4, 8, 16])
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    compare = {"rise": compare_rise, "extremal": compare_extremal, "xrai": compare_xrai}
    model = load(args)
    for name in args.only:
        compare[name](model, args)


if __name__ == "__main__":
    main()
