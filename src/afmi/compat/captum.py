"""Captum's call shapes, our methods: change ``captum.attr`` into ``afmi.compat.captum``.

Inputs are what the network itself takes, such as normalised images, and what it returns is
explained as it is. So a baseline of 0, Captum's default, is the mean colour of the normalisation
and not black. The network runs in evaluation mode and is left as it was.

Arguments that cannot be served raise a `UsageError`; none is ignored.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from afmi.compat.adapter import Adapter, Baseline, Distribution, distribution
from afmi.compat.unreduced import (
    DeconvNetSignal,
    ExpectedGradients,
    GuidedSignal,
    InputGradient,
    PathGradients,
    RescaledDifferences,
    SignedGradCAM,
    SlidingWindows,
)
from afmi.errors import UsageError
from afmi.methods import AFMI, Attribution, Method
from afmi.pictures.references import Image, Reference

__all__ = [
    "Deconvolution",
    "DeepLift",
    "DeepLiftShap",
    "GradientShap",
    "GuidedBackprop",
    "InputXGradient",
    "IntegratedGradients",
    "LayerAFMI",
    "LayerAttribution",
    "LayerGradCam",
    "Occlusion",
    "Saliency",
]


class Saliency(Adapter):
    """The gradient, by default its magnitude; ours is `afmi.methods.Gradient`."""

    def attribute(
        self,
        inputs: Tensor,
        target: Any = None,
        abs: bool = True,
        additional_forward_args: Any = None,
    ) -> Any:
        """Return ∂y_c/∂x like the inputs, as Captum's ``Saliency`` does.

        Args:
            inputs: (N, C, H, W), as the network takes them.
            target: the output to explain: an index, (N,) of them, a tuple of indices into outputs
                of more dimensions, or a target out of `afmi.targets`. None: the only one.
            abs: whether magnitudes are returned.
            additional_forward_args: what else the network takes.
        """
        make = lambda network, _: InputGradient(network)  # noqa: E731
        gradient = self.attributed(make, inputs, target, additional_forward_args)
        if not abs:
            return gradient
        return (gradient[0].abs(),) if isinstance(gradient, tuple) else gradient.abs()


class InputXGradient(Adapter):
    """The gradient times the inputs; ours is `afmi.methods.InputXGradient`."""

    def attribute(
        self, inputs: Tensor, target: Any = None, additional_forward_args: Any = None
    ) -> Any:
        """Return x ⊙ ∂y_c/∂x like the inputs; see `Saliency.attribute` for the arguments."""
        make = lambda network, _: InputGradient(network)  # noqa: E731
        gradient = self.attributed(make, inputs, target, additional_forward_args)
        product = self.one(inputs).detach() * self.one(gradient)
        return (product,) if isinstance(inputs, tuple) else product


class GuidedBackprop(Adapter):
    """Guided backpropagation; ours is `afmi.methods.GuidedBackprop`.

    Captum's is the plain gradient where activations are no ``nn.ReLU``; ours knows them all.

    Args:
        model: the network.
    """

    _method: type[Method] = GuidedSignal

    def __init__(self, model: nn.Module) -> None:
        super().__init__(model)

    def attribute(
        self, inputs: Tensor, target: Any = None, additional_forward_args: Any = None
    ) -> Any:
        """Return what is sent back to the inputs; see `Saliency.attribute` for the arguments."""
        make = lambda network, _: self._method(network)  # noqa: E731
        return self.attributed(make, inputs, target, additional_forward_args)


class Deconvolution(GuidedBackprop):
    """The deconvolutional network; ours is `afmi.methods.DeconvNet`."""

    _method = DeconvNetSignal


class DeepLift(Adapter):
    """DeepLIFT by the rescale rule; ours is `afmi.methods.DeepLIFT`.

    It sums to the change of the output on every network, where Captum's misses it wherever
    modules are reused, functional, or pool; an operation without a rule raises an error.

    Args:
        model: the network.
        multiply_by_inputs: whether the modified gradient is multiplied by the change of the input.
        eps: 1e-10, Captum's default: our rules need no such threshold.
    """

    def __init__(
        self, model: nn.Module, multiply_by_inputs: bool = True, eps: float = 1e-10
    ) -> None:
        super().__init__(model)
        self.refuse(eps=(eps, 1e-10, "our rules have no threshold"))
        self._multiplied = multiply_by_inputs

    def has_convergence_delta(self) -> bool:
        """Return True."""
        return True

    def attribute(
        self,
        inputs: Tensor,
        baselines: Baseline = None,
        target: Any = None,
        additional_forward_args: Any = None,
        return_convergence_delta: bool = False,
        custom_attribution_func: None = None,
    ) -> Any:
        """Return m ⊙ (x − x̄) like the inputs.

        Args:
            inputs: (N, C, H, W), as the network takes them.
            baselines: x̄: a number, or a tensor with 1 row or N; None: 0.
            target: as in `Saliency.attribute`.
            additional_forward_args: what else the network takes.
            return_convergence_delta: whether to return a second tensor, (N,): by how much the
                attributions' sums exceed the change of the output.
            custom_attribution_func: None.
        """
        self.refuse(
            custom_attribution_func=(
                custom_attribution_func,
                None,
                "take the modified gradients by multiply_by_inputs=False, and combine them",
            )
        )
        return self.attributed(
            self._rescaled,
            inputs,
            target,
            additional_forward_args,
            baselines,
            delta=return_convergence_delta,
        )

    def _rescaled(self, network: nn.Module, reference: Reference) -> Method:
        return RescaledDifferences(network, reference=reference, multiplied=self._multiplied)


class DeepLiftShap(DeepLift):
    """DeepLIFT's mean over a distribution of baselines."""

    def __init__(self, model: nn.Module, multiply_by_inputs: bool = True) -> None:
        super().__init__(model, multiply_by_inputs)

    def attribute(  # type: ignore[override]
        self,
        inputs: Tensor,
        baselines: Distribution,
        target: Any = None,
        additional_forward_args: Any = None,
        return_convergence_delta: bool = False,
        custom_attribution_func: None = None,
    ) -> Any:
        """Return the mean of DeepLIFT's attributions over B baselines, like the inputs.

        Args:
            inputs: (N, C, H, W), as the network takes them.
            baselines: (B, C, H, W), or a function that returns them, called with the inputs where
                it takes an argument.
            target: as in `Saliency.attribute`.
            additional_forward_args: what else the network takes.
            return_convergence_delta: whether to return a second tensor, (N · B,), image by image.
            custom_attribution_func: None.
        """
        images = self.one(inputs)
        each = [
            super(DeepLiftShap, self).attribute(
                images,
                row[None],
                target,
                additional_forward_args,
                return_convergence_delta=True,
                custom_attribution_func=custom_attribution_func,
            )
            for row in distribution(inputs, images, baselines)
        ]
        mean = torch.stack([attributions for attributions, _ in each]).mean(0)
        shaped = (mean,) if isinstance(inputs, tuple) else mean
        if not return_convergence_delta:
            return shaped
        return shaped, torch.stack([delta for _, delta in each], 1).flatten()


