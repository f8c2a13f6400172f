"""pytorch-grad-cam's call shapes, our methods: change ``pytorch_grad_cam`` into this module.

``cam(input_tensor=…, targets=[ClassifierOutputTarget(281)])`` gives maps (N, H, W) in [0, 1].
Inputs are what the network itself takes, such as normalised images. The network runs in evaluation
mode and is left as it was.

Arguments that cannot be served raise a `UsageError`; none is ignored.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from afmi import methods
from afmi.compat.as_given import as_given
from afmi.errors import ShapeError, TargetError, UsageError
from afmi.methods import Method
from afmi.network.classifier import classify, device_of
from afmi.network.guards import evaluation_mode
from afmi.network.labels import class_index
from afmi.pictures.maps import upsample
from afmi.pictures.references import ReferenceLike, reference_of
from afmi.targets import Scalar, Target

__all__ = [
    "AFMI",
    "AblationCAM",
    "ClassifierOutputTarget",
    "EigenCAM",
    "FullGrad",
    "GradCAM",
    "GradCAMPlusPlus",
    "HiResCAM",
    "LayerCAM",
    "ScoreCAM",
    "XGradCAM",
    "show_cam_on_image",
]


@dataclass(frozen=True)
class ClassifierOutputTarget:
    """Explain one class: a target for one image.

    Args:
        category: its index.

    Raises:
        TargetError: when it is no whole number.
    """

    category: int

    def __post_init__(self) -> None:
        try:
            class_index(self.category)
        except TypeError:
            raise TargetError(f"expected a class by its index, got {self.category!r}") from None

    def __call__(self, model_output: Tensor) -> Tensor:
        """Return the class's output of one image (K,), or of each of several, (N, K)."""
        return model_output[..., self.category]


class _CAM:
    """What all of them share.

    Args:
        model: the network.
        target_layers: the layers whose maps are shown, their mean where there are several: modules
            of the network, or their dotted names. None: the last stage, which is found.
        reshape_transform: None: tokens are arranged as maps without it.

    Attributes:
        outputs: what the network returned for the images of the last call, in evaluation mode and
            without gradients; None before it.

    Raises:
        UsageError: when an argument cannot be served.
    """

    _method: ClassVar[Callable[..., Method]]

    def __init__(
        self,
        model: nn.Module,
        target_layers: Sequence[nn.Module | str] | None = None,
        reshape_transform: None = None,
    ) -> None:
        if reshape_transform is not None:
            raise UsageError(
                "expected no reshape_transform, got one; leave it out, since the tokens of a "
                "transformer's layer are arranged as maps by themselves"
            )
        if isinstance(target_layers, (nn.Module, str)) and not isinstance(
            target_layers, nn.ModuleList
        ):
            raise UsageError(
                f"expected a list of target_layers, got one {type(target_layers).__name__}; "
                "write [layer]"
            )
        self.model = model
        self.target_layers = list(target_layers or ())
        self._network = as_given(model)
        self.outputs: Any = None

    def __call__(
        self,
        input_tensor: Tensor,
        targets: Sequence[Any] | None = None,
        aug_smooth: bool = False,
        eigen_smooth: bool = False,
    ) -> np.ndarray:
        """Return a map of each image, brought to [0, 1].

        Negative values become 0. The map of each layer is stretched to [0, 1] and interpolated to
        the image's size; their mean is stretched again.

        Args:
            input_tensor: images (N, C, H, W), as the network takes them.
            targets: what to explain, one for each image: `ClassifierOutputTarget`, any function of
                one image's output, an index, or a target out of `afmi.targets`. None: the class
                with the highest output.
            aug_smooth: False.
            eigen_smooth: False.

        Returns:
            float32 (N, H, W); 0 where a map has nothing positive.
        """
        for name, given in (("aug_smooth", aug_smooth), ("eigen_smooth", eigen_smooth)):
            if given:
                raise UsageError(
                    f"expected {name}=False, got {given!r}: it is not offered; "
                    "afmi.methods.SmoothGrad smooths a method's maps"
                )
        if not isinstance(input_tensor, Tensor) or input_tensor.dim() != 4:
            got = getattr(input_tensor, "shape", type(input_tensor).__name__)
            raise ShapeError(f"expected images (N, C, H, W) as a tensor, got {got}")
        if not input_tensor.is_floating_point():
            raise ShapeError(
                f"expected images of floating-point numbers, got {input_tensor.dtype}; prepare "
                "them as the network takes them"
            )
        images = input_tensor.detach().to(device_of(self._network))
        wanted = self._targets(images, targets)
        layers = [_stretched(maps) for maps in self._maps(images, wanted)]
        mean = torch.stack([upsample(maps, images.shape[2:]) for maps in layers]).mean(0)
        return _stretched(mean)[:, 0].cpu().numpy()

    def __enter__(self) -> _CAM:
        return self

    def __exit__(self, *error: object) -> None:
        pass  # nothing is left on the network

    def _maps(self, images: Tensor, target: Any) -> list[Tensor]:
        """Return the maps (N, 1, h, w) of each layer, at its size, without negative values."""
        found, outputs = [], None
        for method in self._methods():
            attribution = method.attribution(images, target)
            coarse, outputs = attribution.coarse, attribution.logits
            assert coarse is not None
            found.append(coarse.float().clamp_min(0))
        # Of other targets than classes a method returns the scores alone.
        self.outputs = self._run(images) if outputs is None else outputs
        return found

    def _run(self, images: Tensor) -> Any:
        with torch.no_grad(), evaluation_mode(self._network):
            return self._network(images.clone())

    def _methods(self) -> list[Method]:
        """Return the method for each layer."""
        layers: list[Any] = self.target_layers or [None]
        return [self._method(self._network, layer=x, **self._parameters()) for x in layers]

    def _parameters(self) -> dict[str, Any]:
        """Return the parameters of the method but its layer."""
        return {}

    def _targets(self, images: Tensor, given: Sequence[Any] | None) -> Any:
        if given is None:
            return classify(self._network, images).argmax(1)
        if isinstance(given, str) or not isinstance(given, Sequence) or len(given) != len(images):
            got = f"{len(given)}" if isinstance(given, Sequence) else type(given).__name__
            raise TargetError(
                f"expected a list of {len(images)} targets, one for each image, got {got}"
            )
        return [_target(one) for one in given]


