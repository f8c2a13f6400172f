"""MaskingNetwork: a decoder from a classifier's feature maps to the mask of a class."""

from __future__ import annotations

import functools
import importlib.resources
import math
import os
from collections.abc import Mapping, Sequence
from typing import Any

import safetensors.torch
import torch
import torch.nn.functional as F
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from afmi.errors import ModelError, first_line
from afmi.files import as_json, parse_json
from afmi.models import photos
from afmi.models.weights import read_weights, refuse_misfits, reshaped
from afmi.network.fingerprint import fingerprint_of
from afmi.network.randomness import generator_of, keeping_random_state
from afmi.network.scales import find_scales, read_scales

__all__ = [
    "MaskingNetwork",
    "embedded_masks",
    "load_masks",
    "masks_as_bytes",
    "not_finite",
    "untrained",
]

_FORMAT = "afmi masking network"
_VERSION = 1
_KEY = "afmi"
_TINY = 1e-6
"""Keeps the mask finite where both of its channels are 0."""


class MaskingNetwork(nn.Module):
    """Map feature maps of a classifier at several scales, and a class, to a mask in [0, 1].

    The class selector lets those places of the coarsest maps X pass that look like the class c:
    X_ij σ(X_ij · C_c), with a learned vector C_c for each class. Each block doubles the sides
    (convolution, batch norm, ReLU, pixel shuffle), takes in the classifier's maps of that scale,
    and mixes both. From two channels a and b of the last block, the mask is |a| / (|a| + |b|).

    Args:
        layers: names of the layers that give the maps, coarsest first.
        channels: of each layer's maps.
        classes: how many there are.
        width: channels of the finest block; coarser blocks have twice as many each.
        fingerprint: of the network that the layers are of.
        device: where the weights are made.

    Example:
        >>> masks = MaskingNetwork(["4", "1"], [8, 6], classes=3, width=4)
        >>> coarse, fine = torch.rand(2, 8, 4, 4), torch.rand(2, 6, 8, 8)
        >>> masks.eval()([coarse, fine], torch.tensor([0, 2])).shape
        torch.Size([2, 1, 8, 8])
    """

    def __init__(
        self,
        layers: Sequence[str],
        channels: Sequence[int],
        classes: int,
        width: int = 32,
        fingerprint: str = "",
        device: torch.device | str = "cpu",
    ) -> None:
        super().__init__()
        self.layers = tuple(layers)
        self.channels = tuple(channels)
        self.classes = classes
        self.width = width
        self.fingerprint = fingerprint
        place: dict[str, Any] = {"dtype": torch.float32, "device": device}
        ups = len(self.channels) - 1
        self.selector = nn.Embedding(classes, self.channels[0], **place)
        self.blocks = nn.ModuleList()
        depth = self.channels[0]
        for scale, passed in enumerate(self.channels[1:], 1):
            wide = width * 2 ** (ups - scale)
            self.blocks.append(_Upsampler(depth, passed, wide, place))
            depth = wide
        self.mask = nn.Conv2d(depth, 2, 1, **place)

    def presence(self, coarsest: Tensor) -> Tensor:
        """Return for each class how much it seems to be there, (N, K): the mean of X_ij · C_c."""
        return F.linear(coarsest.mean((2, 3)), self.selector.weight)

    def forward(self, maps: Sequence[Tensor], classes: Tensor) -> Tensor:
        """Return masks (N, 1, h, w) of the finest maps' size.

        Args:
            maps: (N, K, h, w) of each layer.
            classes: int64 (N,).
        """
        coarsest, *finer = maps
        # The selector learns from the presence of classes alone, as in the authors' program.
        chosen = self.selector.weight.detach()[classes]
        likeness = torch.einsum("nkhw,nk->nhw", coarsest, chosen)[:, None]
        x = coarsest * likeness.sigmoid()
        for block, passed in zip(self.blocks, finer, strict=True):
            x = block(x, passed)
        a, b = self.mask(x).abs().split(1, dim=1)
        return a / (a + b + _TINY)