class IntegratedGradients(Adapter):
    """Integrated gradients; ours is `afmi.methods.IntegratedGradients`.

    Args:
        forward_func: the network.
        multiply_by_inputs: whether the integral is multiplied by the change of the input.
    """

    def __init__(self, forward_func: nn.Module, multiply_by_inputs: bool = True) -> None:
        super().__init__(forward_func)
        self._multiplied = multiply_by_inputs

    def has_convergence_delta(self) -> bool:
        """Return True."""
        return True

    def attribute(
        self,
        inputs: Tensor,
        baselines: Baseline = None,
        target: Any = None,
        additional_forward_args: Any = None,
        n_steps: int = 50,
        method: str = "gausslegendre",
        internal_batch_size: int | None = None,
        return_convergence_delta: bool = False,
    ) -> Any:
        """Return (x − x̄) ⊙ ∫ ∂y_c/∂x like the inputs.

        Args:
            inputs: (N, C, H, W), as the network takes them.
            baselines: x̄, as in `DeepLift.attribute`.
            target: as in `Saliency.attribute`.
            additional_forward_args: what else the network takes.
            n_steps: points on the way.
            method: the rule of integration: ``"gausslegendre"`` or ``"riemann_…"`` with left,
                middle, right or trapezoid.
            internal_batch_size: the most points that go through the network at once; None: as many
                as are fast and fit into memory.
            return_convergence_delta: as in `DeepLift.attribute`.
        """

        def make(network: nn.Module, reference: Reference) -> Method:
            return PathGradients(
                network,
                steps=n_steps,
                rule=method,
                reference=reference,
                multiplied=self._multiplied,
                batch_size=internal_batch_size,
            )

        return self.attributed(
            make,
            inputs,
            target,
            additional_forward_args,
            baselines,
            delta=return_convergence_delta,
        )


