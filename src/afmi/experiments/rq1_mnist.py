"""RQ1 on MNIST: prototypes of feature map importance tell the digits apart."""

from __future__ import annotations

from afmi.errors import UsageError
from afmi.evaluation import open_images
from afmi.experiments.shared.base import Experiment, Request, Result, write_csv
from afmi.experiments.shared.mnist import train
from afmi.experiments.shared.prototypes import measure_agreement
from afmi.experiments.shared.published import AGREEMENT
from afmi.methods import AFMI

__all__ = ["RQ1MNIST"]


class RQ1MNIST(Experiment):
    """Classify digits by the nearest mean FMI of the training digits' classes.

    The example CNN is trained first. Beside it stands a network whose head is linear, for which
    FMI is the same for all images of a class, so that the agreement is 100 % by construction and
    says nothing; and the control with each FMI vector shuffled.

    Paper: Section 4.1.
    """

    name = "rq1-mnist"
    shows = "share of digits whose FMI is nearest to their class's mean FMI; trains the network"
    section = "Section 4.1 (RQ1), MNIST"
    finding = f"agreement {AGREEMENT['mnist']:.1%} on MNIST's validation images"
    models = ("mnist-cnn",)
    methods = ("A-FMI",)
    data = "MNIST"
    on_engines = True

    def _run(self, request: Request) -> Result:
        if request.models:
            raise UsageError(
                f"{self.name} trains the network that it uses; for another use rq1-imagenet, whose "
                "--imagenet DIR may be any folder with train and val in it"
            )
        assert request.mnist is not None
        mnist, rows = request.mnist, []
        for linear in (False, True):
            part = "linear-head" if linear else "example"
            request.report(
                "training the CNN of PyTorch's MNIST example, minutes on two cores"
                if not linear
                else "training one with a linear head, to stand beside it"
            )
            model = train(
                mnist,
                request.out / f"mnist-{part}.safetensors",
                linear_head=linear,
                limit=request.limit,
                report=request.report,
            )
            agreement = measure_agreement(
                AFMI(model),
                open_images(f"mnist-train:{mnist}", model, limit=request.limit),
                open_images(f"mnist:{mnist}", model, limit=request.limit),
                request.out / f"fmi-{part}",
                batch=64,
                engine=request.engine,
            )
            rows.append(
                agreement
                | {"paper": None if linear else AGREEMENT["mnist"]}
                | {"note": "100 % by construction" if linear else ""}
            )
        return Result((write_csv(request.out / f"{self.name}.csv", rows),), tuple(rows))
