"""Compare methods on one picture: the paper's Figures 1, 5 and 10."""

from __future__ import annotations

import io
import math
import os
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import PIL.Image
import torch
from torch import Tensor, nn

from afmi.api import explain
from afmi.batching import AnyImage, prepare
from afmi.errors import AfmiError, LayerError, OperationError
from afmi.explanation import Explanation, identity_of_record, image_tag, number
from afmi.files import save_record, slug
from afmi.methods import BlankMapWarning, Gradient, MethodsLike, chosen_methods
from afmi.network.classifier import classify
from afmi.network.wrappers import runnable
from afmi.pictures import figures
from afmi.pictures.maps import top_mask
from afmi.progress import counted, duration
from afmi.records import SCHEMA
from afmi.targets import OneTarget, response

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["FRACTIONS", "Comparison", "Estimate", "compare", "estimate", "inserted_responses"]

FRACTIONS = (0.05, 0.1, 0.2, 0.3, 0.4, 0.5)
"""The shares of the pixels that the paper's figures keep."""

_SHOWN_SIDE = 1600
"""Pixels of the figure in a notebook."""


@dataclass(frozen=True)
class Estimate:
    """How long methods will take: their passes, times what a pass takes on this machine.

    Attributes:
        seconds: for each method's label.
    """

    seconds: dict[str, float]

    @property
    def total(self) -> float:
        """Seconds for all of them."""
        return sum(self.seconds.values())

    def text(self, runs: int = 1) -> str:
        """Return what so many runs take: ``about 5 min on this machine (RISE: 4 min)``."""
        slowest = max(self.seconds, key=self.seconds.__getitem__)
        return (
            f"about {duration(runs * self.total)} on this machine "
            f"({slowest}: {duration(runs * self.seconds[slowest])})"
        )


@dataclass(frozen=True)
class Comparison:
    """The explanations of one image and class by several methods.

    Attributes:
        explanations: one for each supported method, in the order asked for.
        responses: for each of them, the probability of the class (or the score of another
            target) when only the top ``fractions`` of the pixels are kept and the rest is black;
            NaN where the network gives NaN for these.
        refused: the reason why each other method is not supported, by its label.
        seconds: that each method took, by its label.
        fractions: the shares of the pixels.
    """

    explanations: tuple[Explanation, ...]
    responses: tuple[tuple[float, ...], ...]
    refused: dict[str, str]
    seconds: dict[str, float]
    fractions: tuple[float, ...]

    def figure(self) -> Figure:
        """Draw methods in columns: the map over the picture, then ever more of its pixels."""
        first = self.explanations[0]
        side = 480 if len(self.explanations) <= 4 else 300
        original = figures.Panel(first.original())
        rows = [[original, *(figures.Panel(e.overlay()) for e in self.explanations)]]
        for i, fraction in enumerate(self.fractions):
            inserted = [
                figures.Panel(e.insertion(fraction), subtitle=_subtitle(p[i], e))
                for e, p in zip(self.explanations, self.responses, strict=True)
            ]
            rows.append([figures.Panel(None), *inserted])
        what = f"numbers: the {first.unit}" if first.probability is None else "percentages: the "
        what += "" if first.probability is None else "probability of the class"
        note = (
            f"model {first.model} · the rest of the pixels is black · {what} that the network "
            "gives the pixels shown"
        )
        if first.compared:
            note += f" · warm: {first.ends[0]}, cool: {first.ends[1]}"
        if self.refused:
            note += f" · cannot be used on this network: {', '.join(self.refused)}"
        return figures.grid(
            rows,
            row_titles=["map", *(f"{fraction:.0%}" for fraction in self.fractions)],
            column_titles=["picture", *(e.method for e in self.explanations)],
            title=first.answer,
            note=note,
            side=side,
        )

    def save(self, folder: str | os.PathLike[str], stem: str | None = None) -> dict[str, Path]:
        """Write the figure and the numbers to a folder, as `Explanation.save` does.

        The files are named ``<stem>-comparison…``. Saving the same comparison again replaces them;
        another one that would get the same names is numbered (``…-2``).

        Args:
            folder: where to; made where missing.
            stem: the beginning of the names; None: the source's name, or ``image``.

        Returns:
            The paths: ``figure`` (PNG) and ``record`` (JSON, of `to_dict`).

        Raises:
            AfmiError: when they cannot be written.
        """
        source = self.explanations[0].source
        if stem is None:
            stem = Path(source).stem if source else "image"
        figure = self.figure()
        return save_record(
            Path(folder),
            f"{slug(stem, 120)}-comparison".lstrip("-"),
            {"figure": (".png", lambda file: figures.figure_png(figure, file))},
            self.to_dict(),
            lambda record: [
                record["fractions"],
                *(identity_of_record(one) for one in record["methods"]),
            ],
        )

    def to_dict(self) -> dict[str, Any]:
        """Return the numbers and records as JSON holds them."""
        return {
            "schema": SCHEMA,
            "fractions": list(self.fractions),
            "scores": self.explanations[0].to_dict()["scores"],  # the same for all of them
            "methods": [
                {
                    **e.to_dict(),
                    "scores": None,
                    "inserted_responses": list(p),
                    "seconds": self.seconds[e.method],
                }
                for e, p in zip(self.explanations, self.responses, strict=True)
            ],
            "refused": self.refused,
        }

    @cached_property
    def _png(self) -> bytes:
        buffer = io.BytesIO()
        figures.figure_png(self.figure(), buffer)
        return buffer.getvalue()

    def _repr_png_(self) -> bytes:
        return self._png

    def _repr_html_(self) -> str:
        with PIL.Image.open(io.BytesIO(self._png)) as picture:
            return image_tag(picture.convert("RGB"), self.alt_text, _SHOWN_SIDE)

    @property
    def alt_text(self) -> str:
        """What its figure shows, for those who cannot see it."""
        each = (f"{one.method}: {one.where}" for one in self.explanations)
        return f"{self.explanations[0].answer}, explained by several methods. {'; '.join(each)}."


