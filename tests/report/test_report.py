"""The report: numbers worked out by hand, what the page says, and what it says about gaps."""

from __future__ import annotations

import csv
import html.parser
import re
from pathlib import Path

import numpy as np
import pytest
from results_folder import ALL, SIX, curve_rows, make_results, write_folder, write_piece

from afmi.errors import UsageError
from afmi.evaluation.results import Results
from afmi.metrics import Insertion
from afmi.pictures.references import Mean
from afmi.report.evaluation_report import write_report
from afmi.report.summary import summarise
from afmi.report.words import finding, number, times, unfinished
from afmi.specs import to_json

NAN = float("nan")


def _table(path: Path) -> dict[str, dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return {row["method"]: row for row in csv.DictReader(file)}


def _rows(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def _from(first: int) -> list[bool]:
    """Return whether the network is right, from ``first`` percent on."""
    return [pi >= first for pi in range(5, 101, 5)]


class _Reader(html.parser.HTMLParser):
    """Collect the text between tags, the ids, and the tags that are open."""

    VOID = ("meta", "img", "br", "link", "path", "use")

    def __init__(self, text: str) -> None:
        super().__init__()
        self.text: list[str] = []
        self.ids: list[str] = []
        self.open: list[str] = []
        self.images = 0
        self.feed(text)

    def handle_starttag(self, tag: str, attributes: list) -> None:
        self.ids += [value for name, value in attributes if name == "id"]
        self.images += tag == "img"
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attributes: list) -> None:
        self.ids += [value for name, value in attributes if name == "id"]

    def handle_endtag(self, tag: str) -> None:
        if tag not in self.VOID:
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text.append(" ".join(data.split()))


@pytest.fixture
def hand_worked(tmp_path):
    """Four pictures: the third cannot be read, and the network is wrong on the fourth."""
    folder = write_folder(
        tmp_path / "results",
        {
            "Random": {"family": "control"},
            "Gradient": {"family": "pixel"},
            "A-FMI": {"family": "feature map", "parameters": {"averaged": True}},
        },
        ["a.png", "b.png", "<c>.png", "d.png"],
        [0, 1, 2, 0],
    )
    starts = {"Random": (100, 95), "Gradient": (55, 55), "A-FMI": (5, 55)}
    seconds = {"Random": 0.0001, "Gradient": 0.1, "A-FMI": 0.25}
    for label, (first, second) in starts.items():
        rows = []
        for image, right, whole in (
            (0, _from(first), 0.8),
            (1, _from(second), 0.4),
            (3, [False] * 20, 0.001),
        ):
            # The probability of the part: always 0.4, so p̂ / p is 0.5, 1 and 400.
            rows += curve_rows(image, right, [0.4] * 19 + [whole])
            rows.append((image, "cost/seconds", seconds[label], None))
            rows.append((image, "grid_pointing/own_share", 0.25 * (image + 1), None))
        if label == "A-FMI":
            rows += [
                (image, "completeness/residual", value, None)
                for image, value in ((0, -0.3), (1, 0.1), (3, 0.2))
            ]
        rows.append((2, "error", NAN, "'<c>.png' is\ncut short"))
        write_piece(folder, label, 0, rows)
    return folder


def test_table_1_by_hand(hand_worked):
    table = _table(write_report(hand_worked, beside={"A-FMI": 0.5908})["table1"])
    assert list(table) == ["A-FMI", "Gradient", "Random"]
    # Areas over PI from 5 %: right throughout 0.95; from 55 % 0.475; at 100 % alone 0.025.
    best, control = table["A-FMI"], table["Random"]
    assert float(best["insertion/accuracy_auc"]) == pytest.approx((0.95 + 0.475) / 3)
    assert float(best["insertion/accuracy_auc_of_correct"]) == pytest.approx((0.95 + 0.475) / 2)
    assert (
        best["insertion/accuracy_auc_images"],
        best["insertion/accuracy_auc_of_correct_images"],
    ) == ("3", "2")
    assert float(best["insertion/accuracy_auc_low"]) == pytest.approx(0.0)
    assert float(best["insertion/accuracy_auc_high"]) == pytest.approx(0.95)
    assert float(control["insertion/accuracy_auc"]) == pytest.approx((0.025 + 0.075) / 3)
    # p̂ / p is flat but for its last segment, which ends at 1: 0.9 r + 0.025 (r + 1).
    areas = [0.9 * r + 0.025 * (r + 1) for r in (0.5, 1.0, 400.0)]
    assert float(best["insertion/softmax_auc_mean"]) == pytest.approx(sum(areas) / 3)
    assert float(best["insertion/softmax_auc_median"]) == pytest.approx(areas[1])
    # Areas under p̂ itself, over the probabilities of the whole pictures.
    above = sum(0.9 * 0.4 + 0.025 * (0.4 + p) for p in (0.8, 0.4, 0.001))
    assert float(best["insertion/softmax_auc_ratio_of_means"]) == pytest.approx(above / 1.201)
    assert float(best["completeness/median_residual"]) == pytest.approx(0.2)
    assert table["Gradient"]["completeness/median_residual"] == ""
    assert float(best["grid_pointing/own_share"]) == pytest.approx((0.25 + 0.5 + 1) / 3)
    assert float(best["cost/seconds_times_lowest"]) == pytest.approx(2.5)
    assert (
        table["Gradient"]["cost/seconds_times_lowest"],
        control["cost/seconds_times_lowest"],
    ) == ("1.0", "")
    assert (best["images"], best["done"], best["failed"]) == ("4", "4", "1")
    assert (best["published"], table["Gradient"]["published"]) == ("0.5908", "")


def test_curves_by_hand(hand_worked):
    curves: dict[str, list[dict[str, str]]] = {}
    for row in _rows(write_report(hand_worked)["curves"]):
        if row["method"] == "A-FMI":
            curves.setdefault(row["curve"].removeprefix("insertion/"), []).append(row)
    for rows in curves.values():
        assert [float(row["percent"]) for row in rows] == list(range(5, 101, 5))
    values = {name: [float(row["value"]) for row in rows] for name, rows in curves.items()}
    assert values["accuracy"] == pytest.approx([1 / 3] * 10 + [2 / 3] * 10)
    assert {row["images"] for row in curves["accuracy"]} == {"3"}
    assert values["softmax_ratio_mean"][0] == pytest.approx((0.5 + 1 + 400) / 3)
    assert values["softmax_ratio_median"][0] == pytest.approx(1)
    assert values["softmax_ratio_of_means"][0] == pytest.approx(1.2 / 1.201)
    assert values["softmax_ratio_mean"][-1] == pytest.approx(1)
    # Medians and ratios of means have no intervals.
    assert all(row["low"] for name in ("accuracy", "softmax_ratio_mean") for row in curves[name])
    assert not any(row["low"] for row in curves["softmax_ratio_median"])


def test_pairs_by_hand(hand_worked):
    rows = _rows(write_report(hand_worked)["pairs"])
    by_pair = {(row["first"], row["second"]): row for row in rows}
    assert list(by_pair) == [("A-FMI", "Gradient"), ("A-FMI", "Random"), ("Gradient", "Random")]
    row = by_pair["A-FMI", "Gradient"]
    # 0.475 better on the first picture, equal on the second and on the wrong one.
    assert float(row["difference"]) == pytest.approx(0.475 / 3)
    assert [float(row[k]) for k in ("wins", "ties", "losses")] == pytest.approx([1 / 3, 2 / 3, 0])
    assert row["images"] == "3"


def test_pairs_can_be_asked_for_either_way(hand_worked):
    summary = summarise(Results.open(hand_worked))
    forth, back = summary.pair("A-FMI", "Gradient"), summary.pair("Gradient", "A-FMI")
    assert (back.wins, back.losses) == (forth.losses, forth.wins)
    assert back.difference.value == -forth.difference.value
    assert (back.difference.low, back.difference.high) == (
        -forth.difference.high,
        -forth.difference.low,
    )
    assert summary.pair("A-FMI", "A-FMI") is None


def test_the_page_tells_what_went_wrong_and_how_to_repeat(hand_worked):
    text = write_report(hand_worked)["page"].read_text(encoding="utf-8")
    page = _Reader(text)
    assert "<c>" not in text
    assert "<c>.png" in page.text
    assert "'<c>.png' is cut short" in page.text
    assert "all methods" in page.text
    assert (
        "1 picture could not be read, explained or measured, and is left out of those averages."
        in page.text
    )
    assert "averaged = true" in page.text
    assert "afmi evaluate photographs --out results" in page.text
    assert any("abc123" in words for words in page.text)
    assert any("def456" in words for words in page.text)
    assert any("reading order" in words for words in page.text)
    assert any("the highest possible value is 0.95" in words for words in page.text)
    assert any("cut off there" in words for words in page.text)  # a mean ratio of 134


def test_the_lead_names_the_leader_and_those_that_may_be_as_good(hand_worked, tmp_path):
    # On three pictures the drawn differences include none at all.
    said = finding(summarise(Results.open(hand_worked)))
    assert said.startswith("Highest on Accuracy-AUC is A-FMI: 0.475 (95 % interval 0.000–0.950).")
    assert "Gradient and Random cannot be told apart from it" in said
    clear = summarise(Results.open(make_results(tmp_path / "clear", ("Random", "A-FMI"))))
    assert finding(clear).endswith("its lead over every other method is clear.")
    alone = summarise(Results.open(tmp_path / "clear"), ["a-fmi"])
    assert finding(alone).count(".") == 4  # one sentence, with three numbers


@pytest.mark.parametrize("methods", [SIX, ALL])
def test_a_page_stands_alone_and_is_sound(tmp_path, methods):
    folder = make_results(tmp_path, methods, examples=1)
    text = write_report(folder)["page"].read_text(encoding="utf-8")
    page = _Reader(text)
    assert page.open == []
    assert len(page.ids) == len(set(page.ids))
    for pointed in re.findall(r'href="#([^"]+)"|url\(#([^)]+)\)', text):
        assert "".join(pointed) in page.ids
    # Nothing is fetched: all that is left of addresses are the names of SVG's own languages.
    addresses = set(re.findall(r"https?://[^\"\s<]+", text))
    assert addresses <= {"http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"}
    assert not re.search("<script|<link|@import", text)
    # No colour of the drawings is fixed, so all fit a dark page.
    assert not re.search(r"#0102\d\d", text)
    assert page.images == 1 + 2 * len(methods)
    charts = re.findall(r'aria-label="([^"]*)"', text)
    assert len(charts) == 5  # the intervals, and each curve of insertion
    assert all(label in chart for chart in charts for label in methods)


def test_the_same_results_make_the_same_page(tmp_path):
    folder = make_results(tmp_path / "results", SIX[-2:])
    first = write_report(folder)["page"].read_bytes()
    files = write_report(folder, tmp_path / "elsewhere")
    assert files["page"] == tmp_path / "elsewhere" / "report.html"
    assert files["page"].read_bytes() == first
    assert sorted(path.name for path in (tmp_path / "elsewhere").iterdir()) == [
        "curves.csv",
        "pairs.csv",
        "report.html",
        "table1.csv",
    ]


def test_an_unfinished_method_is_marked_and_never_leads_those_finished(tmp_path):
    folder = make_results(tmp_path, done={"A-FMI": 7, "Grad-CAM": 0})
    summary = summarise(Results.open(folder))
    assert summary.leader is not None
    assert summary.leader.label == "XRAI"
    assert not summary.finished
    assert unfinished(summary).startswith("Not finished: A-FMI (7 of 40 pictures). Averages of it ")
    assert "Not begun: Grad-CAM. Run" in unfinished(summary)
    page = _Reader(write_report(folder)["page"].read_text(encoding="utf-8"))
    assert unfinished(summary) in page.text
    assert page.text.count("not finished") == 1
    assert "Grad-CAM" not in _table(folder / "table1.csv")


def test_other_measurements_need_no_insertion(tmp_path):
    folder = write_folder(tmp_path / "r", {"A-FMI": {}, "CAM": {"refused": "why"}}, ["a"], [0])
    write_piece(folder, "A-FMI", 0, [(0, "grid_pointing/own_share", 0.5, None)])
    files = write_report(folder)
    page = _Reader(files["page"].read_text(encoding="utf-8"))
    assert any("no method leads on Accuracy-AUC" in words for words in page.text)
    assert "0.500" in page.text
    assert "Left out: CAM (why)." in page.text
    assert "Curves of insertion" not in page.text
    assert _rows(files["curves"]) == _rows(files["pairs"]) == []


def test_pictures_whose_probability_vanishes_are_left_out_of_ratios(tmp_path):
    folder = write_folder(tmp_path / "r", {"A-FMI": {}}, ["a", "b"], [0, 0])
    rows = curve_rows(0, _from(5), [0.5] * 20)
    with np.errstate(divide="ignore", invalid="ignore"):
        rows += curve_rows(1, _from(100), [0.5] * 19 + [0.0])
    write_piece(folder, "A-FMI", 0, rows)
    (method,) = summarise(Results.open(folder)).methods
    mean = method.averages["insertion/softmax_auc_mean"]
    assert (mean.value, mean.missing) == (pytest.approx(0.95), 1)
    first = method.curves["insertion/softmax_ratio_mean"].estimates[0]
    assert (first.value, first.missing) == (1.0, 1)
    # Both pictures count here: 0.5 and 0.5 over 0.5 and 0.
    assert method.curves["insertion/softmax_ratio_of_means"].heights[0] == 2.0


def test_another_canvas_than_black_is_told(tmp_path):
    run = {"metrics": {"insertion": to_json(Insertion(canvas=Mean()))}, "batch_size": 8}
    metrics = {"insertion": Insertion(canvas=Mean()).facts().as_dict()}
    folder = write_folder(tmp_path / "r", {"A-FMI": {}}, ["a"], [0], run=run, metrics=metrics)
    write_piece(folder, "A-FMI", 0, curve_rows(0, _from(5), [0.5] * 20))
    text = " ".join(_Reader(write_report(folder)["page"].read_text(encoding="utf-8")).text)
    assert text.count("the rest from the canvas mean.") == 2
    assert "the rest black" not in text
    # A manifest without names, versions or labels still makes a page.
    assert "How faithful are explanations of a network?" in text


def test_methods_can_be_chosen(tmp_path):
    folder = make_results(tmp_path)
    assert list(_table(write_report(folder, methods=["gradcam", "A-FMI"])["table1"])) == [
        "A-FMI",
        "Grad-CAM",
    ]
    with pytest.raises(UsageError, match="no method called 'rise'"):
        write_report(folder, methods=["rise"])


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.12345, "0.123"), (-0.5, "−0.500"), (-0.0001, "0.000"), (12345.6, "1.23e+04"), (NAN, "–")],
)
def test_numbers_for_tables(value, text):
    assert number(value) == text


@pytest.mark.parametrize(("value", "text"), [(1, "1.0 ×"), (1234.4, "1,234 ×"), (NAN, "–")])
def test_times_for_tables(value, text):
    assert times(value) == text
