"""Explanation: the record of why a network gave a target its score; it shows and saves itself."""

from __future__ import annotations

import base64
import functools
import hashlib
import html
import io
import math
import os
import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from importlib import metadata
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import numpy as np
import PIL.Image
import torch
from torch import Tensor, nn

import afmi
from afmi import specs
from afmi.files import save_record, slug
from afmi.methods import Attribution, Method
from afmi.network.classifier import class_label, name_of
from afmi.network.outputs import Outputs, responses
from afmi.pictures import figures
from afmi.pictures.maps import Scale
from afmi.pictures.views import DRAWN_SIDE, INSERTED, View, view_of
from afmi.targets import Class, Output, Scalar, Target

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from afmi.metrics.fmi_prototypes import PrototypeMatches

__all__ = [
    "AGREEMENT",
    "DRAWN_SIDE",
    "INSERTED",
    "Compared",
    "Explanation",
    "PrototypeMatch",
    "explanation_of",
    "identity_of_record",
    "number",
    "percent",
    "shown_image",
]


AGREEMENT = 0.5
"""Rank correlation of averaged and exact maps below which averaging is said to hide evidence.

Chosen by ``python -m benchmarks.averaging``.
"""


@dataclass(frozen=True)
class Compared:
    """A class that is compared with another, as the network answers for the image.

    Attributes:
        index: the class.
        label: its name.
        score: of it.
        probability: of it; None where the network gives none.
    """

    index: int
    label: str
    score: float
    probability: float | None


@dataclass(frozen=True)
class PrototypeMatch:
    """How an image's feature map importance compares with what is usual for the classes.

    See `afmi.metrics.FMIPrototypes`; `afmi.metrics.FMIAgreement` measures the same.

    Attributes:
        cosine: of the angle to the mean FMI of the class explained; None where the prototypes have
            no images of it.
        nearest: the class whose mean FMI is the nearest; None, as the two that follow, where the
            image's FMI is zero.
        nearest_label: its name.
        nearest_cosine: of the angle to it.
    """

    cosine: float | None
    nearest: int | None
    nearest_label: str | None
    nearest_cosine: float | None

    @classmethod
    def of(cls, model: nn.Module, matches: PrototypeMatches, row: int) -> PrototypeMatch:
        """Return that of one image of a batch."""
        nearest = int(matches.nearest[row])
        return cls(
            cosine=_finite(float(matches.cosine[row])),
            nearest=None if nearest < 0 else nearest,
            nearest_label=None if nearest < 0 else class_label(model, nearest),
            nearest_cosine=_finite(float(matches.nearest_cosine[row])),
        )

    def words(self, index: int | None, label: str) -> str:
        """Return it in words.

        Args:
            index: the class explained.
            label: its name.
        """
        if self.nearest is None:
            return "its feature map importance is zero, as is usual for no class"
        nearest, cosine = repr(self.nearest_label), f"cosine {self.nearest_cosine:.2f}"
        if self.cosine is None:
            return f"no prototype of {label!r}; the nearest is that of {nearest} ({cosine})"
        usual = f"its feature maps are as important as is usual for {nearest} ({cosine})"
        if self.nearest == index:
            return usual
        return f"{usual}, rather than for {label!r} ({self.cosine:.2f})"


