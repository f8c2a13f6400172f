"""How an image and its map are drawn: a picture, a signal as a line, a volume as its slices.

Nothing here touches pyplot or any other state of the process, so threads may draw at once.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import PIL.Image
import PIL.ImageDraw
import PIL.ImageFont
import torch
import torch.nn.functional as F
from torch import Tensor

from afmi.pictures import figures, plots
from afmi.pictures.maps import Scale, display_range, top_mask
from afmi.pictures.plots import Style
from afmi.pictures.transforms import to_image

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["DRAWN_SIDE", "INSERTED", "View", "view_of"]

DRAWN_SIDE = 1024
"""Longest side, in pixels, of the pictures that are drawn of an image and its map."""

INSERTED = 0.1
"""Share of the pixels that figures show on black: the paper's Figure 1."""

PLAIN = Style()
"""The house's own colours."""

_SLICES = 6
"""The most slices of a volume that are drawn."""

_CHANNELS = 12
"""The most channels of a signal that are drawn: the leads of an ECG."""


@dataclass(frozen=True, eq=False)
class View(ABC):
    """What can be drawn of an image and its map.

    Attributes:
        image: as in a record, (C, *spatial).
        map: (*spatial).
        signed: whether negative values of the map are evidence against the target.
        area: where the target's score is taken, bool (H, W); None: everywhere.
        ends: what positive and what negative values of the map do, in words; None: they speak for
            and against.
        rivals: whether these are two classes that are compared.
    """

    image: Tensor
    map: Tensor
    signed: bool
    area: Tensor | None = None
    ends: tuple[str, str] | None = None
    rivals: bool = False

    @property
    def scale(self) -> Scale:
        """What the colours span."""
        return display_range(self.map, signed=self.signed)

    @abstractmethod
    def original(self) -> PIL.Image.Image:
        """Draw the image by itself."""

    @abstractmethod
    def overlay(self, style: Style = PLAIN) -> PIL.Image.Image:
        """Draw the map over the image."""

    @abstractmethod
    def heatmap(self, style: Style = PLAIN) -> PIL.Image.Image:
        """Draw the map by itself."""

    @abstractmethod
    def insertion(self, fraction: float) -> PIL.Image.Image:
        """Draw only the top ``fraction`` of the pixels."""

    @abstractmethod
    def figure(self, title: str, note: str, style: Style = PLAIN) -> Figure:
        """Draw all of these, with titles."""

    def _map_title(self, style: Style) -> str:
        if not self.signed or style.cmap is not None:
            return "The map"
        rises, falls = self.ends or ("for", "against")
        ends = {"positive": f"{rises} (red)", "negative": f"{falls} (blue)"}
        text = ends.get(style.sign, f"{rises} (red), {falls} (blue)")
        return text[:1].upper() + text[1:]


def view_of(image: Tensor, map: Tensor, *, signed: bool, area: Tensor | None = None) -> View:
    """Return the view of a signal (C, L), a picture (3, H, W) or a volume (C, D, H, W)."""
    view = {1: _Signal, 2: _Picture, 3: _Volume}[map.dim()]
    return view(image, map, signed, area)


