"""Write pictures and words as one HTML page that needs no other file, network or script."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Sequence
from dataclasses import dataclass

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
    """

    heading: str
    paragraphs: Sequence[str] = ()
    rows: Sequence[TileRow] = ()
    terms: Sequence[tuple[str, str]] = ()
    table: Table | None = None
    code: Sequence[str] = ()
    charts: Sequence[Chart] = ()


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


_STYLE = """
:root { color-scheme: light dark; --ink: #1c2024; --soft: #5a6169; --paper: #fbfbfa;
  --card: #fff; --line: #e3e4e6; --accent: #b3470b; --faint: #d3d5d8;
  --good: #d9ecf7; --bad: #fae3d3; --series-0: #d55e00; --series-1: #0072b2;
  --series-2: #009e73; --series-3: #c05d94; --series-4: #e69f00; --series-5: #56b4e9;
  --series-6: #1c2024; }
@media (prefers-color-scheme: dark) { :root { --ink: #e9eaec; --soft: #a3a9b0;
  --paper: #14161a; --card: #1d2025; --line: #31353c; --accent: #ffa15c; --faint: #474c54;
  --good: #12354a; --bad: #4a2a12; --series-0: #ff8331; --series-1: #3d9be0;
  --series-2: #1fc79a; --series-3: #e08cbd; --series-4: #f2b632; --series-5: #8fd0f5;
  --series-6: #e9eaec; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--paper); color: var(--ink);
  font: 17px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial,
  sans-serif; }
main { max-width: 68rem; margin: 0 auto; padding: 3rem 1.5rem 4rem; }
h1 { font-size: 2.3rem; line-height: 1.15; letter-spacing: -.02em; margin: 0 0 .8rem; }
h2 { font-size: 1.4rem; line-height: 1.3; letter-spacing: -.01em; margin: 0 0 .5rem; }
h3 { font-size: 1rem; font-weight: 600; margin: 1.4rem 0 .6rem; }
p { max-width: 44rem; margin: .5rem 0; }
.lead { font-size: 1.15rem; color: var(--soft); }
section { border-top: 1px solid var(--line); margin-top: 2.4rem; padding-top: 2rem; }
dl { display: grid; grid-template-columns: minmax(9rem, max-content) 1fr; gap: .6rem 1.4rem;
  margin: 1rem 0; max-width: 58rem; }
dt { font-weight: 600; }
dd { margin: 0; }
.tiles { display: grid; grid-template-columns: repeat(var(--columns), minmax(0, 1fr));
  gap: 1rem; }
.tiles + .tiles, h2 + .tiles { margin-top: 1rem; }
.wide { grid-template-columns: minmax(0, 30rem); }
.flows { grid-template-columns: repeat(auto-fill, minmax(8rem, 1fr)); gap: .7rem; }
.flows figure { align-self: start; }
.flows img + img { border-top: 1px solid var(--line); }
.flows figcaption { padding: .4rem .55rem .5rem; font-size: .78rem; }
.flows figcaption b { font-size: .8rem; overflow-wrap: anywhere; }
.chart { margin: 1.2rem 0; background: none; border: 0; border-radius: 0; }
.chart svg { display: block; width: 100%; height: auto; }
.narrow { max-width: 52rem; }
.chart svg * { stroke-linejoin: round; stroke-linecap: butt; }
nav { margin-top: 1.6rem; font-size: .95rem; } nav a { margin-right: 1.1rem; }
a { color: var(--accent); }
.warning { max-width: none; border-left: .3rem solid var(--accent); background: var(--card);
  padding: .7rem 1rem; margin-top: 1.4rem; }
figure { margin: 0; background: var(--card); border: 1px solid var(--line);
  border-radius: .6rem; overflow: hidden; }
figure img { display: block; width: 100%; height: auto; }
figcaption { padding: .6rem .8rem .7rem; font-size: .88rem; line-height: 1.4;
  color: var(--soft); }
figcaption b { display: block; color: var(--ink); font-size: .95rem; }
.scroll { overflow-x: auto; margin: 1rem 0; }
table { border-collapse: collapse; width: 100%; font-size: .92rem;
  font-variant-numeric: tabular-nums; }
th, td { padding: .45rem .8rem; border-bottom: 1px solid var(--line); text-align: left; }
th { color: var(--soft); font-weight: 600; vertical-align: bottom; }
th:first-child, td:first-child { position: sticky; left: 0; background: var(--paper); }
.number { text-align: right; white-space: nowrap; }
th small, td small { display: block; color: var(--soft); font-size: .8rem; font-weight: 400; }
td.good { background: var(--good); } td.bad { background: var(--bad); }
.few table { width: auto; min-width: min(100%, 30rem); }
.many table { font-size: .82rem; } .many th, .many td { padding: .4rem; }
.many td:first-child { min-width: 7.5rem; } .many small { font-size: .76rem; }
.dense table { width: auto; font-size: .82rem; }
.dense th, .dense td { padding: .25rem .3rem; }
.dense td:first-child { white-space: nowrap; }
pre { background: var(--card); border: 1px solid var(--line); border-radius: .6rem;
  padding: .9rem 1.1rem; overflow-x: auto; font: .9rem/1.7 ui-monospace, "SF Mono", Menlo,
  Consolas, monospace; }
footer { margin-top: 2.4rem; color: var(--soft); font-size: .85rem; }
@media (max-width: 48rem) { .tiles { grid-template-columns: repeat(2, minmax(0, 1fr)); }
  .tiles.flows { grid-template-columns: repeat(auto-fill, minmax(6rem, 1fr)); }
  .wide, dl { grid-template-columns: 1fr; } dd { margin-bottom: .5rem; } }
@media print { figure, tr { break-inside: avoid; } body { font-size: 11pt; } }
"""


