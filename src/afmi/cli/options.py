"""The options by which every command that runs a network lets the user choose it."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import click

from afmi.cli.files import NUMBERS, SIZE

__all__ = ["model_options"]

_OPTIONS = (
    click.option(
        "--model",
        metavar="NAME",
        default="photos",
        help="Network: photos (embedded: ten ImageNet classes and cat), a torchvision name "
        "(`afmi models`), timm:NAME, hf:OWNER/NAME or hf:FOLDER (transformers), or a factory, "
        "package.module:function or path/to/file.py:function.",
    ),
    click.option(
        "--weights",
        default="default",
        metavar="FILE|default|none",
        help="A .safetensors or .pth file, default: those that come with the network "
        "(downloaded once), none: random.",
    ),
    click.option("--device", metavar="NAME", default="auto", help="auto, cpu, cuda or cuda:1."),
    click.option("--mean", type=NUMBERS, metavar="R,G,B", help="Own network: mean, in [0, 1]."),
    click.option("--std", type=NUMBERS, metavar="R,G,B", help="Own network: standard deviation."),
    click.option(
        "--labels",
        metavar="FILE",
        help="Own network: names of the classes, one per line, or JSON.",
    ),
    click.option("--resize", type=SIZE, metavar="PIXELS", help="Own network: short side, or HxW."),
    click.option(
        "--crop", type=SIZE, metavar="PIXELS", help="Own network: central square, or HxW."
    ),
)


def model_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options, and hand them over as ``network``: what `afmi.load_model` takes."""

    @functools.wraps(command)
    def with_network(*args: Any, **kwargs: Any) -> Any:
        network = {"name": kwargs.pop("model"), "weights": kwargs.pop("weights")}
        if network["weights"].casefold() == "none":
            network["weights"] = None
        for name in ("device", "mean", "std", "labels", "resize", "crop"):
            network[name] = kwargs.pop(name)
        return command(*args, network=network, **kwargs)

    decorated: Callable[..., Any] = with_network
    for option in reversed(_OPTIONS):
        decorated = option(decorated)
    return decorated
