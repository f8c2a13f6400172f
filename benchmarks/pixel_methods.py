"""Time the pixel methods on VGG-19 beside each other and beside Captum's DeepLift.

Runs alternate, so that a busy machine slows all of them alike; ratios are those of medians, by the
clock and by the processor's time.

    python benchmarks/pixel_methods.py [--network vgg19] [--size 224] [--rounds 7] [--methods …]

Goals: DeepLIFT with a black reference ≤ 1.25 × Gradient, and ≥ 1.7 × faster than Captum's.
"""

from __future__ import annotations

import argparse
import statistics
import time
import warnings
from collections.abc import Callable

import torch
import torchvision

from afmi import methods
from afmi.classifier import Classifier

METHODS = ("Gradient", "InputXGradient", "GuidedBackprop", "DeconvNet", "LRP", "DeepLIFT")


def main() -> None:
    """Print each method's median seconds and its ratio to Gradient."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--network", default="vgg19")
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--methods", default=",".join(METHODS))
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    network = getattr(torchvision.models, options.network)(weights=None).eval()
    model = Classifier(network, mean=[0.485, 0.456, 0.406], std=[0.229, 0.224, 0.225])
    image = torch.rand(1, 3, options.size, options.size)

    runs: dict[str, Callable[[], object]] = {}
    for name in options.methods.split(","):
        method = methods.CATALOGUE[name](model)
        runs[name] = lambda method=method: method.attribute(image, 0)
    try:
        from captum.attr import DeepLift
    except ImportError:
        print("captum is not installed: no comparison")
    else:
        theirs = DeepLift(model)
        start = torch.zeros_like(image)
        runs["Captum DeepLift"] = lambda: theirs.attribute(
            image.clone().requires_grad_(), baselines=start, target=0
        )

    clock: dict[str, list[float]] = {name: [] for name in runs}
    processor: dict[str, list[float]] = {name: [] for name in runs}
    for turn in range(options.rounds + 1):
        for name, run in runs.items():
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                begin = time.perf_counter(), time.process_time()
                run()
                end = time.perf_counter(), time.process_time()
            if turn:  # the first turn warms up, and makes DeepLIFT's reference run
                clock[name].append(end[0] - begin[0])
                processor[name].append(end[1] - begin[1])
    print(f"{options.network}, {options.size} px, 1 image, {options.threads} thread(s)")
    for kind, seconds in (("clock", clock), ("processor", processor)):
        medians = {name: statistics.median(values) for name, values in seconds.items()}
        for name, median in medians.items():
            ratio = median / medians["Gradient"]
            print(f"{kind:10} {name:16} {median:7.3f} s   {ratio:5.2f} × Gradient")
        if "Captum DeepLift" in medians:
            ratio = medians["Captum DeepLift"] / medians["DeepLIFT"]
            print(f"{kind:10} DeepLIFT is {ratio:.2f} × faster than Captum's")


if __name__ == "__main__":
    main()
