"""A small labelled network for the page, and photographs."""

from __future__ import annotations

import io

import pytest
import torch
from PIL import Image
from torch import nn

from afmi.app.choices import Choices
from afmi.app.photographs import named_content
from afmi.network.classifier import Classifier
from afmi.pictures.images import FileContent

LABELS = ["tabby cat", "tiger cat", "crane", "crane", "<b>owl</b>"]


def network() -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Sequential(
            nn.Conv2d(3, 4, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(196, 5)
        )


@pytest.fixture(scope="session")
def model() -> Classifier:
    """Five classes, two of one name and one with marks of HTML; sees the central 16 × 16."""
    return Classifier(network(), labels=LABELS, resize=16, crop=16, name="small")


@pytest.fixture(scope="session")
def choices(model: Classifier) -> Choices:
    """What can be chosen for it."""
    return Choices.of(model)


def picture(color: str = "red", size: tuple[int, int] = (32, 20)) -> Image.Image:
    made = Image.new("RGB", size, color)
    made.paste("white", (4, 4, 12, 9))
    return made


@pytest.fixture
def content() -> FileContent:
    """A PNG file called red.png, wider than high."""
    picture().save(buffer := io.BytesIO(), "PNG")
    return named_content(buffer.getvalue(), "red.png")


@pytest.fixture
def animation() -> FileContent:
    """A GIF of three frames."""
    frames = [picture(color) for color in ("red", "green", "blue")]
    frames[0].save(buffer := io.BytesIO(), "GIF", save_all=True, append_images=frames[1:])
    return named_content(buffer.getvalue(), "three.gif")
