"""Other packages' calls, each as a function from a network to what a user would run.

Each gets a copy of the network to hang its hooks on, so that no contender pays for another's. What
can be made once, before the first image, is made before the clock starts.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from afmi import Classifier
from afmi.pictures.maps import channel_maximum

from .bench import Agreement, agreement
from .harness import error_line
from .subjects import in_place_off, sharing_copy

__all__ = [
    "FEATURE_MAPS",
    "PIXELS",
    "RIGHT",
    "SAMPLED",
    "Asked",
    "Peer",
    "least_alike",
    "tried",
    "xrai",
]

RIGHT = 0.999
"""The least rank correlation with our maps at which another package's count as right."""

LEAST_AMONG = 0.2
"""The least agreement of our own two draws at which a sampled method's maps can be compared."""

SLACK = 0.05
"""How much less a sampled method's maps may agree with ours than ours with another seed's do."""


@dataclass(frozen=True)
class Asked:
    """What an explanation is asked of.

    Attributes:
        images: (N, 3, H, W) in [0, 1].
        target: the class, for all of them.
        layer: dotted name of the module inside the network that gives feature maps, if any.
        steps: points or samples, for methods that take several.
        batch: how many of these go through the network at once.
        noise: standard deviation, for methods that add noise.
    """

    images: Tensor
    target: int
    layer: str = ""
    steps: int = 1
    batch: int = 1
    noise: float = 0.0


Call = Callable[[], Tensor]
"""Returns maps (N, 1, h, w)."""
Maker = Callable[[Classifier, Asked], Call]


def _captum_grad_cam(model: Classifier, asked: Asked) -> Call:
    from captum.attr import LayerGradCam

    method = LayerGradCam(model, model.network.get_submodule(asked.layer))
    return lambda: method.attribute(asked.images, target=asked.target, relu_attributions=True)


def _grad_cam(model: Classifier, asked: Asked) -> Call:
    from pytorch_grad_cam import GradCAM
    from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget

    method = GradCAM(model=model, target_layers=[model.network.get_submodule(asked.layer)])
    targets: list[Any] = [ClassifierOutputTarget(asked.target)] * len(asked.images)
    return lambda: torch.from_numpy(method(asked.images, targets=targets))[:, None]


def _torchcam(model: Classifier, asked: Asked) -> Call:
    from torchcam.methods import GradCAM

    method = GradCAM(model, target_layer=model.network.get_submodule(asked.layer))

    def run() -> Tensor:
        scores = model(asked.images)
        return method(asked.target, scores, normalized=False)[0][:, None]

    return run


FEATURE_MAPS: dict[str, Maker] = {
    "Captum's LayerGradCam": _captum_grad_cam,
    "grad-cam's GradCAM": _grad_cam,
    "torchcam's GradCAM": _torchcam,
}


def _needing_gradients(asked: Asked) -> Tensor:
    return asked.images.clone().requires_grad_()


def _captum_saliency(model: Classifier, asked: Asked) -> Call:
    from captum.attr import Saliency

    method = Saliency(model)
    return lambda: channel_maximum(method.attribute(_needing_gradients(asked), target=asked.target))


def _captum_guided_backprop(model: Classifier, asked: Asked) -> Call:
    from captum.attr import GuidedBackprop

    method = GuidedBackprop(model)
    return lambda: channel_maximum(method.attribute(_needing_gradients(asked), target=asked.target))


def _captum_deconvolution(model: Classifier, asked: Asked) -> Call:
    from captum.attr import Deconvolution

    method = Deconvolution(model)
    return lambda: channel_maximum(method.attribute(_needing_gradients(asked), target=asked.target))


def _captum_deeplift(model: Classifier, asked: Asked) -> Call:
    from captum.attr import DeepLift

    method = DeepLift(model)
    black = torch.zeros_like(asked.images)
    return lambda: method.attribute(
        _needing_gradients(asked), baselines=black, target=asked.target
    ).sum(1, keepdim=True)


def _captum_integrated_gradients(model: Classifier, asked: Asked) -> Call:
    from captum.attr import IntegratedGradients

    method = IntegratedGradients(model)
    return lambda: method.attribute(
        asked.images,
        baselines=0.0,
        target=asked.target,
        n_steps=asked.steps,
        method="riemann_middle",
        internal_batch_size=asked.batch,
    ).sum(1, keepdim=True)


def _captum_noise_tunnel(model: Classifier, asked: Asked) -> Call:
    from captum.attr import NoiseTunnel, Saliency

    method = NoiseTunnel(Saliency(model))

    def run() -> Tensor:
        maps = method.attribute(
            _needing_gradients(asked),
            nt_type="smoothgrad",
            nt_samples=asked.steps,
            nt_samples_batch_size=asked.batch,
            stdevs=asked.noise,
            target=asked.target,
            abs=False,
        )
        return channel_maximum(maps)

    return run


def _captum_gradient_shap(model: Classifier, asked: Asked) -> Call:
    from captum.attr import GradientShap

    method = GradientShap(model)
    ends = torch.cat([torch.zeros_like(asked.images[:1]), torch.ones_like(asked.images[:1])])
    return lambda: method.attribute(
        asked.images, baselines=ends, n_samples=asked.steps, target=asked.target
    ).sum(1, keepdim=True)


