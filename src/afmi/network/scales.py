"""Read a network's feature maps at several scales, from one forward pass."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from afmi.errors import LayerError
from afmi.network.channels_last import in_fast_layout
from afmi.network.checking import check_images, check_model, check_run, named_failures
from afmi.network.graph import Dataflow, first_tensor
from afmi.network.guards import (
    evaluation_mode,
    watching_all_modules,
    without_compilation,
    without_fused_attention,
)
from afmi.network.layers import Layer, maps_of, named_layer, resolve_layer
from afmi.network.operations import operation_name
from afmi.network.outputs import scores_of
from afmi.network.trial import try_once
from afmi.network.wrappers import within

__all__ = ["find_scales", "read_scales"]


def find_scales(model: nn.Module, inputs: Tensor, *, finest: int = 1) -> tuple[str, ...]:
    """Return the names of the layers that give a network's maps at each scale, coarsest first.

    The first is the last convolutional stage. Before it, of all places through which every path
    from the image leads, the last one of each finer grid is taken.

    Args:
        model: a `Classifier` or any ``nn.Module``.
        inputs: images (N, C, *spatial); one of them is run.
        finest: how many pixels a place of the finest grid stands for at least. The last stage is
            taken in any case.

    Raises:
        LayerError: when the last stage gives no maps (N, K, *spatial), or there is none.

    Example:
        >>> pool = nn.MaxPool2d(2)
        >>> body = [nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), pool, nn.Conv2d(4, 5, 1), nn.ReLU()]
        >>> model = nn.Sequential(*body, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(5, 2))
        >>> find_scales(model, torch.rand(1, 3, 8, 8))
        ('4', '1')
    """
    last = resolve_layer(model, None, inputs)[1]
    if last.token_layout is not None:
        raise LayerError(
            f"layer {last} gives tokens, and what reads a network at several scales needs feature "
            "maps (N, K, h, w); take a convolutional network, or another method"
        )
    (coarsest,), _ = read_scales(model, inputs[:1], [str(last)])
    coarse = math.prod(coarsest.shape[2:])
    flow, network = Dataflow.of(model, inputs[:1]), within(model)
    finer: dict[tuple[int, ...], str] = {}
    for step in flow.dominators():
        grid = flow.grid(step.output)
        if grid is None or flow.channels(step.output) != 1 or math.prod(grid) <= coarse:
            continue
        if min(map(_stride, flow.image, grid)) < finest:
            continue
        layer = named_layer(network, flow, step, None)
        if layer is not None:
            finer[grid] = str(layer)
    return (str(last), *(finer[grid] for grid in sorted(finer, key=math.prod)))


def _stride(side: int, places: int) -> int:
    return round(side / places)  # 227 pixels have 57 places a side, and 224 have 56


def read_scales(
    model: nn.Module, inputs: Tensor, layers: Sequence[str]
) -> tuple[list[Tensor], Tensor]:
    """Return the feature maps (N, K, *spatial) of several layers, and the logits, in one pass.

    Nothing is recorded for gradients.

    Args:
        model: a `Classifier` or any ``nn.Module``.
        inputs: images (N, C, *spatial).
        layers: their names, as `find_scales` gives them.

    Raises:
        LayerError: when the network has no such layer, does not run it once, or gets no maps of it.
    """
    check_model(model)
    check_images(model, inputs)
    network, wanted = within(model), []
    for text in layers:
        name, _, then = text.partition("+")
        wanted.append((_module(network, name), Layer(name, then or None)))

    def run(images: Tensor, fast: bool) -> tuple[list[Tensor], Tensor]:
        reader = _Reader(wanted, images.dim() - 2)
        with watching_all_modules(reader.on_module), reader:
            logits = scores_of(model, images)
        return [reader.maps(layer) for _, layer in wanted], logits

    with (
        torch.inference_mode(False),
        torch.no_grad(),
        evaluation_mode(model),
        without_fused_attention(),
        without_compilation(),
        named_failures(model, inputs),
    ):
        try_once(model, inputs)
        maps, logits = in_fast_layout(model, run, inputs.detach())
        return maps, check_run(logits, inputs)


def _module(network: nn.Module, name: str) -> nn.Module:
    try:
        return network.get_submodule(name)
    except AttributeError as error:
        raise LayerError(f"the network has no layer {name!r}") from error


class _Reader(TorchFunctionMode):
    """Keeps what some modules return, or what an operation behind them makes of it."""

    def __init__(self, wanted: Sequence[tuple[nn.Module, Layer]], sides: int) -> None:
        super().__init__()
        self._wanted = wanted
        self._sides = sides
        self._read: dict[Layer, list[Tensor]] = {layer: [] for _, layer in wanted}
        self._awaited: dict[int, tuple[Tensor, Layer]] = {}

    def on_module(self, module: nn.Module, output: object) -> None:
        """Keep the output of a module that is wanted; see `watching_all_modules`."""
        for one, layer in self._wanted:
            if one is not module:
                continue
            first = first_tensor(output)
            if layer.then is None or first is None:
                self._keep(layer, output if first is None else first)
            else:
                self._awaited[id(first)] = (first, layer)

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        output = func(*args, **kwargs)
        taken = id(args[0] if args else kwargs.get("input"))
        _, layer = self._awaited.get(taken, (None, None))
        if layer is not None and operation_name(func) == layer.then:
            del self._awaited[taken]
            self._keep(layer, output)
        return output

    def _keep(self, layer: Layer, output: object) -> None:
        maps = maps_of(layer, output, self._sides)
        # A copy where the network may write into it later.
        self._read[layer].append(maps.detach().as_subclass(Tensor).clone())

    def maps(self, layer: Layer) -> Tensor:
        """Return what a layer gave."""
        if len(self._read[layer]) != 1:
            raise LayerError(
                f"layer {layer} must run once in a forward pass, and ran "
                f"{len(self._read[layer])} times; the layers are those of another network"
            )
        return self._read[layer][0]
