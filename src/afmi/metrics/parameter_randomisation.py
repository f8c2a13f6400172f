"""Parameter randomisation: does the map depend on what the network learned?"""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import count

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from afmi.errors import CompletenessWarning, ModelError, UsageError
from afmi.methods.base import Method
from afmi.methods.work import Work
from afmi.metrics.base import Case, Metric, blank_maps_allowed
from afmi.metrics.columns import Column
from afmi.network.classifier import classify
from afmi.network.guards import watching_all_modules
from afmi.network.randomness import generator_of
from afmi.pictures.maps import rank_correlation
from afmi.targets import TargetLike

__all__ = ["ParameterRandomisation"]

_NORMS = (_NormBase, nn.LayerNorm, nn.GroupNorm)


@dataclass(frozen=True)
class ParameterRandomisation(Metric):
    """Compare the map with that of the same network without its learned parameters.

    Layers lose what they learned one after another, from the logits downwards; at some depths the
    same class is explained anew and compared with the first map by Spearman's rank correlation, of
    the maps as they are and of their magnitudes. A map that stays shows the picture and not the
    network. The headline is the magnitude of the former where nothing learned is left: 0 where the
    map has gone, 1 where it stayed, be it upside down, as a new head turns many maps. Signed
    values would cancel in a mean over images. Smooth maps have few independent places, so that
    chance alone gives them more than pixel maps get: compare methods of one family. Where a last
    ReLU holds the class's new logit at 0 (SqueezeNet's does for about half of the classes), there
    is nothing to explain and no value.

    Paper: Adebayo et al., *Sanity Checks for Saliency Maps*, NeurIPS 2018, Section 3 (cascading
    randomisation). Differs: at a few depths instead of every block; SSIM and HOG comparisons are
    left out. Weights are drawn anew by He et al.'s rule, N(0, 2 / fan-in), so that the image still
    reaches the logits of a deep network; biases become 0, normalisations the identity, and other
    vectors are shuffled.
    Cost: the method at each depth, on a copy of the network that lives while `measure` runs; and
    for each batch 1 forward of one image for the order of the layers, and anew at each depth what
    the method keeps between batches, such as the reference's pass.

    Args:
        depths: shares of the layers that have parameters, rising to 1. At least one layer is
            randomised, so 0 means that which gives the logits.
        seed: of the new parameters, which are the same for all images.

    Example:
        >>> from afmi.methods import InputXGradient
        >>> model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(12, 3))
        >>> method, images = InputXGradient(model), torch.rand(2, 3, 2, 2)
        >>> attribution = method.attribution(images)
        >>> case = Case(method, images, attribution.target, attribution, model(images))
        >>> list(ParameterRandomisation(depths=(1,)).measure(case))
        ['similarity', 'rank_correlation@all', 'absolute_rank_correlation@all']
    """

    name = "Parameter randomisation"
    columns = (
        Column(
            "similarity",
            "Similarity",
            "how alike the pixels are ranked when the network's parameters are random",
            higher_is_better=False,
        ),
    )
    paper = "Adebayo et al., Sanity Checks for Saliency Maps, NeurIPS 2018"

    depths: Sequence[float] = (0, 0.5, 1)
    seed: int = 0

    def __post_init__(self) -> None:
        rising = all(a < b for a, b in zip(self.depths, self.depths[1:], strict=False))
        if not self.depths or not rising or self.depths[0] < 0 or self.depths[-1] != 1:
            raise UsageError(f"expected depths that rise from 0 or more to 1, got {self.depths}")

    def measure(self, case: Case) -> dict[str, Tensor]:
        """Return ``similarity``, and ``rank_correlation@…`` and ``absolute_rank_correlation@…``.

        The depths go by ``top``, percent and ``all``. NaN where a map is the same everywhere.

        Raises:
            ModelError: when the network cannot be copied, or has no parameters.
        """
        order = _from_the_logits_down(case.model, case.inputs[:1])
        try:
            # A copy of the method, so that whatever in it belongs to the network (a layer given as
            # a module, a base method) belongs to the copy's network.
            method = copy.deepcopy(case.method)
        except Exception as error:
            raise ModelError(
                f"{self.name} randomises a copy of the network, but {type(case.model).__name__} "
                f"cannot be copied ({error}); make copy.deepcopy(model) work, or leave this "
                "metric out"
            ) from error
        generator = generator_of(self.seed)
        modules = dict(method.model.named_modules())
        values: dict[str, Tensor] = {}
        done = 0
        for depth in self.depths:
            wanted = max(1, math.floor(depth * len(order) + 0.5))
            for name in order[done:wanted]:
                _randomise(modules[name], generator)
            done = max(done, wanted)
            maps = _attributed(method, case.inputs, case.targets)
            label = "top" if depth == 0 else "all" if depth == 1 else f"{100 * depth:g}%"
            values[f"rank_correlation@{label}"] = rank_correlation(case.maps, maps)
            magnitudes = rank_correlation(case.maps.abs(), maps.abs())
            values[f"absolute_rank_correlation@{label}"] = magnitudes
        return {"similarity": values["rank_correlation@all"].abs(), **values}

    def work(self, method: Method, inputs: Tensor) -> Work:
        """Return the passes of the method at all depths."""
        return len(self.depths) * method.work(inputs) + Work(1 / inputs.shape[0])


