"""Photographs that come with scikit-image and scikit-learn, and whose they are."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import skimage.data
from PIL import Image

from afmi.pictures.images import read_image

__all__ = [
    "CAMERA",
    "CAT",
    "COFFEE",
    "COINS",
    "ROCKET",
    "TEMPLE",
    "Credited",
    "scikit_image_photographs",
    "scikit_learn_photograph",
]

CAT, COFFEE, CAMERA, TEMPLE, ROCKET, COINS = (
    "Stéfan van der Walt (CC0)",
    "Rachel Michetti (CC0)",
    "Lav Varshney (CC0)",
    "Daniel Buechele (CC BY 2.0)",
    "SpaceX (public domain)",
    "Brooklyn Museum (no known copyright restrictions)",
)
"""Whose photographs these are; NOTICE says more."""


@dataclass(frozen=True)
class Credited:
    """A photograph with the name of whoever made it.

    Attributes:
        name: of its file.
        title: what it shows.
        credit: whose it is, and under which licence.
        picture: RGB.
    """

    name: str
    title: str
    credit: str
    picture: Image.Image


def scikit_image_photographs() -> list[Credited]:
    """Return those that come with scikit-image, read from its folder."""
    return [
        Credited(f"{load.__name__}.png", title, credit, read_image(load()))
        for load, title, credit in (
            (skimage.data.chelsea, "A cat", CAT),
            (skimage.data.coffee, "Coffee", COFFEE),
            (skimage.data.camera, "A camera", CAMERA),
            (skimage.data.rocket, "A rocket", ROCKET),
        )
    ]


def scikit_learn_photograph(name: str) -> Image.Image | None:
    """Return a photograph that scikit-learn ships, or None where that is not installed."""
    spec = find_spec("sklearn")
    if spec is None or spec.origin is None:
        return None
    path = Path(spec.origin).parent / "datasets" / "images" / name
    return read_image(path) if path.exists() else None