class _Picture(View):
    """A picture, no larger than `DRAWN_SIDE`."""

    @cached_property
    def _drawn(self) -> tuple[Tensor, Tensor]:
        return plots.reduced(self.image, DRAWN_SIDE), plots.reduced(self.map, DRAWN_SIDE)

    @property
    def scale(self) -> Scale:
        return display_range(self._drawn[1], signed=self.signed)

    def original(self) -> PIL.Image.Image:
        return self._outlined(to_image(self._drawn[0]))

    def overlay(self, style: Style = PLAIN) -> PIL.Image.Image:
        return self._outlined(plots.overlay(*self._drawn, signed=self.signed, style=style))

    def _outlined(self, picture: PIL.Image.Image) -> PIL.Image.Image:
        if self.area is None:
            return picture
        return plots.outlined(picture, plots.reduced(self.area.float(), DRAWN_SIDE) > 0)

    def heatmap(self, style: Style = PLAIN) -> PIL.Image.Image:
        return plots.heatmap(self._drawn[1], signed=self.signed, style=style)

    def insertion(self, fraction: float) -> PIL.Image.Image:
        return plots.insertion(*self._drawn, fraction)

    def figure(self, title: str, note: str, style: Style = PLAIN) -> Figure:
        bar: dict[str, Any] = {"scale": self.scale, "style": style}
        bar["ends"] = self.ends if self.signed else None
        panels = [
            figures.Panel(self.original(), "What the network saw"),
            figures.Panel(self.overlay(style), "Where its evidence lies", **bar),
            figures.Panel(
                self.heatmap(style), "The map" if self.ends else self._map_title(style), **bar
            ),
        ]
        if self.ends and self.rivals and self.signed:
            panels += [self.speaking(self.ends[0], 1), self.speaking(self.ends[1], -1)]
            return figures.grid([panels], title=title, note=note, side=340)
        panels.append(figures.Panel(self.insertion(INSERTED), f"Top {INSERTED:.0%} of the pixels"))
        return figures.grid([panels], title=title, note=note, side=400)

    def speaking(self, end: str, sign: int) -> figures.Panel:
        """Show the pixels of one sign that are the strongest, on black."""
        image, map_ = self._drawn
        # No more than there are: what speaks for the other must not be shown as if for this one.
        share = min(INSERTED, int((sign * map_ > 0).sum()) / map_.numel())
        picture = plots.insertion(image, sign * map_, share)
        return figures.Panel(picture, f"Speaks {end}", f"top {share:.0%} of the pixels")


class _Volume(View):
    """The slices of a volume, along its first side, that have most of the map, in order."""

    @cached_property
    def slices(self) -> list[int]:
        """Which slices are drawn."""
        strength = self.map.abs() if self.signed else self.map - self.map.min()
        share = strength.flatten(1).to("cpu", torch.float64).sum(1)
        order = share.argsort(descending=True, stable=True)[:_SLICES]
        some = order[share[order] > 0]  # one without any would be there by its number alone
        return sorted((some if len(some) else order).tolist())

    @cached_property
    def _shown(self) -> Tensor:
        """The first channel in [0, 1], (1, D, H, W); the strongest 0.5 % do not stretch it."""
        grey = self.image[:1].to("cpu", torch.float64)
        low, high = np.quantile(grey.numpy(), [0.005, 0.995])
        low, high = (low, high) if low < high else (float(grey.min()), float(grey.max()))
        return ((grey - low) / ((high - low) or 1)).clamp(0, 1)

    def _side_by_side(self, volume: Tensor) -> Tensor:
        """Return the slices of (…, D, H, W) in one picture, (…, H, slices · W)."""
        return torch.cat([volume[..., index, :, :] for index in self.slices], -1)

    @property
    def scale(self) -> Scale:
        return display_range(self._side_by_side(self.map), signed=self.signed)

    def _original(self) -> PIL.Image.Image:
        return to_image(self._side_by_side(self._shown).expand(3, -1, -1))

    def _overlay(self, style: Style) -> PIL.Image.Image:
        # All slices in one picture, so that they share their colours.
        image, map_ = (self._side_by_side(volume) for volume in (self._shown, self.map))
        return plots.overlay(image, map_, signed=self.signed, style=style)

    def _heatmap(self, style: Style) -> PIL.Image.Image:
        return plots.heatmap(self._side_by_side(self.map), signed=self.signed, style=style)

    def _insertion(self, fraction: float) -> PIL.Image.Image:
        kept = top_mask(self.map.detach().cpu()[None, None], fraction)[0]  # of the whole volume
        return to_image(self._side_by_side(self._shown * kept).expand(3, -1, -1))

    def original(self) -> PIL.Image.Image:
        return self._montage(self._original())

    def overlay(self, style: Style = PLAIN) -> PIL.Image.Image:
        return self._montage(self._overlay(style))

    def heatmap(self, style: Style = PLAIN) -> PIL.Image.Image:
        return self._montage(self._heatmap(style))

    def insertion(self, fraction: float) -> PIL.Image.Image:
        return self._montage(self._insertion(fraction))

    def _tiles(self, picture: PIL.Image.Image) -> list[PIL.Image.Image]:
        width = picture.width // len(self.slices)
        places = range(len(self.slices))
        return [picture.crop((i * width, 0, (i + 1) * width, picture.height)) for i in places]

    def _montage(self, picture: PIL.Image.Image) -> PIL.Image.Image:
        """Set the slices of a picture apart, with their numbers below."""
        tiles = [figures.enlarge(tile, _TILE, 2 * _TILE) for tile in self._tiles(picture)]
        gap, line = 6, 22
        width = sum(tile.width + gap for tile in tiles) - gap
        sheet = PIL.Image.new("RGB", (width, tiles[0].height + line), "white")
        draw, x = PIL.ImageDraw.Draw(sheet), 0
        font: Any = PIL.ImageFont.load_default()
        for tile, label in zip(tiles, self._labels(), strict=True):
            sheet.paste(tile, (x, 0))
            middle = x + (tile.width - draw.textlength(label, font)) / 2
            draw.text((middle, tile.height + 5), label, fill=(26, 26, 26), font=font)
            x += tile.width + gap
        return sheet

    def _labels(self) -> list[str]:
        return [f"slice {index + 1} of {len(self.map)}" for index in self.slices]

    def figure(self, title: str, note: str, style: Style = PLAIN) -> Figure:
        rows = [
            [figures.Panel(tile) for tile in self._tiles(picture)]
            for picture in (self._original(), self._overlay(style), self._heatmap(style))
        ]
        rows[2] = [figures.Panel(p.picture, scale=self.scale, style=style) for p in rows[2]]
        rows.append([figures.Panel(tile) for tile in self._tiles(self._insertion(INSERTED))])
        channels = len(self.image)
        if channels > 1:
            note += f" · channel 1 of {channels} is shown"
        return figures.grid(
            rows,
            row_titles=["volume", "evidence", "map", f"top {INSERTED:.0%}"],
            column_titles=self._labels(),
            title=title,
            note=note,
            side=_TILE,
        )


