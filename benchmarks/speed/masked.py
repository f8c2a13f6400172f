"""Region methods and insertion against the passes through the network that they cannot do without.

The bare passes run in the fastest batches that the method could take, in PyTorch's usual layout of
images and with channels last, which ours use on a CPU. Where a method takes many steps one after
the other, its bare passes take no more at once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from afmi import Classifier, methods
from afmi.methods.base import Method
from afmi.methods.work import Work
from afmi.metrics import Insertion

from . import peers
from .bare import best_batch, passes
from .bench import Bench, Pair, agreement
from .harness import CLOCKS, Run, Stopwatch
from .record import Row
from .settings import LAYOUTS, Setting
from .subjects import EMBEDDED, network, views

__all__ = ["masked"]

SCENARIO = "masked pictures"
FEW = 64
MANY = 10**9
INSERTION = 1.15


@dataclass(frozen=True)
class _Spec:
    """A method to measure.

    Attributes:
        name: in the catalogue.
        settings: its parameters.
        at_once: how many pictures could go through the network together.
        target: of its time to that of its passes.
    """

    name: str
    settings: dict[str, object]
    at_once: int = MANY
    target: float | None = None


def _specs(scale: float) -> Sequence[_Spec]:
    """Return the methods with their counts at a scale; 1 is what `make bench` takes."""

    def some(count: int, least: int = 2) -> int:
        return max(least, round(count * scale))

    return (
        _Spec("RISE", {"masks": some(200)}, target=1.05),
        _Spec("LIME", {"samples": some(500)}, target=1.05),
        _Spec("PredictionDifference", {"samples": some(2, 1), "stride": 10}, target=1.05),
        _Spec("KernelSHAP", {"samples": some(200)}),
        _Spec("XRAI", {"steps": some(25, 10)}),
        _Spec("ExtremalPerturbation", {"iterations": some(20)}, at_once=4),
        _Spec("MeaningfulPerturbation", {"iterations": some(40)}, at_once=1),
    )


def masked(bench: Bench) -> None:
    """Measure methods on one photograph, and insertion on four."""
    networks = bench.networks or bench.at(
        quick=(EMBEDDED,),
        standard=(EMBEDDED, "squeezenet1_1"),
        full=(EMBEDDED, "squeezenet1_1", "resnet50"),
    )
    for name in networks:
        # A network of 224 pixels takes several times as long for each picture.
        scale = bench.at(quick=0.1, standard=1.0 if name == EMBEDDED else 0.3, full=1.0)
        for setting in bench.settings:
            model = setting.model(network(name))
            _Case(bench, name, model, setting).run(scale)


class _Case:
    """One network with a photograph."""

    def __init__(self, bench: Bench, name: str, model: Classifier, setting: Setting) -> None:
        self.bench, self.name, self.model, self.setting = bench, name, model, setting
        size = bench.sizes[0] if bench.sizes else None
        self.images = setting.images(views(model, 4, size))
        self.image = self.images[:1]
        with torch.inference_mode():
            self.target = int(model(self.image).argmax())
        self._batches: dict[tuple[bool, int, str], int] = {}

    def run(self, scale: float) -> None:
        for spec in _specs(scale):
            try:
                method = methods.CATALOGUE[spec.name](self.model, **spec.settings)
                work = method.work(self.image)
            except Exception as error:
                row = Row(SCENARIO, self.name, spec.name, note=f"fails: {error}")
                self.bench.add(row, self.setting)
                continue
            self._method(spec, method, work)
        self._insertion()

    def _method(self, spec: _Spec, method: Method, work: Work) -> None:
        counts = ", ".join(f"{key}={value}" for key, value in spec.settings.items())
        runs: dict[str, Run] = {
            spec.name: lambda: method.attribute(self.image, self.target),
        }
        pairs = self._bare(runs, spec.name, work, spec.at_once, spec.target, counts)
        left_out = []
        if spec.name == "XRAI":
            # The package's points on the way are not ours; with more of them both come closer.
            steps = int(work.backwards) // 2
            maps = method.attribute(self.image, self.target)
            finer = methods.XRAI(self.model, steps=2 * steps).attribute(self.image, self.target)
            among = agreement(maps, finer).least
            note = f"our own with twice the steps agree by {among:.4f}"
            least = peers.least_alike(among)
            for batch in (1, 8):
                asked = peers.Asked(self.image, self.target, "", steps, batch)
                did = peers.tried(peers.xrai, self.model, asked, [maps], least)
                name = f"saliency's XRAI, batches of {batch}"
                if did.right and did.run is not None:
                    runs[name] = did.run
                    pairs.append(Pair(spec.name, name, details=did.details(counts, note)))
                else:
                    details = did.details(note)
                    left_out.append(Row(SCENARIO, self.name, name, size=self._size, **details))
        self._compare(runs, pairs, batch=1)
        for row in left_out:
            self.bench.add(row, self.setting)

    def _insertion(self) -> None:
        insertion = Insertion()
        maps = torch.rand(len(self.images), 1, *self.images.shape[2:]).to(self.images)
        targets = torch.zeros(len(self.images), dtype=torch.int64, device=self.images.device)
        logits = self.model(self.images).detach()
        runs: dict[str, Run] = {
            "Insertion": lambda: insertion.curves(
                self.model, self.images, targets, maps, logits=logits
            ),
        }
        count = len(self.images) * sum(fraction != 1 for fraction in insertion.fractions)
        pairs = self._bare(runs, "Insertion", Work(count), MANY, INSERTION, "")
        self._compare(runs, pairs, batch=len(self.images))

    def _bare(
        self,
        runs: dict[str, Run],
        name: str,
        work: Work,
        at_once: int,
        target: float | None,
        counts: str,
    ) -> list[Pair]:
        """Add the bare passes in each layout, and return their pairs."""
        pairs = []
        backward = work.backwards > 0
        count = f"{round(work.forwards)} forwards"
        count += f" and {round(work.backwards)} backwards" * backward
        for layout in LAYOUTS:
            batch = self._best(backward, at_once, layout)
            said = "" if layout == "usual" else ", channels last"
            bare = f"its {count}{said}"
            runs[bare] = passes(self.model, self.image, work, batch, layout, self.target)
            note = ", ".join(filter(None, (counts, f"batches of {batch}")))
            pairs.append(Pair(name, bare, target, details={"note": note}))
        return pairs

    def _best(self, backward: bool, at_once: int, layout: str) -> int:
        key = (backward, min(at_once, FEW), layout)
        if key not in self._batches:
            watch: Stopwatch = CLOCKS[self.bench.clock](self.setting.device)
            try:
                self._batches[key] = best_batch(
                    self.model, self.image, layout, watch, backward=backward, most=key[1]
                )
            except RuntimeError:
                self._batches[key] = 1
        return self._batches[key]

    @property
    def _size(self) -> int:
        return self.images.shape[-1]

    def _compare(self, runs: dict[str, Run], pairs: list[Pair], batch: int) -> None:
        timings = self.bench.measure(runs, self.setting)
        self.bench.compare(
            timings,
            pairs,
            self.setting,
            scenario=SCENARIO,
            network=self.name,
            batch=batch,
            size=self._size,
        )