@dataclass(frozen=True, repr=False, eq=False)
class Explanation:
    """Why a network gave one class, or another target, its score for one picture.

    Attributes:
        image: (3, H, W) in [0, 1], on the CPU: what the network saw, cropped and resized; of other
            channels than three those that are shown. A signal (C, L) or a volume (C, D, H, W) in
            its own units.
        map: (H, W), or (L,) or (D, H, W), on the CPU, in the method's own units.
        signed: whether negative values of the map are evidence against the target; pictures then
            part their colours at zero. As the method declares it.
        target: what is explained.
        label: it in words, such as a class's name.
        score: the network's score of it for the image.
        unit: what the score is: ``logit``, ``probability``, ``value``, ….
        probability: the network's probability of the class explained; None where the target is no
            class, or the network gives no probabilities.
        compared: the classes that the target compares.
        ends: what positive and what negative values of the map do, in words.
        predicted: the class with the highest score; None where the network predicts none, as do
            the two that follow.
        predicted_label: its name.
        predicted_probability: its probability.
        method: the method's name.
        parameters: its hyperparameters, as JSON can hold them.
        layer: where feature maps were taken; None for methods that take none.
        reference: what the picture was compared with; None for methods that compare with nothing.
        residual: (Σ map − Δy) / |Δy| at the layer's size, where Δy is the change of the
            score from the reference: 0 when the map accounts for all of it. None where the
            method promises no such sum, it was not computed, or the score did not change.
        agreement: rank correlation of A-FMI's map with the one whose modified gradients are not
            averaged over positions, at the layer's size; None where it was not computed. Below
            `AGREEMENT` the network reads positions that averaging hides; see `afmi.methods.AFMI`.
        prototypes: how its feature map importance compares with the classes' prototypes; None where
            none were given.
        model: the model's name.
        source: the file; None for pictures from memory.
        versions: of afmi, torch, torchvision and python.
    """

    image: Tensor
    map: Tensor
    signed: bool
    target: Target
    label: str
    score: float
    unit: str
    probability: float | None
    predicted: int | None
    predicted_label: str | None
    predicted_probability: float | None
    method: str
    parameters: dict[str, Any]
    layer: str | None = None
    reference: str | None = None
    residual: float | None = None
    agreement: float | None = None
    prototypes: PrototypeMatch | None = None
    model: str = ""
    source: str | None = None
    compared: tuple[Compared, ...] = ()
    ends: tuple[str, str] = ("for", "against")
    versions: dict[str, str] = field(default_factory=lambda: dict(_versions()))

    @property
    def class_index(self) -> int | None:
        """The class explained; None where the target is no class."""
        return self.target.of if isinstance(self.target, Class) else None  # type: ignore[return-value]

    @property
    def answer(self) -> str:
        """What the network answers, in words: ``cat, 93.1%`` or ``output 2, value 0.71``."""
        if self.probability is not None:
            return f"{self.label}, {percent(self.probability)}"
        score = f"{self.unit} {number(self.score)}"
        if isinstance(self.target, Scalar) and self.unit != Scalar.unit:
            score = f"{number(self.score)} {self.unit}"  # such as nats, which the user named
        text = f"{self.label}, {score}"
        known = [one.probability for one in self.compared if one.probability is not None]
        return f"{text} ({' against '.join(map(percent, known))})" if known else text

    @property
    def prediction(self) -> str | None:
        """The class predicted, where that is not the one explained: ``dog, 81.0%``."""
        explained = self.compared[0].index if self.compared else self.class_index
        if self.predicted is None or self.predicted == explained:
            return None
        if self.predicted_probability is None:
            return self.predicted_label
        return f"{self.predicted_label}, {percent(self.predicted_probability)}"

    @functools.cached_property
    def _view(self) -> View:
        area = self.target.area(tuple(self.map.shape)) if self.map.dim() == 2 else None
        ends = None if isinstance(self.target, Class) else self.ends
        view = view_of(self.image, self.map, signed=self.signed, area=area)
        return replace(view, ends=ends, rivals=bool(self.compared))

    @property
    def scale(self) -> Scale:
        """What the colours of its pictures span."""
        return self._view.scale

    def original(self) -> PIL.Image.Image:
        """Return the photograph by itself.

        The outline of a region or box that is explained is drawn on it, and on the overlay. What is
        larger than `DRAWN_SIDE` pixels a side is drawn at that size, here and in the other
        pictures. Of a volume they show the slices that have most of the map, in order; a signal is
        drawn as lines.
        """
        return self._view.original()

    def overlay(self) -> PIL.Image.Image:
        """Return the map over the photograph; see `afmi.plots.overlay`."""
        return self._view.overlay()

    def heatmap(self) -> PIL.Image.Image:
        """Return the map by itself; see `afmi.plots.heatmap`."""
        return self._view.heatmap()

    def insertion(self, fraction: float = INSERTED) -> PIL.Image.Image:
        """Return the most important ``fraction`` of the pixels on black."""
        return self._view.insertion(fraction)

    def figure(self) -> Figure:
        """Return photograph, overlay, map and insertion view side by side, with their titles.

        Of two classes that are compared, the pixels that speak most for either are shown.
        """
        return self._view.figure(self._title(), self._note())

    def _title(self) -> str:
        title = self.answer
        if self.prediction is not None:
            title += f" (predicted: {self.prediction})"
        return f"{title} — {self.method}"

    @property
    def hidden(self) -> str | None:
        """What to say where averaging hides evidence (see `AGREEMENT`), in words; None: nothing."""
        if self.agreement is None or self.agreement >= AGREEMENT:
            return None
        correlation = f"{self.agreement:.2f}".replace("-", "−")
        return f"averaging hides evidence, see averaged=false (rank correlation {correlation})"

    @property
    def usual(self) -> str | None:
        """For which class its feature map importance is usual, in words; None: nobody asked."""
        if self.prototypes is None:
            return None
        return self.prototypes.words(self.class_index, self.label)

    def _note(self) -> str:
        parts = [self.model and f"model {self.model}", self.layer and f"layer {self.layer}"]
        parts.append(self.reference and f"reference {self.reference}")
        if self.residual is not None:
            parts.append(f"residual {round(self.residual, 3) + 0:+.1%}".replace("-", "−"))
        parts += [self.hidden, self.usual]
        parts.append(self.source and Path(self.source).name)
        return " · ".join(part for part in parts if part)

    def to_dict(self) -> dict[str, Any]:
        """Return the record as JSON holds it: all but the pixels of image and map.

        Numbers that are not finite become None, which JSON can hold.
        """
        pixels = self.image.contiguous().numpy().data
        names = ("length",) if self.map.dim() == 1 else ("depth", "height", "width")
        return {
            "source": self.source,
            "image": {
                **dict(zip(names[-self.map.dim() :], self.map.shape, strict=True)),
                "digest": hashlib.blake2b(pixels, digest_size=16).hexdigest(),
            },
            "target": specs.text(self.target),
            "class": self.class_index,
            "label": self.label,
            "score": _finite(self.score),
            "unit": self.unit,
            "probability": _finite(self.probability),
            "compared": [
                {
                    "class": one.index,
                    "label": one.label,
                    "score": _finite(one.score),
                    "probability": _finite(one.probability),
                }
                for one in self.compared
            ],
            "predicted": self.predicted,
            "predicted_label": self.predicted_label,
            "predicted_probability": _finite(self.predicted_probability),
            "method": self.method,
            "signed": self.signed,
            "parameters": self.parameters,
            "layer": self.layer,
            "reference": self.reference,
            "residual": _finite(self.residual),
            "agreement": _finite(self.agreement),
            "prototypes": None if self.prototypes is None else asdict(self.prototypes),
            "model": self.model,
            "versions": self.versions,
        }

    def save(self, folder: str | os.PathLike[str], stem: str | None = None) -> dict[str, Path]:
        """Write figure, overlay, map and record to a folder, which is made where missing.

        Files are named ``<stem>-<label>-<method>…``. Saving the same explanation again replaces
        its files; another one that would get the same names is numbered (``…-2``), also where
        several threads or processes save at once. The four are written aside and then take their
        names, the record last: no file is ever half written, and where a record is, the others
        are too.

        Args:
            folder: where to.
            stem: the beginning of the names; None: the source's name, or ``image``.

        Returns:
            The paths: ``figure`` and ``overlay`` (PNG), ``map`` (float32 .npy), ``record`` (JSON).

        Raises:
            AfmiError: when the files cannot be written.
        """
        if stem is None:
            stem = Path(self.source).stem if self.source else "image"
        parts = (slug(stem, 80), slug(self.label, 40).lower(), slug(self.method, 40).lower())
        figure, overlay = self.figure(), self.overlay()

        def write_map(file: IO[bytes]) -> None:
            # Not np.save, which reports a full disk with an error of its own on real files.
            buffer = io.BytesIO()
            np.save(buffer, self.map.numpy().astype(np.float32, copy=False))
            file.write(buffer.getbuffer())

        return save_record(
            Path(folder),
            "-".join(part for part in parts if part),
            {
                "figure": (".png", lambda file: figures.figure_png(figure, file)),
                "overlay": ("-overlay.png", lambda file: overlay.save(file, "PNG")),
                "map": ("-map.npy", write_map),
            },
            self.to_dict(),
            identity_of_record,
        )

    @functools.cached_property
    def _png(self) -> bytes:
        # Notebooks ask for PNG and HTML one after the other; drawing twice would be a waste.
        buffer = io.BytesIO()
        figures.figure_png(self.figure(), buffer)
        return buffer.getvalue()

    def _repr_png_(self) -> bytes:
        return self._png

    def _repr_html_(self) -> str:
        picture = base64.b64encode(self._png).decode()
        alt = html.escape(f"{self._title()}. {self._note()}", quote=True)
        return f'<img alt="{alt}" style="max-width:100%" src="data:image/png;base64,{picture}">'

    def __repr__(self) -> str:
        size = "×".join(map(str, reversed(self.map.shape)))
        return f"Explanation({self.answer!r}, {self.method}, {size}" + (
            f", {self.source!r})" if self.source else ")"
        )

    def __str__(self) -> str:
        return f"{self._title()} ({self._note()})"


