"""Figure 2: what A-FMI is made of, and how its maps differ from Grad-CAM's."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from afmi.batching import prepare
from afmi.comparison import Comparison
from afmi.experiments.shared.base import Experiment, Request, Result, networks
from afmi.experiments.shared.figures import heading, methods_of, saved
from afmi.experiments.shared.insertions import compared, inserted_panel
from afmi.experiments.shared.pictures import Photo, choose_photos
from afmi.explanation import INSERTED
from afmi.gradients import forward_pass, modified_gradient
from afmi.network.classifier import Classifier
from afmi.network.layers import resolve_layer
from afmi.pictures import figures, plots
from afmi.pictures.dimensions import places
from afmi.pictures.maps import upsample
from afmi.pictures.references import Black
from afmi.pictures.transforms import to_image

__all__ = ["Figure2"]

_RANKS = ("strongest map", "second map", "third map")
"""The feature maps of each picture that are drawn."""


class Figure2(Experiment):
    """Show the feature maps that count most, their two weights, and the maps made of either.

    Paper: Figure 2, Sections 1 and 3: on the left an overview of A-FMI, on the right maps of
    Grad-CAM and A-FMI on pictures that it does not name; the classes here are chosen for it. The
    overview is a drawing there. Here it is what happens in the network: the feature maps' change
    from the reference, A − Ā, and beside each its FMI and the gradient that Grad-CAM takes in its
    place.

    Beyond the paper: how much of the change of the score, y(x) − y(x̄), the weighted changes of
    the feature maps account for with either weight, Σ_k w_k Σ_ij (A − Ā)_kij; saturated gradients
    would leave most of it out. Where the head is one linear layer, both weights are the same.
    """

    name = "figure2"
    shows = "Grad-CAM and A-FMI, and the feature maps that count most with both their weights"
    section = "Figure 2, Sections 1 and 3"
    finding = (
        "Grad-CAM's gradients saturate, which underestimates contributions and leads to "
        "untargeted explanations; A-FMI's are on the target"
    )
    methods = ("Grad-CAM", "A-FMI")
    data = "pictures"
    classes = ("English springer", "golden retriever")

    def _run(self, request: Request) -> Result:
        (model,) = networks(self, request)
        photos = choose_photos(request, model, self.classes)
        methods = methods_of(self, request, model)
        comparisons = compared(self, request, methods, photos, (INSERTED,))
        overviews = [_overview(model, photo) for photo in photos]
        panels: list[list[figures.Panel]] = []
        for comparison, overview in zip(comparisons, overviews, strict=True):
            panels += _panels(comparison, overview)
        figure = figures.grid(
            panels,
            row_titles=["map", f"{INSERTED:.0%}"] * len(photos),
            column_titles=[
                "picture",
                *(one.method for one in comparisons[0].explanations),
                *_RANKS[: len(overviews[0].strongest())],
            ],
            title=f"{self.section}: {self.shows}",
            note=(
                f"model {model.name}, layer {overviews[0].layer} · warm: "
                "evidence for the class, cool: against it · feature maps: red where they are "
                "higher than on a black picture, blue where lower; FMI and ∇: the weights that "
                "A-FMI and Grad-CAM give the map"
            ),
            side=300,
        )
        rows = [
            row
            for photo, comparison, overview in zip(photos, comparisons, overviews, strict=True)
            for row in overview.rows(photo, comparison.explanations[0].label)
        ]
        record = {
            "pictures": [photo.source for photo in photos],
            "comparisons": [one.to_dict() for one in comparisons],
            "feature maps": [overview.to_dict() for overview in overviews],
        }
        return saved(self, request, figure, rows, record)


@dataclass(frozen=True)
class _Overview:
    """The parts of one picture's A-FMI map.

    Attributes:
        layer: where the feature maps are taken.
        changes: A − Ā, (K, h, w), against black.
        importance: FMI, (K,).
        gradient: Grad-CAM's weights, (K,).
        score: y(x) − y(x̄).
    """

    layer: str
    changes: Tensor
    importance: Tensor
    gradient: Tensor
    score: float

    def strongest(self) -> list[int]:
        """Return the feature maps whose change, weighted by FMI, is largest in size."""
        sizes = (self.importance * self.changes.sum((1, 2))).abs()
        return sizes.argsort(descending=True, stable=True)[: len(_RANKS)].tolist()

    def rows(self, photo: Photo, label: str) -> list[dict[str, Any]]:
        """Return what either weight accounts for."""
        sums = self.changes.sum((1, 2))
        weights = {"gradient (Grad-CAM)": self.gradient, "FMI (A-FMI)": self.importance}
        return [
            {
                "picture": photo.name,
                "class": label,
                "weight": name,
                "accounts for": (accounted := float((weight * sums).sum())),
                "change of the score": self.score,
                "share": accounted / self.score if self.score else None,
                "cosine with FMI": float(torch.cosine_similarity(weight, self.importance, 0)),
            }
            for name, weight in weights.items()
        ]

    def to_dict(self) -> list[dict[str, float]]:
        """Return the numbers of the feature maps drawn."""
        return [
            {
                "feature map": k,
                "FMI": float(self.importance[k]),
                "gradient": float(self.gradient[k]),
                "change": float(self.changes[k].sum()),
            }
            for k in self.strongest()
        ]


def _overview(model: Classifier, photo: Photo) -> _Overview:
    inputs = prepare(model, photo.image)
    place = resolve_layer(model, None, inputs)
    classes = torch.tensor([photo.target], dtype=torch.int64, device=inputs.device)
    ordinary = forward_pass(model, inputs, layer=place).gradient(classes, last=True)
    modified = modified_gradient(model, inputs, layer=place, reference=Black())
    chords = modified.gradients(classes[None], last=True)[0]
    return _Overview(
        layer=str(place[1]),
        changes=modified.change()[0].cpu(),
        importance=chords.mean(places(chords))[0].cpu(),
        gradient=ordinary.mean(places(ordinary))[0].cpu(),
        score=float(modified.output_change(classes[None])),
    )


def _panels(comparison: Comparison, overview: _Overview) -> list[list[figures.Panel]]:
    """Return a row of maps, the strongest feature maps too, and one of the top pixels."""
    explanations = comparison.explanations
    first = explanations[0]
    maps = [figures.Panel(to_image(first.image), *heading(first))]
    maps += [figures.Panel(one.overlay()) for one in explanations]
    maps += _feature_maps(overview, tuple(first.map.shape))
    inserted = [inserted_panel(comparison, i) for i in range(len(explanations))]
    return [maps, [figures.Panel(None), *inserted]]


def _feature_maps(overview: _Overview, size: Sequence[int]) -> list[figures.Panel]:
    panels = []
    for k in overview.strongest():
        change = upsample(overview.changes[k][None, None], size)[0, 0]
        weights = f"FMI {_short(overview.importance[k])}, ∇ {_short(overview.gradient[k])}"
        panels.append(figures.Panel(plots.heatmap(change), f"A − Ā, k = {k}", weights))
    return panels


def _short(weight: Tensor) -> str:
    return f"{float(weight):+.2g}".replace("-", "−")
