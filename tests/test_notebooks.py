"""The notebooks of the documentation: kept without outputs, and true when they run, offline."""

from __future__ import annotations

import io
import json
import re
from base64 import b64decode
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tools.notebooks import NOTEBOOKS, ROOT, executed

NAMES = sorted(file.stem for file in NOTEBOOKS.glob("*.ipynb"))
METADATA = {
    "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
    "language_info": {"name": "python"},
}


def _stored(name: str) -> dict[str, Any]:
    return json.loads((NOTEBOOKS / f"{name}.ipynb").read_text(encoding="utf-8"))


def test_there_are_six() -> None:
    assert len(NAMES) == 6


@pytest.mark.parametrize("name", NAMES)
def test_stored_without_outputs_counts_and_machines(name: str) -> None:
    stored = _stored(name)
    assert stored["metadata"] == METADATA
    assert (stored["nbformat"], stored["nbformat_minor"]) == (4, 5)
    for number, cell in enumerate(stored["cells"], 1):
        assert cell["id"] == f"cell-{number:02}"
        assert cell["metadata"] == {}
        if cell["cell_type"] == "code":
            assert cell["outputs"] == []
            assert cell["execution_count"] is None
    text = "".join("".join(cell["source"]) for cell in stored["cells"])
    assert not re.search(r"/(home|root|work|tmp|Users|opt)/|[A-Z]:\\", text)


@pytest.mark.parametrize("name", NAMES)
def test_begins_with_what_it_teaches_and_ends_with_where_to_go(name: str) -> None:
    cells = ["".join(cell["source"]) for cell in _stored(name)["cells"]]
    assert re.match(r"# .+\n\nAfter this notebook you can ", cells[0])
    assert "**Where to go next:**" in cells[-1]


def _links(name: str) -> list[str]:
    cells = [cell for cell in _stored(name)["cells"] if cell["cell_type"] == "markdown"]
    return re.findall(r"\]\(([^)#]+)", "\n".join("".join(cell["source"]) for cell in cells))


@pytest.mark.parametrize("name", NAMES)
def test_links_lead_to_files(name: str) -> None:
    links = _links(name)
    assert links
    assert all((NOTEBOOKS / link).exists() for link in links)


def _first(pattern: str, text: str) -> list[float]:
    match = re.search(pattern, text)
    assert match, f"{pattern!r} is not in: {text}"
    return [float(group.replace("−", "-")) for group in match.groups()]


def _first_explanation(text: str) -> None:
    total, change = _first(r"7 × 7 places +(\S+)\nscore less .+? (\d\S*)", text)
    assert total == pytest.approx(change, rel=1e-3)
    assert "espresso, 9" in text


def _your_own_network(text: str) -> None:
    (stamped,) = _first(r"right on new pictures: (\d+)%", text)
    tried = [int(share) for share in re.findall(r"stamps?[^:]*: +(\d+)% right", text)]
    assert stamped > 90
    assert len(tried) == 4
    assert max(tried[:2]) < 65
    assert tried[2] > 95
    right, wrong = _first(r"as in training: (\d+)%[^:]+: +(\d+)%", text)
    assert right > 95
    assert wrong < 80
    assert "pixels from 0 to 255" in text


def _timm_and_hugging_face(text: str) -> None:
    assert "same outputs: True" in text
    (averaged,) = _first(r"last block +(\S+)%", text)
    assert abs(averaged) > 5
    assert len(re.findall(r"(?:deeplift|multiscale-a-fmi) +[+-]0\.0%", text)) == 2


def _medical_images(text: str) -> None:
    right, of = _first(r"(\d+) of (\d+) other volumes", text)
    assert right > 0.9 * of
    apart, wide = _first(r"(\S+) mm apart, where the nodule is (\S+) mm", text)
    assert apart < wide
    (there,) = _first(r"nodule is in slice (\d+)", text)
    assert text.count(f"around slice {there:.0f} of 16") == 5  # printed, and said of the picture


def _segmentation(text: str) -> None:
    assert _first(r"and (\S+)% of those", text)[0] > 85
    assert _first(r"of the map (\S+)% lies", text)[0] > 99
    first, second, margin = _first(r"score (\S+),(?s:.+?)score (\S+),(?s:.+?)margin +(\S+)", text)
    assert margin == pytest.approx(first - second, abs=0.02)


def _which_method(text: str) -> None:
    widths = []
    for low, high in re.findall(r"A-FMI less Random .*\((\S+) to (\S+)\)  differ", text):
        assert float(low) > 0
        widths.append(float(high) - float(low))
    many, few = widths
    assert few > 1.5 * many
    assert text.count("cannot be told apart") > 2


TRUE: dict[str, Callable[[str], None]] = {
    "first-explanation": _first_explanation,
    "your-own-network": _your_own_network,
    "timm-and-hugging-face": _timm_and_hugging_face,
    "medical-images": _medical_images,
    "segmentation-and-rather-than": _segmentation,
    "which-method": _which_method,
}
"""What each notebook says in words, checked against what its cells print."""


PROBE = "get_ipython().run_line_magic('who_ls', ''), __import__('os').listdir()"
"""Shows the names and files that a notebook finds before its first line."""


def test_each_runs_alone_and_what_it_says_is_true(
    tmp_path: Path, subtests: pytest.Subtests
) -> None:
    pytest.importorskip("nbclient", reason="needs nbclient, which comes with the extra dev")
    from nbformat import v4, write

    probe = tmp_path / "probe.ipynb"
    write(v4.new_notebook(cells=[v4.new_code_cell(PROBE)]), probe)
    contents = executed([*(NOTEBOOKS / f"{name}.ipynb" for name in NAMES), probe], tmp_path)
    assert contents["probe"].cells[0].outputs[0].data["text/plain"] == "([], [])"
    for name in NAMES:
        with subtests.test(name):
            _check(name, contents[name], tmp_path)


def _check(name: str, content: Any, folder: Path) -> None:
    outputs = [
        output for cell in content.cells if cell.cell_type == "code" for output in cell.outputs
    ]
    assert not [output.text for output in outputs if output.get("name") == "stderr"]
    results = [output.data for output in outputs if "data" in output]
    shown = [result.get("text/html", result.get("text/plain", "")) for result in results]
    text = "\n".join([output.text for output in outputs if "text" in output] + shown)
    for place in (ROOT, folder, Path.home()):
        assert f"{place}/" not in text
    pictures = [tag for html in shown for tag in _pictures(html)]
    assert len(pictures) >= (name != "which-method")
    for alt, picture in pictures:
        assert alt
        assert np.asarray(Image.open(io.BytesIO(b64decode(picture))).convert("L")).std() > 5
    TRUE[name](text)


def _pictures(html: str) -> list[tuple[str, str]]:
    return re.findall(r'<img alt="([^"]*)"[^>]*?src="data:image/png;base64,([^"]+)"', html)
