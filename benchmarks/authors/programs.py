"""Call the authors' programs, from checkouts of theirs, on a network of ours.

Nothing of theirs is copied or written anew here. Each function imports the program from its
folder, gives it the network and the normalised image, and returns the map (H, W). Programs that
need Caffe, Python 2 or TensorFlow (Meaningful Perturbation, Prediction Difference, DeepLIFT) are
not among them.
"""

from __future__ import annotations

import contextlib
import copy
import io
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from torch import Tensor, nn

from afmi import Classifier
from afmi.methods.base import Method

__all__ = ["CALLS", "Call", "lengths_as_theirs"]


@dataclass(frozen=True)
class Call:
    """What a program is asked: to explain a class of one image as our method would.

    Attributes:
        ours: the method that it is compared with, whose settings it is given.
        image: (1, 3, H, W), in [0, 1].
        target: the class.
        seed: of NumPy's and PyTorch's generators.
    """

    ours: Any
    image: Tensor
    target: int
    seed: int = 0

    @property
    def model(self) -> Classifier:
        """The network with its normalisation."""
        return self.ours.model

    @property
    def normalised(self) -> Tensor:
        """The image as the bare network takes it."""
        return (self.image - self.model.mean) / self.model.std

    def network(self) -> nn.Module:
        """Return a copy of the bare network: programs change what they are given."""
        return copy.deepcopy(self.model.network)


def lengths_as_theirs(settings: dict[str, Any], method: type[Method], side: int) -> dict[str, Any]:
    """Return settings in which lengths that we scale with the image are pixels, as in theirs."""
    if method.__name__ != "ExtremalPerturbation" or side == 224:
        return settings
    defaults = {"sigma": 21.0, "step": 7.0, "blur": 20.0}
    return settings | {key: value * 224 / side for key, value in defaults.items()}


@contextlib.contextmanager
def _importable(folder: Path) -> Iterator[None]:
    """Let modules be imported from a folder, silently, and forget the folder afterwards."""
    sys.path.insert(0, str(folder))
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            yield
    finally:
        sys.path.remove(str(folder))


def rise(folder: Path, call: Call) -> Tensor:
    """Run RISE, whose masks go to a GPU that need not be there."""
    with _importable(folder), mock.patch.object(Tensor, "cuda", lambda self: self):
        from explanations import RISE  # pyright: ignore[reportMissingImports]

        side = tuple(call.image.shape[2:])
        program = RISE(nn.Sequential(call.network(), nn.Softmax(1)), side, gpu_batch=50)
        with tempfile.TemporaryDirectory() as scratch, torch.no_grad():
            ours = call.ours
            masks = str(Path(scratch) / "masks.npy")
            program.generate_masks(ours.masks, ours.cells, ours.probability, savepath=masks)
            return program(call.normalised)[call.target]


def _torchray(name: str, **arguments: Any) -> Callable[[Path, Call], Tensor]:
    def run(folder: Path, call: Call) -> Tensor:
        with _importable(folder):
            module = __import__(f"torchray.attribution.{name}", fromlist=[name])
            network = call.network()
            options = dict(arguments)
            if name == "grad_cam":
                layer = str(call.ours.resolved_layer(call.image)[1]).removeprefix("network.")
                options["saliency_layer"] = layer
            x = call.normalised.requires_grad_(True)
            return getattr(module, name)(network, x, call.target, **options)[0, 0]

    return run


def extremal_perturbation(folder: Path, call: Call) -> Tensor:
    """Run TorchRay's Extremal Perturbation as its benchmark does."""
    with _importable(folder):
        from torchray.attribution.extremal_perturbation import (  # pyright: ignore
            extremal_perturbation as program,
        )

        masks, _ = program(
            call.network(),
            call.normalised,
            call.target,
            areas=list(call.ours.areas),
            max_iter=call.ours.iterations,
            jitter=call.ours.mirror,
            smooth=call.ours.smoothing,
        )
        return masks.sum(0)[0]


