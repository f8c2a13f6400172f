"""What figures 3 and 8 share: maps of one picture against black, white and random references."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import torch

from afmi.api import explain
from afmi.batching import prepare
from afmi.comparison import estimate
from afmi.errors import UsageError
from afmi.experiments.shared.base import Experiment, Request, Result, networks
from afmi.experiments.shared.figures import heading, methods_of, saved
from afmi.experiments.shared.pictures import Photo, choose_photos
from afmi.explanation import INSERTED, Explanation
from afmi.methods import Attribution, Method
from afmi.metrics import Case, ReferenceReliability
from afmi.network.classifier import Classifier, classify
from afmi.pictures import figures
from afmi.pictures.references import Black, Random, Reference, White
from afmi.pictures.transforms import to_image
from afmi.progress import duration
from afmi.report.words import counted, number

__all__ = ["FINDING", "METHODS", "reference_figure"]

REFERENCES: tuple[Reference, ...] = (Black(), White(), Random())

METHODS = ("A-FMI", "DeepLIFT", "Integrated Gradients")
"""The methods whose references the paper compares."""

FINDING = (
    "A-FMI's maps agree across references; DeepLIFT's and IG's follow the reference: with a white "
    "one they pick dark pixels, with a black one bright ones"
)


def reference_figure(experiment: Experiment, request: Request, classes: Sequence[str]) -> Result:
    """Show maps of methods that compare the picture with a reference, against three references.

    Beyond the paper: Spearman's rank correlation and the structural similarity between the maps
    of every two references; 1 means that the reference does not matter.

    Raises:
        UsageError: when a method uses no reference.
    """
    (model,) = networks(experiment, request)
    methods = methods_of(experiment, request, model)
    for label, method in methods.items():
        if not isinstance(getattr(method, "reference", None), Reference):
            raise UsageError(
                f"{label} uses no reference; choose --methods like {', '.join(experiment.methods)}"
            )
    photos = choose_photos(request, model, classes)
    # One map for each reference, and those of the others once more for the numbers.
    runs = (2 * len(REFERENCES) - 1) * len(photos)
    estimated = estimate(model, photos[0].image, list(methods.values()))
    request.report(
        f"{model.name}: {counted(len(methods), 'method')} on {counted(len(photos), 'picture')} "
        f"against {len(REFERENCES)} references, about {duration(runs * estimated.total)} on this "
        "machine"
    )
    panels, rows, records = [], [], []
    for photo in photos:
        maps: list[figures.Panel] = []
        inserted = [figures.Panel(None)]
        for label, method in methods.items():
            explanations = _explained(experiment, request, label, method, photo)
            numbers = _agreement(model, method, photo, explanations[0])
            rows += numbers
            records += [one.to_dict() for one in explanations]
            first = explanations[0]
            maps = maps or [figures.Panel(to_image(first.image), *heading(first))]
            maps += _panels(explanations, numbers)
            inserted += [figures.Panel(one.insertion(INSERTED)) for one in explanations]
        panels += [maps, inserted]
    figure = figures.grid(
        panels,
        row_titles=["map", f"{INSERTED:.0%}"] * len(photos),
        column_titles=[
            "picture",
            *(f"{label} ({str(r)[0].upper()})" for label in methods for r in REFERENCES),
        ],
        title=f"{experiment.section}: {experiment.shows}",
        note=(
            f"model {model.name} · references: B black, W white, R random pixels · warm: evidence "
            "for the class, cool: against it · ρ: rank correlation with (B)'s map, SSIM: "
            f"structural similarity with it · {INSERTED:.0%}: the pixels that the map puts first"
        ),
        side=300,
    )
    record = {"pictures": [photo.source for photo in photos], "explanations": records}
    return saved(experiment, request, figure, rows, record)


def _explained(
    experiment: Experiment, request: Request, label: str, method: Method, photo: Photo
) -> list[Explanation]:
    """Return the picture's explanation against each reference; each is saved at once."""
    explanations = []
    for reference in REFERENCES:
        one = explain(None, photo.image, photo.target, method=method, reference=reference)
        one = dataclasses.replace(one, method=label, source=photo.source)
        one.save(request.out / experiment.name, f"{photo.name}-{reference}")
        request.report(f"{photo.name}  {one.label}  {label}  {reference}")
        explanations.append(one)
    return explanations


def _agreement(
    model: Classifier, method: Method, photo: Photo, black: Explanation
) -> list[dict[str, Any]]:
    """Return a row for every two references."""
    inputs = prepare(model, photo.image)
    targets = torch.tensor([photo.target], dtype=torch.int64, device=inputs.device)
    case = Case(
        dataclasses.replace(method, reference=REFERENCES[0]),
        inputs,
        targets,
        Attribution(black.map[None, None].to(inputs), targets),
        classify(model, inputs),
    )
    values = ReferenceReliability(references=REFERENCES).measure(case)
    pairs = [key.partition("@")[2] for key in values if key.startswith("rank_correlation@")]
    return [
        {
            "picture": photo.name,
            "class": black.label,
            "method": black.method,
            "references": pair,
            "rank correlation": float(values[f"rank_correlation@{pair}"]),
            "SSIM": float(values[f"ssim@{pair}"]),
        }
        for pair in pairs
    ]


def _panels(
    explanations: Sequence[Explanation], numbers: Sequence[dict[str, Any]]
) -> list[figures.Panel]:
    """Return overlays; all but the first with their agreement with the first."""
    panels = [figures.Panel(explanations[0].overlay())]
    for one, row in zip(explanations[1:], numbers, strict=False):
        subtitle = f"ρ {number(row['rank correlation'], 2)}, SSIM {number(row['SSIM'], 2)}"
        panels.append(figures.Panel(one.overlay(), subtitle=subtitle))
    return panels
