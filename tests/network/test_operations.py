"""One table of operations: every consumer takes its names from it, and none keeps a list."""

from __future__ import annotations

import ast
import importlib
import pkgutil
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import afmi
from afmi.errors import LayerError
from afmi.gradients import rules
from afmi.gradients.rule_sets import linear_rules, ordinary_rules
from afmi.methods import CAM, GradCAM
from afmi.network.layers import find_layer
from afmi.network.operations import TRAITS, Trait, operations_with

SOURCE = Path(afmi.__file__).parent
HOMES = (SOURCE / "network" / "operations.py", SOURCE / "gradients" / "rules")


# Names by which operations get rules. Those that a run is merely watched for, such as `resize`, are
# common words.
SORTED = operations_with(*(set(Trait) - {Trait.RANDOM, Trait.LAYOUT, Trait.BY_VALUES}))


def literals(path: Path) -> list[list[str]]:
    """Return the names of operations in each set, list and tuple that a module writes out."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    exported = {
        id(node.value)
        for node in ast.walk(tree)
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__"
    }
    names = []
    for node in ast.walk(tree):
        if isinstance(node, (ast.Set, ast.List, ast.Tuple)) and id(node) not in exported:
            words = [c.value for c in ast.walk(node) if isinstance(c, ast.Constant)]
            names.append([word for word in words if isinstance(word, str) and word in SORTED])
    return names


def test_sets_of_operations_are_written_out_in_one_place() -> None:
    assert any(len(names) > 2 for names in literals(HOMES[1] / "elementwise.py"))
    for path in SOURCE.rglob("*.py"):
        if not any(path.is_relative_to(home) for home in HOMES):
            assert all(len(names) < 3 for names in literals(path)), path


def test_every_operation_with_a_rule_is_in_the_table() -> None:
    modules = [
        importlib.import_module(f"{rules.__name__}.{module.name}")
        for module in pkgutil.iter_modules(rules.__path__)
    ]
    names = {name for module in modules for name in getattr(module, "RULES", {})}
    assert len(names) > 100
    assert names <= set(TRAITS)
    assert set(linear_rules()) | set(ordinary_rules()) >= operations_with(Trait.PRODUCT)


def test_a_trait_for_each_name_and_a_name_for_each_trait() -> None:
    assert all(TRAITS.values())
    assert all(operations_with(trait) for trait in Trait)
    assert TRAITS["conv3d"] == {
        *(Trait.CONVOLUTION, Trait.LINEAR_IN_FIRST, Trait.WEIGHTED, Trait.CHANNELS_FIRST),
    }
    assert operations_with(Trait.AVERAGE_POOL, Trait.MAX_POOL) >= {"avg_pool1d", "max_pool3d"}


class Head(nn.Module):
    """Feature maps, global average pooling and class scores by an operation of choice."""

    def __init__(self, operation: str) -> None:
        super().__init__()
        self.operation = operation
        self.conv = nn.Conv2d(3, 4, 3)
        self.relu = nn.ReLU()
        self.weight = nn.Parameter(torch.randn(4, 5))

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.conv(x)).mean((2, 3))
        if self.operation == "baddbmm":
            batch = self.weight.expand(len(x), -1, -1)
            return torch.baddbmm(torch.ones(len(x), 1, 5), x[:, None], batch)[:, 0]
        if self.operation == "addcmul":
            return torch.addcmul(torch.ones(len(x), 4), x, self.weight[:, 0]) @ self.weight
        return (2.0 / (1 + x)) @ self.weight


@pytest.mark.parametrize("operation", ["baddbmm", "addcmul"])
def test_cam_takes_every_product_with_a_constant(operation: str) -> None:
    model, x = Head(operation).eval(), torch.rand(2, 3, 8, 8)
    maps = CAM(model, layer="relu").attribute(x, 1)
    weights = model.weight[:, 1]
    if operation == "addcmul":
        weights = weights * model.weight[:, 0]
    activations = model.relu(model.conv(x))
    expected = (weights[:, None, None] * activations).sum(1, keepdim=True)
    torch.testing.assert_close(
        maps, nn.functional.interpolate(expected, (8, 8), mode="bilinear").detach()
    )


def test_cam_refuses_a_division_by_the_maps() -> None:
    with pytest.raises(LayerError, match="not all linear"):
        CAM(Head("rdiv").eval(), layer="relu").attribute(torch.rand(1, 3, 8, 8))


def test_three_dimensional_convolutions_count_as_weighted() -> None:
    assert operations_with(Trait.CONVOLUTION) <= operations_with(Trait.WEIGHTED)

    class Volume(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Conv3d(1, 4, 3), nn.Conv2d(4, 4, 3)
            self.head = nn.Linear(4, 5)

        def forward(self, x: Tensor) -> Tensor:
            maps = torch.relu(self.first(x[:, None]))[:, :, 0]
            return self.head(torch.relu(self.second(maps)).mean((2, 3)))

    model = Volume().eval()
    assert str(find_layer(model, torch.rand(1, 3, 12, 12))) == "second+relu"
    assert GradCAM(model).attribute(torch.rand(1, 3, 12, 12)).shape == (1, 1, 12, 12)
