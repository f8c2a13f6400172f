"""Signals and volumes are evaluated as pictures are."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import afmi
from afmi import Classifier


def network(sides: int) -> nn.Module:
    torch.manual_seed(0)
    convolution = {1: nn.Conv1d, 3: nn.Conv3d}[sides]
    pool = {1: nn.AdaptiveAvgPool1d, 3: nn.AdaptiveAvgPool3d}[sides]
    return nn.Sequential(
        convolution(1, 4, 3), nn.ReLU(), convolution(4, 4, 3), nn.ReLU(), pool(1), nn.Flatten(),
        nn.Linear(4, 2),
    )  # fmt: skip


@pytest.mark.parametrize(("sides", "shape"), [(1, (1, 30)), (3, (1, 7, 8, 9))])
def test_signals_and_volumes(sides, shape, tmp_path):
    model = Classifier(network(sides), labels=["calm", "wild"])
    generator = torch.Generator().manual_seed(0)
    items: list[tuple[Tensor, int]] = [
        (torch.rand(shape, generator=generator), n % 2) for n in range(4)
    ]
    methods = "a-fmi,a-fmi:averaged=false,gradient,random"
    results = afmi.evaluate(model, items, tmp_path, methods=methods, examples=1)
    assert len(results.methods) == 4
    for method in results.methods:
        assert not results.errors(method)
        areas = results.values(method)["insertion/accuracy_auc"]
        assert len(areas) == 4 and ((areas >= 0) & (areas <= 0.95 + 1e-9)).all()
    assert afmi.report.write_report(tmp_path)