def render_page(page: Page) -> str:
    """Return the page as HTML text, to be written as UTF-8; all its text is escaped."""
    title = html.escape(page.title)
    return "\n".join(
        [
            "<!doctype html>",
            '<html lang="en">',
            '<head><meta charset="utf-8">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            f"<title>{title}</title>",
            f"<style>{_STYLE}</style></head>",
            f'<body><main><h1>{title}</h1><p class="lead">{html.escape(page.lead)}</p>',
            *([f'<p class="warning">{html.escape(page.warning)}</p>'] if page.warning else []),
            *([_contents(page.sections)] if page.contents else []),
            *(_section(section, number) for number, section in enumerate(page.sections, 1)),
            f"<footer><p>{html.escape(page.footer)}</p></footer></main></body></html>",
            "",
        ]
    )


def _contents(sections: Sequence[Section]) -> str:
    links = (
        f'<a href="#part-{number}">{html.escape(section.heading)}</a>'
        for number, section in enumerate(sections, 1)
    )
    return f"<nav>{' '.join(links)}</nav>"


def _section(section: Section, number: int) -> str:
    parts = [f'<section id="part-{number}"><h2>{html.escape(section.heading)}</h2>']
    parts += [f"<p>{html.escape(paragraph)}</p>" for paragraph in section.paragraphs]
    for chart in section.charts:
        if chart.title:
            parts.append(f"<h3>{html.escape(chart.title)}</h3>")
        alt = html.escape(chart.alt, quote=True)
        kind = "chart" if chart.wide else "chart narrow"
        parts.append(f'<figure class="{kind}" role="img" aria-label="{alt}">{chart.svg}</figure>')
    for row in section.rows:
        if row.title:
            parts.append(f"<h3>{html.escape(row.title)}</h3>")
        kind = "tiles flows" if row.flows else "tiles wide" if len(row.tiles) == 1 else "tiles"
        parts.append(f'<div class="{kind}" style="--columns: {max(len(row.tiles), 1)}">')
        parts += [_tile(tile) for tile in row.tiles]
        parts.append("</div>")
    if section.terms:
        terms = (f"<dt>{html.escape(t)}</dt><dd>{html.escape(d)}</dd>" for t, d in section.terms)
        parts.append(f"<dl>{''.join(terms)}</dl>")
    if section.table:
        parts.append(_table(section.table))
    if section.code:
        parts.append(f"<pre>{html.escape(chr(10).join(section.code))}</pre>")
    return "\n".join([*parts, "</section>"])


def _tile(tile: Tile) -> str:
    words = f"<b>{html.escape(tile.title)}</b>" if tile.title else ""
    words += html.escape(tile.caption)
    alt = html.escape(tile.alt or f"{tile.title} {tile.caption}".strip(), quote=True)
    pictures = _picture(tile.picture, alt, tile.lossy)
    if tile.below is not None:
        pictures += _picture(tile.below, "", tile.lossy)
    return f"<figure>{pictures}{f'<figcaption>{words}</figcaption>' if words else ''}</figure>"


def _picture(picture: Image.Image, alt: str, lossy: bool) -> str:
    buffer = io.BytesIO()
    if lossy:
        picture.convert("RGB").save(buffer, "JPEG", quality=88)
    else:
        picture.save(buffer, "PNG")
    data = base64.b64encode(buffer.getvalue()).decode("ascii")
    width, height = picture.size
    return (
        f'<img alt="{alt}" width="{width}" height="{height}" '
        f'src="data:image/{"jpeg" if lossy else "png"};base64,{data}">'
    )


def _table(table: Table) -> str:
    headings = [_cell(heading) for heading in table.headings]
    rows = [[_cell(cell) for cell in row] for row in table.rows]
    numeric = [
        any(row[column].text[:1] in "0123456789+−-" for row in rows if row[column].text)
        for column in range(len(headings))
    ]

    def cells(tag: str, row: Sequence[Cell]) -> str:
        written = []
        for cell, right in zip(row, numeric, strict=True):
            kinds = [*(["number"] if right else []), *([cell.tone] if cell.tone else [])]
            text = html.escape(cell.text)
            text = f"<b>{text}</b>" if cell.strong else text
            note = f"<small>{html.escape(cell.note)}</small>" if cell.note else ""
            quote = '"' if len(kinds) > 1 else ""
            attribute = f" class={quote}{' '.join(kinds)}{quote}" if kinds else ""
            written.append(f"<{tag}{attribute}>{text}{note}</{tag}>")
        return "".join(written)

    body = "\n".join(f"<tr>{cells('td', row)}</tr>" for row in rows)
    columns = len(headings)
    size = "dense" if table.dense else "few" if columns < 4 else "many" if columns > 7 else ""
    kind = f"scroll {size}".rstrip()
    return (
        f'<div class="{kind}"><table><thead><tr>{cells("th", headings)}</tr></thead>\n'
        f"<tbody>{body}</tbody></table></div>"
    )


def _cell(cell: str | Cell) -> Cell:
    return Cell(cell) if isinstance(cell, str) else cell
