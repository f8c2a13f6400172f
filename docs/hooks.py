"""Make a page with a picture for each method of the catalogue: a new one needs no documentation.

The pictures are drawn while the documentation is built, by the embedded network, so they show what
the code of that day gives. The tables of methods, metrics and experiments, and the metrics'
descriptions, are made from the catalogues, too, and those of cost from what `make bench` wrote.
"""

from __future__ import annotations

import contextlib
import csv
import dataclasses
import doctest
import io
import re
import warnings
from collections import Counter
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

if TYPE_CHECKING:
    from benchmarks.speed.record import Row

# Enough for a picture, at a fraction of the cost; everything else is the method's default.
DRAFT = {"masks": 600, "iterations": 120, "samples": 300, "areas": (0.1, 0.2), "steps": 30}
FEWER = {"SmoothGrad": {"samples": 50}, "PredictionDifference": {"samples": 2, "stride": 8}}
# Settings between which there is something to choose: drawn beside the defaults.
VARIANTS = {
    "MeaningfulPerturbation": {"relative": True, "area": 1e-3},
    "RISE": {"weighted_mean": True},
}
# An image of the page about targets, which the lines above it draw.
DRAWN = re.compile(r"^!\[[^\]]*\]\((targets/[\w-]+\.png)\)$", re.MULTILINE)
CREDIT = "Photograph: Stéfan van der Walt (CC0), changed."


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Put tables and descriptions where a page asks for them."""
    for mark, made in MADE.items():
        if mark in markdown:
            markdown = markdown.replace(mark, made())
    return markdown


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add each method's page and picture, those of the page about targets, and the schema."""
    schema = Path(__file__).parents[1] / "src" / "afmi" / "explanation.schema.json"
    files.append(File.generated(config, schema.name, content=schema.read_text(encoding="utf-8")))
    for file, content in _pictures_of_targets().items():
        files.append(File.generated(config, file, content=content))
    from afmi import load_model
    from afmi.methods import CATALOGUE

    model = load_model("photos")
    for name, cls in CATALOGUE.items():
        settings = {**_settings(cls), **FEWER.get(name, {})}
        drawn = {name: settings}
        if name in VARIANTS:
            drawn[f"{name}-variant"] = {**settings, **VARIANTS[name]}
        notes = []
        for file, chosen in drawn.items():
            picture, note = _picture(model, cls, chosen, file)
            notes.append(note)
            if picture:
                files.append(File.generated(config, f"methods/{file}.png", content=picture))
        page = "\n\n".join([f"# {cls.name}", *notes, f"::: {cls.__module__}.{name}\n"])
        files.append(File.generated(config, f"methods/{name}.md", content=page))
    return files


def _pictures_of_targets() -> dict[str, bytes]:
    """Run the page's lines, and draw at each image the explanation that they made last."""
    from afmi.pictures import figures

    page = (Path(__file__).parent / "targets.md").read_text(encoding="utf-8")
    names: dict[str, Any] = {}
    drawn = {}
    parts = DRAWN.split(page)  # text, file, text, file, …
    for text, file in zip(parts[::2], parts[1::2], strict=False):
        for example in doctest.DocTestParser().get_examples(text):
            with contextlib.redirect_stdout(io.StringIO()):
                exec(compile(example.source, "targets.md", "single"), names)
        buffer = io.BytesIO()
        figures.figure_png(names["explanation"].figure(), buffer)
        drawn[file] = buffer.getvalue()
    return drawn


def _settings(cls: type) -> dict[str, Any]:
    names = {field.name for field in dataclasses.fields(cls)}
    return {key: value for key, value in DRAFT.items() if key in names}


def _picture(
    model: Any, cls: type, settings: dict[str, Any], file: str
) -> tuple[bytes | None, str]:
    """Return a PNG of the method on a photograph, and the words that go with it."""
    from skimage.data import chelsea

    import afmi
    from afmi.errors import AfmiError
    from afmi.pictures import figures

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            explanation = afmi.explain(model, chelsea(), "cat", method=cls, **settings)
    except AfmiError as error:
        return None, f"On the embedded network: *{error}*"
    buffer = io.BytesIO()
    figures.figure_png(explanation.figure(), buffer)
    with_settings = ", ".join(f"{key}={value}" for key, value in settings.items())
    how = f"with {with_settings}, for the picture's sake" if settings else "with its defaults"
    return buffer.getvalue(), f"![{cls.name} of a cat]({file}.png)\n\n*Drawn {how}. {CREDIT}*"


def _methods() -> str:
    from afmi.methods import CATALOGUE

    return _table(
        ("method", "class", "features", "scores", "signed", "cost per image of 224 × 224", "paper"),
        [
            (
                f"[{cls.name}](methods/{name}.md)",
                f"`{name}`",
                cls.family,
                cls.scores,
                "yes" if cls.signed else "no",
                cls.default_cost(),
                cls.paper,
            )
            for name, cls in CATALOGUE.items()
        ],
    )


