"""Write a network with its A-FMI map as one file, which runs without PyTorch."""

from __future__ import annotations

import io
import json
import os
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._subclasses.fake_tensor import UnsupportedFakeTensorException
from torch.export import ExportedProgram
from torch.fx.experimental.symbolic_shapes import GuardOnDataDependentSymNode

from afmi._version import __version__
from afmi.errors import AfmiError, ExportError, UsageError, first_line
from afmi.exporting.onnx_file import check_packages, onnx_bytes, run_onnx
from afmi.exporting.tracing import OUTPUTS, Explained, exported_program
from afmi.files import write_files
from afmi.gradients.modified import modified_gradient
from afmi.methods.base import Attribution, BlankMapWarning
from afmi.methods.feature_maps.afmi import AFMI
from afmi.network.classifier import (
    classifier_of,
    find_class,
    input_channels,
    labels_of,
    name_of,
    preparation_of,
)
from afmi.network.fingerprint import fingerprint_of
from afmi.network.guards import evaluation_mode
from afmi.network.labels import class_index
from afmi.network.layers import resolve_layer
from afmi.network.outputs import Declaration, Meaning, declaration_of
from afmi.network.randomness import generator_of
from afmi.network.trial import meaning_of
from afmi.network.wrappers import Wrapper, runnable
from afmi.pictures.references import ReferenceLike, reference_of

__all__ = ["Exported", "export"]

Choice = Literal["given", "predicted"]
ClassesLike = Choice | int | str | Sequence[int | str]

_TOLERANCE = 1e-4
"""By how much of its largest number a file's map may differ from ours; measured are 1e-6 to 1e-5.
In 16 bits, ten times the rounding."""

_CELLS = 5
"""Along each side of an image to try files with: its coarsest spots."""

_OF_LOGITS = 1e-6
"""What a map may differ by in any case, in shares of the logits: one of a network that answers all
images alike is rounding alone."""


@dataclass(frozen=True)
class Exported:
    """A file that was written.

    Attributes:
        path: where it is.
        inputs: the names of what it takes: ``images`` (N, C, *spatial) in [0, 1], and ``class``,
            int64 (N,), where the class is given with the images.
        outputs: the names of what it gives: ``outputs`` (N, K), ``map`` (N, T, *spatial),
            ``target``, ``residual`` and ``completeness_error``, each (N, T).
        difference: by how much of its largest number the file's map differed from ours at most,
            when it was tried.
        metadata: what the file says of itself.
    """

    path: Path
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    difference: float
    metadata: Mapping[str, str]


def export(
    model: nn.Module,
    out: str | os.PathLike[str],
    *,
    classes: ClassesLike = "given",
    layer: Any = None,
    reference: ReferenceLike = "black",
    averaged: bool = True,
    size: int | Sequence[int] | None = None,
) -> Exported:
    """Write one file that takes images and gives the network's outputs and A-FMI's map.

    An ``.onnx`` file runs in ONNX Runtime on any machine, phone or web page, without PyTorch and
    without this package; it holds standard operators only. A ``.pt2`` file is the same program for
    ``torch.export.load``. Each takes any number of images of one size. The file is run and its maps
    are compared with ours before it gets its name.

    Args:
        model: a `Classifier`, whose images are in [0, 1], or any ``nn.Module``; not changed. The
            file computes in the precision of its weights: ``model.half()`` for 16 bits.
        out: the file, ``.onnx`` or ``.pt2``.
        classes: ``"given"``: the file takes the class of each image as well, and explains the
            predicted one where that is −1; of a number that is no class it gives NaN and −1.
            ``"predicted"``: it explains that always. Or a class, as index or label, or several,
            each of which it gives a map of.
        layer: as in `afmi.methods.AFMI`.
        reference: as there; one that is the same for every image.
        averaged: as there.
        size: sides of the images in pixels, one for all or one each. None: the `Classifier`'s crop.

    Raises:
        ExportError: the network has no such form, for the reason that it gives, or the file's maps
            are not ours; then no file is written.
        UsageError: an argument cannot be used.

    Example:
        >>> import tempfile
        >>> network = nn.Sequential(
        ...     nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()
        ... )
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     exported = export(network, f"{folder}/net.pt2", size=8)
        >>> exported.inputs
        ('images', 'class')
    """
    path = _path(out)
    model = runnable(model)
    chosen = reference_of(reference)
    if chosen.per_image:
        raise ExportError(
            f"a file compares all images with the same reference, and {chosen} is another for each "
            "image; choose black, white, mean, random or a picture"
        )
    images = _images(model, size)
    method = AFMI(model, layer=layer, reference=chosen, averaged=averaged)
    indices = _indices(model, classes)
    with torch.no_grad(), evaluation_mode(model):
        compute = _computation(method, images, indices)
        given = classes == "given"
        inputs = ("images", "class") if given else ("images",)
        with _named_failures():
            program = exported_program(compute, images[:1], given=given)
        metadata = _metadata(model, method, compute, images, classes)
        write = onnx_bytes if path.suffix == ".onnx" else _pt2_bytes
        with _named_failures():
            content = write(program, inputs, OUTPUTS, metadata)
        run = run_onnx if path.suffix == ".onnx" else _run_pt2
        # An image that is the reference, where maps may be even, is no image like others.
        images = torch.cat([images, chosen(images[:1])[:1]])
        difference = _verified(run, content, method, images, given)
        if given:
            outputs = compute.references[0].logits.shape[1]
            difference = max(difference, _verified_given(run, content, method, images, outputs))
    write_files({path: content})
    return Exported(path, inputs, OUTPUTS, difference, metadata)


