"""Input invariance: does the map stay when a shift of the input is undone inside the network?"""

from __future__ import annotations

import warnings
from dataclasses import dataclass, field, fields, replace
from typing import Any

import torch
from torch import Tensor, nn

from afmi.errors import ModelError, OutputsWarning, UsageError
from afmi.methods.base import LayerMethod, Method
from afmi.methods.work import Work
from afmi.metrics.base import Case, Metric, blank_maps_allowed
from afmi.metrics.columns import Column
from afmi.network.classifier import classify
from afmi.network.wrappers import Wrapper
from afmi.pictures.maps import rank_correlation
from afmi.pictures.references import Mean, Reference, reference_of

__all__ = ["InputInvariance"]


@dataclass(frozen=True)
class InputInvariance(Metric):
    """Compare the map with that of a second network that does the same on shifted images.

    f'(z) = f(z − s), so that f'(x + s) = f(x) for every image x: what the second network does to a
    shifted image is what the first does to the image itself, and whatever explains the network
    must give S'(x + s) = S(x). Compared by Spearman's rank correlation, and by the relative
    distance ‖S' − S‖₂ / ‖S‖₂. Subtracting s in front is the same as the bias b − W s in a first
    layer W x + b; the user's network is not changed.

    References lie in image space and stay as they are: black stays black, though f' takes what
    black + s is for what f takes black for. That is the paper's critique: a method has no way to
    know the shift, so its reference is a choice, and the map depends on it. With
    ``moved_reference`` the reference moves along, x̄ + s, also that of a method inside the method,
    and a method that compares an image with its reference is invariant again. A reference that is
    made of the image (blurred) always moves. A method's own zero (a reference of None) is no image
    and cannot move. Methods that draw numbers draw others for another image: their distance holds
    the noise of sampling, too.

    Paper: Kindermans et al., *The (Un)reliability of Saliency Methods*, 2019, Section 3, equation 3
    (a shift by −1: pixels from −1 to 0). Differs: the shift is subtracted in front of the network,
    since not every network's first layer has a bias, or no padding; the paper shows pictures, and
    the numbers are added.
    Cost: the method once more, and 1 forward where it returns no logits; `work` counts that of
    methods that never look at the network.

    Args:
        shift: s, a colour or a picture that is the same for every image, in the images' range.
        moved_reference: whether the method's references are shifted, too.

    Raises:
        UsageError: when the shift is several images, or depends on the image.

    Example:
        >>> from afmi.methods import Gradient, InputXGradient
        >>> model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(12, 2))
        >>> images = torch.rand(1, 3, 2, 2)
        >>> for kind in (Gradient, InputXGradient):
        ...     method = kind(model)
        ...     attribution = method.attribution(images)
        ...     case = Case(method, images, attribution.target, attribution, model(images))
        ...     print(bool(InputInvariance().measure(case)["relative_distance"] < 1e-5))
        True
        False
    """

    name = "Input invariance"
    columns = (
        Column(
            "rank_correlation",
            "Invariance",
            "how alike the pixels are ranked when the image is shifted by a constant, which the "
            "network undoes",
            higher_is_better=True,
        ),
        Column(
            "relative_distance",
            "Distance",
            "how far the map of the shifted image lies from the map, relative to its size: 0 is "
            "the same map",
            higher_is_better=False,
            aggregate="median",
        ),
    )
    paper = "Kindermans et al., The (Un)reliability of Saliency Methods, 2019"

    shift: Reference = field(default_factory=lambda: Mean((-1.0,)))
    moved_reference: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "shift", reference_of(self.shift))
        if self.shift.per_image:
            raise UsageError(
                f"expected a shift that is the same for every image, got {self.shift}; give a "
                "number, a number for each channel, or one picture"
            )

    def measure(self, case: Case) -> dict[str, Tensor]:
        """Return ``rank_correlation`` and ``relative_distance``.

        NaN where a map is the same everywhere; the distance, where it is 0.

        Raises:
            UsageError: when the shift is several images, or the method has no reference that
                could be moved.
            ModelError: when the second network gives other outputs.
        """
        shift = self._shift(case.inputs)
        images = case.inputs.detach() + shift
        method = self._on_shifted(case, shift)
        with blank_maps_allowed(), warnings.catch_warnings():
            # What its outputs are taken for was said of the first network.
            warnings.simplefilter("ignore", OutputsWarning)
            attribution = method.attribution(images, case.targets)
            outputs = attribution.logits
            if attribution.scores is not None:
                outputs = attribution.scores[:, None]
            elif outputs is None:
                outputs = classify(method.model, images)
        _check_same(outputs, case.logits)
        first = case.maps.detach().to("cpu", torch.float64).flatten(1)
        second = attribution.maps.detach().to("cpu", torch.float64).flatten(1)
        distance = (second - first).norm(dim=1) / first.norm(dim=1)
        return {
            "rank_correlation": rank_correlation(case.maps, attribution.maps),
            "relative_distance": distance.where(distance.isfinite(), torch.nan),
        }

    def work(self, method: Method, inputs: Tensor) -> Work:
        """Return the passes of the method, and one for the outputs where it makes none."""
        work = method.work(inputs)
        return work if work.forwards else work + Work(1)

    def _shift(self, inputs: Tensor) -> Tensor:
        shift = self.shift(inputs)
        if len(shift) != 1:
            raise UsageError(f"expected one shift for every image, got {len(shift)}: {self.shift}")
        return shift.detach()

    def _on_shifted(self, case: Case, shift: Tensor) -> Method:
        """Return the method on the network of shifted images."""
        method: Any = case.method.on(_Unshifted(case.model, shift))
        if isinstance(method, LayerMethod) and case.attribution.layer is not None:
            method = replace(method, layer=case.attribution.layer)
        if not self.moved_reference:
            return method
        moved = _with_moved_references(method, self.shift)
        if moved is method:
            raise UsageError(
                f"{method.name} has no reference that could be moved; leave moved_reference out, "
                "or give the method a reference, such as black, if it takes one"
            )
        return moved


