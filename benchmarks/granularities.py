"""Find what carries Multiscale A-FMI: each granularity alone, pairs, scalings, blurs and controls.

    python -m benchmarks.granularities --data samples.csv --model imagenet --half 1

For each variant: its mean difference to A-FMI, picture by picture, with a 95 % bootstrap interval,
in Accuracy-AUC and in the area under the probability of the class, which is the finer measure. The
choices of `afmi.methods.MultiscaleAFMI` were made on one half of the pictures (``--half 1``: every
second, from the first on) and are confirmed on the other (``--half 2``) and on other networks.
Controls: Grad-CAM in the place of A-FMI, ordinary gradients in that of modified ones, and a blob at
the centre, which knows nothing of the network.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from afmi.evaluation import LabelledImages, open_images
from afmi.gradients import modified_gradient
from afmi.methods import GradCAM, Gradient, InputXGradient
from afmi.metrics import chosen_metrics
from afmi.metrics.masking import ClassMaskedMetric
from afmi.models import load_model
from afmi.network.classifier import Classifier, classify
from afmi.network.guards import evaluation_mode
from afmi.network.layers import FinerStage, LayerChoice
from afmi.pictures.maps import upsample
from afmi.pictures.matrices import along_each, blurring
from afmi.pictures.references import Black
from afmi.progress import reporting, track
from afmi.report.statistics import means
from benchmarks.afmi_variants import progress

BLUR = 0.1
"""Shorter sides: the package's own for a blur that leaves no detail."""

Scaling = Callable[[Tensor], Tensor]


def deviation(maps: Tensor) -> Tensor:
    return maps.flatten(1).std(1)


def maximum(maps: Tensor) -> Tensor:
    return maps.flatten(1).amax(1)


def total(maps: Tensor) -> Tensor:
    return maps.flatten(1).clamp_min(0).sum(1)


@dataclass
class Granularities:
    """The maps of a batch at the images' size, (N, 1, H, W) each."""

    model: Classifier
    images: Tensor
    targets: Tensor

    def __post_init__(self) -> None:
        layer, size = LayerChoice(None), self.images.shape[2:]
        with torch.no_grad(), evaluation_mode(self.model):
            run = modified_gradient(
                self.model,
                self.images,
                layer=None,
                stages=[FinerStage(layer), layer],
                reference=Black(),
            )
            terms = run.stage_terms(self.targets[None])
        self.pixels, self.middle, self.last = (upsample(one.exact[0], size) for one in terms)
        self.averaged = upsample(terms[-1].averaged[0], size)

    def blurred(self, maps: Tensor, share: float = BLUR) -> Tensor:
        matrices = [matrix.T for matrix in blurring(self.images, share)]
        return along_each(matrices, maps)

    def variants(self) -> dict[str, Tensor]:
        """Return each variant's map."""
        of = (self.images, self.targets)
        a, pixels, middle = self.averaged, self.blurred(self.pixels), self.blurred(self.middle)
        grad_cam = GradCAM(self.model).attribute(*of)
        times_input = self.blurred(InputXGradient(self.model).attribute(*of))
        gradient = self.blurred(Gradient(self.model).attribute(*of))
        wide = [self.blurred(one, 0.125) for one in (self.middle, self.pixels)]
        narrow = [self.blurred(one, 0.0625) for one in (self.middle, self.pixels)]
        return {
            "A-FMI": a,
            "Grad-CAM": grad_cam,
            "A-FMI, blurred": self.blurred(a),
            "pixels": pixels,
            "middle stage": middle,
            "A-FMI + pixels": together(a, pixels),
            "A-FMI + middle stage": together(a, middle),
            "middle stage + pixels": together(middle, pixels),
            "all three": together(a, middle, pixels),
            "all three, scaled to one maximum": together(a, middle, pixels, scaling=maximum),
            "all three, scaled to one positive sum": together(a, middle, pixels, scaling=total),
            "all three, σ = 1/8": together(a, *wide),
            "all three, σ = 1/16": together(a, *narrow),
            "all three and the exact last stage": together(
                a, self.blurred(self.last), middle, pixels
            ),
            "all three, positive parts before the blur": together(
                a,
                self.blurred(self.middle.clamp_min(0)),
                self.blurred(self.pixels.clamp_min(0)),
            ),
            "control: Grad-CAM + Input×Gradient": together(grad_cam, times_input),
            "control: Grad-CAM + |gradient|": together(grad_cam, gradient),
            "control: A-FMI + |gradient|": together(a, gradient),
            "control: A-FMI + centre": together(a, self.centre()),
        }

    def centre(self) -> Tensor:
        """Return a Gaussian blob at the centre, as wide as a quarter of the side."""
        height, width = self.images.shape[2:]
        rows, columns = (
            torch.linspace(-1, 1, n, dtype=self.images.dtype, device=self.images.device)
            for n in (height, width)
        )
        blob = torch.exp(-(rows[:, None] ** 2 + columns[None] ** 2) / (2 * 0.5**2))
        return blob.expand(len(self.images), 1, height, width)


