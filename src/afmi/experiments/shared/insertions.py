"""What figures 1, 2, 4, 5 and 10–14 share: methods, each with the pixels that it ranks first."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any

from matplotlib.figure import Figure

from afmi.comparison import FRACTIONS, Comparison, compare, estimate
from afmi.experiments.shared.base import Experiment, Request, Result, networks
from afmi.experiments.shared.figures import heading, methods_of, saved
from afmi.experiments.shared.pictures import Photo, choose_photos
from afmi.explanation import Explanation
from afmi.methods import Method
from afmi.pictures import figures
from afmi.pictures.transforms import to_image
from afmi.report.words import counted

__all__ = [
    "ALL_FINDING",
    "ALL_METHODS",
    "ALL_SHOWS",
    "Row",
    "all_methods_figure",
    "compared",
    "inserted_panel",
    "insertion_figure",
    "save_insertions",
]

_HEADINGS = {
    "DeepLIFT": "DeepLIFT (B)",
    "DeepLIFT (reference=white)": "DeepLIFT (W)",
    "Integrated Gradients": "IG (B)",
    "Integrated Gradients (reference=white)": "IG (W)",
    "XRAI": "XRAI (B+W)",
    "A-FMI": "A-FMI (B)",
    "A-FMI (reference=white)": "A-FMI (W)",
}
"""What figures 10–14 call methods by their black and white references."""

ALL_METHODS = (
    "Gradient",
    "DeepLIFT",
    "DeepLIFT (reference=white)",
    "Integrated Gradients",
    "Integrated Gradients (reference=white)",
    "LRP",
    "XRAI",
    "Extremal perturbation",
    "RISE",
    "Grad-CAM",
    "A-FMI",
    "A-FMI (reference=white)",
)
"""The columns of figures 10–14."""

ALL_SHOWS = "all methods, black and white references, 5 % to 50 % of the pixels inserted"

ALL_FINDING = (
    "Gradient, DeepLIFT and IG give grainy images, LRP, XRAI and Grad-CAM may choose disconnected "
    "areas, and A-FMI keeps more to the objects of interest"
)


@dataclass(frozen=True)
class Row:
    """One row of the figure.

    Attributes:
        photo: the picture.
        comparison: of the picture and one class.
        fraction: which of the comparison's fractions is shown.
        title: along the row's left edge.
    """

    photo: Photo
    comparison: Comparison
    fraction: int = 0
    title: str = ""


def insertion_figure(
    experiment: Experiment,
    request: Request,
    classes: Sequence[str],
    fractions: Sequence[float],
    headings: Mapping[str, str] = MappingProxyType({}),
) -> Result:
    """Explain a picture of each class by all methods, and draw a row for each fraction.

    ``headings`` replaces methods' labels above the columns.
    """
    (model,) = networks(experiment, request)
    photos = choose_photos(request, model, classes)
    methods = methods_of(experiment, request, model)
    comparisons = compared(experiment, request, methods, photos, fractions)
    titles = [f"{fraction:.0%}" for fraction in fractions] if len(fractions) > 1 else [""]
    rows = [
        Row(photo, comparison, i, title)
        for photo, comparison in zip(photos, comparisons, strict=True)
        for i, title in enumerate(titles)
    ]
    return save_insertions(experiment, request, methods, rows, headings)


def all_methods_figure(experiment: Experiment, request: Request, classes: Sequence[str]) -> Result:
    """Draw one of figures 10–14: all methods against black and white references, 5 % to 50 %."""
    return insertion_figure(experiment, request, classes, FRACTIONS, _HEADINGS)


def compared(
    experiment: Experiment,
    request: Request,
    methods: Mapping[str, Method],
    photos: Sequence[Photo],
    fractions: Sequence[float],
) -> list[Comparison]:
    """Explain each picture for its class by all methods; report beforehand how long that takes.

    Each explanation is saved in ``<out>/<experiment>`` as soon as it is there, so that nothing is
    lost when the work is interrupted. All methods are of one network.
    """
    chosen = list(methods.values())
    model = chosen[0].model
    estimated = estimate(model, photos[0].image, chosen)
    request.report(
        f"{counted(len(methods), 'method')}, {counted(len(photos), 'map')} each, "
        f"{estimated.text(len(photos))}"
    )
    options: Any = {"methods": chosen, "fractions": fractions}
    comparisons = []
    for photo in photos:

        def save(one: Explanation, seconds: float, photo: Photo = photo) -> None:
            replace(one, source=photo.source).save(request.out / experiment.name, photo.name)
            request.report(f"{photo.name}  {one.label}  {one.method}  {seconds:.1f} s")

        comparisons.append(compare(model, photo.image, photo.target, on_result=save, **options))
    for name, reason in {k: v for one in comparisons for k, v in one.refused.items()}.items():
        request.report(f"{name} left out: {reason}")
    return comparisons


def save_insertions(
    experiment: Experiment,
    request: Request,
    methods: Mapping[str, Method],
    rows: Sequence[Row],
    headings: Mapping[str, str] = MappingProxyType({}),
) -> Result:
    """Draw methods in columns; write the figure, its record and the probabilities.

    Unsupported methods are named below the figure.
    """
    numbers = [_numbers(row, i) for row in rows for i in range(len(row.comparison.explanations))]
    comparisons = {id(row.comparison): row.comparison.to_dict() for row in rows}
    record = {
        "pictures": list(dict.fromkeys(row.photo.source for row in rows)),
        "comparisons": list(comparisons.values()),
    }
    figure = _figure(experiment, methods, rows, headings)
    return saved(experiment, request, figure, numbers, record)


def _numbers(row: Row, index: int) -> dict[str, Any]:
    explanation = row.comparison.explanations[index]
    return {
        "picture": row.photo.name,
        "class": explanation.label,
        "method": explanation.method,
        "inserted": row.comparison.fractions[row.fraction],
        "probability": row.comparison.responses[index][row.fraction],
        "whole picture": explanation.probability,
        "seconds": row.comparison.seconds[explanation.method],
    }


def _figure(
    experiment: Experiment,
    methods: Mapping[str, Method],
    rows: Sequence[Row],
    headings: Mapping[str, str],
) -> Figure:
    refused = {label for row in rows for label in row.comparison.refused}
    columns = [label for label in methods if label not in refused]
    panels, shown = [], None
    for row in rows:
        first = row.comparison.explanations[0]
        original = figures.Panel(None)
        if shown is not row.photo.image:
            original = figures.Panel(to_image(first.image), *heading(first))
        shown = row.photo.image
        families = [methods[label].family if row is rows[0] else "" for label in columns]
        panels.append([original, *map(_panel, [row] * len(columns), columns, families)])
    model = rows[0].comparison.explanations[0].model
    note = (
        f"model {model} · the rest of the pixels is black · percentages: the probability of the "
        "class that the network gives the pixels shown"
    )
    if refused:
        note += f" · cannot be used on this network: {', '.join(sorted(refused))}"
    return figures.grid(
        panels,
        row_titles=[row.title for row in rows] if any(row.title for row in rows) else [],
        column_titles=["picture", *(headings.get(label, label) for label in columns)],
        title=f"{experiment.section}: {experiment.shows}",
        note=note,
        side=300,
    )


def _panel(row: Row, label: str, title: str) -> figures.Panel:
    index = [one.method for one in row.comparison.explanations].index(label)
    return inserted_panel(row.comparison, index, row.fraction, title)


def inserted_panel(
    comparison: Comparison, index: int, fraction: int = 0, title: str = ""
) -> figures.Panel:
    """Return the pixels that one of the methods ranks first, and the probability they get.

    Args:
        comparison: of one picture.
        index: which of its explanations.
        fraction: which of its fractions.
        title: above the panel.
    """
    shown = comparison.explanations[index]
    probability = comparison.responses[index][fraction]
    return figures.Panel(
        shown.insertion(comparison.fractions[fraction]), title, f"{probability:.0%} {shown.label}"
    )
