"""The tour runs offline and writes the files it names; its page needs no other file."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from importlib.util import find_spec

import pytest
import torch
from PIL import Image

import afmi
from afmi.cli.terminal import visible
from afmi.demo import photographs, run
from afmi.models.photos import LABELS, PhotoVGG
from afmi.network.labels import imagenet_labels
from afmi.report.page import Page, Section, Table, Tile, TileRow, render_page


@pytest.fixture
def models():
    labels = {run.THOUSAND: imagenet_labels(), run.ELEVEN: LABELS}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        networks = {name: PhotoVGG(len(words)).eval() for name, words in labels.items()}
    return {
        name: afmi.Classifier(network, labels=labels[name], resize=72, crop=64, name=name)
        for name, network in networks.items()
    }


class _Reader(HTMLParser):
    """Checks that tags match, and gathers text, pictures and addresses."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.text: list[str] = []
        self.pictures: list[dict] = []
        self.addresses: list[str] = []

    def handle_starttag(self, tag, attrs):
        if tag not in ("img", "meta"):
            self.open.append(tag)
        if tag == "img":
            self.pictures.append(dict(attrs))
        self.addresses += [v for k, v in attrs if k in ("src", "href", "srcset")]

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


def _read(text: str) -> _Reader:
    reader = _Reader()
    reader.feed(text)
    reader.close()
    assert reader.open == []
    return reader


def test_without_scikit_learn_its_photograph_is_left_out(monkeypatch):
    every = {stop.name for stop in run._stops()}
    monkeypatch.setattr(photographs, "find_spec", lambda _name: None)
    stops = run._stops()
    assert {stop.name for stop in stops} == every - {"temple"}
    assert not any(run.TEMPLE in stop.credit for stop in stops)


# A network with random weights leaves Grad-CAM's ReLU nothing to show.
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::afmi.methods.BlankMapWarning")
def test_the_tour_without_scikit_learn(models, tmp_path, monkeypatch):
    monkeypatch.setattr(photographs, "find_spec", lambda _name: None)
    lines: list[str] = []
    result = run.run_demo(tmp_path / "out", lines.append, models)
    check_files(result, lines, scikit_learn=False)


def check_files(result, lines, *, scikit_learn):
    names = {"coffee", "cat", "camera", "two", "rocket"} | ({"temple"} if scikit_learn else set())
    names |= {"cat-photos", "two-photos", "coins-photos"}
    assert {path.stem for path in result.pictures} == names
    assert {path.name for path in result.folder.iterdir()} == {"index.html"} | {
        f"{name}.png" for name in names
    }
    for path in result.pictures:
        with Image.open(path) as picture:
            picture.load()
            assert picture.width > 1500
    assert len(result.explanations) == 3 * (len(names) + 2)
    explained = {(one.model, one.label) for one in result.explanations}
    assert {(run.THOUSAND, "tripod"), (run.THOUSAND, "Egyptian cat")} <= explained
    assert {(run.ELEVEN, "church"), (run.ELEVEN, "cat")} <= explained
    assert all(visible(line) == line for line in lines)  # as the command prints them
    said = "\n".join(lines)
    assert str(result.page.resolve()) in said
    for command in run.NEXT:
        assert command in said
    page = _read(result.page.read_text(encoding="utf-8"))
    text = " ".join(page.text)
    for word in ("A-FMI", "Grad-CAM", "Gradient", "Residual", "How to read", "afmi explain"):
        assert word in text
    assert text.count("Photograph: ") == len(names)
    assert text.count("Daniel Buechele (CC BY 2.0)") == 2 * scikit_learn
    assert page.addresses
    assert all(address.startswith("data:image/png;base64,") for address in page.addresses)
    assert all(picture["alt"] for picture in page.pictures)


def test_the_tour_comes_with_its_networks(tmp_path):
    lines: list[str] = []
    result = run.run_demo(tmp_path / "out", lines.append)
    check_files(result, lines, scikit_learn=find_spec("sklearn") is not None)
    shown = [one for one in result.explanations if one.method == "A-FMI"]
    answers = [(one.model, one.label) for one in shown]
    assert answers[:2] == [(run.THOUSAND, "espresso"), (run.THOUSAND, "tiger cat")]
    assert {(run.THOUSAND, "tripod"), (run.THOUSAND, "missile")} < {*answers}
    # Side by side: what is asked for first is on the left, the cat on the right.
    explained = {(one.model, one.label): one for one in shown}
    for model, left, right in (
        (run.THOUSAND, "tripod", "Egyptian cat"),
        (run.ELEVEN, "church", "cat"),
    ):
        first, cat = explained[model, left], explained[model, right]
        half = first.map.shape[1] // 2
        assert cat.map[:, half:].sum() > cat.map[:, :half].sum()
        assert first.map[:, :half].sum() > first.map[:, half:].sum()


def test_all_text_on_a_page_is_escaped():
    evil = "<script>alert('x')</script> & \"quotes\""
    tile = Tile(Image.new("RGB", (2, 2)), evil, evil, evil)
    section = Section(
        evil, [evil], [TileRow([tile], evil)], [(evil, evil)], Table([evil], [[evil]]), [evil]
    )
    text = render_page(Page(evil, evil, [section], evil))
    assert "<script" not in text
    page = _read(text)
    assert page.pictures[0]["alt"] == evil
    assert sum(evil in data for data in page.text) >= 9


def test_numbers_are_set_to_the_right():
    text = render_page(Page("", "", [Section("", table=Table(["a", "b"], [["x", "−3%"]]))]))
    assert re.search('<td>x</td><td class="number">−3%</td>', text)
    assert '<th>a</th><th class="number">b</th>' in text


def test_a_page_needs_no_network_or_script():
    text = render_page(Page("t", "l", [Section("s")]))
    assert not re.search(r"https?:|<script|<link|@import|url\(", text)