class _OneClass(nn.Module):
    """The logit of one class, (N, 1), which keeps shap from explaining all of them."""

    def __init__(self, model: nn.Module, target: int) -> None:
        super().__init__()
        self.model, self.target = model, target

    def forward(self, images: Tensor) -> Tensor:
        return self.model(images)[:, self.target : self.target + 1]


def _maps(values: object) -> Tensor:
    """Return shap's values (N, C, H, W), perhaps with a last axis for the output, as maps."""
    array = np.asarray(values)
    return torch.from_numpy(array[..., 0] if array.ndim == 5 else array).sum(1, keepdim=True)


def _shap_deep(model: Classifier, asked: Asked) -> Call:
    import shap

    black = torch.zeros_like(asked.images[:1])
    method = shap.DeepExplainer(_OneClass(model, asked.target), black)
    return lambda: _maps(method.shap_values(asked.images, check_additivity=False))


def _shap_gradient(model: Classifier, asked: Asked) -> Call:
    import shap

    ends = torch.cat([torch.zeros_like(asked.images[:1]), torch.ones_like(asked.images[:1])])
    one = _OneClass(model, asked.target)
    method = shap.GradientExplainer(one, ends, batch_size=asked.batch)
    return lambda: _maps(method.shap_values(asked.images, nsamples=asked.steps))


PIXELS: dict[str, dict[str, Maker]] = {
    "Gradient": {"Captum's Saliency": _captum_saliency},
    "GuidedBackprop": {"Captum's GuidedBackprop": _captum_guided_backprop},
    "DeconvNet": {"Captum's Deconvolution": _captum_deconvolution},
    "DeepLIFT": {
        "Captum's DeepLift": _captum_deeplift,
        "shap's DeepExplainer": _shap_deep,
    },
    "IntegratedGradients": {"Captum's IntegratedGradients": _captum_integrated_gradients},
    "SmoothGrad": {"Captum's NoiseTunnel of Saliency": _captum_noise_tunnel},
    "GradientSHAP": {
        "Captum's GradientShap": _captum_gradient_shap,
        "shap's GradientExplainer": _shap_gradient,
    },
}
SAMPLED = {"SmoothGrad", "GradientSHAP"}
"""Methods whose maps depend on what is drawn."""


def xrai(model: Classifier, asked: Asked) -> Call:
    """XRAI by its authors' package, for one image."""
    from saliency import core

    picture = np.moveaxis(asked.images[0].cpu().numpy(), 0, -1)

    def gradients(batch: np.ndarray, call_model_args=None, expected_keys=None) -> dict:
        x = torch.from_numpy(np.moveaxis(batch, -1, 1)).to(asked.images).requires_grad_()
        (gradient,) = torch.autograd.grad(model(x)[:, asked.target].sum(), x)
        return {core.base.INPUT_OUTPUT_GRADIENTS: np.moveaxis(gradient.cpu().numpy(), 1, -1)}

    def run() -> Tensor:
        mask = core.XRAI().GetMask(
            picture,
            gradients,
            baselines=[np.zeros_like(picture), np.ones_like(picture)],
            batch_size=asked.batch,
            extra_parameters=core.XRAIParameters(steps=asked.steps),
        )
        return torch.from_numpy(np.asarray(mask))[None, None]

    return run


@dataclass(frozen=True)
class Peer:
    """How another package did on a network.

    Attributes:
        run: what to time.
        right: whether its maps are ours.
        agreement: of its maps with ours; None where it raised.
        note: its error, or what had to be changed for it.
    """

    run: Call | None
    right: bool
    agreement: Agreement | None
    note: str

    def details(self, *notes: str) -> dict[str, Any]:
        """Return what a row says of it, with other notes."""
        facts = {"note": ", ".join(filter(None, (self.note, *notes)))}
        if self.agreement is None:
            return facts
        return {**facts, "agreement": self.agreement.mean, "agreement_min": self.agreement.least}


def least_alike(among: float) -> float:
    """Return the rank correlation from which on a sampled method's maps count as right.

    Args:
        among: of our maps with ours of another draw.
    """
    return math.inf if among < LEAST_AMONG else among - SLACK


def tried(
    make: Maker, model: Classifier, asked: Asked, ours: list[Tensor], least: float = RIGHT
) -> Peer:
    """Try a package on the network as it is; where it is not right, without in-place modules.

    Args:
        make: the package's call.
        model: the network.
        asked: what to explain.
        ours: our maps (N, 1, H, W); several where there is more than one right place to take them.
        least: the rank correlation from which on it counts as right.
    """
    attempts = []
    for copied, where in ((sharing_copy, ""), (in_place_off, "on a copy without in-place modules")):
        try:
            run = make(copied(model), asked)
            theirs = run()
        except Exception as error:
            peer = Peer(None, False, None, f"{where} fails: {error_line(error)}".strip())
        else:
            best = max((agreement(maps, theirs) for maps in ours), key=lambda a: a.least)
            right = best.least >= least
            wrong = "too few samples to compare" if math.isinf(least) else "wrong"
            peer = Peer(run, right, best, where if right else f"{where} {wrong}".strip())
        for parameter in model.parameters():  # some packages leave gradients there
            parameter.grad = None
        if peer.right:
            return peer
        attempts.append(peer)
    # The second says more only where the first could not be compared.
    before, after = attempts
    if before.agreement is not None or after.agreement is None:
        return before
    return Peer(None, False, after.agreement, f"{before.note}; {after.note}")