def explanation_of(
    method: Method,
    attribution: Attribution,
    row: int,
    image: Tensor,
    outputs: Outputs | None,
    source: str | None,
    matches: PrototypeMatches | None = None,
) -> Explanation:
    """Make the record of one image of a batch.

    Args:
        method: that explained the batch.
        attribution: of the batch.
        row: of the image in it.
        image: for the record; see `shown_image`.
        outputs: of the batch, where the network has scores of classes, or values.
        source: its file.
        matches: of the batch with prototypes, where there are any.
    """
    model = method.model
    residual = None if attribution.residual is None else float(attribution.residual[row])
    agreement = None if attribution.agreement is None else float(attribution.agreement[row])
    # The layer apart: the record's own `layer` says which it was.
    parameters = {k: v for k, v in specs.parameters(method).items() if k != "layer"}
    reference = getattr(method, "reference", None)
    return Explanation(
        image=image,
        map=attribution.maps[row, 0].detach().cpu().clone(),
        signed=method.signed,
        **_explained(model, attribution, row, outputs),
        **_predicted(model, row, outputs),
        method=method.name,
        parameters=parameters,
        layer=None if attribution.layer is None else str(attribution.layer),
        reference=None if reference is None else specs.text(reference),
        residual=_finite(residual),
        agreement=_finite(agreement),
        prototypes=None if matches is None else PrototypeMatch.of(model, matches, row),
        model=name_of(model),
        source=source,
    )


