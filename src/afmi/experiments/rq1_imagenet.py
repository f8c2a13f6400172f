"""RQ1 on ImageNet, or on any folder of training and validation pictures."""

from __future__ import annotations

from afmi.errors import UsageError
from afmi.evaluation import open_images
from afmi.experiments.shared.base import Experiment, Request, Result, networks, write_csv
from afmi.experiments.shared.prototypes import measure_agreement
from afmi.experiments.shared.published import AGREEMENT
from afmi.methods import AFMI
from afmi.specs import key_of

__all__ = ["RQ1ImageNet"]


class RQ1ImageNet(Experiment):
    """Classify photographs by the nearest mean FMI of the training photographs' classes.

    Paper: Section 4.1.
    """

    name = "rq1-imagenet"
    shows = "share of photographs whose FMI is nearest to their class's mean FMI"
    section = "Section 4.1 (RQ1), ImageNet"
    finding = f"agreement {AGREEMENT['imagenet']:.1%} on ImageNet's validation images"
    models = ("vgg19",)
    methods = ("A-FMI",)
    data = "ImageNet"
    on_engines = True

    def _run(self, request: Request) -> Result:
        folder = request.imagenet
        assert folder is not None
        for part in ("train", "val"):
            if not (folder / part).is_dir():
                raise UsageError(
                    f"{self.name} needs the folder {str(folder / part)!r}, which is not "
                    "there: prototypes are means over training pictures, and are tried on others"
                )
        rows = []
        for model in networks(self, request):
            agreement = measure_agreement(
                AFMI(model),
                open_images(folder / "train", model, limit=request.limit),
                open_images(folder / "val", model, limit=request.limit),
                request.out / f"fmi-{key_of(model.name)}",
                batch=16,
                engine=request.engine,
            )
            paper = AGREEMENT["imagenet"] if model.name == "vgg19" else None
            rows.append(agreement | {"paper": paper})
        return Result((write_csv(request.out / f"{self.name}.csv", rows),), tuple(rows))
