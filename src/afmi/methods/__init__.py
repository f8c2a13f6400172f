"""Every explanation method, found by existing: one file each, in the folder of its features.

`CATALOGUE` lists the classes by name; each is also an attribute here, such as
``afmi.methods.AFMI``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from torch import nn

from afmi import specs
from afmi.errors import UsageError
from afmi.methods.base import Attribution, BlankMapWarning, LayerMethod, Method

if TYPE_CHECKING:
    from afmi.methods.feature_maps.afmi import AFMI
    from afmi.methods.feature_maps.cam import CAM
    from afmi.methods.feature_maps.grad_cam import GradCAM
    from afmi.methods.feature_maps.grad_cam_plus_plus import GradCAMPlusPlus
    from afmi.methods.pixels.deconvnet import DeconvNet
    from afmi.methods.pixels.deeplift import DeepLIFT
    from afmi.methods.pixels.gradient import Gradient
    from afmi.methods.pixels.gradient_shap import GradientSHAP
    from afmi.methods.pixels.guided_backprop import GuidedBackprop
    from afmi.methods.pixels.input_x_gradient import InputXGradient
    from afmi.methods.pixels.integrated_gradients import IntegratedGradients
    from afmi.methods.pixels.kernel_shap import KernelSHAP
    from afmi.methods.pixels.lrp import LRP
    from afmi.methods.pixels.smoothgrad import SmoothGrad
    from afmi.methods.random import Random
    from afmi.methods.regions.extremal_perturbation import ExtremalPerturbation
    from afmi.methods.regions.lime import LIME
    from afmi.methods.regions.meaningful_perturbation import MeaningfulPerturbation
    from afmi.methods.regions.prediction_difference import PredictionDifference
    from afmi.methods.regions.rise import RISE
    from afmi.methods.regions.xrai import XRAI

_FAMILIES = ("control", "pixel", "region", "feature map")


def _find() -> dict[str, type[Method]]:
    found: dict[str, type[Method]] = specs.find_subclasses(__name__, __path__, Method)
    order = sorted(found, key=lambda n: (_FAMILIES.index(found[n].family), n == "AFMI", n.lower()))
    return {name: found[name] for name in order}


CATALOGUE: dict[str, type[Method]] = _find()
"""Every method's class by its name, families in the paper's order."""

globals().update(CATALOGUE)


specs.register(Method, "method", lambda: CATALOGUE)

MethodsLike = str | Sequence[str | type[Method] | Method]


def chosen_methods(model: nn.Module, methods: MethodsLike) -> dict[str, Method]:
    """Return the methods that were meant, by the label that tells each from the others.

    Args:
        model: the network to explain.
        methods: ``"all"``, or specs joined by commas, or a sequence of specs, classes or instances.
            A spec is a name, perhaps with parameters: ``"a-fmi:averaged=false:reference=white"``;
            several values of one are joined by "+": ``"xrai:scales=50+100"``. See `afmi.specs`.

    Raises:
        UsageError: when a method or parameter does not exist, a value does not fit, one instance
            explains another model, or two that differ have one label.

    Example:
        >>> list(chosen_methods(nn.Identity(), "grad-cam,a-fmi:averaged=no"))
        ['Grad-CAM', 'A-FMI (averaged=false)']
    """
    chosen = specs.choose(methods, Method, list(CATALOGUE.values()), model=model)
    for label, method in chosen.items():
        if method.model is not model:
            raise UsageError(f"the {label} given explains another model; pass the class instead")
    return chosen


def method_named(text: str) -> type[Method]:
    """Return the method that a user named: ``afmi``, ``A-FMI``, ``grad-cam`` and ``GradCAM`` alike.

    Raises:
        UsageError: when there is none; near matches are listed.
    """
    return specs.named(text, CATALOGUE, "method")


__all__ = [
    "AFMI",
    "CAM",
    "CATALOGUE",
    "LIME",
    "LRP",
    "RISE",
    "XRAI",
    "Attribution",
    "BlankMapWarning",
    "DeconvNet",
    "DeepLIFT",
    "ExtremalPerturbation",
    "GradCAM",
    "GradCAMPlusPlus",
    "Gradient",
    "GradientSHAP",
    "GuidedBackprop",
    "InputXGradient",
    "IntegratedGradients",
    "KernelSHAP",
    "LayerMethod",
    "MeaningfulPerturbation",
    "Method",
    "MethodsLike",
    "PredictionDifference",
    "Random",
    "SmoothGrad",
    "chosen_methods",
    "method_named",
]