def _metrics() -> str:
    from afmi.metrics import CATALOGUE

    better = {True: "higher", False: "lower", None: "–"}
    return _table(
        ("metric", "what its headline says", "better", "measured by default", "paper"),
        [
            (
                f"[{cls.name}][{cls.__module__}.{name}]",
                f"{cls.columns[0].measures} (`{cls.columns[0].source}`)",
                better[cls.columns[0].higher_is_better],
                "yes" if cls.standard else "–",
                cls.paper,
            )
            for name, cls in CATALOGUE.items()
        ],
    )


def _descriptions() -> str:
    from afmi.metrics import CATALOGUE

    return "\n\n".join(f"::: {cls.__module__}.{name}" for name, cls in CATALOGUE.items())


def _experiments() -> str:
    from afmi.experiments import CATALOGUE

    return _table(
        ("experiment", "shows", "needs", "networks", "methods", "the paper has it in"),
        [
            (
                f"`{name}`",
                cls.shows,
                cls.data,
                ", ".join(f"`{model}`" for model in cls.models),
                ", ".join(cls.methods),
                cls.section,
            )
            for name, cls in CATALOGUE.items()
        ],
    )


def _benchmarks() -> list[Row]:
    from benchmarks.speed.record import read

    return read(Path(__file__).parent / "results" / "benchmarks.csv")


def _measured(scenario: str) -> str:
    from benchmarks.speed.record import markdown

    return markdown(row for row in _benchmarks() if row.scenario.startswith(scenario))


def _measured_where() -> str:
    """Name the machines, days and versions that the rows were measured with."""
    by_place: dict[tuple[str, ...], list[str]] = {}
    for row in _benchmarks():
        threads = f"{row.threads} thread{'s' * (row.threads > 1)}"
        run = f"{row.level} run of {row.date}, {row.clock} clock"
        key = (row.machine, threads, run, row.versions)
        scenarios = by_place.setdefault(key, [])
        if row.scenario not in scenarios:
            scenarios.append(row.scenario)
    return "\n".join(f"- {', '.join(key)}: {', '.join(names)}" for key, names in by_place.items())


def _measured_losses() -> str:
    from benchmarks.speed.record import markdown, missed, slower

    rows = _benchmarks()
    parts = {
        "Targets that are not met:": missed(rows),
        "Peers that are right and faster (by the whole middle half):": slower(rows),
    }
    return "\n\n".join(
        f"{title}\n\n{markdown(some)}" if some else f"{title} none."
        for title, some in parts.items()
    )


def _networks() -> str:
    path = Path(__file__).parent / "results" / "networks.csv"
    with path.open(encoding="utf-8", newline="") as file:
        heads, *rows = csv.reader(file)
    return _table(tuple(heads), [tuple(cell.replace("|", "/") for cell in row) for row in rows])


def _exports() -> str:
    """Say how many networks became files, and show those and the reasons of the others."""
    from benchmarks.export_networks import KNOWN, TABLE, read

    known, tried = read(KNOWN), read(TABLE)
    outcomes = Counter(row["outcome"] for row in tried.values())
    open_ones = [name for name in known if name not in tried]
    families = {row["family"] for row in known.values()}
    tried_families = {known[name]["family"] for name in tried}
    counts = [f"{count} {outcome}" for outcome, count in outcomes.most_common()]
    counts.append(f"{len(open_ones)} not tried")
    shown = ("network", "outcome", "map against ours", "file / weights", "not in WebGPU", "reason")
    rows = [tuple(row[key].replace("|", "/") for key in shown) for row in tried.values()]
    return "\n\n".join(
        [
            f"Of {len(known)} networks: {', '.join(counts)}. Of {len(families)} families, "
            f"{len(tried_families)} have a network that was tried.",
            _table(shown, rows),
            "Not tried: " + (", ".join(open_ones) or "none") + ".",
        ]
    )


def _table(heads: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    lines = [heads, tuple("---" for _ in heads), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


MADE = {
    "<!-- table of methods -->": _methods,
    "<!-- table of metrics -->": _metrics,
    "<!-- each metric -->": _descriptions,
    "<!-- table of experiments -->": _experiments,
    "<!-- benchmarks: where -->": _measured_where,
    "<!-- benchmarks: losses -->": _measured_losses,
    **{
        f"<!-- benchmarks: {scenario} -->": partial(_measured, scenario)
        for scenario in ("feature maps", "sizes", "pixels", "masked pictures", "growth", "options")
    },
    "<!-- table of networks -->": _networks,
    "<!-- table of exported networks -->": _exports,
}
"""What a page may ask for."""