def _subtitle(response: float, of: Explanation) -> str:
    # NaN where the network gives no outputs for the pixels shown.
    if math.isnan(response):
        return f"no output for {of.label}"
    if of.probability is None:
        return f"{of.unit} {number(response)}"
    return f"{response:.0%} {of.label}"


def estimate(model: nn.Module, image: AnyImage, methods: MethodsLike = "all") -> Estimate:
    """Estimate how long methods will take on an image, from a few timed passes.

    Args:
        model: as in `afmi.explain`.
        image: as in `afmi.explain`.
        methods: as in `compare`.
    """
    model = runnable(model)
    inputs = prepare(model, image)
    batch = inputs.expand(8, *inputs.shape[1:]).contiguous()
    forward = _seconds(lambda: classify(model, batch)) / 8
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", BlankMapWarning)
            both = _seconds(lambda: Gradient(model).attribute(batch)) / 8
    except AfmiError:  # then methods of gradients are refused
        both = 2 * forward
    backward = max(both - forward, forward)
    chosen = chosen_methods(model, methods)
    work = {label: method.work(inputs) for label, method in chosen.items()}
    return Estimate(
        {name: w.forwards * forward + w.backwards * backward for name, w in work.items()}
    )


def _seconds(action: Callable[[], Tensor]) -> float:
    action().cpu()
    start = time.perf_counter()
    action().cpu()  # not there before the device has finished
    return time.perf_counter() - start


def compare(
    model: nn.Module,
    image: AnyImage,
    target: OneTarget | None = None,
    *,
    methods: MethodsLike = "all",
    fractions: Sequence[float] = FRACTIONS,
    on_result: Callable[[Explanation, float], object] | None = None,
    progress: bool | None = None,
) -> Comparison:
    """Explain one image by several methods and insert ever more of the pixels each ranks first.

    Args:
        model: as in `afmi.explain`.
        image: as in `afmi.explain`.
        target: as in `afmi.explain`.
        methods: see `afmi.methods.chosen_methods`; one method may come with several parameters.
        fractions: shares of the pixels, from 0 to 1, for the insertion views.
        on_result: called with each explanation and its seconds as soon as it is made.
        progress: whether to show how far it has come. None: in a terminal and in a notebook.

    Returns:
        A `Comparison`, which draws itself. Methods that the network does not support (CAM on one
        with a deep head) are listed with the reason, and do not stop the others.

    Raises:
        AfmiError: when the network supports none of the methods.
    """
    model = runnable(model)
    explanations: list[Explanation] = []
    refused: dict[str, str] = {}
    seconds: dict[str, float] = {}
    chosen = chosen_methods(model, methods)
    for label, method in counted(chosen.items(), "methods compared", len(chosen), progress):
        start = time.perf_counter()
        try:
            explanation = replace(explain(None, image, target, method=method), method=label)
        except (LayerError, OperationError) as error:
            refused[label] = str(error)
            continue
        seconds[label] = time.perf_counter() - start
        explanations.append(explanation)
        if on_result is not None:
            on_result(explanation, seconds[label])
    if not explanations:
        raise AfmiError("; ".join(f"{name}: {reason}" for name, reason in refused.items()))
    inputs = prepare(model, image)
    inserted = [inserted_responses(model, inputs, e, fractions) for e in explanations]
    return Comparison(tuple(explanations), tuple(inserted), refused, seconds, tuple(fractions))


def inserted_responses(
    model: nn.Module, inputs: Tensor, explanation: Explanation, fractions: Sequence[float]
) -> tuple[float, ...]:
    """Return what the network answers when only the top of the map is kept, the rest black.

    Args:
        model: the network.
        inputs: (1, C, H, W), what was explained.
        explanation: of it.
        fractions: shares of the pixels, from 0 to 1.

    Returns:
        For each of them the probability of the class, or the score of another target.
    """
    map_ = explanation.map[None, None]
    masks = torch.cat([top_mask(map_, fraction) for fraction in fractions]).to(inputs.device)
    return tuple(response(model, explanation.target, inputs * masks).tolist())
