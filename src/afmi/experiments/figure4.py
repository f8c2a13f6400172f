"""Figure 4: do methods tell the two classes of one picture apart?"""

from __future__ import annotations

import dataclasses
from itertools import combinations
from typing import Any

from afmi.batching import prepare
from afmi.comparison import Comparison
from afmi.errors import UsageError
from afmi.experiments.shared import published
from afmi.experiments.shared.base import Experiment, Request, Result, networks, write_csv
from afmi.experiments.shared.figures import methods_of
from afmi.experiments.shared.insertions import Row, compared, save_insertions
from afmi.experiments.shared.pictures import Photo, choose_photos, side_by_side
from afmi.network.classifier import Classifier, class_label, classify, find_class
from afmi.pictures.maps import rank_correlation

__all__ = ["Figure4"]


class Figure4(Experiment):
    """Explain two classes of one picture, and the least activated class.

    Paper: Figure 4, Section 4.3: a photograph of a collie and an Ibizan hound, the least activated
    class being the cockatoo. Beyond the paper: the rank correlation between the maps of two
    classes, for each method; 1 means that the class does not matter to the map.

    The paper's photograph is not published separately. One picture (``--image``) is explained for
    the two classes of ``--target``, or else for its two most probable ones. Two pictures are put
    side by side, and so are two from a folder, a collie and an Ibizan hound if it has them.
    """

    name = "figure4"
    shows = "two classes in one picture and the least activated one, 10 % of the pixels inserted"
    section = "Figure 4, Section 4.3"
    finding = (
        "the top pixels of Gradient, DeepLIFT, IG and XRAI hardly change with the class; A-FMI's "
        "tell the classes apart"
    )
    methods = published.METHODS
    data = "pictures"
    classes = ("collie", "Ibizan hound")

    def _run(self, request: Request) -> Result:
        (model,) = networks(self, request)
        photo, first, second = self._picture(request, model)
        logits = classify(model, prepare(model, photo.image))[0]
        if len(logits) < 3:
            raise UsageError(f"expected a network of 3 classes or more, got {len(logits)}")
        logits[[first, second]] = float("inf")
        wanted = [first, second, int(logits.argmin())]
        photos = [dataclasses.replace(photo, target=target) for target in wanted]
        request.report(f"classes: {', '.join(class_label(model, target) for target in wanted)}")
        methods = methods_of(self, request, model)
        comparisons = compared(self, request, methods, photos, (0.1,))
        drawn = save_insertions(self, request, methods, [Row(photo, one) for one in comparisons])
        rows = _correlations(comparisons)
        table = write_csv(request.out / f"{self.name}-correlations.csv", rows)
        return Result((*drawn.files, table), tuple(rows))

    def _picture(self, request: Request, model: Classifier) -> tuple[Photo, int, int]:
        """Return the picture and its two classes."""
        if len(request.images) > 2 or len(request.targets) not in (0, 2):
            raise UsageError(
                "expected one picture of two classes, or two pictures, and two --target or none; "
                f"got {len(request.images)} pictures and {len(request.targets)} --target"
            )
        everything = dataclasses.replace(request, limit=None, targets=())
        photos = choose_photos(everything, model, self.classes)
        classes = [find_class(model, target) for target in request.targets]
        if len(request.images) == 1:
            photo = photos[0]
            logits = classify(model, prepare(model, photo.image))[0]
            probable = logits.argsort(descending=True, stable=True).tolist()
            first, second = classes or probable[:2]
        elif len(photos) == 2:
            first, second = classes or [photo.target for photo in photos]
            photo = side_by_side(model, *photos)
            request.report("put side by side, because no picture of both classes was given")
        else:
            raise UsageError(
                f"expected pictures of two classes or more in {str(request.imagenet)!r}, got one"
            )
        if first == second:
            raise UsageError(
                f"expected two classes, got {class_label(model, first)!r} twice; name them with "
                "--target"
            )
        return photo, first, second


def _correlations(comparisons: list[Comparison]) -> list[dict[str, Any]]:
    """Return the rank correlation between the maps of every two classes, for each method."""
    rows = []
    for explanations in zip(*(one.explanations for one in comparisons), strict=True):
        for one, other in combinations(explanations, 2):
            value = rank_correlation(one.map[None, None], other.map[None, None])
            rows.append(
                {
                    "method": one.method,
                    "class": one.label,
                    "other class": other.label,
                    "rank correlation": float(value),
                }
            )
    return rows
