"""Write pictures and words as one HTML page that needs no other file, network or script."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image

__all__ = ["Page", "Section", "Table", "Tile", "TileRow", "render_page"]


@dataclass(frozen=True)
class Tile:
    """A picture with words below it.

    Attributes:
        picture: shown at the width of its column.
        title: one line in bold.
        caption: plain text.
        alt: what a screen reader says; "" for the title and caption alone.
    """

    picture: Image.Image
    title: str = ""
    caption: str = ""
    alt: str = ""


@dataclass(frozen=True)
class TileRow:
    """Pictures side by side, with a line of text above them."""

    tiles: Sequence[Tile]
    title: str = ""


@dataclass(frozen=True)
class Table:
    """Rows of text under headings; cells that begin with a digit or sign are set to the right."""

    headings: Sequence[str]
    rows: Sequence[Sequence[str]]


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
    """

    heading: str
    paragraphs: Sequence[str] = ()
    rows: Sequence[TileRow] = ()
    terms: Sequence[tuple[str, str]] = ()
    table: Table | None = None
    code: Sequence[str] = ()


@dataclass(frozen=True)
class Page:
    """A title, a few words that lead in, sections, and small print."""

    title: str
    lead: str
    sections: Sequence[Section]
    footer: str = ""


_STYLE = """
:root { color-scheme: light dark; --ink: #1c2024; --soft: #5a6169; --paper: #fbfbfa;
  --card: #fff; --line: #e3e4e6; --accent: #b3470b; }
@media (prefers-color-scheme: dark) { :root { --ink: #e9eaec; --soft: #a3a9b0;
  --paper: #14161a; --card: #1d2025; --line: #31353c; --accent: #ffa15c; } }
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
.number { text-align: right; white-space: nowrap; }
pre { background: var(--card); border: 1px solid var(--line); border-radius: .6rem;
  padding: .9rem 1.1rem; overflow-x: auto; font: .9rem/1.7 ui-monospace, "SF Mono", Menlo,
  Consolas, monospace; }
footer { margin-top: 2.4rem; color: var(--soft); font-size: .85rem; }
@media (max-width: 48rem) { .tiles { grid-template-columns: repeat(2, minmax(0, 1fr)); }
  .wide, dl { grid-template-columns: 1fr; } dd { margin-bottom: .5rem; } }
@media print { section { break-inside: avoid; } body { font-size: 11pt; } }
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
            *(_section(section) for section in page.sections),
            f"<footer><p>{html.escape(page.footer)}</p></footer></main></body></html>",
            "",
        ]
    )


def _section(section: Section) -> str:
    parts = [f"<section><h2>{html.escape(section.heading)}</h2>"]
    parts += [f"<p>{html.escape(paragraph)}</p>" for paragraph in section.paragraphs]
    for row in section.rows:
        if row.title:
            parts.append(f"<h3>{html.escape(row.title)}</h3>")
        kind = "tiles wide" if len(row.tiles) == 1 else "tiles"
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
    width, height = tile.picture.size
    return (
        f'<figure><img alt="{alt}" width="{width}" height="{height}" '
        f'src="data:image/png;base64,{_png(tile.picture)}">'
        f"{f'<figcaption>{words}</figcaption>' if words else ''}</figure>"
    )


def _png(picture: Image.Image) -> str:
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    return base64.b64encode(buffer.getvalue()).decode("ascii")


def _table(table: Table) -> str:
    numeric = [
        any(row[column][:1] in "0123456789+−-" for row in table.rows if row[column])
        for column in range(len(table.headings))
    ]

    def cells(tag: str, texts: Sequence[str]) -> str:
        return "".join(
            f"<{tag}{' class=number' if right else ''}>{html.escape(text)}</{tag}>"
            for text, right in zip(texts, numeric, strict=True)
        )

    body = "\n".join(f"<tr>{cells('td', row)}</tr>" for row in table.rows)
    return (
        f'<div class="scroll"><table><thead><tr>{cells("th", table.headings)}</tr></thead>\n'
        f"<tbody>{body}</tbody></table></div>"
    )
