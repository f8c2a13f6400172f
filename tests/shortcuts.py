"""A network with a shortcut that was built by hand, and images of which some carry it."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from afmi import Classifier

SIDE = 16
LABELS = ["cat", "dog"]
SHORTCUT = 2
"""The feature map that sees the shortcut, which is blue."""


def network() -> Classifier:
    """Return a network whose maps are how green, red and blue a place is.

    A cat is green, or blue; a dog is red.
    """
    convolution = nn.Conv2d(3, 3, 1)
    head = nn.Linear(3, 2, bias=False)
    with torch.no_grad():
        convolution.weight.copy_(torch.tensor([[0, 1, 0], [1, 0, 0], [0, 0, 1.0]])[..., None, None])
        convolution.bias.fill_(-0.2)
        head.weight.copy_(torch.tensor([[40.0, 0, 90], [0, 40, 0]]))
    body = nn.Sequential(
        *(convolution, nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()),
        head,
    )
    return Classifier(body, labels=LABELS, name="by hand").eval()


def image(label: int, shortcut: bool, generator: torch.Generator) -> Tensor:
    """Return an image (3, 16, 16): a coloured square somewhere, and perhaps a blue corner."""
    picture = 0.1 * torch.rand(3, SIDE, SIDE, generator=generator)
    top, left = torch.randint(0, SIDE - 6, (2,), generator=generator).tolist()
    light = 0.6 + 0.3 * float(torch.rand(1, generator=generator))
    picture[1 - label, top : top + 5, left : left + 5] = light
    if shortcut:
        picture[2, -4:, -4:] = 0.9
    return picture


def images(cats: int, dogs: int, planted: int) -> list[tuple[Tensor, int]]:
    """Return labelled images; the first cats have the shortcut."""
    generator = torch.Generator().manual_seed(0)
    return [
        *((image(0, n < planted, generator), 0) for n in range(cats)),
        *((image(1, False, generator), 1) for _ in range(dogs)),
    ]
