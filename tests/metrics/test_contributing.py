"""The metric that CONTRIBUTING.md shows works exactly as shown."""

from __future__ import annotations

import doctest
import importlib
import re
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

import afmi.metrics
from afmi.methods import Attribution, Random
from afmi.metrics import Case

ROOT = Path(__file__).parents[2]


def test_the_example_metric_is_a_metric(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    pattern = r"<!-- example: src/afmi/metrics/(\w+)\.py -->\n```python\n(.*?)```"
    match = re.search(pattern, text, re.DOTALL)
    assert match is not None
    name = match[1]
    (tmp_path / f"{name}.py").write_text(match[2], encoding="utf-8")
    # As if the file lay in its folder: it is listed, and its docstring's example runs.
    monkeypatch.setattr(afmi.metrics, "__path__", [*afmi.metrics.__path__, str(tmp_path)])
    try:
        cls = afmi.metrics.CATALOGUE["Sparseness"]
        module = importlib.import_module(f"afmi.metrics.{name}")
        assert doctest.testmod(module).attempted > 0
        assert doctest.testmod(module).failed == 0
        maps = torch.tensor([[0.0, 0, -3, 0], [2, 2, -2, 2], [0, 0, 0, 0]]).view(3, 1, 2, 2)
        targets = torch.zeros(3, dtype=torch.int64)
        method = Random(nn.Sequential(nn.Flatten(), nn.Linear(4, 2)))
        case = Case(method, maps, targets, Attribution(maps, targets), torch.zeros(3, 2))
        gini = cls().measure(case)["gini"]
        assert gini[:2].tolist() == [0.75, 0.0]
        assert bool(gini[2].isnan())
    finally:
        sys.modules.pop(f"afmi.metrics.{name}", None)
        vars(afmi.metrics).pop(name, None)
