"""Write pictures and words as one HTML page that needs no other file, network or script.

What a page says is data, or prose in a template; ``templates/`` holds how it looks.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from PIL import Image

__all__ = ["Cell", "Chart", "Page", "Section", "Table", "Tile", "TileRow", "render_page"]


@dataclass(frozen=True)
class Tile:
    """A picture with words below it.

    Attributes:
        picture: shown at the width of its column.
        title: one line in bold.
        caption: plain text.
        alt: what a screen reader says; "" for the title and caption alone.
        below: another picture, under the first.
        lossy: whether to store the pictures as JPEG, a tenth of the size.
    """

    picture: Image.Image
    title: str = ""
    caption: str = ""
    alt: str = ""
    below: Image.Image | None = None
    lossy: bool = False


@dataclass(frozen=True)
class TileRow:
    """Pictures side by side, with a line of text above them.

    Attributes:
        tiles: from the left.
        title: the line of text.
        flows: whether tiles are small, and those that do not fit go into a next line.
    """

    tiles: Sequence[Tile]
    title: str = ""
    flows: bool = False


@dataclass(frozen=True)
class Cell:
    """A text in a table that needs more than its letters.

    Attributes:
        text: the first line.
        note: a second line, small.
        tone: "good" or "bad" tints the cell; "" does not.
        strong: whether the first line is bold.
    """

    text: str
    note: str = ""
    tone: str = ""
    strong: bool = False


@dataclass(frozen=True)
class Table:
    """Rows of text under headings; cells that begin with a digit or sign are set to the right.

    Attributes:
        headings: of the columns.
        rows: as long as the headings.
        dense: whether cells stand close to each other, for many columns.
    """

    headings: Sequence[str | Cell]
    rows: Sequence[Sequence[str | Cell]]
    dense: bool = False

    @property
    def cells(self) -> list[list[Cell]]:
        """All rows, the headings first."""
        rows = (self.headings, *self.rows)
        return [[Cell(cell) if isinstance(cell, str) else cell for cell in row] for row in rows]

    @property
    def numeric(self) -> list[bool]:
        """Which columns are set to the right."""
        _, *rows = self.cells
        return [
            any(row[column].text[:1] in "0123456789+−-" for row in rows if row[column].text)
            for column in range(len(self.headings))
        ]


@dataclass(frozen=True)
class Chart:
    """A drawing.

    Attributes:
        svg: trusted: it is not escaped. Its colours may be the page's: ``var(--ink)``, ``--soft``,
            ``--line``, ``--faint`` and ``--series-0`` to ``--series-6``.
        alt: what a screen reader says.
        title: above it.
        wide: whether it is as wide as the page, not as a column of text and its margin.
    """

    svg: str
    alt: str
    title: str = ""
    wide: bool = False


@dataclass(frozen=True)
class Section:
    """A part of the page, shown in the order of the attributes.

    Attributes:
        heading: plain text.
        paragraphs: plain text.
        rows: pictures.
        terms: (term, what it means).
        table: figures.
        code: lines to be typed, in a box.
        charts: drawings, shown before the pictures.
        prose: the template with more terms, after the others; "" for none.
        facts: what the prose refers to.
    """

    heading: str
    paragraphs: Sequence[str] = ()
    rows: Sequence[TileRow] = ()
    terms: Sequence[tuple[str, str]] = ()
    table: Table | None = None
    code: Sequence[str] = ()
    charts: Sequence[Chart] = ()
    prose: str = ""
    facts: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Page:
    """A title, a few words that lead in, sections, and small print.

    Attributes:
        title: in the largest letters.
        lead: plain text.
        sections: in order.
        footer: small print.
        warning: plain text in a box above the sections, such as that the page is not finished.
        contents: whether links to the sections stand above them.
    """

    title: str
    lead: str
    sections: Sequence[Section]
    footer: str = ""
    warning: str = ""
    contents: bool = False


def render_page(page: Page) -> str:
    """Return the page as HTML text, to be written as UTF-8; all its text is escaped."""
    return _templates().get_template("page.html").render(page=page)


@cache
def _templates() -> Environment:
    templates = Environment(
        loader=PackageLoader("afmi.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    templates.filters["data_url"] = _data_url
    return templates


def _data_url(picture: Image.Image, lossy: bool) -> str:
    buffer = io.BytesIO()
    if lossy:
        picture.convert("RGB").save(buffer, "JPEG", quality=88)
    else:
        picture.save(buffer, "PNG")
    kind = "jpeg" if lossy else "png"
    return f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode('ascii')}"