def _attributed(method: Method, inputs: Tensor, targets: TargetLike) -> Tensor:
    with warnings.catch_warnings(), blank_maps_allowed():
        # What a network of random numbers makes ill-conditioned is no news about the user's own.
        warnings.simplefilter("ignore", CompletenessWarning)
        return method.attribute(inputs, targets)


def _from_the_logits_down(model: nn.Module, image: Tensor) -> list[str]:
    """Return the names of the modules that have parameters of their own, the last to run first."""
    ends: dict[nn.Module, int] = {}
    step = count()

    def note(module: nn.Module, _output: object) -> None:
        ends[module] = next(step)

    with watching_all_modules(note):
        classify(model, image)
    modules = dict(model.named_modules())

    def place(name: str) -> int:
        # By the first that ended inside: a module with parameters of its own and others within
        # (a transformer's class token) uses its own when it begins.
        inside = [ends[module] for module in modules[name].modules() if module in ends]
        while not inside:
            # Never called itself (attention's output projection): where it belongs to.
            name = name.rpartition(".")[0]
            inside = [ends[modules[name]]] if modules[name] in ends else []
        return min(inside)

    owners = [name for name, module in modules.items() if any(True for _ in _parameters(module))]
    if not owners:
        raise ModelError(
            f"expected a network with parameters, got {type(model).__name__} without any; leave "
            "ParameterRandomisation out"
        )
    # Of those that run in one place, the last defined comes first.
    return sorted(owners, key=place)[::-1]


def _parameters(module: nn.Module) -> list[tuple[str, Tensor]]:
    parameters = module.named_parameters(recurse=False)
    return [(name, parameter) for name, parameter in parameters if parameter.is_floating_point()]


@torch.no_grad()
def _randomise(module: nn.Module, generator: torch.Generator) -> None:
    """Take from a module, but not from those inside it, what it learned."""
    if isinstance(module, _NORMS):
        # To weight 1, bias 0, mean 0, variance 1; nothing is drawn.
        module.reset_parameters()
        return
    for name, parameter in _parameters(module):
        if parameter.dim() > 1:
            # Drawn on the CPU in float32, so that every device and dtype gets the same numbers.
            fan_in = parameter.numel() / parameter.shape[0]
            numbers = torch.randn(
                parameter.shape, generator=generator, dtype=torch.float32, device="cpu"
            )
            parameter.copy_(numbers * math.sqrt(2 / fan_in))
        elif "bias" in name:
            parameter.zero_()
        else:
            order = torch.randperm(parameter.numel(), generator=generator, device="cpu")
            parameter.copy_(parameter.flatten()[order.to(parameter.device)].view_as(parameter))
