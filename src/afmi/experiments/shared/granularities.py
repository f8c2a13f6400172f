"""The values that features of each granularity take over many pictures, as one table each."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from afmi.errors import AfmiError, UsageError
from afmi.evaluation import LabelledImages
from afmi.gradients.forward_pass import forward_pass
from afmi.network.classifier import Classifier
from afmi.network.graph import Dataflow, first_tensor
from afmi.network.guards import watching_module
from afmi.network.layers import Place, resolve_layer
from afmi.network.randomness import generator_of
from afmi.network.wrappers import within
from afmi.pictures.batches import neighbours
from afmi.pictures.dimensions import places
from afmi.progress import track

__all__ = ["CELLS", "Features", "Granularities", "collected"]

EARLIER = "feature maps, earlier"
"""The granularity of the maps of stages before the last."""

CELLS = 14
"""Superpixels are the squares of a grid of so many by so many, the same in each picture."""


@dataclass(frozen=True)
class Features:
    """One granularity's features over the pictures.

    Attributes:
        granularity: pixels, superpixels or feature maps.
        values: what one of them is.
        where: the layer; of pixels and superpixels the input.
        table: (pictures, features), float32; those that never change are left out.
    """

    granularity: str
    values: str
    where: str
    table: np.ndarray

    @property
    def attributed(self) -> bool:
        """Tell whether attribution methods use them, which take no maps of earlier stages."""
        return self.granularity != EARLIER


@dataclass(frozen=True)
class Granularities:
    """What `collected` found.

    Attributes:
        features: of each granularity, the finest first.
        scores: the network's outputs (pictures, C).
        unreadable: pictures that could not be read.
    """

    features: tuple[Features, ...]
    scores: np.ndarray
    unreadable: int


def collected(model: Classifier, images: LabelledImages, *, batch: int) -> Granularities:
    """Run the network on the pictures and keep the values of the features of each granularity.

    - Pixels: the mean over the channels after the network's own normalisation.
    - Superpixels: the mean of these pixels over each square of a grid; segments that follow the
      picture are other features in each, with nothing to correlate.
    - Feature maps of the last stage, where A-FMI and Grad-CAM take them: the mean of each over its
      places; all maps at one place, drawn for each picture; and their entries.
    - Feature maps of earlier stages: of each other size of maps the last through which every path
      to the outputs leads; the mean of each over its places.

    Kept in memory: 4 bytes for each pixel and each entry of the last stage of each picture.

    Args:
        model: takes pictures, (N, C, H, W).
        images: all of one size.
        batch: pictures that go through the network at once.

    Raises:
        UsageError: when the pictures differ in size.
        LayerError: when the network has no last stage.
    """
    first = images.first()
    last = resolve_layer(model, None, first)
    earlier = _earlier_stages(model, first, last)
    kept: dict[str, list[Tensor]] = {}
    unreadable: list[int] = []
    generator = generator_of(0)
    for inputs in _batches(images, first, batch, unreadable):
        for name, values in _values(model, inputs, last, earlier, generator).items():
            kept.setdefault(name, []).append(values.to("cpu", torch.float32))
    tables = {name: torch.cat(kept.pop(name)).numpy() for name in list(kept)}
    scores = tables.pop("scores")
    maps = {name: (EARLIER, "mean over places", name) for name in earlier}
    about = {
        "pixels": ("pixels", "intensity", "input"),
        "superpixels": ("superpixels", f"mean of a {CELLS} × {CELLS} grid's square", "input"),
        **maps,
        "means": ("feature maps", "mean over places", str(last[1])),
        "places": ("feature maps", "at one place of each picture", str(last[1])),
        "entries": ("feature maps", "entry", str(last[1])),
    }
    features = [Features(*about[name], _changing(tables.pop(name))) for name in about]
    return Granularities(tuple(features), scores, len(unreadable))


def _values(
    model: Classifier,
    inputs: Tensor,
    last: Place,
    earlier: dict[str, nn.Module],
    generator: torch.Generator,
) -> dict[str, Tensor]:
    """Return each granularity's features of a batch, (N, features), and the scores (N, C)."""
    values: dict[str, Tensor] = {}
    with ExitStack() as stack:
        for name, module in earlier.items():

            def keep(output: object, name: str = name) -> None:
                maps = first_tensor(output)
                assert maps is not None  # it gave maps when the stages were sought
                values[name] = maps.detach().mean(places(maps))

            stack.enter_context(watching_module(module, keep))
        run = forward_pass(model, inputs, layer=last)
    flat = run.features.flatten(2)
    drawn = torch.rand(len(flat), generator=generator, dtype=torch.float64, device="cpu")
    place = (drawn * flat.shape[2]).long().to(flat.device)
    grey = ((inputs - model.mean) / model.std).mean(1, keepdim=True)
    return values | {
        "pixels": grey.flatten(1),
        "superpixels": F.adaptive_avg_pool2d(grey, CELLS).flatten(1),
        "means": flat.mean(2),
        "places": flat[torch.arange(len(flat), device=flat.device), :, place],
        "entries": flat.flatten(1),
        "scores": run.logits,
    }


def _batches(
    images: LabelledImages, first: Tensor, batch: int, unreadable: list[int]
) -> Iterator[Tensor]:
    """Yield the pictures that can be read in batches; note the others."""

    def readable() -> Iterator[Tensor]:
        for index in track(range(len(images)), f"features of {images.name}"):
            try:
                picture = images.read(index)
            except AfmiError:
                unreadable.append(index)
                continue
            if picture.shape != first.shape:
                raise UsageError(
                    f"expected pictures of one size, so that features are comparable, got "
                    f"{tuple(first.shape[1:])} and {tuple(picture.shape[1:])}; give --resize and "
                    "--crop"
                )
            yield picture

    for pictures in neighbours(readable(), batch, lambda picture: picture.shape):
        yield torch.cat(pictures)


def _earlier_stages(model: Classifier, image: Tensor, last: Place) -> dict[str, nn.Module]:
    """Return the module that gives the last maps of each size before the last stage, by its name.

    Every path to the outputs leads through these maps, so that they hold all that the rest of the
    network knows.
    """
    flow = Dataflow.of(model, image[:1])
    dominating = {id(step.output) for step in flow.dominators()}
    names = {module: name for name, module in within(model).named_modules() if name}
    stages: dict[torch.Size, nn.Module] = {}
    size = image.shape[2:]
    for call in flow.calls:
        maps = call.output
        if call.module in names and id(maps) in dominating and flow.channels(maps) == 1:
            size = maps.shape[2:]
            if maps.dim() == image.dim() and size.numel() > 1:
                stages[size] = call.module
        if call.module is last[0]:
            break
    stages.pop(size, None)
    return {names[module]: module for module in stages.values()}


def _changing(table: np.ndarray) -> np.ndarray:
    """Leave out the features that are the same, but for rounding, in all pictures."""
    spread = table.std(0, dtype=np.float64)
    size = np.abs(table).max(0)
    return table[:, spread > 1e-6 * np.maximum(size, np.finfo(np.float32).tiny)]
