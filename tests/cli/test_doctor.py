"""``afmi doctor``: what a report of a fault needs, and whether an image is explained right."""

from __future__ import annotations

import importlib
import importlib.metadata
import json

import pytest

import afmi as package
from afmi.errors import ModelError

module = importlib.import_module("afmi.cli.doctor")


def test_doctor_tells_what_there_is(afmi, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("SECRET_TOKEN", "hush")
    result = afmi("doctor", "--json")
    assert result.exit_code == 0
    facts = json.loads(result.stdout)
    assert facts["afmi"]["version"] == package.__version__
    assert facts["packages"]["torch"] == importlib.metadata.version("torch")
    assert {"pillow", "timm", "torchvision"} <= set(facts["packages"])
    assert {"medical", "ray", "transformers"} <= set(facts["extras"])
    assert f"pyarrow {importlib.metadata.version('pyarrow')}" in facts["extras"]["evaluation"]
    assert facts["devices"][0] == "cpu"
    assert facts["variables"]["OMP_NUM_THREADS"] == "1"
    assert facts["check"]["works"] is True
    assert abs(facts["check"]["residual"]) < 1e-3
    assert "hush" not in result.stdout


@pytest.mark.parametrize("residual", [0.2, None])
def test_a_wrong_map_is_told(afmi, monkeypatch, residual):
    monkeypatch.setattr(module, "_explained", lambda: {"works": False, "residual": residual})
    result = afmi("doctor")
    assert result.exit_code == 1
    assert "  works: no" in result.stdout


def test_a_failure_is_told(afmi, monkeypatch):
    def fail():
        raise ModelError("no weights\nare there")

    monkeypatch.setattr(module, "_explained", fail)
    result = afmi("doctor")
    assert result.exit_code == 1
    assert "  error: no weights are there" in result.stdout


def test_missing_extras_are_named(monkeypatch):
    lines = ["torch>=2", "afmi[demo]; extra == 'dev'", 'nosuch>=1; extra == "medical"', "a-b~=1"]
    monkeypatch.setattr(importlib.metadata, "requires", lambda _: lines)
    assert module._requirements() == (["torch", "a-b"], {"medical": ["nosuch"]})
    assert module._facts()["extras"] == {"medical": "missing nosuch"}
