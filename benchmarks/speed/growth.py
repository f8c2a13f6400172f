"""How the cost grows with images, classes, stages behind the layer, and masks."""

from __future__ import annotations

import torch

from afmi import Classifier
from afmi.methods import AFMI, RISE

from .bare import forward
from .bench import Bench, Pair
from .harness import Run
from .settings import Setting
from .subjects import EMBEDDED, network, views

__all__ = ["growth"]

BATCH = 8
RESNET_STAGES = ("layer4", "layer3", "layer2", "layer1")


def growth(bench: Bench) -> None:
    """Measure four series; a network named on the command line takes the place of resnet50."""
    for setting in bench.settings:
        small = setting.model(network(EMBEDDED))
        _images(
            bench,
            setting,
            small,
            bench.at(quick=(16, 80), standard=(100, 1000), full=(100, 1000, 10_000)),
        )
        _masks(
            bench,
            setting,
            small,
            bench.at(quick=(25, 100), standard=(100, 400, 1600), full=(500, 1000, 2000, 4000)),
        )
        for name in bench.networks or ("resnet50",):
            model = setting.model(network(name))
            images = setting.images(views(model, 1, bench.sizes[0] if bench.sizes else None))
            _classes(bench, setting, name, model, images)
            if name.startswith("resnet"):
                _stages(bench, setting, name, model, images)


def _images(bench: Bench, setting: Setting, model: Classifier, counts: tuple[int, ...]) -> None:
    """Cost of each explanation when there are many, and the memory of all."""
    images = setting.images(views(model, BATCH))
    afmi = AFMI(model)

    def explain(count: int) -> None:
        # A new batch each time, as when pictures are read.
        for done in range(0, count, BATCH):
            afmi.attribute(images[: count - done].clone())

    runs: dict[str, Run] = {
        f"A-FMI of {count} images": lambda count=count: explain(count) for count in counts
    }
    _series(bench, setting, "images", EMBEDDED, runs, counts, BATCH, images.shape[-1], 1.05)


def _masks(bench: Bench, setting: Setting, model: Classifier, counts: tuple[int, ...]) -> None:
    """Cost of each mask when there are many, and the memory of all."""
    image = setting.images(views(model, 1))
    runs: dict[str, Run] = {
        f"RISE with {count} masks": lambda count=count: RISE(model, masks=count).attribute(image, 0)
        for count in counts
    }
    _series(bench, setting, "masks", EMBEDDED, runs, counts, 1, image.shape[-1], None)


def _series(
    bench: Bench,
    setting: Setting,
    unit: str,
    name: str,
    runs: dict[str, Run],
    counts: tuple[int, ...],
    batch: int,
    size: int,
    target: float | None,
) -> None:
    """Compare the cost per unit with that of the fewest."""
    timings = bench.measure(runs, setting)
    fewest = next(iter(runs))
    pairs = [
        Pair(
            run,
            fewest,
            target if count != counts[0] else None,
            scale=counts[0] / count,
            details={"x": float(count), "note": f"for each of the {unit}"},
        )
        for run, count in zip(runs, counts, strict=True)
    ]
    bench.compare(
        timings, pairs, setting, scenario=f"growth: {unit}", network=name, batch=batch, size=size
    )


def _classes(
    bench: Bench, setting: Setting, name: str, model: Classifier, images: torch.Tensor
) -> None:
    """Cost of several classes of one image."""
    afmi = AFMI(model)
    counts = bench.at(quick=(1, 10), standard=(1, 3, 10, 30, 100), full=(1, 3, 10, 30, 100))
    runs: dict[str, Run] = {
        f"A-FMI of {count} class{'es' * (count > 1)}": lambda count=count: afmi.attribute_classes(
            images, range(count)
        )
        for count in counts
    }
    pairs = [
        Pair(run, next(iter(runs)), 1.3 if count == 10 else None, details={"x": float(count)})
        for run, count in zip(runs, counts, strict=True)
    ]
    _compare(bench, setting, "growth: classes", name, images, runs, pairs)


def _stages(
    bench: Bench, setting: Setting, name: str, model: Classifier, images: torch.Tensor
) -> None:
    """Cost of a layer the further it lies from the output."""
    runs: dict[str, Run] = {"forward": forward(model, images)}
    pairs = []
    for depth, stage in enumerate(RESNET_STAGES):
        afmi = AFMI(model, layer=stage)
        run = f"A-FMI at {stage}"
        runs[run] = lambda afmi=afmi: afmi.attribute(images, 0)
        pairs.append(Pair(run, "forward", details={"x": float(depth)}))
    _compare(bench, setting, "growth: stages", name, images, runs, pairs)


def _compare(
    bench: Bench,
    setting: Setting,
    scenario: str,
    name: str,
    images: torch.Tensor,
    runs: dict[str, Run],
    pairs: list[Pair],
) -> None:
    timings = bench.measure(runs, setting)
    bench.compare(
        timings,
        pairs,
        setting,
        scenario=scenario,
        network=name,
        batch=images.shape[0],
        size=images.shape[-1],
    )
