"""A network that nobody said how to prepare pictures for says so, once."""

from __future__ import annotations

import warnings
from pathlib import Path

import pytest
from networks import build, images
from PIL import Image

import afmi
from afmi.errors import PreprocessingWarning
from afmi.network.classifier import Classifier


def picture() -> Image.Image:
    return Image.fromarray((images(1)[0].permute(1, 2, 0) * 255).byte().numpy())


def test_a_bare_network_warns_once_when_it_is_given_a_file_or_a_picture(tmp_path: Path) -> None:
    picture().save(tmp_path / "dog.png")
    for image in (tmp_path / "dog.png", picture()):
        network = build("vgg")
        with pytest.warns(PreprocessingWarning, match=r"TinyVGG .*Classifier\.of\(network\)"):
            afmi.explain(network, image, method="gradient")
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            afmi.explain(network, image, method="gradient")


def test_tensors_and_classifiers_do_not_warn() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        afmi.explain(build("vgg"), images(1)[0], method="gradient")
        afmi.explain(Classifier(build("vgg")), picture(), method="gradient")