def together(*maps: Tensor, scaling: Scaling = deviation) -> Tensor:
    """Return the sum of maps that are brought to one scale."""
    return torch.stack([one / scaling(one).view(-1, 1, 1, 1) for one in maps]).sum(0)


def measure(
    model: Classifier, pictures: LabelledImages, metric: ClassMaskedMetric, names: list[str]
) -> dict[str, Tensor]:
    """Return each picture's two areas, (N, 2), by variant."""
    areas: dict[str, list[Tensor]] = {}
    for start in track(range(0, len(pictures), 8), "pictures"):
        rows = range(start, min(start + 8, len(pictures)))
        images = torch.cat([pictures.read(i) for i in rows])
        targets = torch.tensor([int(pictures.labels[i]) for i in rows])
        logits = classify(model, images)
        for name, maps in Granularities(model, images, targets).variants().items():
            if names and name != "A-FMI" and name not in names:
                continue
            curves = metric.curves(model, images, targets, maps, logits=logits)
            probability = torch.trapezoid(curves.probability, curves.fractions)
            both = torch.stack([curves.accuracy_areas, probability], 1)
            areas.setdefault(name, []).append(both)
    return {name: torch.cat(parts) for name, parts in areas.items()}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--data", required=True)
    parser.add_argument("--model", default="imagenet")
    parser.add_argument("--weights", default="default")
    parser.add_argument(
        "--metric", default="insertion:fractions=0.1+0.2+0.3+0.4+0.5+0.6+0.7+0.8+0.9+1"
    )
    parser.add_argument("--half", choices=["1", "2", "both"], default="both")
    parser.add_argument("--limit", type=int, default=None, help="pictures")
    parser.add_argument("--variants", default="", help="joined by semicolons; default: all")
    parser.add_argument("--threads", type=int, default=1)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    model = load_model(given.model, weights=given.weights).eval()
    pictures = open_images(given.data, model, limit=None)
    if given.half != "both":
        pictures = pictures.only(range(int(given.half) - 1, len(pictures), 2))
    if given.limit:
        pictures = pictures.only(range(min(given.limit, len(pictures))))
    (metric,) = chosen_metrics(given.metric).values()
    assert isinstance(metric, ClassMaskedMetric)
    with reporting(progress()):
        areas = measure(
            model, pictures, metric, [name for name in given.variants.split(";") if name]
        )
    base = areas.pop("A-FMI")
    print(
        f"{len(pictures)} pictures, {model.name}, {given.metric}; A-FMI: Accuracy-AUC "
        f"{float(base[:, 0].mean()):.4f}, area of the probability {float(base[:, 1].mean()):.4f}\n"
    )
    print("| variant | Accuracy-AUC less A-FMI's | area of the probability less A-FMI's |")
    print("|---|---|---|")
    for name, values in areas.items():
        cells = [
            f"{one.value:+.4f} ({one.low:+.4f} to {one.high:+.4f})"
            for one in means((values - base).numpy())
        ]
        print(f"| {name} | {cells[0]} | {cells[1]} |")


if __name__ == "__main__":
    main()
