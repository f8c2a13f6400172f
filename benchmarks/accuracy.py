"""How often a network is right about labelled pictures: top-1 and top-5.

    python benchmarks/accuracy.py --data FOLDER|CSV…  [--model imagenet …] [--limit N]

``--data`` and ``--model`` are what `afmi evaluate` takes; several of each are measured each by
each. Pictures are prepared as for explanations.
"""

from __future__ import annotations

import argparse

import torch

from afmi import Classifier, load_model
from afmi.data.labelled import LabelledImages, open_images


def right(model: Classifier, images: LabelledImages, batch: int = 16) -> torch.Tensor:
    """Return for each picture whether its class comes first, and whether it is in the first five.

    Returns:
        bool (N, 2).
    """
    parts = []
    places = min(5, len(model.labels) or 5)
    for start in range(0, len(images), batch):
        indices = range(start, min(start + batch, len(images)))
        labels = torch.tensor([images.labels[i] for i in indices])
        with torch.no_grad():
            first = model(torch.cat([images.read(i) for i in indices])).topk(places).indices.cpu()
        hits = first == labels[:, None]
        parts.append(torch.stack([hits[:, 0], hits.any(1)], 1))
    return torch.cat(parts)


def main() -> None:
    """Print a row of a table for each network and data set."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", nargs="+", required=True)
    parser.add_argument("--model", nargs="+", default=["imagenet"])
    parser.add_argument("--limit", type=int)
    args = parser.parse_args()
    print("| network | pictures | | top-1 | top-5 |\n|---|---|---|---|---|")
    for name in args.model:
        model = load_model(name)
        for data in args.data:
            hits = right(model, open_images(data, model, limit=args.limit))
            first, five = (100 * hits.double().mean(0)).tolist()
            print(f"| {name} | {data} | {len(hits)} | {first:.1f} % | {five:.1f} % |", flush=True)


if __name__ == "__main__":
    main()
