"""Measure when A-FMI's averaging hides evidence: a corner patch that a network learnt to read.

    python -m benchmarks.averaging --train photos11/train --data photos11/val
    python -m benchmarks.averaging --model photos --data photos11/val

A small VGG with fully connected layers is trained on photographs of which a share of one class
carries a white patch in the top left corner. Printed for the patched photographs of that class, and
for photographs of all classes without a patch: the share of the averaged and of the exact map's
positive mass on the patch, and quantiles of the two maps' rank correlation
(`afmi.explanation.AGREEMENT` is chosen by them). With ``--model`` nothing is trained, and only the
rank correlations of that network on labelled pictures are printed.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from afmi.evaluation import open_images
from afmi.methods import AFMI
from afmi.models import load_model
from afmi.network.classifier import Classifier, classify
from afmi.network.guards import evaluation_mode

SIDE, PATCH = 64, 10
QUANTILES = (0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99)


class SmallVGG(nn.Sequential):
    """Four stages of convolution, and three fully connected layers that read positions."""

    def __init__(self, classes: int) -> None:
        layers: list[nn.Module] = []
        for before, after in ((3, 32), (32, 64), (64, 96), (96, 128)):
            layers += [
                nn.Conv2d(before, after, 3, padding=1, bias=False),
                nn.BatchNorm2d(after),
                nn.ReLU(),
                nn.MaxPool2d(2),
            ]
        head = [nn.Linear(128 * 16, 128), nn.ReLU(), nn.Linear(128, 64), nn.ReLU()]
        super().__init__(*layers, nn.Flatten(), *head, nn.Linear(64, classes))


def photographs(folder: Path, per_class: int) -> tuple[Tensor, Tensor]:
    """Return the first photographs of each class, (N, 3, SIDE, SIDE) uint8, and the classes."""
    pictures, classes = [], []
    for label, place in enumerate(sorted(p for p in folder.iterdir() if p.is_dir())):
        for path in sorted(place.iterdir())[:per_class]:
            with Image.open(path) as picture:
                small = picture.convert("RGB").resize((SIDE, SIDE), Image.Resampling.BILINEAR)
            pictures.append(torch.from_numpy(np.array(small)).movedim(2, 0))
            classes.append(label)
    return torch.stack(pictures), torch.tensor(classes, device="cpu")


def patched(images: Tensor) -> Tensor:
    """Return images with a white patch in the top left corner."""
    images = images.clone()
    images[..., :PATCH, :PATCH] = 255 if images.dtype == torch.uint8 else 1
    return images


def trained(
    images: Tensor, labels: Tensor, *, planted: int, share: float, epochs: int, seed: int
) -> Classifier:
    """Return a network trained on images of which a share of one class carries the patch."""
    torch.manual_seed(seed)
    marked = (labels == planted) & (torch.rand(len(labels), device="cpu") < share)
    images = torch.where(marked[:, None, None, None], patched(images), images)
    network = SmallVGG(int(labels.max()) + 1).to(memory_format=torch.channels_last)
    model = Classifier(network, mean=(0.5,) * 3, std=(0.25,) * 3)
    batches = epochs * (len(images) // 64)
    optimiser = torch.optim.AdamW(network.parameters(), weight_decay=0.01)
    rate = torch.optim.lr_scheduler.OneCycleLR(optimiser, 3e-3, total_steps=batches)
    order = torch.cat([torch.randperm(len(images), device="cpu") for _ in range(epochs)])
    model.train()
    for batch in order[: batches * 64].split(64):
        loss = F.cross_entropy(model(images[batch].float() / 255), labels[batch])
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        rate.step()
    return model.eval()


def on_patch(maps: Tensor) -> Tensor:
    """Return the share of each map's positive mass that lies on the patch, (N,)."""
    positive = maps.clamp_min(0)
    return positive[..., :PATCH, :PATCH].sum((1, 2, 3)) / positive.sum((1, 2, 3))


def line(name: str, model: Classifier, images: Tensor) -> None:
    """Print the maps' shares on the patch, and how far they agree."""
    averaged = AFMI(model).attribution(images)
    exact = AFMI(model, averaged=False).attribute(images)
    agreement = averaged.agreement
    assert agreement is not None
    quantiles = torch.quantile(agreement, torch.tensor(QUANTILES, dtype=torch.float64))
    print(
        f"{name:22} {on_patch(averaged.maps).mean():9.2f} {on_patch(exact).mean():9.2f}  "
        + " ".join(f"{q:6.2f}" for q in quantiles.tolist())
    )


def of_network(name: str, weights: str, data: Path, limit: int) -> None:
    """Print how far the maps of a network's labelled classes agree."""
    model = load_model(name, weights=weights)
    pictures = open_images(data, model, limit=limit)
    method, agreements = AFMI(model), []
    for i, label in enumerate(pictures.labels):
        agreements.append(method.attribution(pictures.read(i), int(label)).agreement)
    quantiles = torch.quantile(torch.cat(agreements), torch.tensor(QUANTILES, dtype=torch.float64))
    print(f"{len(agreements)} pictures, {model.name}")
    print(" ".join(f"{q:6.0%}" for q in QUANTILES))
    print(" ".join(f"{q:6.2f}" for q in quantiles.tolist()))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--train", type=Path)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--model")
    parser.add_argument("--weights", default="default")
    parser.add_argument("--limit", type=int, default=100, help="pictures, with --model")
    parser.add_argument("--per-class", type=int, default=400)
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--share", type=float, default=0.4)
    args = parser.parse_args()
    if args.model is not None:
        of_network(args.model, args.weights, args.data, args.limit)
        return
    if args.train is None:
        parser.error("expected --train, the photographs to train on, or --model")
    images, labels = photographs(args.train, args.per_class)
    held_out, truth = photographs(args.data, 30)
    quantiles = " ".join(f"{q:6.0%}" for q in QUANTILES)
    print(f"{'':22} {'averaged':>9} {'exact':>9}  {quantiles}")
    for seed in range(args.seeds):
        planted = 3 * seed
        model = trained(
            images, labels, planted=planted, share=args.share, epochs=args.epochs, seed=seed
        )
        pictures = held_out.float() / 255
        of_class = pictures[truth == planted]
        with evaluation_mode(model), torch.no_grad():
            plain, marked = classify(model, of_class), classify(model, patched(of_class))
            correct = (classify(model, pictures).argmax(1) == truth).double().mean()
        added = (marked - plain)[:, planted].mean()
        print(
            f"seed {seed}: {correct:.0%} correct, the patch adds {added:.1f} to the class's logit"
        )
        line("  with the patch", model, patched(of_class))
        line("  without", model, pictures)


if __name__ == "__main__":
    main()
