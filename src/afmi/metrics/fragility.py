"""Fragility: does the map change when the image changes invisibly and the prediction stays?"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from afmi.errors import UsageError
from afmi.methods.base import Method
from afmi.methods.work import Work
from afmi.metrics.base import Case, Metric, blank_maps_allowed
from afmi.metrics.columns import Column
from afmi.network.classifier import classify
from afmi.network.guards import evaluation_mode, without_compilation
from afmi.network.operations import is_inplace, operation_name
from afmi.network.outputs import Meaning, scores_of
from afmi.network.randomness import image_generator, keeping_random_state
from afmi.network.trial import meaning_of
from afmi.pictures.dimensions import beside
from afmi.pictures.maps import channel_maximum, is_blank, rank_correlation, top_mask

__all__ = ["Fragility"]

_SOFTNESS = 10.0
"""β of the softplus log(1 + exp(βx))/β, which bends where a ReLU has its corner."""


@dataclass(frozen=True)
class Fragility(Metric):
    """Look for an invisible change of the image that leaves the prediction and moves the map.

    Among perturbations δ with |δ| ≤ ε at every pixel, under which the network predicts what it
    did, the one that moves the map furthest is kept, by one of two objectives (with S scaled to
    Σ |S| = 1, and T the pixels that the map of the image ranks in its top share):

    - "top": D = −Σ_{ij ∈ T} S_ij(x + δ), the evidence that is left where most of it was;
    - "centre": D = ‖C(x + δ) − C(x)‖₂, how far the centre of mass of the positive part moved.

    Shown is how the map of that image compares with the first: the share of T that is still ranked
    on top, Spearman's rank correlation, and how far the centre moved. Three attacks look for δ:

    - "random": each sample has every pixel moved by +ε or −ε at random, the paper's baseline;
    - "search": the same to begin with; then squares of it, ever smaller, are given other signs,
      and what is worse for the map is kept: an attack that needs no gradients, on any method;
    - "gradient": steps of ε/4 along the sign of ∇_x D of the plain gradient's map, of the network
      with its corners rounded, so that second derivatives are not zero: softplus in place of ReLU,
      and what is made of softplus in place of ReLU6, hardtanh, clamp, leaky ReLU and PReLU. That
      is the paper's attack on `Gradient`; other methods are judged by their own maps on the same
      images, so for them it is a transferred attack.

    Every attack only bounds the fragility from below: what it does not find may be there. Methods
    that draw numbers draw others for another image, so that the noise of sampling counts, too.

    Paper: Ghorbani, Abid & Zou, *Interpretation of Neural Networks is Fragile*, AAAI 2019, Section
    3 (ε = 8/255, the top 1,000 of 224² pixels, top-k and mass-centre attacks). Differs: signed
    maps stay signed, where the paper takes magnitudes; the perturbed image keeps to [0, 1], or to
    its own range where that is wider; few steps of ε/4, where the paper makes hundreds of ε/16;
    the search is that of Andriushchenko et al., *Square Attack*, ECCV 2020; the targeted attack
    is left out.
    Cost: ``samples`` times the method and 1 forward; of "gradient", 1 forward + 3 backwards more
    each time. A perturbation that changes the prediction spares the method.

    Args:
        epsilon: ε, in the images' range.
        attack: see above.
        objective: see above.
        samples: perturbations that are tried; a search deserves hundreds.
        share: of the pixels that count as the top.
        seed: of what is drawn, which also depends on the image.

    Raises:
        UsageError: when a value cannot work, or "gradient" finds no second derivative.

    Example:
        >>> from afmi.methods import Gradient
        >>> model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(48, 3))
        >>> method, images = Gradient(model), torch.rand(2, 3, 4, 4)
        >>> attribution = method.attribution(images)
        >>> case = Case(method, images, attribution.target, attribution, model(images))
        >>> Fragility(epsilon=0.001, share=0.25).measure(case)["intersection"].tolist()
        [1.0, 1.0]
    """

    name = "Fragility"
    columns = (
        Column(
            "intersection",
            "Top kept",
            "share of the map's top pixels that are still on top after an invisible change of the "
            "image that leaves the prediction",
            higher_is_better=True,
        ),
        Column(
            "rank_correlation",
            "Rank correlation",
            "how alike the pixels are ranked before and after that change",
            higher_is_better=True,
        ),
        Column(
            "centre_shift",
            "Centre moved",
            "how far the centre of mass of the map's positive part moved",
            higher_is_better=False,
            unit="pixels",
        ),
    )
    paper = "Ghorbani et al., Interpretation of Neural Networks is Fragile, AAAI 2019"
    needs_class = True

    epsilon: float = 8 / 255
    attack: str = "random"
    objective: str = "top"
    samples: int = 5
    share: float = 0.02
    seed: int = 0

    def __post_init__(self) -> None:
        for field, known in (("attack", _ATTACKS), ("objective", _OBJECTIVES)):
            if getattr(self, field) not in known:
                raise UsageError(
                    f"expected {field} to be one of {', '.join(known)}, got "
                    f"{getattr(self, field)!r}"
                )
        if not (self.epsilon > 0 and self.samples >= 1 and 0 < self.share < 1):
            raise UsageError(
                "expected an epsilon above 0, 1 sample or more, and a share between 0 and 1, got "
                f"epsilon={self.epsilon}, samples={self.samples}, share={self.share}"
            )

    def measure(self, case: Case) -> dict[str, Tensor]:
        """Return ``intersection``, ``rank_correlation`` and ``centre_shift``.

        NaN where no perturbation leaves the prediction, and where a map is the same everywhere.

        Raises:
            TargetError: when no class is explained.
            UsageError: when the attack is "gradient" and has no slope to go along.
        """
        images, classes = case.inputs.detach(), case.classes
        meaning = meaning_of(case.model, images)
        prediction = _prediction(case.logits, meaning)
        distance = _OBJECTIVES[self.objective](case.maps, self.share)
        attack = _ATTACKS[self.attack](self, case)
        worst = torch.full_like(case.maps, torch.nan)
        furthest = torch.full((len(images),), -torch.inf, dtype=torch.float64, device="cpu")
        for step in range(self.samples):
            perturbed = attack.propose(step)
            kept = (_prediction(classify(case.model, perturbed), meaning) == prediction).all(1)
            rows = kept.nonzero()[:, 0]
            moved = torch.full_like(furthest, -torch.inf)
            better = torch.zeros_like(kept)
            if len(rows):
                with blank_maps_allowed():
                    maps = case.method.attribute(perturbed[rows], classes.to(rows.device)[rows])
                # NaN: a map without evidence has no place to move to.
                moved[rows.cpu()] = distance(maps, rows.cpu()).nan_to_num(-torch.inf)
                better = (moved > furthest).to(kept.device)
                worst[better] = maps[better[rows]]
            attack.accept(better)
            furthest = torch.maximum(furthest, moved)
        return self._compared(case.maps, worst)

    def work(self, method: Method, inputs: Tensor) -> Work:
        """Return the passes of all samples."""
        return self.samples * (method.work(inputs) + Work(1) + _ATTACKS[self.attack].work)

    def _compared(self, maps: Tensor, worst: Tensor) -> dict[str, Tensor]:
        """Return the values for maps (N, 1, *spatial), NaN for those without a worst one."""
        there = ~(worst.isnan().flatten(1).any(1) | is_blank(maps)).cpu()
        both = top_mask(maps, self.share) & top_mask(worst.nan_to_num(), self.share)
        size = top_mask(maps[:1], self.share).sum()
        values = {
            "intersection": both.flatten(1).sum(1).to("cpu", torch.float64) / size.cpu(),
            "rank_correlation": rank_correlation(maps, worst),
            "centre_shift": (_centre(worst) - _centre(maps)).norm(dim=1),
        }
        return {name: value.where(there, torch.nan) for name, value in values.items()}


def _prediction(logits: Tensor, meaning: Meaning) -> Tensor:
    """Return what the network predicts: its class (N, 1), or which labels hold, (N, K)."""
    return logits > 0 if meaning == "sigmoid" else logits.argmax(1, keepdim=True)


Distance = Callable[[Tensor, Tensor], Tensor]
"""Tells how far maps (M, 1, *spatial) of the images at positions (M,) moved: (M,) on the CPU."""


def _top(maps: Tensor, share: float) -> Distance:
    top = top_mask(maps, share)

    def distance(moved: Tensor, rows: Tensor) -> Tensor:
        inside = (moved * top[rows.to(top.device)]).flatten(1).sum(1)
        # Nothing is left anywhere of a map of zeros: 0/0.
        return (-inside / moved.abs().flatten(1).sum(1)).to("cpu", torch.float64)

    return distance


def _centres(maps: Tensor, _share: float) -> Distance:
    centre = _centre(maps)

    def distance(moved: Tensor, rows: Tensor) -> Tensor:
        return (_centre(moved) - centre[rows]).norm(dim=1)

    return distance


_OBJECTIVES: dict[str, Callable[[Tensor, float], Distance]] = {"top": _top, "centre": _centres}


def _centre(maps: Tensor) -> Tensor:
    """Return the centre of mass of the positive part, (N, sides), in pixels; NaN without one."""
    mass = maps.to("cpu", torch.float64)[:, 0].clamp_min(0)
    total = mass.flatten(1).sum(1)
    places = []
    for side, size in enumerate(mass.shape[1:], 1):
        others = [other for other in range(1, mass.dim()) if other != side]
        along = mass.sum(others) if others else mass
        position = torch.arange(size, device="cpu").to("cpu", torch.float64)
        places.append((along * position).sum(1) / total)
    return torch.stack(places, 1)


class _Random:
    """Perturb every pixel by +ε or −ε at random, anew at each step."""

    work = Work()

    def __init__(self, metric: Fragility, case: Case) -> None:
        self.metric = metric
        self.images = case.inputs.detach()
        self.generators = [image_generator(metric.seed, image) for image in self.images]
        flat = self.images.flatten(1)
        self.low, self.high = (
            beside(bound, self.images)
            for bound in (flat.amin(1).clamp_max(0), flat.amax(1).clamp_min(1))
        )

    def propose(self, _step: int) -> Tensor:
        """Return images (N, C, *spatial) to try."""
        signs = torch.stack([self._signs(g, self.images.shape[1:]) for g in self.generators])
        return self._within(self.images + self.metric.epsilon * signs)

    def accept(self, better: Tensor) -> None:
        """Take note of the images whose maps moved further than any before, bool (N,)."""

    def _within(self, perturbed: Tensor) -> Tensor:
        return torch.minimum(torch.maximum(perturbed, self.low), self.high)

    def _signs(self, generator: torch.Generator, size: Any) -> Tensor:
        bits = torch.randint(2, tuple(size), generator=generator, device="cpu")
        return (2 * bits - 1).to(self.images)


class _Search(_Random):
    """Give squares of the best perturbation so far other signs, one for each channel."""

    def __init__(self, metric: Fragility, case: Case) -> None:
        super().__init__(metric, case)
        self.best: list[Tensor | None] = [None] * len(self.images)
        self.tried: list[Tensor] = []

    def propose(self, step: int) -> Tensor:
        """Return images to try: at random until one leaves the prediction."""
        share = 0.5 * 2 ** (-8 * step / self.metric.samples)
        self.tried = [
            self._signs(generator, image.shape)
            if best is None
            else self._square(best, share, generator)
            for image, best, generator in zip(self.images, self.best, self.generators, strict=True)
        ]
        return self._within(self.images + self.metric.epsilon * torch.stack(self.tried))

    def accept(self, better: Tensor) -> None:
        """Go on from the better ones."""
        for n in better.nonzero()[:, 0].tolist():
            self.best[n] = self.tried[n]

    def _square(self, best: Tensor, share: float, generator: torch.Generator) -> Tensor:
        """Return signs (C, *spatial), a square of about this share of the places drawn anew."""
        sides = best.shape[1:]
        window: list[slice] = []
        for side in sides:
            length = max(1, round(side * share ** (1 / len(sides))))
            start = torch.randint(side - length + 1, (), generator=generator, device="cpu")
            window.append(slice(int(start), int(start) + length))
        changed = best.clone()
        changed[(slice(None), *window)] = self._signs(generator, (len(best), *[1] * len(sides)))
        return changed


class _Gradient(_Random):
    """Go along the sign of the gradient of the distance that the plain gradient's map moves.

    The map is that of the network with its corners rounded. The first step is drawn, for the
    distance of the centre has no gradient at the image itself.
    """

    work = Work(1, 3)

    def __init__(self, metric: Fragility, case: Case) -> None:
        super().__init__(metric, case)
        self.model, self.classes = case.model, case.classes.to(self.images.device)
        self.rows = torch.arange(len(self.images), device="cpu")
        with torch.inference_mode(False), torch.enable_grad():
            maps = self._maps(self.images.clone().requires_grad_()).detach()
        self.distance = _OBJECTIVES[metric.objective](maps, metric.share)
        self.at = super().propose(0)

    def propose(self, step: int) -> Tensor:
        """Return the images of the next step."""
        epsilon = self.metric.epsilon
        if step:
            slope, known = self._slope(self.at)
            if step == 1 and bool((known & ~slope.flatten(1).any(1)).any()):
                raise UsageError(
                    "expected a network whose gradient changes from place to place, so that it "
                    "can be attacked along a slope; this one's second derivative is 0 where the "
                    "attack begins; use attack=search"
                )
            stepped = self.at + epsilon / 4 * slope.sign()
            change = (stepped - self.images).clamp(-epsilon, epsilon)
            self.at = self._within(self.images + change)
        return self.at

    def _slope(self, at: Tensor) -> tuple[Tensor, Tensor]:
        """Return ∇_x D (N, C, *spatial), and whether there is a map to move, bool (N,)."""
        with torch.inference_mode(False), torch.enable_grad():
            images = at.clone().requires_grad_()
            maps = self._maps(images)
            slope = None
            if maps.requires_grad:
                total = self.distance(maps, self.rows).sum()
                (slope,) = torch.autograd.grad(total, images, allow_unused=True)
        slope = torch.zeros_like(at) if slope is None else slope.nan_to_num()
        return slope, ~is_blank(maps)

    def _maps(self, images: Tensor) -> Tensor:
        """Return the plain gradient's maps, of which a gradient can be taken."""
        with (
            keeping_random_state(images.device),
            evaluation_mode(self.model),
            without_compilation(),
            _Rounded(),
        ):
            scores = scores_of(self.model, images).gather(1, self.classes[:, None])
        (gradient,) = torch.autograd.grad(scores.sum(), images, create_graph=True)
        return channel_maximum(gradient)