def _with_moved_references(method: Method, shift: Reference) -> Method:
    """Return the method with its references moved, those of methods inside it too, or itself."""
    moved: dict[str, Any] = {}
    for one in fields(method):
        value = getattr(method, one.name)
        if isinstance(value, Reference):
            moved[one.name] = _Moved(value, shift)
        elif isinstance(value, Method):
            inside = _with_moved_references(value, shift)
            if inside is not value:
                moved[one.name] = inside
    return replace(method, **moved) if moved else method


class _Unshifted(Wrapper):
    """f'(z) = f(z − s): the network, after a shift of its input was undone.

    Args:
        model: f, used as it is.
        shift: s, (1, C, *spatial).
    """

    def __init__(self, model: nn.Module, shift: Tensor) -> None:
        super().__init__()
        self.model = model
        self.shift: Tensor
        self.register_buffer("shift", shift, persistent=False)
        self.training = model.training

    @property
    def wrapped(self) -> nn.Module:
        """The network that takes images as they were."""
        return self.model

    def forward(self, images: Tensor) -> Any:
        """Return what the network does for images (N, C, *spatial) as they were."""
        return self.model(images - self.shift)


@dataclass(frozen=True)
class _Moved(Reference):
    """A reference that was shifted together with the images."""

    reference: Reference
    shift: Reference

    @property
    def per_image(self) -> bool:  # type: ignore[override]
        """As the reference's."""
        return self.reference.per_image

    def __call__(self, inputs: Tensor) -> Tensor:
        shift = self.shift(inputs)
        return self.reference(inputs - shift) + shift


def _check_same(outputs: Tensor, before: Tensor) -> None:
    """Raise unless the second network gave the outputs (N, K) of the first, within rounding."""
    before = before.detach()
    size = before.abs().amax().clamp_min(1)
    change = float((outputs.to(before) - before).abs().amax() / size)
    if change > torch.finfo(before.dtype).eps ** 0.5:
        raise ModelError(
            f"the network's outputs moved by {change:.2g} of their size when its input was shifted "
            "and shifted back, so that maps cannot be compared; choose a smaller shift, float32 "
            "instead of half precision, or leave InputInvariance out"
        )
