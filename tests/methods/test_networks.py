"""Every method on the networks of users: finite maps, batch equals singles, nothing left behind."""

from __future__ import annotations

import warnings

import pytest
import torch
from completeness import photographs, torchvision_classifier
from networks import MNISTNet, images
from settings import method
from torch import Tensor, nn

from afmi import load_model
from afmi.errors import LayerError
from afmi.methods import CATALOGUE, BlankMapWarning

NETWORKS = (
    *("vgg19", "resnet50", "mobilenet_v2", "squeezenet1_0", "densenet121", "efficientnet_b0"),
    *("photos", "mnist"),
)
# Their heads are more than global average pooling and one linear layer.
NO_CAM = ("vgg19", "squeezenet1_0", "photos", "mnist")

_made: dict[str, tuple[nn.Module, Tensor]] = {}


def made(name: str) -> tuple[nn.Module, Tensor]:
    """Return a network in double precision, so that rounding decides nothing, and three images."""
    if name not in _made:
        _made.clear()
        if name == "mnist":
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(0)
                pair: tuple[nn.Module, Tensor] = (MNISTNet().eval(), images(3, 28, channels=1))
        elif name == "photos":
            pair = load_model("photos"), photographs(64, 3)
        else:
            pair = torchvision_classifier(name, 64), photographs(64, 3)
        _made[name] = pair[0].double(), pair[1].double()
    return _made[name]


# In float64, which PyTorch convolves slowly.
FEW_PASSES = {"KernelSHAP": {"samples": 20}, "PredictionDifference": {"samples": 1, "stride": 10}}


@pytest.mark.slow
@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("name", CATALOGUE)
def test_method_on_network(network: str, name: str) -> None:
    model, x = made(network)
    of = method(name, model, **FEW_PASSES.get(name, {}))
    target = torch.tensor([1, 5, 7])
    before = {key: value.clone() for key, value in model.state_dict().items()}
    if name == "CAM" and network in NO_CAM:
        with pytest.raises(LayerError, match="global average pooling and one linear layer"):
            of.attribute(x, target)
        return
    with warnings.catch_warnings():
        # Coarse stages of small images, and DeconvNet's dead signals, may leave a map blank.
        warnings.simplefilter("ignore", BlankMapWarning)
        together = of.attribute(x, target)
        alone = torch.cat([of.attribute(x[i : i + 1], target[i : i + 1]) for i in range(3)])
    assert together.shape == (3, 1, *x.shape[2:])
    assert torch.isfinite(together).all()
    torch.testing.assert_close(together, alone, rtol=1e-6, atol=1e-9)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert not any(m.training or m._forward_hooks or m._backward_hooks for m in model.modules())
    assert all(p.grad is None and p.requires_grad for p in model.parameters())
