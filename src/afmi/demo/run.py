"""Explain a few real photographs and show them on one page: what ``afmi demo`` does."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import skimage.data
import torch
from matplotlib.figure import Figure
from PIL import Image

from afmi.api import explain
from afmi.explanation import Explanation
from afmi.files import write_files
from afmi.methods import AFMI, GradCAM, Gradient, Method
from afmi.models import load_model
from afmi.network.classifier import Classifier
from afmi.pictures import figures, plots
from afmi.pictures.images import read_image
from afmi.pictures.transforms import to_image, to_tensor
from afmi.report.page import Page, Section, Table, Tile, TileRow, render_page
from afmi.targets import response

__all__ = ["DemoResult", "run_demo"]

METHODS: tuple[type[Method], ...] = (AFMI, GradCAM, Gradient)
KEPT = 0.25
"""Share of the pixels that the insertion views keep."""

CAT, TEMPLE, ROCKET, COINS = (
    "Stéfan van der Walt (CC0)",
    "Daniel Buechele (CC BY 2.0)",
    "SpaceX (public domain)",
    "Brooklyn Museum (no known copyright restrictions)",
)
"""Whose photographs these are; NOTICE says more."""

NEXT = (
    "afmi explain PHOTO.jpg",
    "afmi explain PHOTO.jpg --target cat --method grad-cam",
    "afmi explain PHOTO.jpg --model squeezenet1_0 --weights FILE",
)


@dataclass(frozen=True)
class DemoResult:
    """What the tour made.

    Attributes:
        folder: where it all lies.
        page: the HTML page.
        pictures: PNG files, one for each photograph.
        explanations: all of them, photograph by photograph, class by class, method by method.
        seconds: how long it took, loading the network included.
    """

    folder: Path
    page: Path
    pictures: tuple[Path, ...]
    explanations: tuple[Explanation, ...]
    seconds: float


@dataclass(frozen=True)
class _Stop:
    """One photograph of the tour; ``classes`` are labels, or None for the predicted class."""

    name: str
    heading: str
    story: str
    photograph: Image.Image
    credit: str
    classes: tuple[str | None, ...] = (None,)


@dataclass(frozen=True)
class _Finding:
    """One class of one photograph, explained by one method."""

    explanation: Explanation
    seconds: float
    kept: float
    """The probability of the class when the network sees only the top pixels."""


def run_demo(
    out: Path, report: Callable[[str], object] = print, model: Classifier | None = None
) -> DemoResult:
    """Explain photographs that come with scikit-image and scikit-learn; needs no network access.

    Args:
        out: folder for the pictures and the page; made where missing, its other files are kept.
        report: what to call with each line of progress.
        model: a classifier that knows the classes of the embedded one; None: that one.

    Raises:
        AfmiError: when the files cannot be written.
    """
    started = time.perf_counter()
    out = Path(out)
    model = model or load_model("photos")
    _explain(model, Image.new("RGB", (160, 160), "grey"), 0, AFMI)  # the first run sets things up
    stops = _stops()
    tour: list[list[list[_Finding]]] = []
    for stop in stops:
        tour.append(
            [[_explain(model, stop.photograph, c, m) for m in METHODS] for c in stop.classes]
        )
        for findings in tour[-1]:
            record = findings[0].explanation
            report(f"{stop.heading}: {record.answer}")
    drawings = {
        out / f"{stop.name}.png": _figure(stop, classes)
        for stop, classes in zip(stops, tour, strict=True)
    }
    flat = [finding for classes in tour for findings in classes for finding in findings]
    page = out / "index.html"
    text = render_page(_page(model, stops, tour, time.perf_counter() - started))
    writers = {path: partial(figures.figure_png, figure) for path, figure in drawings.items()}
    write_files({**writers, page: text.encode()})
    explanations = tuple(finding.explanation for finding in flat)
    result = DemoResult(out, page, tuple(drawings), explanations, time.perf_counter() - started)
    report("")
    report(f"{len(flat)} explanations in {result.seconds:.0f} s. Open in a browser:")
    report(f"  {page.resolve()}")
    report("The pictures, for a paper or slides:")
    for path in result.pictures:
        report(f"  {path}")
    report("Now try your own photographs:")
    for command in NEXT:
        report(f"  {command}")
    return result


def _stops() -> list[_Stop]:
    cat, rocket = (read_image(image()) for image in (skimage.data.chelsea, skimage.data.rocket))
    temple = _scikit_learn_photograph("china.jpg")
    # Where scikit-learn is not installed, the tower of the launch pad stands in for the temple.
    other, where, credit = (rocket, 0.3, ROCKET) if temple is None else (temple, 0.42, TEMPLE)
    halves = [np.asarray(_upright(other, where)), np.asarray(_upright(cat, 0.6))]
    stops = [
        _Stop(
            "cat",
            "A cat",
            "Chelsea, from scikit-image. The network is right; the question is whether for the "
            "right reason: does it look at the cat?",
            cat,
            CAT,
        ),
        _Stop(
            "two",
            "Two things in one picture",
            "Two of the photographs side by side. Each is explained twice, once for each class: "
            "a method that answers the question asked must point at the one half for “church” "
            "and at the other for “cat”.",
            Image.fromarray(np.concatenate(halves, axis=1)),
            f"{credit}, {CAT}",
            ("church", "cat"),
        ),
        _Stop(
            "coins",
            "A mistake",
            "Ancient coins, from scikit-image. The network has no class for coins, yet must choose "
            "one of its own. The maps show what it went by.",
            read_image(skimage.data.coins()),
            COINS,
        ),
        _Stop(
            "rocket",
            "Another mistake",
            "A rocket on its launch pad, from scikit-image. There is no class for rockets either.",
            rocket,
            ROCKET,
        ),
    ]
    if temple is not None:
        story = (
            "From scikit-learn. The network was never taught temples; of the eleven things it "
            "knows, a church is the nearest. The maps show which part looks like one."
        )
        stops.insert(1, _Stop("temple", "A temple", story, temple, TEMPLE))
    return stops


def _scikit_learn_photograph(name: str) -> Image.Image | None:
    """Return a photograph that scikit-learn ships, or None where that is not installed."""
    spec = find_spec("sklearn")
    if spec is None or spec.origin is None:
        return None
    path = Path(spec.origin).parent / "datasets" / "images" / name
    return read_image(path) if path.exists() else None


def _upright(photograph: Image.Image, centre: float) -> Image.Image:
    """Cut the part of full height and half as wide around ``centre`` (share of the width)."""
    width, height = photograph.size
    left = min(max(centre * width - height / 4, 0), width - height / 2)
    box = (round(left), 0, round(left + height / 2), height)
    return photograph.crop(box).resize((150, 300), Image.Resampling.LANCZOS)


def _explain(
    model: Classifier, photograph: Image.Image, target: str | int | None, method: type[Method]
) -> _Finding:
    prepared = model.prepare(photograph)
    started = time.perf_counter()
    explanation = explain(model, prepared, target, method=method)
    seconds = time.perf_counter() - started
    shown = to_tensor(explanation.insertion(KEPT))[None].to(prepared)
    kept = response(model, explanation.target, shown)
    return _Finding(explanation, seconds, float(kept))


def _figure(stop: _Stop, classes: Sequence[Sequence[_Finding]]) -> Figure:
    """Draw, for each class, all methods' overlays and below them the map and insertion views."""
    rows, row_titles = [], []
    for findings in classes:
        record = findings[0].explanation
        photograph = figures.Panel(to_image(record.image), f"{record.answer}")
        overlays = [figures.Panel(f.explanation.overlay()) for f in findings]
        inserted = [
            figures.Panel(f.explanation.insertion(KEPT), f"{record.label}, {f.kept:.0%}")
            for f in findings
        ]
        title = f"{record.method}’s map"
        signed = figures.Panel(record.heatmap(), title, scale=record.scale)
        rows += [[photograph, *overlays], [signed, *inserted]]
        row_titles += ["evidence", f"map, top {KEPT:.0%}"]
    return figures.grid(
        rows,
        row_titles=row_titles,
        column_titles=["Photograph", *(method.name for method in METHODS)],
        note="Warm colours: evidence for the class; cool: against it. Percentages: the "
        "network's probability of the class, for the whole picture and for the pixels shown. "
        f"{_credit(stop)}",
        side=400,
    )