_TILE = 240


class _Signal(View):
    """A line for each channel, on the colours of the map."""

    def original(self) -> PIL.Image.Image:
        return _drawn_plot([_Trace(channel, len(channel)) for channel in self._channels])

    def overlay(self, style: Style = PLAIN) -> PIL.Image.Image:
        values = self._binned(style.drawn(self.map, signed=self.signed))
        colors = plots.on_paper(values, self.scale, style)
        return _drawn_plot([_Trace(c, len(c), colors=colors) for c in self._channels])

    def heatmap(self, style: Style = PLAIN) -> PIL.Image.Image:
        values = self._binned(style.drawn(self.map, signed=self.signed))
        ends = style.colors(True)  # above and below zero, also where that is no evidence against
        return _drawn_plot([_Trace(values, len(self.map), bars=(ends[-1], ends[0]))])

    def insertion(self, fraction: float) -> PIL.Image.Image:
        kept = top_mask(self.map.detach().cpu()[None, None], fraction)[0, 0]
        shown = self.image.to("cpu", torch.float64).where(kept, torch.nan)
        return _drawn_plot(
            [
                _Trace(channel, len(channel), kept=values.numpy())
                for channel, values in zip(self._channels, shown[:_CHANNELS], strict=True)
            ]
        )

    def figure(self, title: str, note: str, style: Style = PLAIN) -> Figure:
        evidence = f" ({self._legend(style)})" if style.cmap is None else ""
        rows = [
            [
                figures.Panel(
                    self.overlay(style), f"What the network saw, and its evidence{evidence}"
                )
            ],
            [figures.Panel(self.heatmap(style), "The map")],
            [figures.Panel(self.insertion(INSERTED), f"Top {INSERTED:.0%} of the samples")],
        ]
        if len(self.image) > _CHANNELS:
            note += f" · {_CHANNELS} of {len(self.image)} channels are shown"
        return figures.grid(rows, title=title, note=note, side=_WIDTH)

    def _legend(self, style: Style) -> str:
        if not self.signed:
            return "black: least, yellow: most"
        ends = {"positive": "red: for", "negative": "blue: against"}
        return ends.get(style.sign, "red: for, blue: against")

    @property
    def _channels(self) -> list[np.ndarray]:
        return list(self.image[:_CHANNELS].to("cpu", torch.float64).numpy())

    @staticmethod
    def _binned(map: Tensor) -> np.ndarray:
        values = map.detach().to("cpu", torch.float64)
        if len(values) > 2 * _WIDTH:
            values = F.adaptive_avg_pool1d(values[None], 2 * _WIDTH)[0]
        return values.numpy()


