"""Method, the one abstraction of every explanation: images and a class in, maps out."""

from __future__ import annotations

import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import KW_ONLY, dataclass, field, fields, replace
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from afmi import specs
from afmi.errors import AfmiError, MissingPackageError, ShapeError, TargetError, UsageError
from afmi.methods.work import Work
from afmi.network.arguments import ForwardArguments, rows_of
from afmi.network.checking import check_images, check_model, named_failures
from afmi.network.classifier import classify, with_arguments
from afmi.network.guards import evaluation_mode
from afmi.network.layers import Layer, Place, check_layer, resolve_layer
from afmi.network.memory import in_parts
from afmi.network.outputs import declaration_of
from afmi.network.randomness import keeping_random_state
from afmi.network.scored import Scored
from afmi.network.wrappers import runnable
from afmi.pictures.dimensions import FORMS, beside, places
from afmi.pictures.maps import is_blank, upsample
from afmi.pictures.references import Reference, reference_of
from afmi.targets import (
    Class,
    Columns,
    OneTarget,
    Target,
    TargetLike,
    Targets,
    as_target,
    class_rows,
    columns_of,
)

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = [
    "Attribution",
    "BlankMapWarning",
    "LayerMethod",
    "Method",
    "MethodsLike",
    "chosen_methods",
    "relative_residual",
]


class BlankMapWarning(UserWarning):
    """A map is the same everywhere, so that it ranks no pixel above another."""


