"""What a compiled model, another layout or another precision costs, and what it does to the map."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import cast

import torch
from torch import Tensor, nn

from afmi import Classifier, methods

from .bare import forward
from .bench import Bench, Pair, agreement
from .harness import Run, error_line
from .record import Row
from .settings import Setting
from .subjects import EMBEDDED, network, views

__all__ = ["options"]

SCENARIO = "options"
BATCH = 4


def _same(model: Classifier) -> nn.Module:
    return model


def _compiled(model: Classifier) -> nn.Module:
    return cast(nn.Module, torch.compile(model))


def _channels_last(model: Classifier) -> nn.Module:
    return copy.deepcopy(model).to(memory_format=torch.channels_last)


def _cast(dtype: torch.dtype) -> Callable[[Classifier], nn.Module]:
    return lambda model: copy.deepcopy(model).to(dtype)


Act = Callable[[nn.Module, Tensor, Tensor], Callable[[], Tensor]]
"""Returns what is timed, given a model, images (N, C, H, W) and a class for each."""


@dataclass(frozen=True)
class _Option:
    """A way to run a model.

    Attributes:
        model: returns the model so.
        dtype: of the images.
        layout: of the images.
        autocast: to which precision, if at all.
    """

    model: Callable[[Classifier], nn.Module] = _same
    dtype: torch.dtype = torch.float32
    layout: torch.memory_format = torch.contiguous_format
    autocast: torch.dtype | None = None

    def run(self, act: Act, model: Classifier, images: Tensor) -> Callable[[], Tensor]:
        """Return what is timed, for the classes that the model predicts as it is."""
        with torch.inference_mode():
            target = model(images).argmax(1)
        pictures = images.to(self.dtype).contiguous(memory_format=self.layout)
        plain = act(self.model(model), pictures, target.clone())
        if self.autocast is None:
            return plain
        precision = torch.autocast(images.device.type, self.autocast)
        # An autocast is also a decorator.
        return precision(plain)


BASE = "float32"
OPTIONS = {
    BASE: _Option(),
    "channels last": _Option(_channels_last, layout=torch.channels_last),
    "bf16 autocast": _Option(autocast=torch.bfloat16),
    "fp16 autocast": _Option(autocast=torch.float16),
    "bfloat16": _Option(_cast(torch.bfloat16), torch.bfloat16),
    "float16": _Option(_cast(torch.float16), torch.float16),
    "float64": _Option(_cast(torch.float64), torch.float64),
    "torch.compile": _Option(_compiled),
}


def _method(name: str) -> Act:
    def act(model: nn.Module, images: Tensor, target: Tensor) -> Callable[[], Tensor]:
        method = methods.CATALOGUE[name](model)
        return lambda: method.attribute(images, target)

    return act


ACTS: dict[str, Act] = {
    "forward": lambda model, images, target: forward(model, images),
    **{methods.CATALOGUE[name].name: _method(name) for name in ("AFMI", "GradCAM", "DeepLIFT")},
}


def options(bench: Bench) -> None:
    """Measure each option on the embedded network with photographs, and on resnet50."""
    for name in bench.networks or bench.at(
        quick=(EMBEDDED,), standard=(EMBEDDED, "resnet50"), full=(EMBEDDED, "resnet50", "vgg19")
    ):
        model = network(name)
        for setting in bench.settings:
            if setting.name:  # layouts and precisions are what is measured here
                continue
            network_as_set = setting.model(model)
            count = (bench.batches or (BATCH,))[0]
            images = setting.images(
                views(network_as_set, count, bench.sizes[0] if bench.sizes else None)
            )
            for title, act in ACTS.items():
                _one(bench, name, network_as_set, images, title, act, setting)


def _one(
    bench: Bench,
    name: str,
    model: Classifier,
    images: Tensor,
    title: str,
    act: Act,
    setting: Setting,
) -> None:
    runs: dict[str, Run] = {}
    pairs = []
    exact = OPTIONS[BASE].run(act, model, images)()
    for option, how in OPTIONS.items():
        contender = f"{title}, {option}"
        try:
            run = how.run(act, model, images)
            maps = run()
        except Exception as error:
            note = f"fails: {error_line(error)}"
            row = Row(SCENARIO, name, contender, batch=len(images), size=images.shape[-1])
            bench.add(replace(row, note=note), setting)
            continue
        runs[contender] = run
        if option != BASE:
            details: dict[str, object] = {}
            if exact.dim() == 4:  # maps, and not the logits of a forward pass
                alike = agreement(exact, maps)
                details = {"agreement": alike.mean, "agreement_min": alike.least}
            pairs.append(Pair(contender, f"{title}, {BASE}", details=details))
    timings = bench.measure(runs, setting)
    bench.compare(
        timings,
        pairs,
        setting,
        scenario=SCENARIO,
        network=name,
        batch=len(images),
        size=images.shape[-1],
    )