class _Upsampler(nn.Module):
    """Double the sides, take in maps of that scale, and mix both by a bottleneck."""

    def __init__(self, depth: int, passed: int, wide: int, place: Mapping[str, Any]) -> None:
        super().__init__()

        def convolution(inputs: int, outputs: int, side: int) -> nn.Sequential:
            return nn.Sequential(
                nn.Conv2d(inputs, outputs, side, padding=side // 2, bias=False, **place),
                nn.BatchNorm2d(outputs, **place),
                nn.ReLU(),
            )

        narrow = max(1, wide // 4)
        self.up = convolution(depth, 4 * wide, 3)
        self.mix = nn.Sequential(
            convolution(wide + passed, narrow, 1),
            convolution(narrow, narrow, 3),
            nn.Conv2d(narrow, wide, 1, bias=False, **place),
            nn.BatchNorm2d(wide, **place),
        )
        self.around = nn.Conv2d(wide + passed, wide, 1, **place)

    def forward(self, x: Tensor, passed: Tensor) -> Tensor:
        """Return (N, wide, h, w) of coarser x and maps of the sides h and w."""
        x = F.pixel_shuffle(self.up(x), 2)
        if x.shape[2:] != passed.shape[2:]:  # 13 places a side are followed by 27 in some networks
            x = F.interpolate(x, passed.shape[2:], mode="bilinear", align_corners=False)
        x = torch.cat([x, passed], 1)
        return F.relu(self.mix(x) + self.around(x))


def untrained(
    model: nn.Module, images: Tensor, *, width: int = 32, finest: int = 4, seed: int = 0
) -> MaskingNetwork:
    """Return a masking network with random weights for a classifier, which is run on an image.

    Args:
        model: a `Classifier`, or any convolutional network with classes.
        images: (N, C, H, W), of the size that it will see.
        width: see `MaskingNetwork`.
        finest: pixels that a place of the finest maps stands for at least; see
            `afmi.network.scales.find_scales`. The masks have that size.
        seed: of the weights.
    """
    layers = find_scales(model, images, finest=finest)
    maps, logits = read_scales(model, images[:1], layers)
    channels = [one.shape[1] for one in maps]
    with keeping_random_state(torch.device("cpu")):  # from which PyTorch's own weights are drawn
        made = MaskingNetwork(layers, channels, logits.shape[1], width, fingerprint_of(model))
    _draw(made, generator_of(seed))
    return made.eval()


def _draw(network: MaskingNetwork, generator: torch.Generator) -> None:
    """Draw the weights: He's uniform for convolutions, small vectors for the selector."""
    with torch.no_grad():
        for module in network.modules():
            if isinstance(module, nn.Conv2d):
                bound = math.sqrt(3 / module.weight[0].numel())
                module.weight.uniform_(-bound, bound, generator=generator)
                if module.bias is not None:
                    module.bias.uniform_(-bound, bound, generator=generator)
        selector = network.selector.weight
        selector.normal_(0, selector.shape[1] ** -0.5, generator=generator)


def masks_as_bytes(network: MaskingNetwork, training: Mapping[str, Any]) -> bytes:
    """Return a masking network as a .safetensors file, in float16 where that holds it.

    Args:
        network: trained.
        training: how, as JSON holds it.

    Raises:
        ModelError: when a weight is not finite.
    """
    state = network.state_dict()
    if not_finite(state):
        raise ModelError(
            f"expected finite weights of a masking network, but {not_finite(state)[0]} has others; "
            "train it again, at a smaller learning rate"
        )
    parameters = {name for name, _ in network.named_parameters()}
    state = {
        name: _stored(tensor.detach().to("cpu", torch.float32), small=name in parameters)
        for name, tensor in state.items()
        if tensor.is_floating_point()
    }
    record = {
        "format": _FORMAT,
        "version": _VERSION,
        "fingerprint": network.fingerprint,
        "layers": network.layers,
        "channels": network.channels,
        "classes": network.classes,
        "width": network.width,
        "training": training,
    }
    # Under one key, so that the same masks make the same bytes: several are in any order.
    return safetensors.torch.save(state, {_KEY: as_json(record)})


def not_finite(state: Mapping[str, Tensor]) -> list[str]:
    """Return the names of the tensors in which a number is infinite or NaN."""
    return [name for name, tensor in state.items() if not bool(tensor.isfinite().all())]


def _stored(tensor: Tensor, *, small: bool) -> Tensor:
    """Return a tensor in float16 where it may be ``small`` and no number gets too large by that.

    The variances of a batch norm may: they are squares.
    """
    half = tensor.to(torch.float16)
    return (half if small and bool(half.isfinite().all()) else tensor).contiguous()


def load_masks(path: str | os.PathLike[str]) -> tuple[MaskingNetwork, dict[str, Any]]:
    """Return the masking network in a file, in evaluation mode, and how it was trained.

    Nothing in the file is executed.

    Raises:
        ModelError: when the file cannot be read, or ``afmi train masking-model`` did not write it.
    """
    state = read_weights(path)
    record = _record(path)
    try:
        layers, channels, classes, width, training = (
            record[key] for key in ("layers", "channels", "classes", "width", "training")
        )
        if len(layers) != len(channels):
            raise ValueError(f"{len(layers)} layers, and channels of {len(channels)}")
        # Of sizes in a file nothing is built before the weights are known to have them.
        network = MaskingNetwork(
            layers, channels, classes, width, str(record["fingerprint"]), device="meta"
        )
    except (KeyError, TypeError, ValueError, RuntimeError, IndexError) as error:
        raise ModelError(f"{_no_masks(path)} ({first_line(error)})") from error
    expected = network.state_dict()
    counts = [name for name in expected if name.endswith("num_batches_tracked")]
    missing = [name for name in expected if name not in state and name not in counts]
    unexpected = [name for name in state if name not in expected]
    source = f"the file {os.fspath(path)!r}"
    refuse_misfits(source, network, missing, unexpected, reshaped(state, network))
    if not_finite(state):
        raise ModelError(
            f"the masks in {os.fspath(path)!r} cannot be used: {not_finite(state)[0]} holds "
            "infinite numbers or NaN; train them again, at a smaller learning rate"
        )
    whole = {name: tensor.to(torch.float32) for name, tensor in state.items()}
    whole |= {name: torch.zeros((), dtype=torch.int64, device="cpu") for name in counts}
    network.load_state_dict(whole, assign=True)
    return network.requires_grad_(False).eval(), training


@functools.cache
def embedded_masks() -> MaskingNetwork | None:
    """Return the masking network that comes with the package, for the embedded network."""
    file = importlib.resources.files("afmi.models") / photos.MASKS
    with importlib.resources.as_file(file) as path:
        return load_masks(path)[0] if path.exists() else None


def _record(path: str | os.PathLike[str]) -> dict[str, Any]:
    try:
        with safe_open(os.path.expanduser(path), "pt") as file:
            record = parse_json((file.metadata() or {}).get(_KEY, "{}"))
    except (SafetensorError, OSError, ValueError) as error:
        raise ModelError(f"{_no_masks(path)} ({first_line(error)})") from error
    if not isinstance(record, dict) or record.get("format") != _FORMAT:
        raise ModelError(_no_masks(path))
    if record.get("version") != _VERSION:
        raise ModelError(
            f"{os.fspath(path)!r} holds masks of version {record.get('version')}, and this afmi "
            f"reads version {_VERSION}; train them again, or use the afmi that wrote them"
        )
    return record


def _no_masks(path: str | os.PathLike[str]) -> str:
    return (
        f"{os.fspath(path)!r} holds no masking network; expected a file that "
        "`afmi train masking-model` wrote"
    )
