"""Remove and retrain on MNIST: which method finds the pixels that a digit is told by?"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load, save

from afmi._version import __version__
from afmi.errors import UsageError
from afmi.evaluation import LabelledImages, open_images
from afmi.experiments.shared.base import Experiment, Request, Result
from afmi.experiments.shared.figures import methods_of
from afmi.experiments.shared.mnist import build
from afmi.experiments.shared.roar import FINDING, PAPER, Pictures, Recipe, Roar, controls, finished
from afmi.experiments.shared.roar import train as trained
from afmi.files import write_files
from afmi.network.classifier import Classifier
from afmi.network.randomness import keeping_random_state

__all__ = ["ROARMNIST"]


class ROARMNIST(Experiment):
    """Retrain the CNN of PyTorch's MNIST example without the pixels that a method ranks first.

    The network that is explained is trained first, by the same recipe on the same digits. 1,000 of
    each of MNIST's halves are taken, which trains in seconds, so that the whole takes minutes.

    Paper: Hooker et al., *A Benchmark for Interpretability Methods in Deep Neural Networks*,
    NeurIPS 2019.
    """

    name = "roar-mnist"
    shows = "accuracy of CNNs that are retrained without the pixels that a method ranks first"
    section = PAPER
    finding = FINDING
    models = ("mnist-cnn",)
    methods = ("Gradient", "DeepLIFT", "Integrated Gradients", "Grad-CAM", "A-FMI")
    data = "MNIST"
    recipe = Recipe(epochs=4)

    def _run(self, request: Request) -> Result:
        if request.models:
            raise UsageError(
                f"{self.name} trains the network that it uses; for another use roar-photos"
            )
        assert request.mnist is not None
        limit = request.limit or 1000
        training, test = (
            open_images(f"{kind}:{request.mnist}", _untrained(), limit=limit)
            for kind in ("mnist-train", "mnist")
        )
        folder = request.out / self.name
        explained = self._explained(folder.with_suffix(".safetensors"), training, request)
        methods = controls(explained) | methods_of(self, request, explained)
        roar = Roar(
            *(explained, build, training, test, methods, self.recipe, folder, request.report)
        )
        return finished(self, request, roar)

    def _explained(self, path: Path, training: LabelledImages, request: Request) -> Classifier:
        """Return the network that is explained, trained now unless the file holds it."""
        settings = {"training": training.fingerprint, "version": __version__}
        settings |= {key: str(value) for key, value in asdict(self.recipe).items()}
        if not _is_of(path, settings):
            request.report("training the network that is explained")
            network = trained(build, Pictures.read(training), self.recipe, 0).network
            state = {key: tensor.contiguous() for key, tensor in network.state_dict().items()}
            write_files({path: save(state, settings)})
        model = _untrained()
        model.network.load_state_dict(load(path.read_bytes()))
        return model


def _untrained() -> Classifier:
    with keeping_random_state(torch.device("cpu")):
        return build().eval()


def _is_of(path: Path, settings: dict[str, str]) -> bool:
    try:
        with safe_open(str(path), "pt") as file:
            return (file.metadata() or {}) == settings
    except (OSError, SafetensorError):  # there is none, or it is damaged
        return False
