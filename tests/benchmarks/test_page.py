"""The page on speed shows what was measured last: its table, its pictures."""

from __future__ import annotations

import re
from pathlib import Path

from benchmarks.speed.record import read, slower

DOCS = Path(__file__).parents[2] / "docs"


def test_the_page_has_every_scenario_with_its_pictures() -> None:
    page = (DOCS / "speed.md").read_text(encoding="utf-8")
    scenarios = {row.scenario.partition(":")[0] for row in read(DOCS / "results/benchmarks.csv")}
    marks = set(re.findall(r"<!-- benchmarks: ([a-z ]+) -->", page))
    assert scenarios == marks - {"where", "losses"}
    pictures = re.findall(r"\]\((results/[^)]+)\)", page)
    assert pictures
    assert all((DOCS / picture).exists() for picture in pictures)


def test_only_other_packages_are_peers() -> None:
    rows = read(DOCS / "results/benchmarks.csv")
    peers = {row.against for row in rows if row.against_peer}
    assert all(re.match(r"(Captum|grad-cam|torchcam|shap|saliency)'s ", peer) for peer in peers)
    assert {row.against for row in slower(rows)} <= peers
