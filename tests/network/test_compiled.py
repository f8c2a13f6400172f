"""A network compiled by torch.compile is explained uncompiled."""

from __future__ import annotations

import pytest
import torch
from networks import build, images
from torch import nn

from afmi.methods import AFMI, RISE, DeepLIFT, Gradient, Method


def compiled(whole: bool) -> nn.Module:
    network = build("resnet")
    if whole:
        # The graph is captured, but no machine code is made, which would take a minute.
        return torch.compile(network, backend="eager")  # type: ignore[return-value]
    network.compile(backend="eager")
    return network


@pytest.mark.filterwarnings("ignore:Using `torch.compile")
@pytest.mark.parametrize("whole", [True, False])
@pytest.mark.parametrize("method", [AFMI, DeepLIFT, Gradient, RISE])
def test_compiled_networks_are_explained_alike(method: type[Method], whole: bool) -> None:
    network, x = compiled(whole), images(2)
    with torch.no_grad():
        network(x)
    options = {"masks": 20} if method is RISE else {}
    expected = method(build("resnet"), **options).attribute(x, 1)
    torch.testing.assert_close(method(network, **options).attribute(x, 1), expected)
    with torch.no_grad():  # still compiled, and nothing of ours left in it
        torch.testing.assert_close(network(x), build("resnet")(x))
