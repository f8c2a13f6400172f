"""What A-FMI costs beside a bare forward pass, Grad-CAM (ours and Captum's), and ten classes.

    python benchmarks/afmi_cost.py --models resnet50 vgg19 --batch 1 8 --repeats 15

All contenders run in turn in one process, and each ratio is taken within a round, so that a busy
machine slows both sides alike. Printed are the median of the rounds' ratios and the middle half.
"""

from __future__ import annotations

import argparse
import statistics
import time
import warnings
from collections.abc import Callable

import torch
import torchvision
from torch import nn

from afmi import Classifier
from afmi.evaluation.measuring import processor
from afmi.methods import AFMI, GradCAM


def contenders(model: nn.Module, images: torch.Tensor) -> dict[str, Callable[[], object]]:
    afmi, grad_cam = AFMI(model), GradCAM(model)
    module = afmi.resolved_layer(images)[0]

    def forward() -> object:
        with torch.inference_mode():
            return model(images)

    runs: dict[str, Callable[[], object]] = {
        "forward": forward,
        "A-FMI": lambda: afmi.attribute(images),
        "A-FMI, one given class": lambda: afmi.attribute(images, 7),
        "A-FMI, ten classes": lambda: afmi.attribute_classes(images, range(10)),
        "Grad-CAM": lambda: grad_cam.attribute(images),
    }
    try:
        from captum.attr import LayerGradCam
    except ImportError:
        return runs
    captum = LayerGradCam(model, module)

    def theirs() -> object:
        # Captum wants the class given; a user who explains the prediction runs forward first.
        return captum.attribute(images, target=7, relu_attributions=True)

    return {**runs, "Captum's LayerGradCam": theirs}


RATIOS = [
    ("A-FMI", "forward", {1: 1.20, 8: 1.10}),
    ("Grad-CAM", "forward", {}),
    ("A-FMI, one given class", "Captum's LayerGradCam", {1: 1.05, 8: 1.05}),
    ("Grad-CAM", "Captum's LayerGradCam", {}),
    ("A-FMI, ten classes", "A-FMI, one given class", {1: 1.5, 8: 1.5}),
]


def measure(
    runs: dict[str, Callable[[], object]], repeats: int, clock: Callable[[], float]
) -> dict[str, list[float]]:
    """Return the seconds of each contender in each round."""
    for run in runs.values():
        run()
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(repeats):
        for name, run in runs.items():
            start = clock()
            run()
            seconds[name].append(clock() - start)
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="+", default=["resnet50", "vgg19"])
    parser.add_argument("--batch", nargs="+", type=int, default=[1, 8])
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument(
        "--clock",
        choices=["wall", "cpu"],
        default="wall",
        help="cpu: this process's own seconds, for machines that others use too",
    )
    options = parser.parse_args()
    clock = time.process_time if options.clock == "cpu" else time.perf_counter
    torch.set_num_threads(options.threads)
    warnings.simplefilter("ignore")

    print(f"{processor()}, {options.threads} threads, torch {torch.__version__}, ", end="")
    print(f"{options.repeats} alternating rounds, {options.clock} clock\n")
    print("| model | batch | ratio | median | middle half | seconds | target |")
    print("|---|---|---|---|---|---|---|")
    for name in options.models:
        torch.manual_seed(0)
        network = torchvision.models.get_model(name, weights=None).eval()
        for module in network.modules():  # Captum cannot do with activations in place
            if isinstance(module, nn.ReLU):
                module.inplace = False
        model = Classifier(network, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
        for batch in options.batch:
            images = torch.rand(batch, 3, options.size, options.size)
            seconds = measure(contenders(model, images), options.repeats, clock)
            for above, below, targets in RATIOS:
                if below not in seconds:
                    continue
                ratios = [a / b for a, b in zip(seconds[above], seconds[below], strict=True)]
                low, middle, high = statistics.quantiles(ratios, n=4)
                target = f"≤ {targets[batch]:.2f}" if batch in targets else ""
                print(
                    f"| {name} | {batch} | {above} / {below} | {middle:.2f} | {low:.2f}–{high:.2f} "
                    f"| {statistics.median(seconds[above]):.3f} | {target} |",
                    flush=True,
                )


if __name__ == "__main__":
    main()
