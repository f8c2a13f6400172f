"""Figure 7: A-FMI on networks of several architectures."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from afmi.api import explain
from afmi.comparison import estimate
from afmi.experiments.shared import published
from afmi.experiments.shared.base import Experiment, Request, Result, networks
from afmi.experiments.shared.figures import methods_of, saved
from afmi.experiments.shared.pictures import Photo, choose_photos
from afmi.explanation import Explanation
from afmi.methods import Method
from afmi.network.classifier import Classifier, class_label, find_class
from afmi.pictures import figures
from afmi.pictures.transforms import to_image
from afmi.progress import duration
from afmi.report.words import counted

__all__ = ["Figure7"]


class Figure7(Experiment):
    """Show A-FMI's map of the same picture on each network.

    Paper: Figure 7, Appendix B: pictures with several objects and with one; the classes here are
    chosen to fit.
    """

    name = "figure7"
    shows = "A-FMI on networks of several architectures"
    section = "Figure 7, Appendix B"
    finding = (
        "where a picture has several objects, VGGs tell them apart and ResNets cover them "
        "together; of a single one VGGs show the telling parts and ResNets the whole"
    )
    models = published.ARCHITECTURES
    methods = ("A-FMI",)
    data = "pictures"
    classes = ("dogsled", "Granny Smith", "golden retriever", "lion")

    def _run(self, request: Request) -> Result:
        models = networks(self, request)
        photos = choose_photos(request, models[0], self.classes)
        methods = [methods_of(self, request, model) for model in models]
        seconds = sum(
            len(photos) * estimate(model, photos[0].image, list(chosen.values())).total
            for model, chosen in zip(models, methods, strict=True)
        )
        request.report(
            f"{counted(len(models), 'network')}, {counted(len(methods[0]), 'method')}, "
            f"{counted(len(photos), 'picture')}, about {duration(seconds)} on this machine"
        )
        panels, explanations = [], []
        for photo in photos:
            for label in methods[0]:
                row = [self._explained(request, photo, models[0], label, m[label]) for m in methods]
                explanations += row
                original = figures.Panel(to_image(row[0].image), row[0].label)
                panels.append([original, *map(_panel, row)])
        figure = figures.grid(
            panels,
            row_titles=[*methods[0]] * len(photos) if len(methods[0]) > 1 else [],
            column_titles=["picture", *(model.name for model in models)],
            title=f"{self.section}: {self.shows}",
            note="warm: evidence for the class, cool: against it · percentages: the class's "
            "probability",
            side=300,
        )
        rows = [
            {
                "picture": Path(one.source or "").stem,
                "network": one.model,
                "layer": one.layer,
                "method": one.method,
                "class": one.label,
                "probability": one.probability,
                "residual": one.residual,
            }
            for one in explanations
        ]
        record = {
            "pictures": [photo.source for photo in photos],
            "explanations": [one.to_dict() for one in explanations],
        }
        return saved(self, request, figure, rows, record)

    def _explained(
        self, request: Request, photo: Photo, first: Classifier, label: str, method: Method
    ) -> Explanation:
        """Explain the class that the first network knows, on the method's; save it and say so."""
        model: Any = method.model
        target = photo.target
        if model.labels and first.labels:
            target = find_class(model, class_label(first, photo.target))
        one = explain(None, photo.image, target, method=method)
        one = dataclasses.replace(one, method=label, source=photo.source)
        one.save(request.out / self.name, f"{photo.name}-{model.name}")
        request.report(f"{photo.name}  {model.name}  {one.label}  {label}")
        return one


def _panel(one: Explanation) -> figures.Panel:
    subtitle = f"{one.label}, {one.probability:.0%}"
    if one.predicted != one.class_index:
        subtitle += f"; predicted: {one.predicted_label}"
    return figures.Panel(one.overlay(), subtitle=subtitle)
