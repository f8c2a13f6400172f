"""Pixel methods against their own bare forwards and backwards, and against other packages."""

from __future__ import annotations

import torch

from afmi import Classifier, methods
from afmi.methods.base import Method
from afmi.methods.work import Work

from . import peers
from .bare import passes
from .bench import Bench, Pair, agreement
from .harness import Run
from .record import Row
from .settings import Setting
from .subjects import network, views

__all__ = ["pixels"]

ONE_PASS = ("Gradient", "InputXGradient", "GuidedBackprop", "DeconvNet", "LRP", "DeepLIFT")
MANY_PASSES = {"IntegratedGradients": "steps", "SmoothGrad": "samples", "GradientSHAP": "samples"}
"""Methods, and what they call the number of their passes."""
TARGETS = {"DeepLIFT": 1.15, "IntegratedGradients": 1.05, "SmoothGrad": 1.05}
AT_ONCE = 10
"""Points that go through the network at once, as by our methods' defaults."""
NOISE = 0.15


def pixels(bench: Bench) -> None:
    """Measure methods of one pass, and of ten and more."""
    several = "squeezenet1_1", "resnet50", "vgg19", "densenet121", "mobilenet_v2", "convnext_tiny"
    networks = bench.networks or bench.at(quick=("squeezenet1_1",), standard=several, full=several)
    # Ten steps of vgg19 take as long as all the rest.
    heavy = bench.networks or bench.at(
        quick=networks, standard=("squeezenet1_1", "resnet50"), full=networks
    )
    for name in networks:
        for setting in bench.settings:
            model = setting.model(network(name))
            for size in bench.sizes or (224,):
                for batch in bench.batches or (1,):
                    images = setting.images(views(model, batch, size))
                    _Case(bench, name, model, images, setting).one_pass()
                if name in heavy:
                    images = setting.images(views(model, 1, size))
                    steps = bench.at(quick=10, standard=10, full=100)
                    _Case(bench, name, model, images, setting).many_passes(steps)


class _Case:
    """One network with its images."""

    def __init__(
        self,
        bench: Bench,
        name: str,
        model: Classifier,
        images: torch.Tensor,
        setting: Setting,
    ) -> None:
        self.bench, self.name, self.model = bench, name, model
        self.images, self.setting = images, setting
        with torch.inference_mode():
            self.target = int(model(images).mean(0).argmax())

    def one_pass(self) -> None:
        """Methods of one forward and one backward."""
        images, target = self.images, self.target
        bare = "forward + backward"

        def gradient() -> object:
            leaf = images.clone().requires_grad_()
            return torch.autograd.grad(self.model(leaf)[:, target].sum(), leaf)

        explainers = {name: methods.CATALOGUE[name](self.model) for name in ONE_PASS}
        runs: dict[str, Run] = {bare: gradient} | self._runs(explainers)
        pairs = [Pair(name, bare) for name in ONE_PASS]
        pairs.append(Pair("DeepLIFT", "Gradient", TARGETS["DeepLIFT"]))
        self._with_peers(explainers, runs, pairs, peers.Asked(images, target))

    def many_passes(self, steps: int) -> None:
        """Methods of ``steps`` forwards and backwards."""
        images, target = self.images, self.target
        explainers = {
            name: methods.CATALOGUE[name](self.model, **{count: steps, "batch_size": AT_ONCE})
            for name, count in MANY_PASSES.items()
        }
        runs = self._runs(explainers)
        pairs = []
        # All of these need the same passes.
        work: Work = explainers["IntegratedGradients"].work(images)
        for layout, said in (("usual", ""), ("channels-last", ", channels last")):
            bare = f"{steps} forwards + backwards{said}"
            runs[bare] = passes(self.model, images, work, AT_ONCE, layout, target)
            pairs += [
                Pair(name, bare, TARGETS.get(name), details={"note": f"in batches of {AT_ONCE}"})
                for name in explainers
            ]
        noise = NOISE * float(images.max() - images.min())
        self._with_peers(
            explainers, runs, pairs, peers.Asked(images, target, "", steps, AT_ONCE, noise)
        )

    def _runs(self, explainers: dict[str, Method]) -> dict[str, Run]:
        return {
            name: lambda method=method: method.attribute(self.images, self.target)
            for name, method in explainers.items()
        }

    def _with_peers(
        self,
        explainers: dict[str, Method],
        runs: dict[str, Run],
        pairs: list[Pair],
        asked: peers.Asked,
    ) -> None:
        """Add the peers that are right, measure all, and tell of those that are not."""
        images, target = self.images, self.target
        left_out: list[Row] = []
        batch, size = images.shape[0], images.shape[-1]
        for name, makers in peers.PIXELS.items():
            if name not in explainers:
                continue
            try:
                maps = explainers[name].attribute(images, target)
            except Exception:
                continue  # measuring tells of it
            least, note = peers.RIGHT, ""
            if name in peers.SAMPLED:
                other = type(explainers[name])(self.model, **_with_seed(explainers[name], 1))
                among = agreement(maps, other.attribute(images, target)).least
                least = peers.least_alike(among)
                note = f"our own two seeds agree by {among:.4f}"
            for peer, make in makers.items():
                did = peers.tried(make, self.model, asked, [maps], least)
                details = did.details(note)
                if did.right and did.run is not None:
                    runs[peer] = did.run
                    pairs.append(Pair(name, peer, details=details))
                else:
                    left_out.append(
                        Row("pixels", self.name, peer, batch=batch, size=size, **details)
                    )
        timings = self.bench.measure(runs, self.setting)
        self.bench.compare(
            timings,
            pairs,
            self.setting,
            scenario="pixels",
            network=self.name,
            batch=batch,
            size=size,
        )
        for row in left_out:
            self.bench.add(row, self.setting)


def _with_seed(method: Method, seed: int) -> dict[str, object]:
    """Return a sampled method's settings with another seed."""
    settings = {name: getattr(method, name) for name in ("samples", "batch_size")}
    return {**settings, "seed": seed}
