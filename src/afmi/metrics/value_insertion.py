"""Value insertion: how much of the score do the map's top pixels bring back?"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from afmi.methods.base import Method
from afmi.methods.work import Work
from afmi.metrics.base import Case
from afmi.metrics.columns import Column, percent, point
from afmi.metrics.masking import FRACTIONS, MaskedMetric
from afmi.network.classifier import classify
from afmi.network.outputs import check_outputs
from afmi.network.scored import Scored
from afmi.pictures.references import Black

__all__ = ["ValueInsertion"]

_column = partial(Column, higher_is_better=True, over="PI: share of the pixels inserted")
_recovered = partial(
    _column, title="Recovered", value="moved", per="change", aggregate="ratio of means"
)


@dataclass(frozen=True)
class ValueInsertion(MaskedMetric):
    """Follow the score that is explained while the map's top pixels are inserted into a canvas.

    With s(PI) the score of the image whose top PI of pixels are its own and the rest the canvas's,
    Δ = s(1) − s(0), and moved(PI) = sign(Δ)·(s(PI) − s(0)): value_auc = ∫ moved dPI by trapezoids,
    in the unit of the score, and recovered = moved / |Δ|, which is PI itself where every pixel
    counts the same. It fits any target: a regression's value, a margin, a similarity; of a class it
    takes the logit. The top is what the map ranks highest; where the score falls (Δ < 0), maps
    whose negative values speak against it are ranked from their lowest, which brought it down.

    Paper: Petsiuk, Das & Saenko, *RISE: Randomized Input Sampling for Explanation of Black-box
    Models*, BMVC 2018 (insertion). Differs: the score itself and its change from the canvas in
    place of a class's probability, so that networks without classes can be measured.
    Cost: 20 forwards per image with the default fractions: 19, and the canvas.

    Args:
        fractions: PI, shares of the pixels, rising within [0, 1]. Begin at 0, where nothing is
            inserted yet.
        canvas: what the pixels are inserted into.
        batch_size: masked pictures per pass; None: as many as are fast (see `BatchRunner`).

    Example:
        >>> from afmi.methods import InputXGradient
        >>> from afmi import Classifier
        >>> network = nn.Sequential(nn.Flatten(), nn.Linear(4, 1, bias=False))
        >>> _ = network[1].weight.data.copy_(torch.tensor([[4.0, 2, 1, 1]]))
        >>> model = Classifier(network, mean=[0], std=[1], output="value")
        >>> method, image = InputXGradient(model), torch.ones(1, 1, 2, 2)
        >>> attribution = method.attribution(image)
        >>> case = Case(method, image, attribution.target, attribution, model(image))
        >>> values = ValueInsertion(fractions=(0, 0.25, 0.5, 0.75, 1)).measure(case)
        >>> values["score@25%"].item(), values["moved@50%"].item(), values["value_auc"].item()
        (4.0, 6.0, 5.25)
    """

    name = "Value insertion"
    columns = (
        _column(
            "value_auc",
            "Value-AUC",
            "how far the top pixels move the score from that of the canvas towards that of the "
            "whole image: the area under its curve, in the unit of the score",
            note="in the score's unit",
        ),
        _recovered(
            "recovered_auc",
            measures="the share of the score's change that the top pixels bring back: the mean "
            "area over the mean change. 0.5 where every pixel brings back the same; above 1 where "
            "parts of the images score beyond the whole",
            kind="area",
        ),
        _recovered(
            "recovered_auc_median",
            measures="the median is that of each image's own share",
            kind="area",
            aggregate="median",
        ),
        _column("score", "Score", "the score of the images from the pixels inserted", kind="curve"),
        _recovered("recovered", measures="share brought back", kind="curve", area="recovered_auc"),
    )
    paper = "Petsiuk, Das & Saenko, RISE: Randomized Input Sampling for Explanation, BMVC 2018"
    ranks = True

    fractions: Sequence[float] = (0.0, *FRACTIONS)

    @property
    def keep_top(self) -> bool:
        """See `MaskedMetric`."""
        return True

    @property
    def about(self) -> str:
        """See `Metric`."""
        low, high = percent(self.fractions[0]), percent(self.fractions[-1])
        canvas = "a black canvas" if self.canvas == Black() else f"the canvas {self.canvas}"
        return (
            "The pixels are ranked by a method’s map, highest first, and inserted in that order "
            f"into {canvas}; the score that the network then gives is read off after each step. "
            "Where the whole image scores below the canvas, maps whose negative values speak "
            "against the score are ranked from their lowest. PI, the share of the pixels, goes "
            f"from {low:g} % to {high:g} % in {len(self.fractions)} steps; areas are trapezoids "
            "over it. A good explanation brings the score’s change back from few pixels."
        )

    def measure(self, case: Case) -> dict[str, Tensor]:
        """Return ``value_auc``, ``change``, ``whole_score``, ``score@PI`` and ``moved@PI``.

        ``change`` is |Δ|, NaN where it is 0, and PI is written in percent, such as ``moved@5%``.
        """
        whole = torch.empty(len(case.inputs), dtype=torch.float64, device="cpu")
        empty = torch.empty_like(whole)
        curve = torch.empty(len(whole), len(self.fractions), dtype=torch.float64, device="cpu")
        for model, column, rows in _scores(case):
            whole[rows], empty[rows], curve[rows] = self._curves(case, model, column, rows)
        change = whole - empty
        moved = change.sign()[:, None] * (curve - empty[:, None])
        shares = torch.tensor(list(self.fractions), dtype=torch.float64, device="cpu")
        values = {
            "value_auc": torch.trapezoid(moved, shares),
            "change": change.abs().where(change != 0, torch.nan),
            "whole_score": whole,
        }
        for i, fraction in enumerate(self.fractions):
            values[point("score", fraction)] = curve[:, i]
            values[point("moved", fraction)] = moved[:, i]
        return values

    def _curves(
        self, case: Case, model: nn.Module, column: int, rows: list[int]
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return the scores of whole images and canvases (n,), and of the steps between (n, P)."""
        images, maps = case.inputs[rows], case.maps[rows]
        logits = case.logits[rows]
        grounds = self.grounds(images)
        # One picture is run once.
        outputs = classify(model, grounds if self.canvas.per_image else grounds[:1])
        check_outputs(outputs, "for the canvas the network")
        empty = outputs.expand(len(rows), -1)[:, column].to("cpu", torch.float64)
        whole = logits[:, column].to("cpu", torch.float64)
        if case.method.signed:
            falls = (whole < empty).to(maps.device)[:, None, None, None]
            maps = torch.where(falls, -maps, maps)
        inner = [fraction for fraction in self.fractions if fraction > 0]
        masked = self.masked_outputs(model, images, maps, logits, inner)[..., column]
        curve = masked.to("cpu", torch.float64)
        if len(inner) < len(self.fractions):
            curve = torch.cat([empty[:, None], curve], 1)
        return whole, empty, curve

    def work(self, method: Method, inputs: Tensor) -> Work:
        """Return the forwards for one image: those of masked pictures, and the canvas."""
        return Work(1 + sum(0 < fraction < 1 for fraction in self.fractions))


def _scores(case: Case) -> Iterator[tuple[nn.Module, int, list[int]]]:
    """Yield networks with the column that is the score explained, and the images it belongs to."""
    targets = case.targets
    of: dict[object, list[int]] = {}
    for row, target in enumerate(targets.tolist() if isinstance(targets, Tensor) else targets):
        of.setdefault(target, []).append(row)
    for target, rows in of.items():
        if isinstance(target, int):
            yield case.model, target, rows
        else:
            yield Scored(case.model, target), 0, rows  # type: ignore[arg-type]
