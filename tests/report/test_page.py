"""What a page is made of, beyond what the demo needs: cells, charts, warnings, contents."""

from __future__ import annotations

import base64
import io
import re

from PIL import Image

from afmi.report.page import Cell, Chart, Page, Section, Table, Tile, TileRow, render_page

EVIL = "<b onclick='x'>\"&"
SAFE = "&lt;b onclick=&#39;x&#39;&gt;&#34;&amp;"


def _rendered(*sections: Section, **page: object) -> str:
    text = render_page(Page("t", "l", sections, **page))
    return text.partition("<body>")[2]


def test_cells_charts_and_warnings_are_escaped():
    table = Table([Cell(EVIL, EVIL)], [[Cell(EVIL, EVIL, "good", strong=True)]])
    section = Section(EVIL, table=table, charts=[Chart("<svg></svg>", EVIL, EVIL)])
    text = _rendered(section, warning=EVIL, contents=True)
    assert EVIL not in text
    # Heading and link to it; two texts of two cells; chart's title and words; warning.
    assert text.count(SAFE) == 2 + 4 + 2 + 1


def test_a_cell_shows_its_note_and_tone():
    table = Table(["a", Cell("b", "unit")], [["x", Cell("0.5", "0.4–0.6", "good", strong=True)]])
    text = _rendered(Section("s", table=table))
    assert '<td class="number good"><b>0.5</b><small>0.4–0.6</small></td>' in text
    assert '<th class="number">b<small>unit</small></th>' in text


def test_contents_lead_to_the_sections():
    text = _rendered(Section("One"), Section("Two"), contents=True)
    assert re.findall(r'<a href="#(part-\d)">(\w+)</a>', text) == [
        ("part-1", "One"),
        ("part-2", "Two"),
    ]
    assert re.findall(r'<section id="(part-\d)"><h2>(\w+)</h2>', text) == [
        ("part-1", "One"),
        ("part-2", "Two"),
    ]
    assert "<nav>" not in _rendered(Section("One"))


def test_two_pictures_of_a_tile_are_stored_as_jpeg_where_asked():
    tile = Tile(Image.new("RGB", (8, 6), "red"), "T", below=Image.new("RGB", (4, 2)), lossy=True)
    text = _rendered(Section("s", rows=[TileRow([tile], flows=True)]))
    tags = re.findall(r'<img alt="(\w*)"[^>]*src="data:image/jpeg;base64,([^"]+)"', text)
    assert [alt for alt, _ in tags] == ["T", ""]
    pictures = [Image.open(io.BytesIO(base64.b64decode(data))) for _, data in tags]
    assert [(p.format, p.size) for p in pictures] == [("JPEG", (8, 6)), ("JPEG", (4, 2))]
    assert 'class="tiles flows"' in text
