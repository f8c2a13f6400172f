"""Gradients at several layers from one pass: those of a pass for each, to the bit."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from networks import TINY, build, images
from torch import Tensor, nn

from afmi.errors import LayerError
from afmi.gradients import modified_gradient
from afmi.network.layers import FinerStage, LayerChoice
from afmi.pictures.references import Black, Blurred, Reference

STAGES = {
    "vgg": ("features.2", "features.5"),
    "resnet": ("maxpool", "layer1"),
    "functional": ("conv1+silu", "conv2"),
}


@pytest.mark.parametrize("reference", [Black(), Blurred()])
@pytest.mark.parametrize("network", TINY)
def test_each_stage_has_what_its_own_run_gives(network: str, reference: Reference) -> None:
    model, x, classes = build(network, torch.float64), images().double(), torch.tensor([[0, 1, 2]])
    names = STAGES[network]
    run = modified_gradient(
        model, x, layer=None, reference=reference, stages=[LayerChoice(name) for name in names]
    )
    terms = run.stage_terms(classes)
    for layer, term in zip((None, *map(LayerChoice, names)), terms, strict=True):
        alone = modified_gradient(model, x, layer=layer, reference=reference)
        torch.testing.assert_close(term.gradient, alone.gradients(classes), rtol=1e-12, atol=1e-15)
        torch.testing.assert_close(term.change, alone.change(), rtol=1e-12, atol=1e-15)


class Twice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 3, padding=1)
        self.unused = nn.Conv2d(3, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.conv(F.relu(self.conv(x)))).mean((2, 3))


@pytest.mark.parametrize(
    ("name", "error"), [("conv", "runs more than once"), ("unused", "was not reached")]
)
def test_a_stage_that_is_none(name: str, error: str) -> None:
    with pytest.raises(LayerError, match=error):
        modified_gradient(
            Twice(), images(), layer=None, reference=Black(), stages=[LayerChoice(name)]
        )


class Padded(nn.Module):
    """12 × 12 places, padded to 14, then 6 × 6."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 4, 3, padding=1)
        self.second = nn.Conv2d(4, 4, 3, stride=2)
        self.third = nn.Conv2d(4, 4, 3, padding=1)
        self.head = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = F.pad(F.relu(self.first(x)), (1, 1, 1, 1))
        return self.head(F.relu(self.third(F.relu(self.second(x)))).mean((2, 3)))


def test_the_finer_stage() -> None:
    x = torch.rand(2, 3, 12, 12)
    layer = LayerChoice(None)
    found = FinerStage(layer).resolve(Padded(), x)
    assert found is not None
    assert str(found[1]) == "first+relu"
    assert FinerStage(LayerChoice("first")).resolve(Padded(), x) is None
    run = modified_gradient(
        Padded(), x, layer=None, reference=Black(), stages=[FinerStage(LayerChoice("first"))]
    )
    assert run.run.stages == ()


class WritesBehind(nn.Module):
    """Goes on with what a module gave, and then writes to that."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 3)
        self.keep = nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        maps = self.conv(x)
        onward = self.keep(maps) * 2
        maps.relu_()
        return (onward + maps).mean((2, 3))


def test_a_stage_that_is_overwritten_beside() -> None:
    with pytest.raises(LayerError, match="overwrites what layer keep gave"):
        modified_gradient(
            WritesBehind(), images(), layer=None, reference=Black(), stages=[LayerChoice("keep")]
        )


class Pooled(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return F.avg_pool2d(self.conv(x), 2).mean((2, 3))


def test_the_finer_stage_of_an_operation() -> None:
    """The places of pooled maps are fewer than those of the module before the pooling."""
    found = FinerStage(LayerChoice("conv+avg_pool2d")).resolve(Pooled(), images())
    assert found is not None
    assert str(found[1]) == "conv"
