"""Compare methods on one picture: the paper's Figures 1, 5 and 10."""

from __future__ import annotations

import io
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from afmi.api import AnyImage, ClassLike, explain, prepare
from afmi.errors import AfmiError, LayerError, OperationError
from afmi.explanation import Explanation
from afmi.gradients import forward_pass
from afmi.methods import MethodsLike, chosen_methods
from afmi.methods.base import classify
from afmi.pictures import plots
from afmi.pictures.images import to_image
from afmi.pictures.maps import top_mask

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["FRACTIONS", "Comparison", "Estimate", "compare", "estimate"]

FRACTIONS = (0.05, 0.1, 0.2, 0.3, 0.4, 0.5)
"""The shares of the pixels that the paper's figures keep."""


@dataclass(frozen=True)
class Estimate:
    """How long methods are going to take, by their passes and what a pass takes here.

    Attributes:
        seconds: for each method's label.
    """

    seconds: dict[str, float]

    @property
    def total(self) -> float:
        """Seconds for all of them."""
        return sum(self.seconds.values())


@dataclass(frozen=True)
class Comparison:
    """What several methods say of one picture and class.

    Attributes:
        explanations: one for each method that could be used, in the order asked for.
        probabilities: for each of them, the class's softmax probability when only the top
            ``fractions`` of the pixels are kept and the rest is black.
        refused: why each other method cannot be used on this network, by its label.
        seconds: that each method took, by its label.
        fractions: the shares of the pixels.
    """

    explanations: tuple[Explanation, ...]
    probabilities: tuple[tuple[float, ...], ...]
    refused: dict[str, str]
    seconds: dict[str, float]
    fractions: tuple[float, ...]

    def figure(self) -> Figure:
        """Draw methods in columns: the map over the picture, then ever more of its pixels."""
        first = self.explanations[0]
        side = 480 if len(self.explanations) <= 4 else 300
        original = plots.Panel(to_image(first.image))
        rows = [[original, *(plots.Panel(e.overlay()) for e in self.explanations)]]
        for i, fraction in enumerate(self.fractions):
            inserted = [
                plots.Panel(e.insertion(fraction), subtitle=f"{p[i]:.0%} {e.label}")
                for e, p in zip(self.explanations, self.probabilities, strict=True)
            ]
            rows.append([plots.Panel(None), *inserted])
        note = (
            f"model {first.model} · the rest of the pixels is black · percentages: the probability "
            "of the class that the network gives the pixels shown"
        )
        if self.refused:
            note += f" · cannot be used on this network: {', '.join(self.refused)}"
        return plots.grid(
            rows,
            row_titles=["map", *(f"{fraction:.0%}" for fraction in self.fractions)],
            column_titles=["picture", *(e.method for e in self.explanations)],
            title=f"{first.label}, {first.probability:.0%}",
            note=note,
            side=side,
        )

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write the figure as PNG, whole or not at all, and return the path.

        Raises:
            AfmiError: when it cannot be written.
        """
        return plots.save_png(self.figure(), path)

    def to_dict(self) -> dict[str, Any]:
        """Return the numbers and records as JSON holds them."""
        return {
            "fractions": list(self.fractions),
            "methods": [
                {
                    **e.to_dict(),
                    "inserted_probabilities": list(p),
                    "seconds": self.seconds[e.method],
                }
                for e, p in zip(self.explanations, self.probabilities, strict=True)
            ],
            "refused": self.refused,
        }

    def _repr_png_(self) -> bytes:
        buffer = io.BytesIO()
        plots.figure_png(self.figure(), buffer)
        return buffer.getvalue()


def estimate(model: nn.Module, image: AnyImage, methods: MethodsLike = "all") -> Estimate:
    """Say how long methods will take on a picture, from a few passes that are timed here.

    Args:
        model: as in `afmi.explain`.
        image: one picture.
        methods: as in `compare`.
    """
    inputs = prepare(model, image)
    batch = inputs.expand(8, -1, -1, -1).contiguous()
    forward = _seconds(lambda: classify(model, batch)) / 8
    both = _seconds(lambda: _gradient(model, batch)) / 8
    backward = max(both - forward, forward)
    chosen = chosen_methods(model, methods)
    work = {label: method.work(inputs) for label, method in chosen.items()}
    return Estimate(
        {name: w.forwards * forward + w.backwards * backward for name, w in work.items()}
    )


def _gradient(model: nn.Module, batch: Tensor) -> Tensor:
    with torch.no_grad():
        run = forward_pass(model, batch, layer=None)
        return run.gradient(run.logits.argmax(1), last=True)


def _seconds(action: Callable[[], object]) -> float:
    action()
    start = time.perf_counter()
    action()
    return time.perf_counter() - start


def compare(
    model: nn.Module,
    image: AnyImage,
    target: ClassLike | None = None,
    *,
    methods: MethodsLike = "all",
    fractions: Sequence[float] = FRACTIONS,
    on_result: Callable[[Explanation, float], object] | None = None,
) -> Comparison:
    """Explain one picture by several methods and keep ever more of what each finds important.

    Args:
        model: as in `afmi.explain`.
        image: one picture, as in `afmi.explain`.
        target: the class, as index or label; None: the predicted one.
        methods: see `afmi.methods.chosen_methods`; one method may come with several parameters.
        fractions: shares of the pixels, from 0 to 1, for the insertion views.
        on_result: called with each explanation and its seconds as soon as it is there.

    Returns:
        A `Comparison`, which draws itself. Methods that cannot be used on the network (CAM on one
        with a deep head) are listed with their reason, and do not stop the others.

    Raises:
        AfmiError: when none of the methods can be used.
    """
    explanations: list[Explanation] = []
    refused: dict[str, str] = {}
    seconds: dict[str, float] = {}
    for label, method in chosen_methods(model, methods).items():
        start = time.perf_counter()
        try:
            found = replace(explain(None, image, target, method=method), method=label)
        except (LayerError, OperationError) as error:
            refused[label] = str(error)
            continue
        seconds[label] = time.perf_counter() - start
        explanations.append(found)
        if on_result is not None:
            on_result(found, seconds[label])
    if not explanations:
        raise AfmiError("; ".join(f"{name}: {reason}" for name, reason in refused.items()))
    inputs = prepare(model, image)
    probabilities = [_inserted(model, inputs, e, fractions) for e in explanations]
    return Comparison(tuple(explanations), tuple(probabilities), refused, seconds, tuple(fractions))


def _inserted(
    model: nn.Module, inputs: Tensor, explanation: Explanation, fractions: Sequence[float]
) -> tuple[float, ...]:
    """Return the class's probability when only the top of the map is kept."""
    map_ = explanation.map[None, None]
    masks = torch.cat([top_mask(map_, fraction) for fraction in fractions]).to(inputs.device)
    logits = classify(model, inputs * masks)
    return tuple(logits.double().softmax(1)[:, explanation.target].tolist())
