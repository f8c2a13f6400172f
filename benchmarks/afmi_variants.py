"""Compare variants of A-FMI with Grad-CAM by insertion, picture by picture.

    python benchmarks/afmi_variants.py --data photographs/ --layers features.26,features.27
    python benchmarks/afmi_variants.py --data val/ --model squeezenet1_0 --weights net.safetensors

For each variant: Accuracy-AUC, and its mean paired difference to Grad-CAM at the same layer with a
95 % bootstrap interval. Variants: modified gradients averaged over all positions (the paper's),
over 5×5 or 3×3 neighbours, or not at all (exact); only the positive terms of the exact sum; only
positive FMI; and the averaged and exact forms against other references. ``--skip`` leaves out the
first pictures of each class, on which a choice may have been made before.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from afmi.evaluation import LabelledImages, open_images
from afmi.gradients import modified_gradient
from afmi.methods import GradCAM
from afmi.metrics import Insertion, chosen_metrics
from afmi.models import load_model
from afmi.network.classifier import Classifier, classify
from afmi.network.guards import evaluation_mode
from afmi.network.layers import resolve_layer
from afmi.pictures.maps import upsample
from afmi.pictures.references import Reference
from afmi.progress import duration, reporting, track
from afmi.report.statistics import means
from afmi.specs import parse

REFERENCES = ("black", "white", "random", "mean", "blurred", "black+white+random")


def averaged(gradients: Tensor, change: Tensor) -> Tensor:
    """Eq. 6–7: FMI is the mean over all positions."""
    return (gradients.mean((2, 3), keepdim=True) * change).sum(1, keepdim=True)


def exact(gradients: Tensor, change: Tensor) -> Tensor:
    """Each position keeps its own modified gradient."""
    return (gradients * change).sum(1, keepdim=True)


def local(size: int) -> Callable[[Tensor, Tensor], Tensor]:
    """Average over ``size`` × ``size`` neighbours; the border is repeated outwards."""

    def variant(gradients: Tensor, change: Tensor) -> Tensor:
        padded = F.pad(gradients, [size // 2] * 4, mode="replicate")
        return exact(F.avg_pool2d(padded, size, 1), change)

    return variant


def positive_terms(gradients: Tensor, change: Tensor) -> Tensor:
    """The exact sum without its negative terms."""
    return (gradients * change).clamp_min(0).sum(1, keepdim=True)


def positive_importance(gradients: Tensor, change: Tensor) -> Tensor:
    """Only maps whose FMI is positive."""
    importance = gradients.mean((2, 3), keepdim=True).clamp_min(0)
    return (importance * change).sum(1, keepdim=True)


def variants(
    model: Classifier, layer: str | None, images: Tensor, targets: Tensor
) -> dict[str, Tensor]:
    """Return the map (N, 1, h, w) of each variant at one layer."""
    found: dict[str, Tensor] = {"Grad-CAM": GradCAM(model, layer=layer).attribute(images, targets)}
    forms: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
        "averaged (the paper's)": averaged,
        "averaged 5×5": local(5),
        "averaged 3×3": local(3),
        "exact": exact,
        "exact, positive terms": positive_terms,
        "averaged, positive FMI": positive_importance,
    }
    for name in REFERENCES:
        reference = parse(name, Reference)
        with torch.no_grad(), evaluation_mode(model):
            place = resolve_layer(model, layer, images)
            run = modified_gradient(model, images, layer=place, reference=reference)
            parts = [
                (run.gradients(targets[None], r)[0], run.change(r))
                for r in range(len(run.references))
            ]
        for form, variant in forms.items():
            if name == "black" or form in ("averaged (the paper's)", "exact"):
                maps = torch.stack([variant(*part) for part in parts]).mean(0)
                found[form if name == "black" else f"{form}, {name}"] = maps
    return found


def measure(
    model: Classifier, images: LabelledImages, layers: list[str | None], metric: Insertion
) -> dict[str | None, dict[str, Tensor]]:
    """Return each picture's Accuracy-AUC by layer and variant."""
    areas: dict[str | None, dict[str, list[Tensor]]] = {layer: {} for layer in layers}
    starts = range(0, len(images), 8)
    for start in track(starts, "pictures"):
        rows = range(start, min(start + 8, len(images)))
        batch = torch.cat([images.read(i) for i in rows])
        targets = torch.tensor([int(images.labels[i]) for i in rows])
        logits = classify(model, batch)
        for layer in layers:
            for name, maps in variants(model, layer, batch, targets).items():
                full = upsample(maps, (batch.shape[2], batch.shape[3]))
                curves = metric.curves(model, batch, targets, full, logits=logits)
                areas[layer].setdefault(name, []).append(curves.accuracy_areas)
    return {
        layer: {name: torch.cat(parts) for name, parts in found.items()}
        for layer, found in areas.items()
    }


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--data", required=True)
    parser.add_argument("--model", default="photos")
    parser.add_argument("--weights", default="default")
    parser.add_argument("--layers", default="", help="joined by commas; default: the last stage")
    parser.add_argument("--canvas", default="black")
    parser.add_argument("--limit", type=int, default=110, help="pictures, after those skipped")
    parser.add_argument("--skip", type=int, default=0, help="pictures, the classes in turn")
    parser.add_argument("--threads", type=int, default=1)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    model = load_model(given.model, weights=given.weights).eval()
    chosen = open_images(given.data, model, limit=given.skip + given.limit)
    if given.skip:
        seen = set(chosen.limited(given.skip).keys)
        chosen = chosen.only([i for i, key in enumerate(chosen.keys) if key not in seen])
    (metric,) = chosen_metrics(f"insertion:canvas={given.canvas}").values()
    assert isinstance(metric, Insertion)
    layers: list[str | None] = [name or None for name in given.layers.split(",")]
    with reporting(progress()):
        found = measure(model, chosen, layers, metric)
    print(f"{len(chosen)} pictures, {model.name}, {given.canvas} canvas\n")
    print("| layer | variant | Accuracy-AUC | less Grad-CAM's | 95 % interval |")
    print("|---|---|---|---|---|")
    for layer, areas in found.items():
        for name, values in areas.items():
            (less,) = means((values - areas["Grad-CAM"]).numpy()[:, None])
            print(
                f"| {layer or 'last stage'} | {name} | {float(values.mean()):.4f} "
                f"| {less.value:+.4f} | {less.low:+.4f} to {less.high:+.4f} |"
            )


def progress() -> Callable[[str, int, int], None]:
    """Return a reporter that says on stderr how long it will take."""
    import sys
    import time

    began = time.monotonic()

    def tell(what: str, done: int, total: int) -> None:
        if what == "pictures" and done:
            left = (time.monotonic() - began) * (total - done) / done
            print(f"{done}/{total}, {duration(left)} left", file=sys.stderr)

    return tell


if __name__ == "__main__":
    main()