class GradientShap(Adapter):
    """Mean gradients between drawn baselines and the inputs; `afmi.methods.GradientSHAP`.

    Args:
        forward_func: the network.
        multiply_by_inputs: True.
    """

    def __init__(self, forward_func: nn.Module, multiply_by_inputs: bool = True) -> None:
        super().__init__(forward_func)
        self.refuse(
            multiply_by_inputs=(multiply_by_inputs, True, "the mean gradient alone is not offered")
        )

    def attribute(
        self,
        inputs: Tensor,
        baselines: Distribution,
        n_samples: int = 5,
        stdevs: float = 0.0,
        target: Any = None,
        additional_forward_args: Any = None,
        return_convergence_delta: bool = False,
        *,
        seed: int = 0,
    ) -> Any:
        """Return the mean of (x − x̄) ⊙ ∂y_c/∂x over drawn points, like the inputs.

        Args:
            inputs: (N, C, H, W), as the network takes them.
            baselines: as in `DeepLiftShap.attribute`.
            n_samples: points drawn for each image.
            stdevs: 0.
            target: as in `Saliency.attribute`.
            additional_forward_args: what else the network takes.
            return_convergence_delta: False.
            seed: of what is drawn, which also depends on the image. Captum has none and draws from
                the process's random numbers, which ours leaves alone.
        """
        self.refuse(
            stdevs=(stdevs, 0.0, "add noise to the inputs before, or take afmi.methods.SmoothGrad"),
            return_convergence_delta=(
                return_convergence_delta,
                False,
                "Captum gives one for each point drawn; take IntegratedGradients",
            ),
        )
        drawn = distribution(inputs, self.one(inputs), baselines)

        def make(network: nn.Module, _: Reference) -> Method:
            return ExpectedGradients(network, samples=n_samples, reference=Image(drawn), seed=seed)

        return self.attributed(make, inputs, target, additional_forward_args)


class Occlusion(Adapter):
    """The drop of the output where a window covers the inputs; ours is `afmi.methods.Occlusion`."""

    def attribute(
        self,
        inputs: Tensor,
        sliding_window_shapes: tuple[int, ...],
        strides: int | tuple[int, ...] | None = None,
        baselines: Baseline = None,
        target: Any = None,
        additional_forward_args: Any = None,
        perturbations_per_eval: int = 1,
        show_progress: bool = False,
    ) -> Any:
        """Return the mean drop of the output over the windows that cover each place.

        Args:
            inputs: (N, C, H, W), as the network takes them.
            sliding_window_shapes: (C, h, w), over all channels.
            strides: from one window to the next, in all dimensions or in each; None: 1.
            baselines: what the window shows, as in `DeepLift.attribute`.
            target: as in `Saliency.attribute`.
            additional_forward_args: what else the network takes.
            perturbations_per_eval: the most covered images that go through the network at once; 1,
                Captum's default: as many as are fast and fit into memory.
            show_progress: False: progress shows by itself in a terminal.
        """
        self.refuse(show_progress=(show_progress, False, "it shows by itself in a terminal"))
        images = self.one(inputs)
        window, steps = _windows(images, _one_shape(sliding_window_shapes), strides)
        if perturbations_per_eval < 1:
            raise UsageError(
                f"expected perturbations_per_eval from 1, got {perturbations_per_eval}"
            )
        at_once = None if perturbations_per_eval == 1 else perturbations_per_eval

        def make(network: nn.Module, reference: Reference) -> Method:
            return SlidingWindows(
                network, window=window, steps=steps, reference=reference, batch_size=at_once
            )

        return self.attributed(
            make,
            inputs,
            target,
            additional_forward_args,
            baselines,
            of=lambda attribution: attribution.maps.expand(-1, images.shape[1], *images.shape[2:]),
        )


def _one_shape(shape: Any) -> tuple[Any, ...]:
    """Return the numbers for the one tensor, perhaps in a tuple as Captum takes them."""
    nested = isinstance(shape, (tuple, list)) and len(shape) == 1
    inner = shape[0] if nested else shape
    return tuple(inner) if isinstance(inner, (tuple, list)) else (inner,)


