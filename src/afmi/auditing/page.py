"""The page of an audit: classes by how suspicious they are, and the groups that stand apart."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from afmi.auditing.grouping import LEAST
from afmi.auditing.records import Audit, ClassAudit
from afmi.auditing.regions import Marked
from afmi.auditing.words import about_group
from afmi.explanation import shown_image
from afmi.pictures.plots import outlined, overlay, reduced
from afmi.pictures.transforms import to_image
from afmi.report.page import Cell, Page, Section, Table, Tile, TileRow, render_page

__all__ = ["Drawn", "Scatter", "audit_page", "thumbnail"]

_THUMBNAIL = 36
_SIZE = 1100, 640
"""Pixels of a scatter."""
_TILE = 224
"""Pixels of an image's longest side."""
_BORDER = 3
_MARGIN = 12
_COLOURS = ((150, 150, 150), (213, 94, 0), (0, 114, 178), (0, 158, 115), (192, 93, 148))
"""Of the rest, and of the groups in order; distinguishable by colour-blind readers."""
_MOST_OUTLIERS = 10


@dataclass(frozen=True)
class Scatter:
    """Where the images of a class lie among each other.

    Attributes:
        components: of all images, (N, C).
        groups: of all images, int (N,).
        shown: those that are drawn.
        thumbnails: of these; see `thumbnail`.
    """

    components: np.ndarray
    groups: np.ndarray
    shown: np.ndarray
    thumbnails: Sequence[Image.Image]


@dataclass(frozen=True)
class Drawn:
    """A class whose groups are shown.

    Attributes:
        audit: what was found.
        groups: of each group some images; None where none can be read any longer.
        rest: of the rest of the class.
        scatter: of some of them all.
        bands: which channels of images are shown.
    """

    audit: ClassAudit
    groups: Sequence[Marked | None]
    rest: Marked | None
    scatter: Scatter
    bands: tuple[int, ...] | None = None


def thumbnail(image: Tensor, bands: tuple[int, ...] | None) -> Image.Image:
    """Return an image (C, H, W) as a scatter shows it."""
    return to_image(reduced(shown_image(image, bands), _THUMBNAIL))


def audit_page(audit: Audit, drawn: Sequence[Drawn]) -> str:
    """Return the page as HTML text.

    Args:
        audit: what was found.
        drawn: the classes that are shown, the most suspicious first.
    """
    against = f", each set against {audit.versus}" if audit.versus else ""
    images = sum(one.count for one in audit.classes)
    return render_page(
        Page(
            title=f"Does {audit.model} rest on what it should?",
            lead=f"{len(audit.classes)} classes on {images:,} images of {audit.data}{against}. "
            f"{audit.finding}",
            sections=[_ranking(audit), *map(_class_section, drawn), _meaning(audit)],
            footer=f"Made by afmi {audit.versions.get('afmi', '')}. Layer {audit.layer}, reference "
            f"{audit.reference}, seed {audit.seed}.",
            contents=bool(drawn),
        )
    )


def _ranking(audit: Audit) -> Section:
    headings = [
        *("Class", "Images", "Predicted as it", "Isolation", "Groups apart", "Outliers"),
        "Verdict",
    ]
    rows = [
        [
            one.label,
            f"{one.count:,}",
            _share(one.recognised),
            "–" if np.isnan(one.isolation) else f"{one.isolation:.2f}".replace("-", "−"),
            str(len(one.groups)),
            str(len(one.outliers)),
            Cell(one.verdict, tone="bad" if one.suspicious else ""),
        ]
        for one in audit.classes
    ]
    return Section("Classes, the most suspicious first", table=Table(headings, rows))


def _share(value: float) -> str:
    return "–" if np.isnan(value) else f"{value:.0%}"


def _class_section(one: Drawn) -> Section:
    audit = one.audit
    rows = [TileRow([Tile(_scatter(one.scatter), alt=_alt(one), caption=_legend(one))])]
    words = []
    for number, (group, pictures) in enumerate(zip(audit.groups, one.groups, strict=True), 1):
        name = f"Group {number}" if len(audit.groups) > 1 else "The group apart"
        first, *others = about_group(audit, group)
        words += [f"{name}: {first}", *others]
        if pictures is not None:
            rows += _rows(pictures, group.images, name, one.bands)
    if one.rest is not None:
        rows += _rows(one.rest, (), "The rest of the class", one.bands)
    if audit.outliers:
        named = ", ".join(far.image for far in audit.outliers[:_MOST_OUTLIERS])
        more = len(audit.outliers) - _MOST_OUTLIERS
        words.append(
            f"Recognised like no other of the class: {named}"
            + (f", and {more} more (images.csv)." if more > 0 else ".")
        )
    return Section(f"{audit.label}: {audit.verdict}", words, rows=rows)


def _rows(
    pictures: Marked, keys: Sequence[str], name: str, bands: tuple[int, ...] | None
) -> list[TileRow]:
    """Return a row of images, each above its cluster map and its exact map."""
    tiles = []
    for n, image in enumerate(pictures.images):
        shown = _at_drawn_size(shown_image(image, bands)).clamp(0, 1)
        cluster, exact, region = (
            _at_drawn_size(each[n, 0].float().cpu())
            for each in (pictures.cluster_maps, pictures.exact_maps, pictures.regions)
        )
        stacked = [to_image(shown), outlined(overlay(shown, cluster), region > 0.5)]
        stacked.append(overlay(shown, exact))
        key = keys[n] if n < len(keys) else ""
        tiles.append(Tile(_below_each_other(stacked), caption=key.rpartition("/")[2], lossy=True))
    title = f"{name}: image, cluster map with the marked region, exact map of all feature maps"
    return [TileRow(tiles, title, flows=True)]