@dataclass(frozen=True)
class Attribution:
    """Saliency maps, with what the method learned on the way.

    Attributes:
        maps: saliency (N, 1, *sides), at any size; `Method.attribute` brings it to the input's.
        target: the class that each map explains, or the network's output of that index where it
            has no classes, int64 (N,); None: another target.
        logits: of the images, (N, C), where the method had to compute them.
        residual: relative residual of local faithfulness for each image,
            (Σ map − Δy_c) / |Δy_c|, (N,), for methods whose maps should sum to
            Δy_c = y_c(x) − y_c(x̄) (at the map's own size); 0 is exact.
        layer: where feature maps were taken.
        targets: what each map explains, where that is no class.
        scores: of these, (N,).
        agreement: rank correlation of the maps with those whose modified gradients are not averaged
            over positions, float64 (N,); None: these are no averaged ones.
        coarse: the maps at the method's own size, (N, 1, *its sides); None before
            `Method.attribution` has brought them to the input's.
        vectors: by their names what the method gives for each feature map, (N, K); see
            `Method.vectors`.
    """

    maps: Tensor
    target: Tensor | None
    logits: Tensor | None = None
    residual: Tensor | None = None
    layer: Layer | None = None
    targets: tuple[Target, ...] | None = None
    scores: Tensor | None = None
    agreement: Tensor | None = None
    coarse: Tensor | None = None
    vectors: Mapping[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class Method(ABC):
    """Explain a network's score of a class, or of another target, by a saliency map over the image.

    A subclass is a frozen dataclass whose fields are its hyperparameters, with the defaults of the
    method's own paper; it fills in the class variables and writes `work` and `_attribute`.
    It is found by existing: `afmi.methods` lists every subclass in its folders.

    Args:
        model: a `Classifier`, or any ``nn.Module`` from images (N, C, H, W), signals (N, C, L) or
            volumes (N, C, D, H, W) to logits (N, K), or to anything that a target makes a score of.
            Of a parallel or averaged wrapper the network inside is taken, with its weights.
            Never changed: modes, gradients, hooks and random state are as before, also after an
            error.
    """

    name: ClassVar[str]
    """What tables and pictures call it."""
    aliases: ClassVar[tuple[str, ...]] = ()
    """What it can be called in text besides."""
    family: ClassVar[Literal["control", "pixel", "region", "feature map"]]
    """Which features carry the attribution (the paper's Section 2)."""
    scores: ClassVar[str]
    """How the features are scored, in the terms of the paper's Figure 1."""
    signed: ClassVar[bool] = True
    """Whether negative values of its maps are evidence against the class: its pictures then part
    their colours at zero, whatever the values."""
    sides: ClassVar[tuple[int, ...]] = (1, 2, 3)
    """The numbers of spatial dimensions of images that it can explain: 1 is signals, 2 pictures, 3
    volumes."""
    vectors: ClassVar[tuple[str, ...]] = ()
    """What its attributions hold for each feature map: ``importance`` (FMI, Eq. 6), and
    ``contribution``, the part of the score's change that goes through the map."""
    paper: ClassVar[str]
    """Authors, title, venue and year."""

    model: nn.Module = field(repr=False)

    def __post_init__(self) -> None:
        """Take loose values of fields; a subclass that checks its own calls this first."""
        object.__setattr__(self, "model", runnable(self.model))
        for one in fields(self):
            given = getattr(self, one.name)
            if str(one.type) in ("Reference", "Reference | None") and given is not None:
                object.__setattr__(self, one.name, reference_of(given))

    @abstractmethod
    def work(self, inputs: Tensor) -> Work:
        """Return how often an image like these (N, C, *spatial) goes through the network.

        Passes that are made once and kept, such as a reference's, do not count.
        """

    @property
    def cost(self) -> str:
        """The work for one colour image of 224 × 224 pixels, in words."""
        return str(self.work(torch.zeros(1, 3, 224, 224, dtype=torch.float32, device="cpu")))

    @classmethod
    def default_cost(cls) -> str:
        """Return the `cost` of the method with its defaults; in words where it cannot be told."""
        try:
            return cls(nn.Identity()).cost
        except MissingPackageError:  # which its superpixels need
            return "told once its packages are installed"

    def attribute(
        self,
        inputs: Tensor,
        target: TargetLike = None,
        *,
        forward_arguments: ForwardArguments | None = None,
    ) -> Tensor:
        """Return the saliency map of each image.

        Args:
            inputs: images (N, C, H, W), signals (N, C, L) or volumes (N, C, D, H, W), floating
                point, on the model's device; pictures in [0, 1] for a `Classifier`.
            target: what to explain: a class by its index or label, a target out of `afmi.targets`,
                or a function of the outputs; one for all images, or one for each (of classes also
                int64 (N,)). None: the class that the model predicts.
            forward_arguments: what else the network takes, as in `Classifier`. Where a tensor has N
                rows, the images are explained one by one, each with its own.

        Returns:
            (N, 1, *spatial), in the inputs' dtype and on their device, detached, not normalised.

        Raises:
            ShapeError: when the inputs are no such images.
            TargetError: when a class is out of range.
        """
        return self.attribution(inputs, target, forward_arguments=forward_arguments).maps

    def attribution(
        self,
        inputs: Tensor,
        target: TargetLike = None,
        *,
        forward_arguments: ForwardArguments | None = None,
    ) -> Attribution:
        """Return the maps as `attribute` does, with target, logits, residual and layer.

        Where there is too little memory for all images at once, halves of them are explained.
        """
        if forward_arguments is not None:
            return self._with_arguments(inputs, target, forward_arguments)

        def run(start: int, stop: int) -> Attribution:
            return self._attribute(images[start:stop], wanted[start:stop])

        chosen = as_target(self.model, target)
        if isinstance(chosen, Targets):
            return _joined([one._scored(images, t) for one, images, t in self._on(inputs, chosen)])
        with self._session(inputs, chosen) as (images, wanted):
            parts, _ = in_parts(run, inputs.shape[0], inputs.shape[0])
            return self._finished(_joined(parts), inputs)

    def attribute_classes(self, inputs: Tensor, targets: Sequence[OneTarget] | Tensor) -> Tensor:
        """Return the maps of several classes, or other targets, of the same images.

        Args:
            inputs: images (N, C, *spatial).
            targets: T targets for all images, each as in `attribute`; or int64 (T, N).

        Returns:
            (T, N, 1, *spatial).
        """
        return torch.stack([each.maps for each in self.attributions(inputs, targets)])

    def attributions(
        self, inputs: Tensor, targets: Sequence[OneTarget] | Tensor
    ) -> list[Attribution]:
        """Return T attributions of the same images, one for each target, as `attribution` does.

        Classes share their passes.
        """
        chosen = targets if isinstance(targets, Tensor) else as_target(self.model, targets)
        if not isinstance(chosen, Targets):
            return self._of_classes(inputs, chosen)
        classes = [t.index(self.model) for t in chosen.each if isinstance(t, Class)]
        of_classes = iter(self._of_classes(inputs, classes) if classes else [])
        return [
            next(of_classes) if isinstance(t, Class) else self.attribution(inputs, t)
            for t in chosen.each
        ]

    def _of_classes(self, inputs: Tensor, targets: Any) -> list[Attribution]:
        """Return an attribution for each of the classes (T,) or (T, N)."""

        def run(start: int, stop: int) -> list[Attribution]:
            return self._attribute_classes(images[start:stop], classes[:, start:stop])

        with self._session(inputs, None) as (images, _):
            classes = class_rows(targets, inputs)
            parts, _ = in_parts(run, inputs.shape[0], inputs.shape[0])
            return [self._finished(_joined(same), inputs) for same in zip(*parts, strict=True)]

    def _on(self, inputs: Tensor, targets: Targets) -> Iterator[tuple[Self, Tensor, Target]]:
        """Yield the method on the network of each target's score, with the images to explain.

        Images that share a target stay together.
        """
        each = targets.each
        if len(each) not in (1, len(inputs)):
            raise TargetError(
                f"expected one target for all images or one for each of {len(inputs)}, got "
                f"{len(each)}; attribute_classes takes several targets per image"
            )
        for n, target in enumerate(each):
            images = inputs if len(each) == 1 else inputs[n : n + 1]
            with self._session(images, None) as (checked, _):
                fixed = target.fixed(self.model, checked)
            if isinstance(fixed, Target):
                yield self.on(Scored(self.model, fixed)), images, fixed
            else:
                for row, one in enumerate(fixed):
                    yield self.on(Scored(self.model, one)), images[row : row + 1], one

    def _with_arguments(
        self, inputs: Tensor, target: TargetLike, arguments: ForwardArguments
    ) -> Attribution:
        check_images(self.model, inputs)
        rows = rows_of(arguments, len(inputs))
        if rows is None:
            return self.on(with_arguments(self.model, arguments)).attribution(inputs, target)
        return _joined(
            [
                self.on(with_arguments(self.model, row)).attribution(
                    inputs[n : n + 1], _target_of(target, n, len(inputs))
                )
                for n, row in enumerate(rows)
            ]
        )

    def on(self, model: nn.Module) -> Self:
        """Return the same method for another network."""
        return replace(self, model=model)

    def _scored(self, inputs: Tensor, target: Target) -> Attribution:
        """Return the attribution of a score, by the method on the network of that score."""
        attribution = self.attribution(inputs)
        scores = attribution.logits
        if scores is None:
            scores = classify(self.model, inputs)
        return replace(
            attribution,
            target=None,
            logits=None,
            targets=(target,) * len(inputs),
            scores=scores[:, 0],
        )

    @abstractmethod
    def _attribute(self, inputs: Tensor, columns: Columns) -> Attribution:
        """Return maps (N, 1, h, w) of any size; gradients are off, the model in evaluation mode."""

    def _attribute_classes(self, inputs: Tensor, classes: Tensor) -> list[Attribution]:
        """Do as `_attribute` for classes (T, N); methods that share their passes override it."""
        return [self._attribute(inputs, Columns(row)) for row in classes]

    def _finished(self, attribution: Attribution, inputs: Tensor) -> Attribution:
        """Bring the maps to the inputs' size and dtype, and check them."""
        coarse = attribution.maps.detach()
        maps = upsample(coarse, inputs.shape[2:]).to(inputs.dtype)
        residual = attribution.residual
        same = self._same_as_reference(inputs, maps, attribution.logits)
        # What such maps hold is rounding: image and reference ran in batches of other sizes.
        maps = maps.masked_fill(beside(same, maps), 0)
        coarse = coarse.masked_fill(beside(same, coarse), 0)
        if residual is not None:
            if bool((residual.isnan() & ~same).any()):
                self._check_reference(inputs)
            residual = residual.masked_fill(same, torch.nan)
        self._check_maps(maps, inputs)
        return replace(attribution, maps=maps, residual=residual, coarse=coarse)

    def _same_as_reference(self, inputs: Tensor, maps: Tensor, logits: Tensor | None) -> Tensor:
        """Tell of each image whether it equals its references within rounding, bool (N,)."""
        none = torch.zeros(len(inputs), dtype=torch.bool, device=inputs.device)
        reference = getattr(self, "reference", None)
        if not isinstance(reference, Reference):
            return none
        eps = torch.finfo(inputs.dtype).eps
        largest = maps.abs().amax(places(maps, 1))
        if logits is not None and bool((largest > eps**0.5 * logits.abs().amax(1)).all()):
            return none  # Spares making the references, which may be drawn or read from a file.
        images = inputs.detach()
        difference = (images[:, None] - reference.for_each(images)).abs()
        furthest = difference.amax(places(difference, 1))
        return furthest <= 4 * eps * images.abs().amax(places(images, 1)).clamp_min(1)

    @contextmanager
    def _session(
        self, inputs: Tensor, target: int | Tensor | Sequence[int] | None
    ) -> Iterator[tuple[Tensor, Columns]]:
        """Check the arguments and guard the model and the random state around a computation."""
        check_model(self.model)
        check_images(self.model, inputs)
        self._check_sides(inputs)
        classes = declaration_of(self.model).meaning != "value"
        wanted = columns_of(target, inputs, classes)
        with (
            torch.inference_mode(False),
            torch.no_grad(),
            keeping_random_state(inputs.device),
            evaluation_mode(self.model),
            named_failures(self.model, inputs),
        ):
            images = inputs.clone() if inputs.is_inference() else inputs.detach()
            yield images.as_subclass(Tensor), wanted

    def _check_sides(self, inputs: Tensor) -> None:
        """Raise a `ShapeError` where the method makes no sense for images of so many sides."""
        sides = inputs.dim() - 2
        if sides not in self.sides:
            takes = " or ".join(FORMS[n] for n in self.sides)
            able = ", ".join(cls.name for cls in _catalogue().values() if sides in cls.sides)
            raise ShapeError(
                f"{self.name} explains {takes} only, got {FORMS[sides]} of shape "
                f"{tuple(inputs.shape)}; take a method that explains them: {able}"
            )

    def _check_maps(self, maps: Tensor, inputs: Tensor) -> None:
        if not _finite(*maps.aminmax()):
            self._check_reference(inputs)
            raise AfmiError(
                f"{self.name} gave NaN or infinity, though the network's outputs are finite: "
                f"activations or gradients overflow in {maps.dtype}; try float32 or float64"
            )
        blank = is_blank(maps).nonzero().flatten().tolist()
        if blank and maps[0].numel() > 1:
            warnings.warn(
                f"{self.name} gave a map that is the same everywhere for image {blank[0]}"
                + (f" and {len(blank) - 1} more" if len(blank) > 1 else "")
                + ": it ranks no pixel above another, and a picture of it says nothing",
                BlankMapWarning,
                stacklevel=4,
            )

    def _check_reference(self, inputs: Tensor) -> None:
        """Raise where the network's outputs for a reference image are not finite."""
        reference = getattr(self, "reference", None)
        if not isinstance(reference, Reference):
            return
        for images in reference.for_each(inputs).transpose(0, 1):
            if not bool(classify(self.model, images).isfinite().all()):
                raise AfmiError(
                    f"the network's outputs for the reference {reference} are NaN or infinite, so "
                    f"{self.name} has nothing to compare with; choose another, such as "
                    "reference='random' or 'blurred' (a network that standardises each image "
                    "divides by zero where all pixels are equal)"
                )


@dataclass(frozen=True)
class LayerMethod(Method):
    """A method whose features are the maps of one layer.

    Args:
        layer: dotted name or module that gives feature maps (N, K, h, w); None: the last
            convolutional stage.
    """

    _: KW_ONLY
    layer: str | nn.Module | Layer | None = field(default=None)

    def __post_init__(self) -> None:
        """See `Method`."""
        super().__post_init__()
        if self.layer is not None:
            check_layer(self.layer)

    def work(self, inputs: Tensor) -> Work:
        """See `Method.work`."""
        return Work(1, layer_backwards=1)

    def resolved_layer(self, inputs: Tensor) -> Place:
        """Return the module and name of the layer for these inputs (N, C, *spatial)."""
        return resolve_layer(self.model, self.layer, inputs)


def _target_of(target: Any, n: int, count: int) -> Any:
    """Return the target of image n, where there is one for each."""
    several = isinstance(target, (list, tuple)) or (isinstance(target, Tensor) and target.dim())
    return target[n : n + 1] if several and len(target) == count else target


def _joined(parts: Sequence[Attribution]) -> Attribution:
    """Return the attribution of all images from those of some of them each."""
    if len(parts) == 1:
        return parts[0]

    def together(of: Callable[[Attribution], Tensor | None]) -> Tensor | None:
        tensors = [tensor for part in parts if (tensor := of(part)) is not None]
        # Layers that are found for each image by itself may have maps of several sizes.
        alike = len({tensor.shape[1:] for tensor in tensors}) == 1
        return torch.cat(tensors) if alike else None

    vectors = {
        name: together(lambda part, name=name: part.vectors[name]) for name in parts[0].vectors
    }

    return replace(
        parts[0],
        maps=torch.cat([part.maps for part in parts]),
        target=together(lambda part: part.target),
        logits=together(lambda part: part.logits),
        residual=together(lambda part: part.residual),
        targets=tuple(t for part in parts for t in part.targets or ()) or None,
        scores=together(lambda part: part.scores),
        agreement=together(lambda part: part.agreement),
        coarse=together(lambda part: part.coarse),
        vectors={name: rows for name, rows in vectors.items() if rows is not None},
    )


def _finite(low: Tensor, high: Tensor) -> bool:
    """Tell from their extremes, to which NaN spreads, whether all numbers are finite."""
    return bool(torch.isfinite(torch.stack([low, high])).all())


def relative_residual(maps: Tensor, change: Tensor) -> Tensor:
    """Return (Σ map − Δy_c) / |Δy_c|, how far maps are from summing to the change of the score.

    Args:
        maps: (…, 1, *spatial).
        change: Δy_c, (…).

    Returns:
        (…); NaN where the score did not change.
    """
    residual = (maps.sum(places(maps, change.dim())) - change) / change.abs()
    return residual.masked_fill(change == 0, torch.nan)


def _catalogue() -> Mapping[str, type[Method]]:
    from afmi.methods import CATALOGUE

    return CATALOGUE


specs.register(Method, "method", _catalogue)

MethodsLike = str | Sequence[str | type[Method] | Method]


def chosen_methods(model: nn.Module, methods: MethodsLike) -> dict[str, Method]:
    """Return the methods that were meant, by the label that tells each from the others.

    Args:
        model: the network to explain.
        methods: ``"all"``, or specs joined by commas, or a sequence of specs, classes or instances.
            A spec is a name, perhaps with parameters: ``"a-fmi:averaged=false:reference=white"``;
            several values of one are joined by "+": ``"xrai:scales=50+100"``. See `afmi.specs`.

    Raises:
        UsageError: when a method or parameter does not exist, a value does not fit, one instance
            explains another model, or two that differ have one label.

    Example:
        >>> list(chosen_methods(nn.Identity(), "grad-cam,a-fmi:averaged=no"))
        ['Grad-CAM', 'A-FMI (averaged=false)']
    """
    chosen = specs.choose(methods, Method, model=model)
    for label, method in chosen.items():
        if method.model is not runnable(model):
            raise UsageError(f"the {label} given explains another model; pass the class instead")
    return chosen