def _page(
    model: Classifier,
    stops: Sequence[_Stop],
    tour: Sequence[Sequence[Sequence[_Finding]]],
    seconds: float,
) -> Page:
    sections = [_how_to_read()]
    sections += [_section(stop, classes) for stop, classes in zip(stops, tour, strict=True)]
    invitation = (
        "Explain a photograph of your own, ask about another class or method, or bring a network "
        "that knows a thousand things:"
    )
    sections += [_numbers(stops, tour), Section("What next", [invitation], code=NEXT)]
    side = tour[0][0][0].explanation.image.shape[-1]
    return Page(
        "What made the network say that?",
        f"A small network that tells {len(model.labels)} things apart looked at a few "
        "photographs. For each of its answers, three methods show which parts of the picture it "
        f"rests on. All of it was worked out on this computer, in {seconds:.0f} seconds.",
        sections,
        f"Made by afmi {tour[0][0][0].explanation.versions['afmi']} with the network "
        f"“{model.name}”, which sees pictures of {side} × {side} pixels and knows: "
        f"{', '.join(model.labels)}. The photographs come with scikit-image and scikit-learn.",
    )


def _how_to_read() -> Section:
    ramp = torch.linspace(-1, 1, 480, dtype=torch.float32, device="cpu").expand(28, -1)
    legend = plots.overlay(ramp.new_full((3, *ramp.shape), 0.5), ramp)
    return Section(
        "How to read the pictures",
        rows=[TileRow([Tile(legend, "", "← against the answer · no difference · for it →")])],
        prose="demo_guide.html",
        facts={"kept": f"{KEPT:.0%}"},
    )


