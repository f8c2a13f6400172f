"""Explanation: the record of why a network gave a target its score; it shows and saves itself."""

from __future__ import annotations

import base64
import functools
import html
import io
import math
import os
import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import numpy as np
import PIL.Image
import torch
from torch import Tensor, nn

import afmi
from afmi import records, specs
from afmi.errors import AfmiError, RecordError, UsageError
from afmi.files import save_record, slug
from afmi.methods import Attribution, Method
from afmi.network.classifier import class_label, name_of, preparation_of, preparing, shown_bands_of
from afmi.network.outputs import Meaning, Outputs, responses
from afmi.pictures import figures, plots
from afmi.pictures.images import ImageSource, read_image
from afmi.pictures.maps import Scale
from afmi.pictures.places import place_in_words
from afmi.pictures.plots import OPACITY, Sign, Style
from afmi.pictures.transforms import crop_box
from afmi.pictures.views import DRAWN_SIDE, INSERTED, View, view_of
from afmi.targets import (
    Class,
    Output,
    RecordedTarget,
    Scalar,
    Target,
    recorded_target,
    target_text,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.colors import Colormap
    from matplotlib.figure import Figure

    from afmi.metrics.fmi_prototypes import PrototypeMatches

__all__ = [
    "AGREEMENT",
    "DRAWN_SIDE",
    "INSERTED",
    "Compared",
    "Explanation",
    "Gallery",
    "PrototypeMatch",
    "explanation_of",
    "identity_of_record",
    "number",
    "percent",
    "shown_image",
    "tile",
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
        scores: (K,), float32: what the network answered, of which the score is one or is made; None
            where it gave no row of numbers, or they were not kept.
        meaning: what these are, as a `Classifier` says it: logits, probabilities, ….
        fingerprint: of the network's weights; see `afmi.network.fingerprint.fingerprint_of`. None
            where they hold no plain numbers.
        preparation: how the photograph was resized, cropped and normalised.
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
    scores: Tensor | None = None
    meaning: Meaning | None = None
    fingerprint: str | None = None
    preparation: dict[str, Any] = field(default_factory=lambda: preparation_of(nn.Identity()))
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
        if self._names_unit:
            score = f"{number(self.score)} {self.unit}"  # such as nats, which the user named
        text = f"{self.label}, {score}"
        known = [one.probability for one in self.compared if one.probability is not None]
        return f"{text} ({' against '.join(map(percent, known))})" if known else text

    @property
    def _names_unit(self) -> bool:
        kept = isinstance(self.target, RecordedTarget) and self.target.text.startswith("scalar")
        return (kept or isinstance(self.target, Scalar)) and self.unit != Scalar.unit

    @property
    def prediction(self) -> str | None:
        """The class predicted, where that is not the one explained: ``dog, 81.0%``."""
        explained = self.compared[0].index if self.compared else self.class_index
        if self.predicted is None or self.predicted == explained:
            return None
        if self.predicted_probability is None:
            return self.predicted_label
        return f"{self.predicted_label}, {percent(self.predicted_probability)}"

    @property
    def _area(self) -> Tensor | None:
        return self.target.area(tuple(self.map.shape)) if self.map.dim() == 2 else None

    @functools.cached_property
    def _view(self) -> View:
        area = self._area
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

    def overlay(
        self, *, cmap: str | Colormap | None = None, alpha: float = OPACITY, sign: Sign = "both"
    ) -> PIL.Image.Image:
        """Return the map over what the network saw of the photograph; see `afmi.plots.overlay`.

        Args:
            cmap: the colours from the lowest value to the highest: a colour map of matplotlib's or
                its name. None: blue (against), near-white, red (for), or black to yellow for maps
                that are not signed.
            alpha: how opaque the strongest evidence is, from 0 to 1.
            sign: what is drawn: ``"both"``, or only values above (``"positive"``) or below zero
                (``"negative"``), in the colours that they have beside the others.

        Raises:
            UsageError: there is no such colour map or sign; or the map has no values against.
        """
        return self._view.overlay(Style(cmap, alpha, sign))

    def full_overlay(
        self,
        photograph: ImageSource | None = None,
        *,
        cmap: str | Colormap | None = None,
        alpha: float = OPACITY,
        sign: Sign = "both",
    ) -> PIL.Image.Image:
        """Return the map over the whole photograph, at the photograph's own size.

        A frame shows the part that the network saw, where it did not see all; a region or box that
        is explained is outlined.

        Args:
            photograph: what was explained, in any form that `afmi.images.read_image` takes. None:
                it is read from `source` again.
            cmap: as in `overlay`.
            alpha: as in `overlay`.
            sign: as in `overlay`.

        Raises:
            UsageError: the photograph is another one; there is none; or no photograph was
                explained but a signal or a volume.
            ImageError: it cannot be read, or has more pixels than `afmi.images.MAX_PIXELS`.
        """
        style = Style(cmap, alpha, sign)
        photograph = self.source if photograph is None else photograph
        if self.map.dim() != 2 or photograph is None:
            why = "an explanation from memory" if self.map.dim() == 2 else "no photograph"
            raise UsageError(
                f"expected the photograph that was explained, got {why}; "
                "pass it: full_overlay(photograph), or use overlay()"
            )
        pixels, box = same_photograph(photograph, self.image, self.preparation)
        return plots.full_overlay(
            pixels, self.map, box, signed=self.signed, style=style, area=self._area
        )

    def heatmap(
        self, *, cmap: str | Colormap | None = None, sign: Sign = "both"
    ) -> PIL.Image.Image:
        """Return the map by itself; see `afmi.plots.heatmap`, and `overlay` for the arguments."""
        return self._view.heatmap(Style(cmap, sign=sign))

    def insertion(self, fraction: float = INSERTED) -> PIL.Image.Image:
        """Return the most important ``fraction`` of the pixels on black."""
        return self._view.insertion(fraction)

    def figure(
        self,
        *,
        cmap: str | Colormap | None = None,
        alpha: float = OPACITY,
        sign: Sign = "both",
        ax: Axes | None = None,
    ) -> Figure:
        """Return photograph, overlay, map and insertion view side by side, with their titles.

        Of two classes that are compared, the pixels that speak most for either are shown.

        Args:
            cmap: as in `overlay`.
            alpha: as in `overlay`.
            sign: as in `overlay`.
            ax: axes in a figure of yours: the overlay alone is drawn there, with its title and a
                bar of its colours.

        Returns:
            The figure; that of ``ax`` where it is given.
        """
        style = Style(cmap, alpha, sign)
        if ax is None:
            return self._view.figure(self._title(), self._note(), style)
        return figures.on_axes(
            ax, self._view.overlay(style), self._title(), self._view.scale, style
        )

    @property
    def where(self) -> str:
        """Where the evidence lies, in words: ``in the upper left, on 12% of the image``.

        That is the smallest part of the map that holds more than half of it: of a signed map of
        what speaks for the target, of another of what lies above its lowest value.
        """
        return place_in_words(self.map, signed=self.signed)

    @property
    def alt_text(self) -> str:
        """What its picture shows, for those who cannot see it."""
        where = self.where
        return f"{self._title()}. {where[:1].upper()}{where[1:]}. {self._note()}"

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

        Numbers that are not finite become None, which JSON can hold. `afmi.records.schema` tells
        what it holds.
        """
        return {
            "schema": records.SCHEMA,
            "source": self.source,
            "image": {
                "channels": len(self.image),
                **records.sides_as_json(self.map.shape),
                "digest": records.digest_of(self.image),
            },
            "map": {"digest": records.digest_of(self.map)},
            "target": target_text(self.target),
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
            "ends": list(self.ends),
            "area": records.runs_of_area(self._area),
            "scores": self._scores(),
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
            "fingerprint": self.fingerprint,
            "preparation": self.preparation,
            "versions": self.versions,
        }

    def _scores(self) -> dict[str, Any] | None:
        if self.scores is None:
            return None
        # As few digits as float32 needs to come back.
        values = [_finite(float(str(one))) for one in self.scores.numpy()]
        return {"meaning": self.meaning, "values": values}

    def save(self, folder: str | os.PathLike[str], stem: str | None = None) -> dict[str, Path]:
        """Write figure, overlay, map, image and record to a folder, which is made where missing.

        `load` opens it again, here or on another machine.

        Files are named ``<stem>-<label>-<method>…``. Saving the same explanation again replaces
        its files; another one that would get the same names is numbered (``…-2``), also where
        several threads or processes save at once. All are written aside and then take their
        names, the record last: no file is ever half written, and where a record is, the others
        are too.

        Args:
            folder: where to.
            stem: the beginning of the names; None: the source's name, or ``image``.

        Returns:
            The paths: ``figure`` and ``overlay`` (PNG), ``map`` (float32 .npy), ``image`` (what the
            network saw: PNG, or float32 .npy where that would round it), ``record`` (JSON).

        Raises:
            AfmiError: when the files cannot be written.
        """
        if stem is None:
            stem = Path(self.source).stem if self.source else "image"
        parts = (slug(stem, 80), slug(self.label, 40).lower(), slug(self.method, 40).lower())
        figure, overlay = self.figure(), self.overlay()
        return save_record(
            Path(folder),
            "-".join(part for part in parts if part),
            {
                "figure": (".png", lambda file: figures.figure_png(figure, file)),
                "overlay": ("-overlay.png", lambda file: overlay.save(file, "PNG")),
                "map": records.map_file(self.map),
                "image": records.image_file(self.image),
            },
            self.to_dict(),
            identity_of_record,
        )

    @classmethod
    def load(cls, place: str | os.PathLike[str]) -> Explanation:
        """Open an explanation that `save` wrote, here or on another machine.

        It draws the same pictures. No network is needed, and nothing of the record is run.

        Args:
            place: the record's ``.json`` file, beside the files that were saved with it; or the
                folder, where it holds one record.

        Raises:
            RecordError: it is no record, or a file was changed or is missing; one line says which.

        Example:
            >>> import tempfile
            >>> from afmi import Classifier, explain
            >>> model = Classifier(nn.Sequential(nn.Flatten(), nn.Linear(48, 2)))
            >>> explanation = explain(model, torch.rand(3, 4, 4), method="gradient")
            >>> with tempfile.TemporaryDirectory() as folder:
            ...     _ = explanation.save(folder)
            ...     again = Explanation.load(folder)
            >>> torch.equal(again.map, explanation.map)
            True
        """
        record, image, map_ = records.read_record(place)
        try:
            return _of_record(record, image, map_)
        except (AfmiError, ValueError) as error:
            raise RecordError(
                f"'{os.fspath(place)}' is no whole record of an explanation: {error}"
            ) from error

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
        alt = html.escape(self.alt_text, quote=True)
        return f'<img alt="{alt}" style="max-width:100%" src="data:image/png;base64,{picture}">'

    def tile(self) -> str:
        """Return it as HTML for a `Gallery`: a small picture, with the answer and the method."""
        picture = image_tag(self.overlay(), self.alt_text, _TILE_SIDE)
        return tile(picture, f"{self.answer} — {self.method}")

    def __repr__(self) -> str:
        size = "×".join(map(str, reversed(self.map.shape)))
        return f"Explanation({self.answer!r}, {self.method}, {size}" + (
            f", {self.source!r})" if self.source else ")"
        )

    def __str__(self) -> str:
        return f"{self._title()} ({self._note()})"


class Tiled(Protocol):
    """What a `Gallery` shows: an `Explanation`, or an image that has none."""

    def tile(self) -> str:
        """Return it as HTML, as wide as the others."""
        ...


Shown = TypeVar("Shown", bound=Tiled)


class Gallery(list[Shown]):
    """A list of explanations that shows itself in a notebook: a small picture of each, with words.

    ``Gallery(afmi.explain_many(…))`` shows why an image has none, too.

    Example:
        >>> from afmi import Classifier, explain_many
        >>> model = Classifier(nn.Sequential(nn.Flatten(), nn.Linear(48, 2)))
        >>> explanations = explain_many(model, torch.rand(3, 3, 4, 4), method="gradient")
        >>> gallery = Gallery(explanations)
        >>> gallery._repr_html_().count("<img ")
        3
    """

    @classmethod
    def load(cls, folder: str | os.PathLike[str]) -> Gallery[Explanation]:
        """Open all explanations that were saved in a folder, by the names of their records.

        Raises:
            RecordError: there is none, or one of them is damaged.
        """
        found = records.record_files(Path(folder))
        if not found:
            raise RecordError(
                f"'{os.fspath(folder)}' holds no record of an explanation; give a folder that "
                "Explanation.save or afmi explain wrote to"
            )
        return Gallery(map(Explanation.load, found))

    def _repr_html_(self) -> str:
        if not self:
            return "<em>no explanations</em>"
        tiles = [one.tile() for one in self[:_TILES]]
        more = len(self) - len(tiles)
        note = f"<p>and {more} more</p>" if more > 0 else ""
        return f'<div style="display:flex;flex-wrap:wrap;gap:12px">{"".join(tiles)}</div>{note}'


_TILES = 24
"""The most explanations of a list that a notebook shows: each is a picture inside of the page."""
_TILE_SIDE = 224


def tile(content: str, words: str) -> str:
    """Return HTML of a tile of a gallery.

    Args:
        content: its picture, as HTML.
        words: below it, as text.
    """
    return (
        f'<figure style="margin:0;width:{_TILE_SIDE}px;overflow-wrap:anywhere">{content}'
        f"<figcaption>{html.escape(words)}</figcaption></figure>"
    )


def image_tag(picture: PIL.Image.Image, alt: str, side: int) -> str:
    """Return a picture as HTML that holds it, no larger than so many pixels a side.

    Args:
        picture: RGB.
        alt: what it shows.
        side: the longest that it has.
    """
    small = picture.copy()
    small.thumbnail((side, side))
    small.save(buffer := io.BytesIO(), "PNG")
    content = base64.b64encode(buffer.getvalue()).decode()
    return f'<img alt="{html.escape(alt)}" src="data:image/png;base64,{content}">'


def _of_record(record: Mapping[str, Any], image: Tensor, map_: Tensor) -> Explanation:
    """Return the explanation of a record that fits the schema."""
    size = tuple(map_.shape)
    area = records.area_of_runs(record["area"], size)
    index, scores, prototypes = record["class"], record["scores"], record["prototypes"]
    same = ("signed", "label", "unit", "probability", "method", "parameters", "layer", "reference")
    same += ("residual", "agreement", "model", "source", "fingerprint", "preparation", "versions")
    same += ("predicted", "predicted_label", "predicted_probability")
    compared = [{**one, "score": _number(one["score"])} for one in record["compared"]]
    return Explanation(
        image=image,
        map=map_,
        target=(
            recorded_target(record["target"], record["label"], size, area)
            if index is None
            else Class(index)
        ),
        score=_number(record["score"]),
        ends=tuple(record["ends"]),
        compared=tuple(
            Compared(one["class"], one["label"], one["score"], one["probability"])
            for one in compared
        ),
        scores=(
            None
            if scores is None
            else torch.tensor(
                [_number(one) for one in scores["values"]], dtype=torch.float32, device="cpu"
            )
        ),
        meaning=None if scores is None else scores["meaning"],
        prototypes=(
            None
            if prototypes is None
            else PrototypeMatch(**{f.name: prototypes[f.name] for f in fields(PrototypeMatch)})
        ),
        **{name: record[name] for name in same},
    )


def _number(value: float | None) -> float:
    return math.nan if value is None else float(value)


def explanation_of(
    method: Method,
    attribution: Attribution,
    row: int,
    image: Tensor,
    outputs: Outputs | None,
    source: str | None,
    fingerprint: str | None,
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
        fingerprint: of the network.
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
        scores=None if outputs is None else outputs.scores[row].detach().to("cpu", torch.float32),
        meaning=None if outputs is None else outputs.meaning,
        fingerprint=fingerprint,
        preparation=preparation_of(model),
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


_SAME = 0.02
"""Mean difference of pixels, up to which photographs are one: decoders differ in their rounding."""


def same_photograph(
    photograph: ImageSource, image: Tensor, preparation: Mapping[str, Any]
) -> tuple[np.ndarray, tuple[float, float, float, float]]:
    """Return a photograph as RGB, uint8 (H, W, 3), and where in it an image lies.

    Args:
        photograph: in any form.
        image: (3, H, W), what the network saw of it.
        preparation: how it was made of the photograph.

    Raises:
        UsageError: the image was not made of it.
    """
    model = preparing(preparation)
    pixels = np.asarray(read_image(photograph))
    seen = shown_image(model.prepare(photograph)[0], shown_bands_of(model))
    same = seen.shape == image.shape and float((seen - image).abs().mean()) <= _SAME
    if not same:
        raise UsageError(
            "expected the photograph that was explained, got one of which the network would see "
            "something else; pass the same file, or use overlay()"
        )
    return pixels, crop_box(pixels.shape[:2], model.resize, model.crop)


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
    parts = ("source", "image", "target", "method", "parameters", "layer", "model", "fingerprint")
    return [record[part] for part in parts]
