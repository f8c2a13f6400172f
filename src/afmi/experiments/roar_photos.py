"""Remove and retrain on photographs: which method finds the pixels that they are told by?"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

from afmi.errors import UsageError
from afmi.evaluation import open_images
from afmi.experiments.shared.base import Experiment, Request, Result, networks
from afmi.experiments.shared.figures import methods_of
from afmi.experiments.shared.roar import FINDING, PAPER, Recipe, Roar, controls, finished
from afmi.models import load_model

__all__ = ["ROARPhotos"]


class ROARPhotos(Experiment):
    """Retrain the embedded network without the pixels that a method ranks first.

    The network itself is explained; networks of its architecture with new weights are trained on
    photographs of its classes. They see far fewer than it did, 1,000 at a few epochs, so they
    know less from the start.

    Paper: Hooker et al., *A Benchmark for Interpretability Methods in Deep Neural Networks*,
    NeurIPS 2019.
    """

    name = "roar-photos"
    shows = "accuracy of networks that are retrained without the pixels that a method ranks first"
    section = PAPER
    finding = FINDING
    models = ("photos",)
    methods = ("Gradient", "DeepLIFT", "Grad-CAM", "A-FMI")
    data = "ImageNet"
    recipe = Recipe(epochs=12)

    def _run(self, request: Request) -> Result:
        folder = request.imagenet
        assert folder is not None
        for part in ("train", "val"):
            if not (folder / part).is_dir():
                raise UsageError(
                    f"{self.name} needs the folder {str(folder / part)!r}, which is not there: "
                    "networks are trained on pictures, and tested on others"
                )
        models = list(request.models or self.models)
        request = replace(request, models=tuple(models))
        if len(models) > 1:
            raise UsageError(f"expected one network, got {', '.join(models)}")
        (explained,) = networks(self, request)
        options: dict[str, Any] = {**request.network, "weights": None}
        fresh = partial(load_model, models[0], **options)
        limit = request.limit or 1000
        methods = controls(explained) | methods_of(self, request, explained)
        roar = Roar(
            explained,
            fresh,
            open_images(folder / "train", explained, limit=limit),
            open_images(folder / "val", explained, limit=limit),
            methods,
            self.recipe,
            request.out / self.name,
            request.report,
        )
        return finished(self, request, roar)
