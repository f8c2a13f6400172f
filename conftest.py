"""What examples and tests share: the same random numbers in every run, one thread."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the notebooks, which are one long test, while other workers do the rest."""
    items.sort(key=lambda item: item.path.name != "test_notebooks.py")


@pytest.fixture(autouse=True)
def _same_numbers_every_time() -> None:
    """Seed what examples draw their weights and images from."""
    # Not torch.manual_seed: it notes the whole stack for GPUs, a millisecond for each test.
    torch.default_generator.manual_seed(0)
    # Small tensors split over threads cost more than they save.
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _rules_stay_in_their_example(request: pytest.FixtureRequest) -> Iterator[None]:
    """Forget the rules that an example registers, whichever test is the next one."""
    if not isinstance(request.node, pytest.DoctestItem):
        yield
        return
    from afmi.gradients.rules import _table

    before = dict(_table)
    yield
    _table.clear()
    _table.update(before)