def _target(given: Any) -> Any:
    """Return the target of one image as our methods take it."""
    if isinstance(given, Target) or not callable(given):
        return given
    if type(given).__name__ == "ClassifierOutputTarget":  # ours or theirs
        return given.category  # type: ignore[attr-defined]
    of_row: Callable[[Any], Tensor] = given  # type: ignore[assignment]
    return Scalar(lambda outputs: torch.stack([of_row(row).reshape(()) for row in outputs]))


def _stretched(maps: Tensor) -> Tensor:
    """Return maps (N, 1, h, w) from 0 to 1 each; one that is the same everywhere becomes 0."""
    low, high = (
        each.view(-1, 1, 1, 1) for each in (maps.flatten(1).amin(1), maps.flatten(1).amax(1))
    )
    return torch.where(high > low, (maps - low) / (high - low), 0.0)


class GradCAM(_CAM):
    """Grad-CAM; `afmi.methods.GradCAM`."""

    _method = methods.GradCAM


class GradCAMPlusPlus(_CAM):
    """Grad-CAM++; `afmi.methods.GradCAMPlusPlus`."""

    _method = methods.GradCAMPlusPlus


class HiResCAM(_CAM):
    """HiResCAM; `afmi.methods.HiResCAM`."""

    _method = methods.HiResCAM


class XGradCAM(_CAM):
    """XGrad-CAM; `afmi.methods.XGradCAM`."""

    _method = methods.XGradCAM


class LayerCAM(_CAM):
    """LayerCAM; `afmi.methods.LayerCAM`."""

    _method = methods.LayerCAM


class EigenCAM(_CAM):
    """Eigen-CAM; `afmi.methods.EigenCAM`."""

    _method = methods.EigenCAM


class AblationCAM(_CAM):
    """Ablation-CAM; `afmi.methods.AblationCAM`.

    Args:
        model: the network.
        target_layers: as for the others.
        reshape_transform: None.
        ablation_layer: None.
        batch_size: the most feature maps that are removed at once.
        ratio_channels_to_ablate: 1: every map is removed in turn.
    """

    _method = methods.AblationCAM

    def __init__(
        self,
        model: nn.Module,
        target_layers: Sequence[nn.Module | str] | None = None,
        reshape_transform: None = None,
        ablation_layer: None = None,
        batch_size: int | None = None,
        ratio_channels_to_ablate: float = 1.0,
    ) -> None:
        super().__init__(model, target_layers, reshape_transform)
        if ablation_layer is not None or ratio_channels_to_ablate != 1:
            raise UsageError(
                "expected ablation_layer=None and ratio_channels_to_ablate=1, got "
                f"{ablation_layer!r:.80} and {ratio_channels_to_ablate!r}: every feature map is "
                "removed in turn, without a layer put into the network"
            )
        self.batch_size = batch_size

    def _parameters(self) -> dict[str, Any]:
        return {"batch_size": self.batch_size}