def _explained(
    model: nn.Module, attribution: Attribution, row: int, outputs: Outputs | None
) -> dict[str, Any]:
    """Return what is said of the target of an image."""
    if attribution.targets is not None:
        assert attribution.scores is not None
        target = attribution.targets[row]
        return {
            "target": target,
            "label": target.label(model),
            "score": float(attribution.scores[row]),
            "unit": target.unit,
            "probability": None,
            "compared": _compared(model, target, row, outputs),
            "ends": target.ends(model),
        }
    assert attribution.target is not None
    assert outputs is not None
    index = int(attribution.target[row])
    score = float(outputs.scores[row, index])
    if outputs.meaning == "value":
        value = Output(index)
        label = value.label(model) if outputs.scores.shape[1] > 1 else Output().label(model)
        about = {"target": value, "label": label, "unit": value.unit, "probability": None}
        about["ends"] = value.ends(model)
    else:
        about = {
            "target": Class(index),
            "label": class_label(model, index),
            "unit": "probability" if outputs.meaning == "probabilities" else "logit",
            "probability": _probability(outputs, row, index),
        }
    return {"score": score, **about}


def _compared(
    model: nn.Module, target: Target, row: int, outputs: Outputs | None
) -> tuple[Compared, ...]:
    """Return what the network answers for the classes that a target compares."""
    if outputs is None or outputs.meaning == "value":
        return ()
    return tuple(
        Compared(
            index,
            class_label(model, index),
            float(outputs.scores[row, index]),
            _probability(outputs, row, index),
        )
        for index in target.compared(model)
    )