def _section(stop: _Stop, classes: Sequence[Sequence[_Finding]]) -> Section:
    rows = []
    for findings in classes:
        record = findings[0].explanation
        answer = f"“{record.label}”, {record.probability:.0%}"
        question = f"Why {answer}?" if stop.classes == (None,) else f"What speaks for {answer}?"
        photograph = Tile(to_image(record.image), "Photograph", "as the network sees it")
        overlays = [Tile(f.explanation.overlay(), f.explanation.method) for f in findings]
        rows.append(TileRow([photograph, *overlays], question))
        kept = [
            Tile(
                f.explanation.insertion(KEPT),
                f"{record.label}, {f.kept:.0%}",
                f"{f.explanation.method}’s top {KEPT:.0%}",
            )
            for f in findings
        ]
        signed = Tile(
            record.heatmap(),
            "A-FMI’s map",
            "red for, blue against" if record.signed else "brighter is more",
        )
        rows.append(TileRow([signed, *kept]))
    return Section(stop.heading, [stop.story, _credit(stop)], rows=rows)


def _credit(stop: _Stop) -> str:
    return f"Photograph: {stop.credit}, changed."


def _numbers(stops: Sequence[_Stop], tour: Sequence[Sequence[Sequence[_Finding]]]) -> Section:
    rows = [
        (
            stop.heading,
            record.label,
            f"{record.probability:.1%}",
            record.method,
            f"{finding.kept:.1%}",
            "" if record.residual is None else f"{record.residual:+.0%}".replace("-", "−"),
            f"{finding.seconds:.3f}",
        )
        for stop, classes in zip(stops, tour, strict=True)
        for finding in itertools.chain.from_iterable(classes)
        for record in [finding.explanation]
    ]
    headings = (
        "Photograph",
        "Answer",
        "Probability",
        "Method",
        f"Probability from the top {KEPT:.0%}",
        "Residual",
        "Seconds",
    )
    return Section(
        "The numbers",
        ["Probability: of the answer, for the whole picture. Seconds: for one picture, here."],
        table=Table(headings, rows),
    )