def lime(folder: Path, call: Call) -> Tensor:
    """Run LIME's explainer of images."""
    with _importable(folder):
        from lime.lime_image import LimeImageExplainer  # pyright: ignore[reportMissingImports]

        def classify(images: np.ndarray) -> np.ndarray:
            batch = torch.from_numpy(images).permute(0, 3, 1, 2).float()
            with torch.no_grad():
                return call.model(batch).softmax(1).double().numpy()

        picture = call.image[0].permute(1, 2, 0).double().numpy()
        explained = LimeImageExplainer(random_state=call.seed).explain_instance(
            picture,
            classify,
            labels=(call.target,),
            top_labels=None,
            num_samples=call.ours.samples,
            random_seed=call.seed,
            progress_bar=False,
        )
        weights = np.zeros(int(explained.segments.max()) + 1)
        for superpixel, weight in explained.local_exp[call.target]:
            weights[superpixel] = weight
        return torch.from_numpy(weights[explained.segments])


def _gradients_for(call: Call) -> Callable[..., dict[str, np.ndarray]]:
    """Return the function by which PAIR's saliency asks for gradients of the logit."""
    network = call.network()

    def gradients(images: np.ndarray, *_: Any, **__: Any) -> dict[str, np.ndarray]:
        x = torch.from_numpy(np.asarray(images)).permute(0, 3, 1, 2).float().requires_grad_(True)
        (gradient,) = torch.autograd.grad(network(x)[:, call.target].sum(), x)
        return {"INPUT_OUTPUT_GRADIENTS": gradient.permute(0, 2, 3, 1).numpy()}

    return gradients


def _pair(explain: Callable[[Any, np.ndarray, Callable[..., Any], Call], np.ndarray]) -> Any:
    def run(folder: Path, call: Call) -> Tensor:
        with _importable(folder):
            from saliency import core

            x = call.normalised[0].permute(1, 2, 0).double().numpy()
            return torch.from_numpy(np.array(explain(core, x, _gradients_for(call), call)))

    return run


def _black(call: Call) -> np.ndarray:
    """Return black as the bare network takes it, (H, W, 3)."""
    black = (torch.zeros_like(call.image) - call.model.mean) / call.model.std
    return black[0].permute(1, 2, 0).double().numpy()


def _integrated(core: Any, x: np.ndarray, gradients: Any, call: Call) -> np.ndarray:
    program = core.IntegratedGradients()
    steps = call.ours.steps
    return program.GetMask(x, gradients, x_baseline=_black(call), x_steps=steps).sum(2)


def _smooth(core: Any, x: np.ndarray, gradients: Any, call: Call) -> np.ndarray:
    noisy = core.GradientSaliency().GetSmoothedMask(
        x, gradients, stdev_spread=call.ours.noise, nsamples=call.ours.samples, magnitude=False
    )
    return abs(noisy).max(2)


def _xrai(core: Any, x: np.ndarray, gradients: Any, call: Call) -> np.ndarray:
    settings = core.XRAIParameters(steps=call.ours.steps)
    return core.XRAI().GetMask(x, gradients, extra_parameters=settings)


CALLS: dict[str, tuple[str, Callable[[Path, Call], Tensor]]] = {
    "Gradient": ("TorchRay", _torchray("gradient")),
    "GuidedBackprop": ("TorchRay", _torchray("guided_backprop")),
    "DeconvNet": ("TorchRay", _torchray("deconvnet")),
    "GradCAM": ("TorchRay", _torchray("grad_cam", resize=True)),
    "ExtremalPerturbation": ("TorchRay", extremal_perturbation),
    "RISE": ("RISE", rise),
    "LIME": ("lime", lime),
    "IntegratedGradients": ("saliency", _pair(_integrated)),
    "SmoothGrad": ("saliency", _pair(_smooth)),
    "XRAI": ("saliency", _pair(_xrai)),
}
"""Which checkout has a method's program, and how it is called."""
