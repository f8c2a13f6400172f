"""Networks and checks that the tests of the pixel methods share."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from afmi.methods.base import Method


def plain(*, bias: bool = True, activation: type[nn.Module] = nn.ReLU, seed: int = 0) -> nn.Module:
    """Convolutions, non-overlapping max pooling and fully connected layers, float64.

    No module runs twice and none works in place, so packages that hook modules are right here.
    For images (N, 3, 12, 12); 5 classes.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = nn.Sequential(
            nn.Conv2d(3, 6, 3, padding=1, bias=bias),
            activation(),
            nn.Conv2d(6, 6, 3, padding=1, bias=bias),
            activation(),
            nn.MaxPool2d(2),
            nn.Flatten(),
            nn.Linear(6 * 36, 16, bias=bias),
            activation(),
            nn.Linear(16, 5, bias=bias),
        )
    return network.double().eval()


def photo_like(model: nn.Module, images: Tensor) -> nn.Module:
    """Give the batch norms the statistics of some images, and return the model for evaluation."""
    norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    for norm in norms:
        norm.momentum = None
        norm.train()
    with torch.no_grad():
        model(images)
    return model.eval()


def forward_layers(network: nn.Module, x: Tensor) -> list[Tensor]:
    """Return the input of each layer of a sequential network, and the output last."""
    activations = [x]
    with torch.no_grad():
        for layer in network.children():
            activations.append(layer(activations[-1]))
    return activations


def transposed(layer: nn.Module, x: Tensor, signal: Tensor) -> Tensor:
    """Send a signal back through a layer that is linear, given where its maxima were."""
    if isinstance(layer, nn.Conv2d):
        return F.conv_transpose2d(signal, layer.weight, stride=layer.stride, padding=layer.padding)
    if isinstance(layer, nn.Linear):
        return signal @ layer.weight
    if isinstance(layer, nn.Flatten):
        return signal.reshape(x.shape)
    assert isinstance(layer, nn.MaxPool2d)
    _, switches = F.max_pool2d(x, layer.kernel_size, layer.stride, return_indices=True)
    size = list(x.shape)
    return F.max_unpool2d(signal, switches, layer.kernel_size, layer.stride, output_size=size)


def assert_like_any_method(method: Method, images: Tensor) -> None:
    """Check shape, finiteness, float64, batch = singles, and that the model is untouched."""
    model = method.model
    before = {k: v.clone() for k, v in model.state_dict().items()}
    modes = [m.training for m in model.modules()]
    state = torch.random.get_rng_state()
    maps = method.attribute(images)
    assert maps.shape == (images.shape[0], 1, *images.shape[2:])
    assert maps.dtype == images.dtype
    assert maps.isfinite().all()
    assert not maps.requires_grad
    singles = torch.cat([method.attribute(image[None]) for image in images])
    scale = float(maps.abs().max())
    close = 1e-9 if images.dtype == torch.float64 else 2e-4
    torch.testing.assert_close(maps, singles, rtol=close, atol=close * scale)
    assert torch.equal(state, torch.random.get_rng_state())
    assert modes == [m.training for m in model.modules()]
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())
    assert not any(m._forward_hooks or m._backward_hooks for m in model.modules())
