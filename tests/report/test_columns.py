"""A new metric: what it declares is in the tables, the charts and the CSV files."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from results_folder import write_folder, write_piece
from torch import Tensor, nn

from afmi.evaluation import Results, evaluate
from afmi.evaluation.results import Measured
from afmi.methods import Gradient, Random
from afmi.metrics import Case, Completeness, Metric
from afmi.metrics.columns import Column, point
from afmi.report.averages import aggregated, curve_of
from afmi.report.evaluation_report import write_report
from afmi.report.summary import summarise
from afmi.report.words import finding


@dataclass(frozen=True)
class Toy(Metric):
    """Measure the size of the class index and its shares, whatever the map."""

    name = "Toy & <co>"
    paper = "none"
    columns = (
        Column("size", "Size <b>", "how large <i>", higher_is_better=False, unit="m"),
        Column(
            "share", "Share of <size>", "what is left", kind="curve", area="size", over="part <p>"
        ),
    )

    fractions: Sequence[float] = (0.25, 0.5, 1)

    @property
    def about(self) -> str:
        return "Says <nothing>."

    def measure(self, case: Case) -> dict[str, Tensor]:
        size = case.targets.double() + isinstance(case.method, Gradient)
        return {"size": size, **{point("share", f): f * size for f in self.fractions}}


def rows_of(path):
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture
def folder(tmp_path):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(12, 3)).eval()
    pairs = [(torch.rand(3, 2, 2), label) for label in (0, 1, 2, 1)]
    methods = [Gradient(model), Random(model)]
    evaluate(model, pairs, tmp_path / "r", methods=methods, metrics=[Toy()], examples=0)
    return tmp_path / "r"


def test_a_new_metric_is_in_every_table(folder):
    files = write_report(folder)
    table = {row["method"]: row for row in rows_of(files["table1"])}
    assert [float(table[m]["toy/size"]) for m in ("Gradient", "Random")] == [2.0, 1.0]
    assert list(table) == ["Random", "Gradient"]  # lower is better
    curve = [
        (float(r["percent"]), float(r["value"]), int(r["images"]))
        for r in rows_of(files["curves"])
        if (r["method"], r["curve"]) == ("Gradient", "toy/share")
    ]
    assert curve == [(25, 0.5, 4), (50, 1.0, 4), (100, 2.0, 4)]
    (pair,) = rows_of(files["pairs"])
    # Random is better by 1 on every image.
    assert (pair["first"], float(pair["difference"]), float(pair["wins"])) == ("Random", 1.0, 1.0)


def test_a_new_metric_is_on_the_page_and_its_words_are_escaped(folder):
    text = write_report(folder)["page"].read_text(encoding="utf-8")
    for words in ("Size <b>", "How large <i>.", "Share of <size>", "Toy & <co>", "Says <nothing>."):
        assert words not in text
        assert words.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;") in text
    assert "<small>95 % interval, m</small>" in text
    charts = re.findall(r'aria-label="([^"]*)"', text)
    assert charts == [
        "Size &lt;b&gt; by method: Random 1.000, Gradient 2.000",
        "Share of &lt;size&gt; against part &lt;p&gt;; areas: Gradient 2.000, Random 1.000",
    ]
    # The labels of charts are text, not outlines.
    assert re.search(r"<text [^>]*>part &lt;p&gt; \(%\)</text>", text)


def test_the_manifest_is_enough(folder):
    recorded = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))["metrics"]
    assert recorded["toy"]["fractions"] == [0.25, 0.5, 1]
    facts = Results.open(folder).metrics["toy"]
    assert facts == Toy().facts()
    summary = summarise(Results.open(folder))
    assert summary.leading == "toy/size"
    assert finding(summary).startswith("Lowest on Size <b> is Random: 1.000 (95 % interval ")


@pytest.mark.parametrize(
    ("metrics", "leading"),
    [
        (["completeness", "insertion"], "insertion/accuracy_auc"),
        (["cost", "grid_pointing"], "cost/seconds"),
        ([], None),
    ],
)
def test_the_metric_made_for_ranking_leads_or_the_first(tmp_path, metrics, leading):
    from results_folder import FACTS

    chosen = {metric: FACTS[metric] for metric in metrics}
    folder = write_folder(tmp_path / "r", {"A-FMI": {}}, ["a"], [0], metrics=chosen)
    write_piece(folder, "A-FMI", 0, [(0, "blank", 0.0, None)])
    summary = summarise(Results.open(folder))
    assert summary.leading == leading
    assert summary.leader is None
    assert "leads" in finding(summary)
    assert write_report(folder)["page"].exists()


def test_variants_of_a_metric_are_told_apart(tmp_path):
    metrics = {f"completeness{end}": Completeness().facts().as_dict() for end in ("", "(a=1)")}
    folder = write_folder(tmp_path / "r", {"A-FMI": {}}, ["a"], [0], metrics=metrics)
    results = Results.open(write_and_return(folder))
    assert results.metric_label("completeness(a=1)") == "Completeness (a=1)"
    assert set(summarise(results).columns) == {f"{key}/median_residual" for key in metrics}


def write_and_return(folder):
    write_piece(folder, "A-FMI", 0, [(0, "completeness/residual", 0.5, None)])
    return folder


VALUES = {
    "m/x": np.array([1.0, -2.0, 6.0, np.nan]),
    "m/y": np.array([1.0, 4.0, 2.0, 1.0]),
    "m/right": np.array([1.0, 1.0, 0.0, 1.0]),
    "m/c@50%": np.array([1.0, 2.0, 3.0, np.nan]),
    "m/c@100%": np.array([3.0, 4.0, 5.0, 1.0]),
}


@pytest.mark.parametrize(
    ("settings", "value", "count"),
    [
        ({}, 5 / 3, 3),
        ({"aggregate": "median"}, 1.0, 3),
        ({"aggregate": "median size"}, 2.0, 3),
        ({"per": "y"}, (1 - 0.5 + 3) / 3, 3),
        ({"aggregate": "ratio of means", "per": "y"}, 5 / 7, 3),
        ({"among": "right"}, -0.5, 2),
        ({"kind": "area", "value": "c"}, (1.0 + 1.5 + 2.0) / 3, 3),
        ({"kind": "area", "value": "c", "per": "y"}, (1.0 + 1.5 / 4 + 1.0) / 3, 3),
    ],
)
def test_every_way_to_aggregate_by_hand(settings, value, count):
    column = Column("x", "X", "x", **settings)
    measured = Measured("m/", (0.5, 1), VALUES)
    estimate = aggregated({"k": column}, {"k": measured}, 0)["k"]
    assert (estimate.value, estimate.count) == (pytest.approx(value), count)


@pytest.mark.parametrize(
    ("settings", "heights", "count"),
    [
        ({}, [2.0, 3.25], None),
        ({"aggregate": "median"}, [2.0, 4.0], 3),
        ({"aggregate": "ratio of means", "per": "y"}, [6 / 7, 12 / 7], 3),
        ({"among": "right"}, [1.5, 8 / 3], None),
    ],
)
def test_every_way_to_aggregate_a_curve_by_hand(settings, heights, count):
    column = Column("c", "C", "c", kind="curve", **settings)
    curve = curve_of(column, Measured("m/", (0.5, 1), VALUES), 0)
    assert curve is not None
    assert curve.percents.tolist() == [50, 100]
    assert curve.heights.tolist() == pytest.approx(heights)
    assert count is None or {estimate.count for estimate in curve.estimates} == {count}
    assert curve_of(column, Measured("other/", (0.5, 1), VALUES), 0) is None