def _predicted(model: nn.Module, row: int, outputs: Outputs | None) -> dict[str, Any]:
    """Return what is said of the class that the network predicts for an image."""
    if outputs is None or outputs.meaning == "value":
        names = ("predicted", "predicted_label", "predicted_probability")
        return dict.fromkeys(names)
    index = int(outputs.scores[row].argmax())
    return {
        "predicted": index,
        "predicted_label": class_label(model, index),
        "predicted_probability": _probability(outputs, row, index),
    }


def _probability(outputs: Outputs, row: int, index: int) -> float:
    scores = outputs.scores[row].detach().to("cpu", torch.float64)
    return float(responses(scores, outputs.meaning)[index])


def shown_image(image: Tensor, bands: Sequence[int] | None = None) -> Tensor:
    """Return the image of a record, (3, H, W) in [0, 1], on the CPU.

    Args:
        image: (C, H, W), as the network saw it; a bare network's own range is stretched to [0, 1].
            A signal or a volume stays as it is.
        bands: which channels to show as red, green and blue. None: the first three; of one or two
            channels the first, as grey. Other numbers of channels than one and three come from
            instruments that leave room for rare brightness: where the brightest 2 % would be
            shown darker than half, they become white.
    """
    shown = image.detach().to("cpu", torch.float32, copy=True)
    if image.dim() != 3:
        return shown.contiguous()
    low, high = float(shown.min()), float(shown.max())
    if low < -1e-3 or high > 1 + 1e-3:
        shown = (shown - low) / ((high - low) or 1)
    channels = len(shown)
    if bands is not None:
        shown = shown[list(bands)]
    elif channels != 3:
        shown = shown[:3] if channels > 3 else shown[:1]
    if channels not in (1, 3):
        bright = float(np.quantile(shown.numpy(), 0.98))
        shown = shown / bright if 0 < bright < 0.5 else shown
    return shown.clamp(0, 1).expand(3, -1, -1).contiguous()


def number(value: float) -> str:
    """Return a score as text: ``−0.713``, ``245,000``."""
    text = f"{value:,.0f}" if 1000 <= abs(value) < 1e9 else f"{value:.3g}"
    return text.replace("-", "−")


def percent(probability: float) -> str:
    """Return a probability as text, never rounded to certainty."""
    if 0.999 < probability < 1:
        return "over 99.9%"
    return "under 0.1%" if 0 < probability < 0.001 else f"{probability:.1%}"


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None


@functools.cache
def _versions() -> Mapping[str, str]:
    versions = {"afmi": afmi.__version__, "torch": torch.__version__}
    try:
        versions["torchvision"] = metadata.version("torchvision")  # without the wait for its import
    except metadata.PackageNotFoundError:
        versions["torchvision"] = "not installed"
    return {**versions, "python": platform.python_version()}


def identity_of_record(record: Mapping[str, Any]) -> list[Any]:
    """Return what an explanation's record is of: all but its numbers."""
    parts = ("source", "image", "target", "method", "parameters", "layer", "model")
    return [record[part] for part in parts]