def _softplus(x: Tensor) -> Tensor:
    return F.softplus(x, beta=_SOFTNESS)


def _leaky(x: Tensor, slope: Any = 0.01) -> Tensor:
    """Return max(x, 0) + a min(x, 0) = a x + (1 − a) max(x, 0), rounded."""
    return slope * x + (1 - slope) * _softplus(x)


def _prelu(x: Tensor, weight: Tensor) -> Tensor:
    return _leaky(x, weight.reshape(-1, *[1] * (x.dim() - 2)))


def _clamped(x: Tensor, low: Any = None, high: Any = None) -> Tensor:
    """Return l + max(x − l, 0) − max(x − h, 0), rounded; None: no bound."""
    if low is None:
        return x if high is None else high - _softplus(high - x)
    above = low + _softplus(x - low)
    return above if high is None else above - _softplus(x - high)


_ROUNDED: dict[str, tuple[Callable[..., Tensor], dict[str, str]]] = {
    "relu": (_softplus, {}),
    "relu6": (lambda x: _clamped(x, 0, 6), {}),
    "hardtanh": (
        lambda x, low=-1, high=1: _clamped(x, low, high),
        {"min_val": "low", "max_val": "high"},
    ),
    "clamp": (_clamped, {"min": "low", "max": "high"}),
    "clamp_min": (_clamped, {"min": "low"}),
    "clamp_max": (_clamped, {"max": "high"}),
    "leaky_relu": (_leaky, {"negative_slope": "slope"}),
    "prelu": (_prelu, {"weight": "weight"}),
}
"""What stands for an operation, and its operands after the first: PyTorch's name and ours."""


class _Rounded(TorchFunctionMode):
    """Puts smooth functions in the place of rectifiers, whose second derivative is 0."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        rounded, names = _ROUNDED.get(operation_name(func), (None, {}))
        x = args[0] if args else kwargs.get("input")
        if rounded is None or not (isinstance(x, Tensor) and x.is_floating_point()):
            return func(*args, **kwargs)
        operands = dict(zip(names.values(), args[1:], strict=False))
        operands |= {ours: kwargs[name] for name, ours in names.items() if name in kwargs}
        inplace = is_inplace(func, args, kwargs)
        # What is written over cannot be differentiated with respect to any more.
        result = rounded(x.clone() if inplace else x, **operands)
        return x.copy_(result) if inplace else result


_ATTACKS: dict[str, type[_Random]] = {"random": _Random, "search": _Search, "gradient": _Gradient}