def _windows(
    images: Tensor, shape: tuple[Any, ...], strides: Any
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return the sides of the window and its steps along each side."""
    steps = _one_shape(1 if strides is None else strides)
    steps = steps * (images.dim() - 1) if len(steps) == 1 else steps
    fits = len(shape) == len(steps) == images.dim() - 1 and shape[0] == images.shape[1]
    fits = fits and all(
        type(one) is int and 1 <= one <= side and type(step) is int and 1 <= step <= one
        for one, step, side in zip(shape, steps, images.shape[1:], strict=True)
    )
    if not fits:
        raise UsageError(
            "expected sliding_window_shapes as (channels, height, width) with all "
            f"{images.shape[1]} channels, no larger than the inputs {tuple(images.shape[1:])}, "
            "and strides from 1 that are no larger than the window, got "
            f"sliding_window_shapes={shape}, strides={strides}"
        )
    return shape[1:], steps[1:]


class LayerAttribution(Adapter):
    """What methods of a layer share.

    Args:
        forward_func: the network.
        layer: the module whose outputs are the feature maps, or its dotted name.
    """

    _of_layer = True

    def __init__(self, forward_func: nn.Module, layer: Any, device_ids: None = None) -> None:
        super().__init__(forward_func)
        self.refuse(
            device_ids=(device_ids, None, "of a parallel network the one inside is explained")
        )
        self.layer = layer

    @staticmethod
    def interpolate(
        layer_attribution: Tensor,
        interpolate_dims: int | tuple[int, ...],
        interpolate_mode: str = "nearest",
    ) -> Tensor:
        """Return attributions at another size, by ``torch.nn.functional.interpolate``."""
        return F.interpolate(layer_attribution, interpolate_dims, mode=interpolate_mode)


class LayerGradCam(LayerAttribution):
    """Grad-CAM of a layer; ours is `afmi.methods.GradCAM`."""

    def attribute(
        self,
        inputs: Tensor,
        target: Any = None,
        additional_forward_args: Any = None,
        attribute_to_layer_input: bool = False,
        relu_attributions: bool = False,
        attr_dim_summation: bool = True,
        grad_kwargs: None = None,
    ) -> Any:
        """Return Σ_k α_k A^k at the layer's size, (N, 1, h, w).

        Args:
            inputs: (N, C, H, W), as the network takes them.
            target: as in `Saliency.attribute`.
            additional_forward_args: what else the network takes.
            attribute_to_layer_input: False.
            relu_attributions: whether negative values become 0.
            attr_dim_summation: True.
            grad_kwargs: None.
        """
        self.refuse(
            attribute_to_layer_input=(
                attribute_to_layer_input,
                False,
                "pass the layer before, whose outputs they are",
            ),
            attr_dim_summation=(attr_dim_summation, True, "the maps are summed over"),
            grad_kwargs=(grad_kwargs, None, "gradients are not taken by torch.autograd.grad alone"),
        )

        def coarse(attribution: Attribution) -> Tensor | None:
            maps = attribution.coarse
            return maps.relu() if relu_attributions and maps is not None else maps

        def make(network: nn.Module, _: Reference) -> Method:
            return SignedGradCAM(network, layer=self.layer)

        return self.attributed(make, inputs, target, additional_forward_args, of=coarse)


class LayerAFMI(LayerAttribution):
    """A-FMI of a layer in Captum's call shape; `afmi.methods.AFMI`.

    Args:
        forward_func: the network.
        layer: the module whose outputs are the feature maps, or its dotted name; None: the last
            stage, which is found.
        averaged: see `afmi.methods.AFMI`; False sums to the change of the output exactly.
    """

    def __init__(
        self,
        forward_func: nn.Module,
        layer: Any = None,
        device_ids: None = None,
        *,
        averaged: bool = True,
    ) -> None:
        super().__init__(forward_func, layer, device_ids)
        self.averaged = averaged

    def has_convergence_delta(self) -> bool:
        """Return True."""
        return True

    def attribute(
        self,
        inputs: Tensor,
        baselines: Baseline = None,
        target: Any = None,
        additional_forward_args: Any = None,
        return_convergence_delta: bool = False,
    ) -> Any:
        """Return A-FMI's signed map at the layer's size, (N, 1, h, w).

        Args:
            inputs: (N, C, H, W), as the network takes them.
            baselines: what the inputs are compared with, as in `DeepLift.attribute`. None: 0, which
                behind a normalisation is its mean colour; black is
                ``(0 - mean) / std`` there.
            target: as in `Saliency.attribute`.
            additional_forward_args: what else the network takes.
            return_convergence_delta: as in `DeepLift.attribute`.
        """

        def make(network: nn.Module, reference: Reference) -> Method:
            return AFMI(network, layer=self.layer, reference=reference, averaged=self.averaged)

        return self.attributed(
            make,
            inputs,
            target,
            additional_forward_args,
            baselines,
            delta=return_convergence_delta,
            of=lambda attribution: attribution.coarse,
        )