_WIDTH, _LEFT, _BOTTOM = 1200, 90, 44
_INK, _FAINT = "#1a1a1a", "#b8b8b8"


@dataclass(frozen=True)
class _Trace:
    """One line of a plot.

    Attributes:
        values: (L,).
        samples: how many its axis counts.
        colors: what lies behind it, RGB (samples, 3) in [0, 1].
        bars: the colours that fill it to 0, above and below.
        kept: the part that is drawn in ink, NaN elsewhere; the line itself is then faint.
    """

    values: np.ndarray
    samples: int
    colors: np.ndarray | None = None
    bars: tuple[np.ndarray, np.ndarray] | None = None
    kept: np.ndarray | None = None


def _drawn_plot(traces: Sequence[_Trace]) -> PIL.Image.Image:
    """Draw lines below one another, with one axis of samples."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    each = 220 if len(traces) == 1 else max(90, 440 // len(traces))
    height = each * len(traces) + _BOTTOM + 10
    figure = Figure(figsize=(_WIDTH / 100, height / 100), dpi=100, facecolor="white")
    canvas = FigureCanvasAgg(figure)
    for row, trace in enumerate(traces):
        bottom = (height - 10 - each * (row + 1) + 8) / height
        box = (_LEFT / _WIDTH, bottom, 1 - (_LEFT + 20) / _WIDTH, (each - 8) / height)
        axes = figure.add_axes(box)
        _draw_trace(axes, trace)
        last = row == len(traces) - 1
        axes.tick_params(labelsize=11, colors=_INK, bottom=last, labelbottom=last, width=0.8)
        axes.locator_params(axis="y", nbins=4)
        for spine in axes.spines.values():
            spine.set(color=_FAINT, linewidth=0.8)
    canvas.draw()
    return PIL.Image.fromarray(np.asarray(canvas.buffer_rgba())[..., :3].copy())


def _draw_trace(axes: Any, trace: _Trace) -> None:
    last = max(trace.samples - 1, 1)
    y = _envelope(trace.values)
    x = np.linspace(0, last, len(y))
    if trace.bars is not None:
        above, below = trace.bars
        axes.fill_between(x, y, 0, where=y >= 0, color=above, linewidth=0, interpolate=True)
        axes.fill_between(x, y, 0, where=y <= 0, color=below, linewidth=0, interpolate=True)
        axes.axhline(0, color=_INK, linewidth=0.8)
    whole = trace.kept is None
    axes.plot(x, y, color=_INK if whole else _FAINT, linewidth=1.2 if whole else 0.8)
    if trace.kept is not None:
        axes.plot(x, _envelope(trace.kept), color=_INK, linewidth=1.6, marker=".", markersize=2)
    margin = 0.06 * (float(np.ptp(trace.values)) or 1)
    low, high = float(trace.values.min()) - margin, float(trace.values.max()) + margin
    if trace.colors is not None:
        extent = (-0.5, trace.samples - 0.5, low, high)
        axes.imshow(trace.colors[None], extent=extent, aspect="auto", zorder=0)
    axes.set_xlim(0, last)
    axes.set_ylim(low, high)


def _envelope(values: np.ndarray) -> np.ndarray:
    """Return a line's points; of a long one the lowest and highest of as many as fall together.

    NaN is no point.
    """
    if len(values) <= 8 * _WIDTH:
        return values
    ends = []
    for part in np.array_split(values, 2 * _WIDTH):
        known = part[~np.isnan(part)]
        ends += [known.min(), known.max()] if len(known) else [np.nan, np.nan]
    return np.array(ends)