def _at_drawn_size(picture: Tensor) -> Tensor:
    """Return an image or a map at the size of a tile, so that lines on it are fine."""
    scale = _TILE / max(picture.shape[-2:])
    size = [max(round(scale * side), 1) for side in picture.shape[-2:]]
    batch = picture.reshape(1, -1, *picture.shape[-2:])
    sized = F.interpolate(batch, size, mode="bilinear", antialias=True)
    return sized.reshape(*picture.shape[:-2], *size)


def _below_each_other(pictures: Sequence[Image.Image]) -> Image.Image:
    width = max(picture.width for picture in pictures)
    together = Image.new("RGB", (width, sum(picture.height for picture in pictures)))
    top = 0
    for picture in pictures:
        together.paste(picture, (0, top))
        top += picture.height
    return together


def _scatter(scatter: Scatter) -> Image.Image:
    """Draw thumbnails where their images lie: in two dimensions, close to images like them."""
    places = _plane(scatter.components)
    canvas = Image.new("RGB", _SIZE, (250, 250, 248))
    low, high = places.min(0), places.max(0)
    span = np.where(high > low, high - low, 1)
    room = np.array(_SIZE) - 2 * _MARGIN - _THUMBNAIL
    corners = _MARGIN + (places - low) / span * room
    # Groups apart last, so that the rest does not cover them.
    order = np.argsort(scatter.groups[scatter.shown], kind="stable")
    for n in order:
        group = int(scatter.groups[scatter.shown[n]])
        picture = scatter.thumbnails[n]
        left, top = corners[scatter.shown[n]].astype(int).tolist()
        border = Image.new(
            "RGB",
            (picture.width + 2 * _BORDER, picture.height + 2 * _BORDER),
            _COLOURS[min(group, len(_COLOURS) - 1)],
        )
        border.paste(picture, (_BORDER, _BORDER))
        canvas.paste(border, (left, top))
    return canvas


def _plane(components: np.ndarray) -> np.ndarray:
    """Return two coordinates of each image: UMAP's where it is installed, else the first two."""
    if importlib.util.find_spec("umap") is not None and len(components) > LEAST:
        import umap  # type: ignore[import-not-found]

        return np.asarray(umap.UMAP(n_components=2, random_state=0).fit_transform(components))
    padded = np.zeros((len(components), 2))
    padded[:, : min(2, components.shape[1])] = components[:, :2]
    return padded


def _legend(one: Drawn) -> str:
    names = ["grey: the rest of the class"]
    colours = ("orange", "blue", "green", "pink")
    for number in range(1, len(one.audit.groups) + 1):
        names.append(f"{colours[min(number, len(colours)) - 1]}: group {number}")
    shown = len(one.scatter.shown)
    return f"{shown} images; those that lie close are recognised alike. " + ", ".join(names)


def _alt(one: Drawn) -> str:
    parts = [f"{len(group.images)} of group {n}" for n, group in enumerate(one.audit.groups, 1)]
    return (
        f"Thumbnails of {one.audit.label}, close where the same feature maps speak for it: "
        f"{', '.join(parts)} stand apart from the rest"
    )


def _meaning(audit: Audit) -> Section:
    return Section(
        "What the words mean",
        terms=[
            (
                "Contribution",
                "What of the change of the score, from the reference image to the image, goes "
                "through a feature map. The contributions of all maps sum to the change.",
            ),
            (
                "Group apart",
                "Images of a class whose contributions resemble each other far more than those of "
                f"the rest: their mean silhouette, here called isolation, is {audit.threshold:.2f} "
                "or higher. The rest of the class need not be alike.",
            ),
            (
                "Cluster map",
                "The exact map of those feature maps alone through which the group gets more than "
                "the rest; the line encloses the marked region, where it is higher than at 95 % of "
                "the places in the rest of the class (a quarter of the image at most).",
            ),
            (
                "A second reason",
                "A group apart that comes back when images are left out, and whose scores are much "
                "higher than those of the rest (0.8 standard deviations or more), as when a thing "
                "is added to what the class is recognised by. Without that they are images of "
                "another kind, such as a church from inside: look, but variety does that.",
            ),
            (
                "Confirmed",
                "Pasting the marked region into images of other classes, or removing it from its "
                "own in every way that was tried, changes predictions more often than doing the "
                "same with a random region of that shape (95 % interval). The network uses what "
                "lies there. It may be right to: the thing itself can look like that.",
            ),
            (
                "One reason",
                "No group stands apart. That is no proof: a shortcut that all images of a class "
                "share makes no group, nor does one that is spread over the image, such as a tint, "
                "or one that the network uses little.",
            ),
            (
                "Outlier",
                "An image that is far from its tenth neighbour, and so recognised like no other. "
                "A shortcut in a few images of a class shows there first.",
            ),
        ],
    )