class ScoreCAM(_CAM):
    """Score-CAM; `afmi.methods.ScoreCAM` with the softmax of the scores as weights.

    ``batch_size`` can be set on it: the most masked images that go through the network at once.
    """

    _method = methods.ScoreCAM
    batch_size: int | None = None

    def _parameters(self) -> dict[str, Any]:
        return {"weights": "softmax", "batch_size": self.batch_size}


class FullGrad(_CAM):
    """FullGrad; `afmi.methods.FullGrad`, which looks at all layers.

    Args:
        model: the network.
        target_layers: None or an empty list.
    """

    _method = methods.FullGrad

    def __init__(
        self,
        model: nn.Module,
        target_layers: Sequence[nn.Module | str] | None = None,
        reshape_transform: None = None,
    ) -> None:
        super().__init__(model, target_layers, reshape_transform)
        if self.target_layers:
            raise UsageError(
                f"expected no target_layers, got {len(self.target_layers)}: FullGrad looks at all "
                "layers; pass []"
            )

    def _methods(self) -> list[Method]:
        return [self._method(self._network)]


class AFMI(_CAM):
    """A-FMI in the same call shape; `afmi.methods.AFMI`. Evidence for the target is shown.

    Args:
        model: the network.
        target_layers: as for the others.
        reshape_transform: None.
        reference: what the images are compared with, in the network's own numbers: a tensor
            (C, H, W), or as in `afmi.references.reference_of`. None: 0, which behind a
            normalisation is its mean colour; black is ``(0 - mean) / std`` there.
        averaged: see `afmi.methods.AFMI`.
    """

    _method = methods.AFMI

    def __init__(
        self,
        model: nn.Module,
        target_layers: Sequence[nn.Module | str] | None = None,
        reshape_transform: None = None,
        *,
        reference: ReferenceLike | None = None,
        averaged: bool = True,
    ) -> None:
        super().__init__(model, target_layers, reshape_transform)
        self.reference = reference_of("black" if reference is None else reference)
        self.averaged = averaged

    def _parameters(self) -> dict[str, Any]:
        return {"reference": self.reference, "averaged": self.averaged}


def show_cam_on_image(
    img: np.ndarray,
    mask: np.ndarray,
    use_rgb: bool = False,
    colormap: str = "jet",
    image_weight: float = 0.5,
) -> np.ndarray:
    """Return an image with a map over it, uint8 (H, W, 3).

    Args:
        img: (H, W, 3) in [0, 1]: red, green and blue with ``use_rgb``, else blue first.
        mask: (H, W) in [0, 1].
        use_rgb: whether red comes first, in the image and in what is returned.
        colormap: a name of matplotlib's, where pytorch-grad-cam takes a number of OpenCV's.
        image_weight: how much the image counts, from 0 to 1; the map has the rest.

    Raises:
        ShapeError: when the sizes do not fit.
        UsageError: when values are out of range, or there is no such colour map.

    Example:
        >>> grey, hot = np.full((2, 2, 3), 0.5), np.ones((2, 2))
        >>> show_cam_on_image(grey, hot, use_rgb=True)[0, 0].tolist()
        [255, 127, 127]
    """
    from matplotlib import colormaps

    image, map_ = np.asarray(img), np.asarray(mask)
    if image.ndim != 3 or image.shape[2] != 3 or map_.shape != image.shape[:2]:
        raise ShapeError(
            f"expected an image (H, W, 3) and a mask (H, W), got {image.shape} and {map_.shape}"
        )
    for name, values in (("img", image), ("mask", map_)):
        if not (float(values.min()) >= 0 and float(values.max()) <= 1):
            raise UsageError(
                f"expected {name} in [0, 1], got {float(values.min()):g} to "
                f"{float(values.max()):g}; divide bytes by 255"
            )
    if not 0 <= image_weight <= 1:
        raise UsageError(f"expected image_weight from 0 to 1, got {image_weight}")
    if not isinstance(colormap, str) or colormap not in colormaps:
        raise UsageError(
            f"expected the name of a colour map of matplotlib's, such as 'jet', got {colormap!r}"
        )
    heat = np.asarray(colormaps[colormap](np.uint8(255 * map_)))[..., :3]
    heat = heat if use_rgb else heat[..., ::-1]
    mixed = (1 - image_weight) * heat + image_weight * image
    return np.uint8(255 * mixed / (mixed.max() or 1.0))  # type: ignore[return-value]
