"""Grid pointing game: among four pictures, does the map point to that of its class?"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from afmi.errors import ModelError, ShapeError, UsageError
from afmi.methods.base import LayerMethod, Method
from afmi.methods.work import Work
from afmi.metrics.base import Case, Metric, blank_maps_allowed
from afmi.metrics.columns import Column
from afmi.network.classifier import classify
from afmi.network.outputs import check_outputs
from afmi.network.randomness import image_generator

__all__ = ["GridPointing"]

_CELLS = 4


@dataclass(frozen=True)
class GridPointing(Metric):
    """Tile each image with three of other classes, and tell how much its map stays with it.

    own_share = Σ_{ij in own quadrant} max(S_ij, 0) / Σ_ij max(S_ij, 0), of the map for the
    image's class, on a canvas of 2×2 images at full size. A map without knowledge scores 0.25, and
    so does one that is about as high everywhere (RISE's are all above zero). The image's quadrant
    is drawn. The network sees an input twice as high and wide, so it must take any size.

    Paper: Böhle, Fritz & Schiele, *Convolutional Dynamic Alignment Networks for Interpretable
    Classifications*, CVPR 2021 (their localisation metric). Differs: 2×2 images, the smaller of
    their two grids; one class of each canvas is explained, that of the image measured; any images
    are taken, where theirs are those that the network is sure of; NaN where nothing is positive,
    where theirs says 0.
    Cost: the method once on a canvas, as much as on 4 images.

    Args:
        seed: of the quadrant, which also depends on the image.

    Example:
        >>> from afmi.methods import InputXGradient
        >>> model = torch.nn.Sequential(
        ...     torch.nn.Conv2d(3, 2, 1), torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten()
        ... )
        >>> method, images = InputXGradient(model), torch.rand(2, 3, 4, 4)
        >>> attribution = method.attribution(images)
        >>> case = Case(
        ...     method, images, attribution.target, attribution, model(images),
        ...     companions=torch.rand(2, 3, 3, 4, 4),
        ... )
        >>> GridPointing().measure(case)["own_share"].shape
        torch.Size([2])
    """

    name = "Grid pointing"
    columns = (
        Column(
            "own_share",
            "Own share",
            "share of the map's positive mass on its own image, of four tiled (chance: 0.25)",
            higher_is_better=True,
        ),
    )
    paper = "Böhle et al., Convolutional Dynamic Alignment Networks, CVPR 2021"
    needs_class = True
    companions = _CELLS - 1

    seed: int = 0

    def measure(self, case: Case) -> dict[str, Tensor]:
        """Return ``own_share``; NaN where nothing of the map is positive.

        Raises:
            UsageError: when there are no companions.
            ShapeError: when there are fewer than three for an image, or of another shape.
            ModelError: when the network refuses an input twice as high and wide.
            AfmiError: when it gives NaN for one.
        """
        canvases, quadrants = self.canvases(case.inputs, case.companions)
        method = case.method
        if isinstance(method, LayerMethod) and case.attribution.layer is not None:
            # The last stage of a small image may be another one than that of the canvas.
            method = replace(method, layer=case.attribution.layer)
        # A quarter of the images at once needs the memory that explaining all of them took.
        size = max(1, canvases.shape[0] // _CELLS)
        parts = zip(canvases.split(size), case.classes.split(size), strict=True)
        maps = torch.cat([self._explained(method, some, classes) for some, classes in parts])
        mass = maps.to("cpu", torch.float64).clamp_min(0)[:, 0]
        height, width = case.inputs.shape[-2:]
        cells = mass.unflatten(2, (2, width)).unflatten(1, (2, height)).sum((2, 4)).flatten(1)
        share = cells.gather(1, quadrants[:, None])[:, 0]
        # 0/0 is NaN.
        return {"own_share": share / cells.sum(1)}

    def work(self, method: Method, inputs: Tensor) -> Work:
        """Return the passes on a canvas, each counted as four of an image."""
        self._check_sides(inputs)
        return _CELLS * method.work(inputs[:1].repeat(1, 1, 2, 2))

    def _check_sides(self, inputs: Tensor) -> None:
        if inputs.dim() != 4:
            raise ShapeError(
                f"{self.name} tiles images (N, C, H, W) in a square, got images of shape "
                f"{tuple(inputs.shape)}; leave this metric out"
            )

    def canvases(self, inputs: Tensor, companions: Tensor | None) -> tuple[Tensor, Tensor]:
        """Return the tiled images, and where on them each image lies.

        Args:
            inputs: (N, C, H, W).
            companions: (N, 3, C, H, W), which fill the other quadrants in reading order; where
                there are more than 3, the first 3.

        Returns:
            (N, C, 2H, 2W), and the images' quadrants in reading order, int64 (N,), on the CPU.
        """
        self._check_sides(inputs)
        wanted = (inputs.shape[0], self.companions, *inputs.shape[1:])
        if companions is None:
            raise UsageError(
                f"{self.name} needs {self.companions} images of other classes beside each image, "
                f"got none; pass Case(companions=…) of shape {wanted}"
            )
        if tuple(companions[:, : self.companions].shape) != wanted:
            raise ShapeError(
                f"{self.name} expected companions (N, {self.companions}, C, H, W) = {wanted}, or "
                f"more for each image, got {tuple(companions.shape)}"
            )
        quadrants = torch.stack(
            [
                torch.randint(_CELLS, (), generator=generator, device="cpu")
                for generator in (image_generator(self.seed, image) for image in inputs)
            ]
        )
        chosen = companions[:, : self.companions].to(inputs)
        height, width = inputs.shape[-2:]
        canvases = inputs.new_empty((*inputs.shape[:2], 2 * height, 2 * width))
        for canvas, image, others, quadrant in zip(
            canvases, inputs, chosen, quadrants.tolist(), strict=True
        ):
            pictures = [*others[:quadrant], image, *others[quadrant:]]
            for cell, picture in enumerate(pictures):
                top, left = cell // 2 * height, cell % 2 * width
                canvas[:, top : top + height, left : left + width] = picture
        return canvases, quadrants

    def _explained(self, method: Method, canvases: Tensor, classes: Tensor) -> Tensor:
        try:
            with blank_maps_allowed():
                attribution = method.attribution(canvases, classes)
            if attribution.logits is not None:
                check_outputs(attribution.logits, "for four tiled images the network")
            return attribution.maps
        except torch.OutOfMemoryError:
            raise
        except Exception as error:
            self._check_size(method, canvases, error)
            raise

    def _check_size(self, method: Method, canvases: Tensor, error: Exception) -> None:
        """Say so when what failed was the network itself, on an input of this size."""

        def runs(images: Tensor) -> bool:
            try:
                classify(method.model, images)
            except Exception:
                return False
            return True

        height, width = canvases.shape[-2:]
        if runs(canvases[:1, :, : height // 2, : width // 2]) and not runs(canvases[:1]):
            raise ModelError(
                f"{self.name} shows the network an input of {height}×{width} pixels, twice as "
                "high and wide as the images, which it cannot take; leave this metric out, or "
                "pool adaptively in front of the network's linear layers"
            ) from error
