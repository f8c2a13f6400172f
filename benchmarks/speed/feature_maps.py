"""A-FMI and Grad-CAM against a bare forward pass and against other packages' Grad-CAM."""

from __future__ import annotations

import contextvars
import copy
from collections.abc import Sequence

import torch
from torch import Tensor

from afmi import Classifier, unchanged
from afmi.methods import AFMI, GradCAM

from . import peers
from .bare import forward
from .bench import Bench, Pair
from .harness import Run
from .record import Row
from .settings import Setting
from .subjects import network, views

__all__ = ["by_network", "by_size"]

NETWORKS = ("vgg19", "resnet50", "densenet121", "mobilenet_v2", "convnext_tiny")
FORWARD = {1: 1.17}
"""Target of A-FMI / forward by batch size; 1.05 for larger ones."""
UNCHANGED = "A-FMI, network promised unchanged"
PEER = 1.03
TEN = 1.3


def by_network(bench: Bench) -> None:
    """Measure networks at 224 pixels in batches."""
    _measure(
        bench,
        "feature maps",
        bench.networks
        or bench.at(quick=("resnet50", "mobilenet_v2"), standard=NETWORKS, full=NETWORKS),
        bench.batches or bench.at(quick=(1,), standard=(1, 8), full=(1, 8, 32)),
        bench.sizes or (224,),
    )


def by_size(bench: Bench) -> None:
    """Measure smaller and larger pictures."""
    _measure(
        bench,
        "sizes",
        bench.networks or ("resnet50",),
        bench.batches or bench.at(quick=(1,), standard=(1,), full=(1, 8)),
        bench.sizes or bench.at(quick=(64,), standard=(64, 384), full=(64, 128, 384, 512)),
    )


def _measure(
    bench: Bench,
    scenario: str,
    networks: Sequence[str],
    batches: Sequence[int],
    sizes: Sequence[int],
) -> None:
    for name in networks:
        for setting in bench.settings:
            model = setting.model(network(name))
            for size in sizes:
                for batch in batches:
                    images = setting.images(views(model, batch, size))
                    _one(bench, scenario, name, model, images, setting)


def shown_class(model: Classifier, images: Tensor) -> int:
    """Return a class whose Grad-CAM is blank for none of the images, the likelier the better."""
    with torch.inference_mode():
        likely = model(images).mean(0).argsort(descending=True)[:50].tolist()
    method = GradCAM(model)
    for target in likely:
        maps = method.attribute(images, target).flatten(1)
        if bool((maps.amin(1) < maps.amax(1)).all()):
            return target
    return likely[0]


def _one(
    bench: Bench,
    scenario: str,
    name: str,
    model: Classifier,
    images: Tensor,
    setting: Setting,
) -> None:
    target = shown_class(model, images)
    afmi, grad_cam = AFMI(model), GradCAM(model)
    # Another network, because nothing is promised of the one that is checked in every call.
    promised = AFMI(copy.deepcopy(model))
    block, context = unchanged(promised.model), contextvars.copy_context()
    context.run(block.__enter__)
    layer = grad_cam.resolved_layer(images)[1]
    runs: dict[str, Run] = {
        "forward": forward(model, images),
        "A-FMI": lambda: afmi.attribute(images, target),
        UNCHANGED: lambda: context.run(promised.attribute, images, target),
        "A-FMI, ten classes": lambda: afmi.attribute_classes(images, range(10)),
        "Grad-CAM": lambda: grad_cam.attribute(images, target),
    }
    # A hook cannot stand behind a function call: there the module before it is right as well.
    places = [grad_cam] if layer.then is None else [grad_cam, GradCAM(model, layer=layer.name)]
    ours = [method.attribute(images, target) for method in places]
    asked = peers.Asked(images, target, layer.name)
    contenders = {
        peer: peers.tried(make, model, asked, ours) for peer, make in peers.FEATURE_MAPS.items()
    }
    runs |= {peer: did.run for peer, did in contenders.items() if did.right and did.run}
    timings = bench.measure(runs, setting)
    context.run(block.__exit__, None, None, None)

    batch, size = images.shape[0], images.shape[-1]
    fastest = timings.fastest([peer for peer in contenders if peer in runs])
    pairs = [
        Pair("A-FMI", "forward", FORWARD.get(batch, 1.05)),
        Pair(UNCHANGED, "forward", FORWARD.get(batch, 1.05)),
        Pair("Grad-CAM", "forward"),
        Pair("A-FMI, ten classes", "A-FMI", TEN),
    ]
    for peer, did in contenders.items():
        if peer in runs:
            best = peer == fastest
            details = did.details("the fastest that is right" * best)
            pairs.append(Pair("A-FMI", peer, PEER if best else None, details=details))
            pairs.append(Pair("Grad-CAM", peer, details=details))
    bench.compare(timings, pairs, setting, scenario=scenario, network=name, batch=batch, size=size)
    for peer, did in contenders.items():
        if peer not in runs:
            bench.add(Row(scenario, name, peer, batch=batch, size=size, **did.details()), setting)
