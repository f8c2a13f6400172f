"""Explain a few real photographs and show them on one page: what ``afmi demo`` does."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import skimage.data
import torch
from matplotlib.figure import Figure
from PIL import Image

from afmi.api import explain
from afmi.demo.photographs import (
    CAMERA,
    CAT,
    COFFEE,
    COINS,
    ROCKET,
    TEMPLE,
    scikit_image_photographs,
    scikit_learn_photograph,
)
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

THOUSAND, ELEVEN = "imagenet", "photos"
"""The networks, as `load_model` calls them: how many things they know."""

NEXT = (
    "afmi explain PHOTO.jpg",
    "afmi explain PHOTO.jpg --target malamute --method grad-cam",
    "afmi explain PHOTO.jpg --model resnet50 --weights FILE",
)


@dataclass(frozen=True)
class DemoResult:
    """What the tour made.

    Attributes:
        folder: where it all lies.
        page: the HTML page.
        pictures: PNG files, one for each photograph and network.
        explanations: all of them, picture by picture, class by class, method by method.
        seconds: how long it took, loading the networks included.
    """

    folder: Path
    page: Path
    pictures: tuple[Path, ...]
    explanations: tuple[Explanation, ...]
    seconds: float


@dataclass(frozen=True)
class _Stop:
    """One photograph, shown to a network; of ``classes``, None is the predicted one."""

    name: str
    network: str
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
    out: Path,
    report: Callable[[str], object] = print,
    models: Mapping[str, Classifier] | None = None,
) -> DemoResult:
    """Explain photographs that come with scikit-image and scikit-learn; needs no network access.

    Args:
        out: folder for the pictures and the page; made where missing, its other files are kept.
        report: what to call with each line of progress.
        models: classifiers that know the classes of `THOUSAND` and `ELEVEN`; None: these.

    Raises:
        AfmiError: when a network cannot be loaded, or the files cannot be written.
    """
    started = time.perf_counter()
    out = Path(out)
    models = models or {name: load_model(name) for name in (THOUSAND, ELEVEN)}
    for model in models.values():  # the first run sets things up
        _explain(model, Image.new("RGB", (160, 160), "grey"), 0, AFMI)
    stops = _stops()
    tour: list[list[list[_Finding]]] = []
    for stop in stops:
        model = models[stop.network]
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
    explanations = tuple(_explanations(tour))
    page = out / "index.html"
    text = render_page(_page(models, stops, tour, time.perf_counter() - started))
    writers = {path: partial(figures.figure_png, figure) for path, figure in drawings.items()}
    write_files({**writers, page: text.encode()})
    result = DemoResult(out, page, tuple(drawings), explanations, time.perf_counter() - started)
    report("")
    report(f"{len(explanations)} explanations in {result.seconds:.0f} s. Open in a browser:")
    report(f"  {page.resolve()}")
    report("The pictures, for a paper or slides:")
    for path in result.pictures:
        report(f"  {path}")
    report("Now try your own photographs:")
    for command in NEXT:
        report(f"  {command}")
    return result


def _stops() -> list[_Stop]:
    cat, coffee, camera, rocket = (one.picture for one in scikit_image_photographs())
    temple = scikit_learn_photograph("china.jpg")
    # Where scikit-learn is not installed, the tower of the launch pad stands in for the temple.
    tower, where, credit = (rocket, 0.3, ROCKET) if temple is None else (temple, 0.42, TEMPLE)
    half = _upright(cat, 0.6)
    stops = [
        _Stop(
            "coffee",
            THOUSAND,
            "A cup of coffee",
            "From scikit-image. The network is sure, and it is right; the question is whether for "
            "the right reason: does it look at the coffee, or at the spoon and the table?",
            coffee,
            COFFEE,
        ),
        _Stop(
            "cat",
            THOUSAND,
            "A cat",
            "Chelsea, from scikit-image. Of the thousand things that the network knows, several "
            "are cats, and it shares its belief out among them.",
            cat,
            CAT,
        ),
        _Stop(
            "camera",
            THOUSAND,
            "A man with a camera",
            "From scikit-image, in grey. Asked for one word, the network says neither man nor "
            "camera. The maps show what it looked at instead.",
            camera,
            CAMERA,
        ),
        _Stop(
            "two",
            THOUSAND,
            "Two things in one picture",
            "Two of the photographs side by side, explained twice, once for each class: a method "
            "that answers the question asked must point at the one half for “tripod” and at the "
            "other for “Egyptian cat”.",
            _side_by_side(_upright(camera, 0.55), half),
            f"{CAMERA}, {CAT}",
            ("tripod", "Egyptian cat"),
        ),
        _Stop(
            "rocket",
            THOUSAND,
            "A mistake",
            "A rocket on its launch pad, from scikit-image. The network knows no rockets, only "
            "things that look like one.",
            rocket,
            ROCKET,
        ),
        _Stop(
            "cat-photos",
            ELEVEN,
            "The cat again, by a network that knows eleven words",
            "The small network that comes with afmi. Three fully connected layers follow its last "
            "feature maps, so A-FMI and Grad-CAM need not agree as they nearly must on the first "
            "network, where a single layer follows.",
            cat,
            CAT,
        ),
        _Stop(
            "two-photos",
            ELEVEN,
            "Two things, in eleven words",
            "The network was never taught what is on the left; “church” is the nearest word that "
            "it has.",
            _side_by_side(_upright(tower, where), half),
            f"{credit}, {CAT}",
            ("church", "cat"),
        ),
        _Stop(
            "coins-photos",
            ELEVEN,
            "Another mistake",
            "Ancient coins, from scikit-image. The network has no word for coins, yet must choose "
            "one of its eleven. The maps show what it went by.",
            read_image(skimage.data.coins()),
            COINS,
        ),
    ]
    if temple is not None:
        story = (
            "From scikit-learn. The network knows palaces and monasteries, but no Chinese "
            "temples; the maps show which part looks like the word that it chose."
        )
        stops.insert(2, _Stop("temple", THOUSAND, "A temple", story, temple, TEMPLE))
    return stops


def _side_by_side(left: Image.Image, right: Image.Image) -> Image.Image:
    return Image.fromarray(np.concatenate([np.asarray(left), np.asarray(right)], axis=1))


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
        f"Network: {findings[0].explanation.model}. {_credit(stop)}",
        side=400,
    )


def _page(
    models: Mapping[str, Classifier],
    stops: Sequence[_Stop],
    tour: Sequence[Sequence[Sequence[_Finding]]],
    seconds: float,
) -> Page:
    sections = [_how_to_read()]
    sections += [_section(stop, classes) for stop, classes in zip(stops, tour, strict=True)]
    invitation = (
        "Explain a photograph of your own, ask about another class or method, or bring another "
        "network:"
    )
    sections += [_numbers(stops, tour), Section("What next", [invitation], code=NEXT)]
    large, small = models[THOUSAND], models[ELEVEN]
    sides = {one.model: one.image.shape[-1] for one in _explanations(tour)}
    return Page(
        "What made the network say that?",
        f"A network that tells {len(large.labels):,} things apart looked at a few photographs, and "
        f"so did a small one that knows {len(small.labels)}. For each of their answers, three "
        "methods show which parts of the picture it rests on. All of it was worked out on this "
        f"computer, in {seconds:.0f} seconds.",
        sections,
        f"Made by afmi {next(_explanations(tour)).versions['afmi']} with the networks "
        f"“{large.name}” (EfficientNet-Lite0, trained on ImageNet), which sees pictures of "
        f"{sides[large.name]} × {sides[large.name]} pixels, and “{small.name}”, which sees "
        f"{sides[small.name]} × {sides[small.name]} and knows: {', '.join(small.labels)}. "
        "The photographs come with scikit-image and scikit-learn.",
    )


def _explanations(tour: Sequence[Sequence[Sequence[_Finding]]]) -> Iterator[Explanation]:
    return (finding.explanation for classes in tour for some in classes for finding in some)


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
            stop.name,
            record.model,
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
        "Picture",
        "Network",
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
