"""Print the accuracy of the demo network's weights on labelled pictures.

    python training/evaluate_demo.py --data DIR

DIR/val/<class>/ holds the pictures. Each is resized (antialiased bilinear) to a short side of
144 pixels, and its central 128 x 128 pixels are classified. Runs on a CPU in seconds.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from photo_data import centre_crops, list_photos, normalise
from safetensors.torch import load_file

import afmi.models.photos as network

WEIGHTS = Path(network.__file__).with_name("photo_vgg.safetensors")


def main() -> None:
    """Classify the pictures; print the accuracy of each class and of all of them."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--weights", type=Path, default=WEIGHTS)
    args = parser.parse_args()

    model = network.PhotoVGG().eval()
    state = load_file(args.weights)
    model.load_state_dict({k: v.float() if v.is_floating_point() else v for k, v in state.items()})
    images, labels = centre_crops(list_photos(args.data / "val"))
    with torch.inference_mode():
        scores = [model(normalise(x.float() / 255)) for x in images.split(64)]
    right = torch.cat(scores).argmax(1) == labels

    for index, label in enumerate(network.LABELS):
        of_class = right[labels == index]
        print(f"{label:17} {int(of_class.sum()):4} of {len(of_class):4}")
    print(f"top-1 {100 * right.float().mean():.2f} %  ({int(right.sum())} of {len(right)})")


if __name__ == "__main__":
    main()