def _path(out: str | os.PathLike[str]) -> Path:
    path = Path(out)
    if path.suffix not in (".onnx", ".pt2"):
        raise UsageError(f"expected a file that ends in .onnx or .pt2, got {str(path)!r}")
    if path.suffix == ".onnx":
        check_packages()
    return path


def _images(model: nn.Module, size: int | Sequence[int] | None) -> Tensor:
    """Return two images to try files with, random ones that a network can take for pictures."""
    classifier = classifier_of(model)
    if size is None:
        size = None if classifier is None else classifier.crop or classifier.resize
    if size is None:
        raise UsageError("expected the size of the images in pixels; pass size=224, or as it is")
    sides = tuple(size) if isinstance(size, Sequence) else (size, size)
    if not all(type(side) is int and side > 0 for side in sides):
        raise UsageError(f"expected a size of sides from 1 pixel, got size={size!r}")
    weights = (p for p in model.parameters() if p.is_floating_point())
    like = next(weights, torch.empty(0, dtype=torch.float32, device="cpu"))
    channels = input_channels(model)
    generator = generator_of(0)
    return _clouds((2, channels, *sides), generator).to(like)


def _clouds(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """Return random images (N, C, *spatial) in [0, 1] whose contrast falls with the frequency.

    So does that of photographs. White noise is far from all that networks were trained with, and
    where their parts multiply each other they enlarge it so much that rounding decides the answer.
    """
    mode = {1: "linear", 2: "bilinear", 3: "trilinear"}[len(shape) - 2]
    sides = shape[2:]
    images, weights = torch.zeros(shape, dtype=torch.float32, device="cpu"), 0.0
    for octave in range(max(sides).bit_length()):
        cells = tuple(min(side, _CELLS * 2**octave) for side in sides)
        drawn = (*shape[:2], *cells)
        spots = torch.rand(drawn, generator=generator, dtype=torch.float32, device="cpu")
        images += 2.0**-octave * F.interpolate(spots, size=sides, mode=mode, align_corners=False)
        weights += 2.0**-octave
        if cells == sides:
            break
    return images / weights


def _indices(model: nn.Module, classes: ClassesLike) -> tuple[int, ...] | None:
    """Return the classes that a file explains always; None: they are given or predicted."""
    if isinstance(classes, str) and classes in get_args(Choice):
        return None
    several = (
        [classes] if isinstance(classes, str) or not isinstance(classes, Sequence) else classes
    )
    try:
        if several:
            return tuple(
                find_class(model, one) if isinstance(one, str) else class_index(one)
                for one in several
            )
    except TypeError:
        pass
    raise UsageError(
        "expected classes as 'given', 'predicted', or one or several by index or label, got "
        f"{classes!r}"
    )


class _Declared(Wrapper):
    """A network of whose outputs it is known what they mean, so that no number has to be read."""

    def __init__(self, model: nn.Module, meaning: Meaning) -> None:
        super().__init__()
        self.model = model
        self.declaration = replace(declaration_of(model), meaning=meaning)
        self.training = False

    declaration: Declaration

    @property
    def wrapped(self) -> nn.Module:
        return self.model

    def forward(self, images: Tensor) -> Any:
        return self.model(images)


def _computation(method: AFMI, images: Tensor, indices: tuple[int, ...] | None) -> Explained:
    model = method.model
    place = resolve_layer(model, method.layer, images[:1])
    run = modified_gradient(model, images[:2], layer=place, reference=method.reference)
    outputs = run.run.logits.shape[1]
    for index in indices or ():
        if not 0 <= index < outputs:
            raise UsageError(f"expected classes from 0 to {outputs - 1}, got {index}")
    if any(len(reference.logits) != 1 for reference in run.references):
        raise ExportError(
            "the network folds the images of a batch into other dimensions behind the layer, so "
            "that one reference does not do for all of them, and a file holds no others; choose a "
            "layer behind that part"
        )
    return Explained(
        model=_Declared(model, meaning_of(model, images[:1])),
        place=place,
        references=run.references,
        pixels=method.reference(images[:1]),
        averaged=method.averaged,
        classes=indices,
    )


@contextmanager
def _named_failures() -> Iterator[None]:
    """Raise an `ExportError` that names why a network has no other form."""
    try:
        yield
    except ExportError:
        raise
    except AfmiError as error:
        raise ExportError(f"the network cannot be exported: {first_line(error)}") from error
    except (GuardOnDataDependentSymNode, UnsupportedFakeTensorException) as error:
        raise _by_values(error) from error
    except (RuntimeError, TypeError, ValueError, NotImplementedError, AssertionError) as error:
        if "data-dependent" in str(error).lower() or "DataDependent" in type(error).__name__:
            raise _by_values(error) from error
        raise ExportError(
            f"the network cannot be exported: {type(error).__name__}: {first_line(error)}"
        ) from error


def _by_values(error: Exception) -> ExportError:
    return ExportError(
        "the network decides by numbers of the images what it computes, which a file cannot "
        f"({first_line(error)}); write that without reading numbers"
    )


def _metadata(
    model: nn.Module,
    method: AFMI,
    compute: Explained,
    images: Tensor,
    classes: ClassesLike,
) -> dict[str, str]:
    """Return what a file says of itself, as text or JSON."""
    held = {
        "afmi_version": __version__,
        "model": name_of(model),
        "fingerprint": fingerprint_of(model),
        "method": method.name,
        "layer": str(compute.place[1]),
        "reference": str(method.reference),
        "averaged": method.averaged,
        "classes": classes if compute.classes is None else list(compute.classes),
        "output": declaration_of(compute.model).meaning,
        "image_size": list(images.shape[1:]),
        "preprocessing": preparation_of(model),
        "labels": list(labels_of(model)),
    }
    return {
        key: value if isinstance(value, str) else json.dumps(value) for key, value in held.items()
    }


def _pt2_bytes(
    program: ExportedProgram,
    inputs: Sequence[str],
    outputs: Sequence[str],
    metadata: Mapping[str, str],
) -> bytes:
    """Return the bytes of a file for ``torch.export.load``."""
    buffer = io.BytesIO()
    held = {"afmi.json": json.dumps({**metadata, "inputs": inputs, "outputs": outputs})}
    with warnings.catch_warnings():  # of weights on other devices, where tensors share memory
        warnings.simplefilter("ignore", UserWarning)
        torch.export.save(program, buffer, extra_files=held)
    return buffer.getvalue()


def _run_pt2(content: bytes, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    program = torch.export.load(io.BytesIO(content))
    return dict(zip(OUTPUTS, program.module()(*inputs.values()), strict=True))


def _verified(run: Any, content: bytes, method: AFMI, images: Tensor, given: bool) -> float:
    """Return by how much of its largest number a file's map differs from ours at most.

    Raises:
        ExportError: it differs by more than rounding.
    """
    worst = 0.0
    # Of a batch of one, and of one that no program was made with.
    for some in (images[:1], images):
        inputs = {"images": some}
        if given:
            inputs["class"] = torch.full((len(some),), -1, dtype=torch.int64, device=some.device)
        results = run(content, inputs)
        predicted = results["outputs"].argmax(1)
        if given and not torch.equal(results["target"][:, 0], predicted):
            raise ExportError("the file does not explain the class that it predicts")
        worst = max(worst, _furthest(method, results, some))
    return worst


def _verified_given(run: Any, content: bytes, method: AFMI, images: Tensor, outputs: int) -> float:
    """Do as `_verified` with classes that are given: the first and the last one."""
    classes = torch.tensor([0, outputs - 1, 0], dtype=torch.int64, device=images.device)
    results = run(content, {"images": images, "class": classes})
    if not torch.equal(results["target"][:, 0].cpu(), classes.cpu()):
        raise ExportError("the file does not explain the class that it is given")
    return _furthest(method, results, images)


def _furthest(method: AFMI, results: Mapping[str, Tensor], images: Tensor) -> float:
    """Return by how much of its largest number any of a file's maps differs from ours."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", BlankMapWarning)
        ours = [method.attribution(images, row.to(images.device)) for row in results["target"].T]
    try:
        return max(_difference(one, results, t, images) for t, one in enumerate(ours))
    except ExportError as error:
        raise ExportError(f"{error}{_of_rounding(method, images, ours[0])}") from error


def _of_rounding(method: AFMI, images: Tensor, before: Attribution) -> str:
    """Return a clause that blames the network where rounding alone changes what it answers."""
    reference = reference_of(_nudged(method.reference(images[:1])))
    nudged = AFMI(method.model, layer=method.layer, reference=reference, averaged=method.averaged)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", BlankMapWarning)
        after = nudged.attribution(_nudged(images), before.target)
    assert before.logits is not None
    assert after.logits is not None
    moved = max(
        float((a - b).abs().amax() / b.abs().amax().clamp_min(1e-30))
        for a, b in ((after.logits, before.logits), (after.maps, before.maps))
    )
    if not moved > _allowed(images) / 10:
        return ""
    return (
        f". The network enlarges rounding errors: its own answers change by {moved:.1e} where "
        "images and reference change in the last digit, so another runtime cannot give the same; "
        "look for activations or attention scores that are far too large, as random weights have "
        "them"
    )


def _nudged(pixels: Tensor) -> Tensor:
    """Return pixels moved by a few digits of rounding towards the middle of [0, 1]."""
    step = 4 * torch.finfo(pixels.dtype).eps
    return torch.where(pixels < 0.5, pixels + step, pixels - step)


def _allowed(images: Tensor) -> float:
    return 10 * torch.finfo(torch.float16).eps if images.dtype == torch.float16 else _TOLERANCE


def _difference(attribution: Any, results: Mapping[str, Tensor], t: int, images: Tensor) -> float:
    maps, logits = (x.cpu().double() for x in (attribution.maps[:, 0], attribution.logits))
    theirs = results["map"][:, t].cpu().double()
    outputs = results["outputs"].cpu().double()
    allowed = _allowed(images)
    scale = logits.abs().amax().clamp_min(1e-30)
    missed = float((outputs - logits).abs().amax() / scale)
    if not missed <= allowed:
        raise ExportError(
            f"the file's outputs are not the network's: they differ by {missed:.1e} of the largest "
            f"(expected at most {allowed:.0e}), so no file was written"
        )
    largest = maps.abs().flatten(1).amax(1)
    apart = (theirs - maps).abs().flatten(1).amax(1)
    floor = _OF_LOGITS * (allowed / _TOLERANCE) * scale
    relative = float((apart / largest.clamp_min(1e-30)).amax())
    if not bool((apart <= allowed * largest + floor).all()):
        raise ExportError(
            f"the file's maps are not ours: they differ by {relative:.1e} of the largest number "
            f"(expected at most {allowed:.0e}), so no file was written"
        )
    return float((apart / (largest + floor / allowed)).amax())
