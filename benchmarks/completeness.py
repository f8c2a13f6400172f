"""How exactly multipliers sum to delta: ours and Captum's, on torchvision's networks.

    python benchmarks/completeness.py

Prints |Σ multiplier·Δ − Δy| / |Δy| with a black and with a photograph reference, at the input
(DeepLIFT) and at the last stage (A-FMI, un-averaged, with the class token's share), for the
predicted class of one photograph at 224×224 pixels. Weights are random (seed 0), batch norms have
the statistics of eight photographs, all of which scikit-image ships. Float32.
"""

from __future__ import annotations

import argparse
import platform
import warnings
from collections.abc import Callable

import torch
from captum.attr import DeepLift, LayerDeepLift
from speed.subjects import network, views
from torch import Tensor, nn

from afmi import Classifier
from afmi.gradients import modified_gradient
from afmi.methods import AFMI
from afmi.network.layers import Layer
from afmi.pictures.references import Black, Image, Reference

NETWORKS = [
    *("vgg19", "resnet50", "mobilenet_v2", "squeezenet1_1", "densenet121", "efficientnet_b0"),
    *("mobilenet_v3_large", "googlenet", "shufflenet_v2_x1_0", "regnet_y_400mf"),
    *("convnext_tiny", "swin_t", "swin_v2_t", "maxvit_t", "vit_b_16"),
]


def theirs(attribute: Callable[[], Tensor], change: Tensor) -> str:
    """Return Captum's error, or the kind of its exception."""
    try:
        error = abs(float((attribute().sum() - change) / change))
    except Exception as refusal:
        return f"raises {type(refusal).__name__}"
    return f"{error:.0e}"


def _error(
    model: Classifier,
    x: Tensor,
    place: tuple[nn.Module, Layer] | None,
    reference: Reference,
    target: int,
) -> str:
    """Return the error of our multipliers, class tokens counted in."""
    gradient = modified_gradient(model, x, layer=place, reference=reference)
    targets = torch.tensor([[target]])
    gradients, extra = gradient.split(targets)
    explained = (gradients * gradient.change()).flatten(2).sum(2) + extra
    change = gradient.output_change(targets)
    return f"{abs(float((explained - change) / change)):.0e}"


def row(name: str) -> list[str]:
    """Return the errors of one network."""
    model = network(name)
    images = views(model)
    x, other = images[:1], images[1:2]
    with torch.no_grad():
        logits = model(x)
        target = int(logits.argmax())
        changes = [logits[0, target] - model(r)[0, target] for r in (other * 0, other)]
    layer = AFMI(model).resolved_layer(x)
    cells = [name, str(layer[1])]
    ours = [
        " / ".join(
            _error(model, x, place, reference, target) for reference in (Black(), Image(other))
        )
        for place in (None, layer)
    ]
    captum_input, captum_stage = DeepLift(model), LayerDeepLift(model, layer[0])
    calls = [(other * 0, changes[0]), (other, changes[1])]
    at_input = [
        theirs(lambda r=r: captum_input.attribute(x, baselines=r, target=target), c)
        for r, c in calls
    ]
    at_stage = [
        theirs(lambda r=r: captum_stage.attribute(x, baselines=r, target=target), c)
        for r, c in calls
    ]
    return [*cells, ours[0], " / ".join(at_input), ours[1], " / ".join(at_stage)]


def main() -> None:
    """Print the table as Markdown."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--networks", nargs="+", default=NETWORKS)
    chosen = parser.parse_args().networks
    warnings.simplefilter("ignore")
    print(f"torch {torch.__version__}, {platform.machine()}, float32; black / photograph\n")
    print("| network | stage | afmi, input | Captum, input | afmi, stage | Captum, stage |")
    print("|---|---|---|---|---|---|")
    for name in chosen:
        print("| " + " | ".join(row(name)) + " |", flush=True)


if __name__ == "__main__":
    main()
