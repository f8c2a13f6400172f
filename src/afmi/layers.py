"""Find the last convolutional stage of a network, and look layers up by dotted name."""

from __future__ import annotations

import weakref
from collections import Counter
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from afmi.classifier import Classifier
from afmi.errors import LayerError, near_matches
from afmi.operations import operation_name
from afmi.untouched import evaluation_mode, watching_modules

__all__ = ["Arrangement", "Layer", "find_layer", "layer_names", "resolve_layer"]


@dataclass(frozen=True)
class Arrangement:
    """How an output that is not (N, K, h, w) itself holds feature maps.

    Attributes:
        places: (h, w), where the output is tokens (N, T, K), row by row; None: it is (N, h, w, K).
        prefix: how many tokens stand before those of places and for none: class and registers.
    """

    places: tuple[int, int] | None = None
    prefix: int = 0

    def fits(self, output: Tensor) -> bool:
        """Tell whether an output has the shape that is expected."""
        if self.places is None:
            return output.dim() == 4
        tokens = self.prefix + self.places[0] * self.places[1]
        return output.dim() == 3 and output.shape[1] == tokens

    def maps(self, output: Tensor) -> Tensor:
        """Return feature maps (…, K, h, w)."""
        if self.places is not None:
            output = output[..., self.prefix :, :].unflatten(-2, self.places)
        return output.movedim(-1, -3)

    def others(self, output: Tensor) -> Tensor:
        """Return the tokens (…, prefix, K) that stand for no place."""
        return output[..., : self.prefix, :] if self.places is not None else output[..., :0, 0, :]


@dataclass(frozen=True)
class Layer:
    """A place in a network where feature maps (N, K, h, w) are taken.

    Attributes:
        name: dotted name of the module whose output is meant, as ``named_modules`` gives it.
        then: operation that is applied to that output before it is taken, for activations that
            are function calls and no modules (DenseNet's last ReLU); None: the output itself.
        arrangement: where the output is tokens or has the channels last; None: (N, K, h, w).
    """

    name: str
    then: str | None = None
    arrangement: Arrangement | None = None

    def __str__(self) -> str:
        return self.name if self.then is None else f"{self.name}+{self.then}"


def _network(model: nn.Module) -> nn.Module:
    return model.network if isinstance(model, Classifier) else model


def layer_names(model: nn.Module) -> list[str]:
    """Return the dotted names of all modules in the network (inside a Classifier's wrapping)."""
    return [name for name, _ in _network(model).named_modules() if name]


def resolve_layer(
    model: nn.Module, layer: str | nn.Module | Layer | None, inputs: Tensor
) -> tuple[nn.Module, Layer]:
    """Return the module and the `Layer` that the caller meant.

    Args:
        model: a Classifier or any ``nn.Module``.
        layer: dotted name (``"layer4"``, ``"features+relu"``), module or Layer; None for the
            model's own default, else the last convolutional stage.
        inputs: images (N, C, H, W) that fit the model; one of them is run where the stage has
            yet to be found.

    Raises:
        LayerError: when the layer is not part of the network; near matches are listed.
    """
    network = _network(model)
    if layer is None:
        layer = getattr(model, "layer", None)
        if not isinstance(layer, (str, Layer)):
            layer = find_layer(model, inputs)
            return network.get_submodule(layer.name), layer
    if isinstance(layer, nn.Module):
        for name, module in network.named_modules():
            if module is layer:
                return module, _arranged(model, Layer(name), inputs)
        raise LayerError(
            f"the layer given ({type(layer).__name__}) is not part of this network; "
            "pass one of its own modules or a dotted name"
        )
    if isinstance(layer, str):
        name, _, then = layer.partition("+")
        layer = Layer(name.strip(), then.strip() or None)
    modules = dict(network.named_modules())
    if not layer.name or layer.name not in modules:
        known = [name for name in modules if name]
        near = near_matches(layer.name, known)
        raise LayerError(
            f"no layer is called {layer.name!r}"
            + (near or f"; the network has {', '.join(known[:8])}{', …' if len(known) > 8 else ''}")
        )
    return modules[layer.name], _arranged(model, layer, inputs)


# The stage depends on the images' size too: small ones may leave the last stage one position.
_found: weakref.WeakKeyDictionary[nn.Module, dict[torch.Size, Layer]] = weakref.WeakKeyDictionary()

# What modules gave that is no (N, K, h, w), by the images' size.
_arrangements: weakref.WeakKeyDictionary[nn.Module, dict[torch.Size, dict[str, Arrangement]]]
_arrangements = weakref.WeakKeyDictionary()


def _arranged(model: nn.Module, layer: Layer, inputs: Tensor) -> Layer:
    """Return the layer with the arrangement of its output, for which one image may be run.

    Only networks with layer norms, as all have whose tokens or channels come last, are looked at.
    """
    if layer.then is not None or layer.arrangement is not None:
        return layer
    network = _network(model)
    turning = any(
        "LayerNorm" in type(m).__name__ or "RMSNorm" in type(m).__name__ for m in network.modules()
    )
    if not turning:
        return layer
    known = _arrangements.setdefault(model, {})
    if inputs.shape[1:] not in known:
        probe = _probed(model, inputs)
        names = {module: name for name, module in network.named_modules() if name}
        found = ((names.get(call.module), probe.arrangement(call.output)) for call in probe.calls)
        known[inputs.shape[1:]] = {name: how for name, how in found if name and how is not None}
    return replace(layer, arrangement=known[inputs.shape[1:]].get(layer.name))


# Operations behind the last stage that still give maps: pooling it, or passing it on unchanged.
_POOLING = frozenset(
    {
        "adaptive_avg_pool2d",
        "adaptive_max_pool2d",
        "avg_pool2d",
        "fractional_max_pool2d",
        "interpolate",
        "lp_pool2d",
        "max_pool2d",
    }
)
_PASSING = frozenset(
    {
        "alpha_dropout",
        "clone",
        "contiguous",
        "dropout",
        "dropout2d",
        "feature_alpha_dropout",
        "feature_dropout",
        "float",
        "to",
    }
)
_WEIGHTED = frozenset(
    {"addmm", "bilinear", "conv2d", "conv_transpose2d", "einsum", "linear", "matmul", "mm"}
)
_CHANNELS_LAST, _CHANNELS_FIRST = (0, 2, 3, 1), (0, 3, 1, 2)


@dataclass
class _Step:
    """One operation of the probe run that gave a tensor."""

    name: str
    output: Tensor
    first_input: Tensor | None
    second_input: Tensor | None
    position: int
    channels_last: bool

    @property
    def gives_maps(self) -> bool:
        """Tell whether the output is (N, K, h, w) with more than one place."""
        shape = self.output.shape
        return len(shape) == 4 and shape[2] * shape[3] > 1 and not self.channels_last


@dataclass
class _Call:
    """One module's call in the probe run, and how many steps were done when it ended."""

    module: nn.Module
    output: Tensor
    end: int


_MOST_PREFIX = 16
"""Tokens more than this beside those of places are no class and register tokens."""


def _tensor(value: object) -> Tensor | None:
    """Return the argument where it is a tensor, or the first of several."""
    if isinstance(value, (list, tuple)) and value:
        value = value[0]
    return value if isinstance(value, Tensor) else None


class _Probe(TorchFunctionMode):
    """List the operations of one forward pass with the tensors that they gave."""

    def __init__(self) -> None:
        super().__init__()
        self.steps: list[_Step] = []
        self.calls: list[_Call] = []
        # Which tensors are (N, h, w, K): ConvNeXt's norms and Swin's blocks turn maps so. The
        # steps keep the tensors alive, so no other gets the same id.
        self._channels_last: dict[int, bool] = {}

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        output = func(*args, **kwargs)
        first, second = (_tensor(args[i]) if len(args) > i else None for i in (0, 1))
        result = output[0] if isinstance(output, tuple) and output else output
        if isinstance(result, Tensor) and result.is_floating_point():
            name = operation_name(func)
            last = self._channels_last.get(id(first), False)
            if name == "permute":
                given = args[1:] or (kwargs.get("dims", ()),)
                order = tuple(given[0]) if isinstance(given[0], (tuple, list)) else tuple(given)
                order = tuple(axis % len(order) for axis in order)
                last = order == _CHANNELS_LAST or (last and order != _CHANNELS_FIRST)
            self._channels_last[id(result)] = last
            self.steps.append(_Step(name, result, first, second, len(self.steps), last))
        return output

    def on_module(self, module: nn.Module, output: object) -> None:
        if isinstance(output, Tensor):
            self.calls.append(_Call(module, output, len(self.steps)))

    def arrangement(self, output: Tensor) -> Arrangement | None:
        """Return how an output (N, h, w, K) or (N, T, K) holds maps; None where it does not."""
        if output.dim() == 4:
            return Arrangement() if self._channels_last.get(id(output), False) else None
        grids = [s.output.shape[2:] for s in self.steps if s.name == "conv2d" and s.gives_maps]
        if not grids or output.dim() != 3 or len(output) != 1:
            return None
        height, width = grids[-1]  # the convolution that cut the image into patches
        prefix = output.shape[1] - height * width
        return Arrangement((height, width), prefix) if 0 <= prefix <= _MOST_PREFIX else None


def find_layer(model: nn.Module, inputs: Tensor) -> Layer:
    """Return the last convolutional stage: its output, after its activation.

    In a transformer, whose tokens stand for places, the last tokens on which the logits depend.

    One image is run and its operations are followed from the end back to the last one that gave
    feature maps with more than one position; pooling, and a convolution that itself makes the
    class scores (SqueezeNet), are passed over. So VGG gives its last ReLU, ResNet `layer4`,
    DenseNet `features+relu`. The answer is kept for the model and the images' size.

    Raises:
        LayerError: when the network has no convolutional stage; name a layer then.
    """
    known = _found.setdefault(model, {})
    if inputs.shape[1:] in known:
        return known[inputs.shape[1:]]
    probe = _probed(model, inputs)
    layer = _locate(_network(model), probe)
    known[inputs.shape[1:]] = layer
    return layer


def _probed(model: nn.Module, inputs: Tensor) -> _Probe:
    """Run one image and return what ran."""
    probe = _Probe()
    with evaluation_mode(model), torch.no_grad(), watching_modules(probe.on_module), probe:
        model(inputs[:1].detach().clone())
    return probe


def _stage_output(steps: list[_Step]) -> int | None:
    """Return the position of the step that gave the last stage's output."""
    behind = len(steps)
    weighted = [s for s in steps if s.name in _WEIGHTED]
    convolutions = [s for s in steps if s.name == "conv2d" and s.gives_maps]
    # A last weighted operation that is a convolution over maps, with one map per class, makes the
    # scores itself; the stage is what it sees. An only convolution is the stage all the same.
    if weighted and len(convolutions) > 1 and weighted[-1] is convolutions[-1]:
        head, scores = convolutions[-1], steps[-1].output
        if scores.dim() == 2 and scores.shape[1] == head.output.shape[1]:
            behind = head.position
    for step in reversed(steps[:behind]):
        if step.gives_maps and step.name not in _POOLING and step.name not in _PASSING:
            position = step.position
            seen = any(s.name == "conv2d" and s.gives_maps for s in steps[: position + 1])
            return position if seen and not _mixes_tokens(steps[position + 1 :]) else None
    return None


def _mixes_tokens(steps: list[_Step]) -> bool:
    """Tell whether a transformer follows, whose only convolution cuts the image into patches."""
    tokens = [
        step
        for step in steps
        if step.name == "linear"
        and step.output.dim() > 2
        and step.output.numel() > step.output.shape[0] * step.output.shape[-1]
    ]
    return len(tokens) > 1


def _locate(network: nn.Module, probe: _Probe) -> Layer:
    steps = probe.steps
    position = _stage_output(steps)
    if position is None:
        tokens = _last_tokens(network, probe)
        if tokens is not None:
            return tokens
        raise LayerError(
            "this network has no last convolutional stage with feature maps (N, K, h, w) that "
            "could be found; pass layer= with the dotted name of a module that gives such maps"
        )
    names = {module: name for name, module in network.named_modules() if name}
    runs = Counter(call.module for call in probe.calls)
    # A module that runs more than once cannot be told apart.
    calls = [call for call in probe.calls if call.module in names and runs[call.module] == 1]
    step = steps[position]
    # In-place operations give back the tensor they were given, so a module counts only when it
    # ended after the operation.
    ended = [call for call in calls if call.output is step.output and call.end > position]
    if ended:
        return Layer(names[_outermost(ended, names)])
    # No module gave it: an activation called as a function, on a module's output.
    before = _before(calls, step)
    if before:
        return Layer(names[_outermost(before, names)], step.name)
    # Or on pooled maps, relu(max_pool2d(conv(x))): the maps before that pooling.
    while (step := _giver(steps, step)) is not None and step.name in _POOLING | _PASSING:
        before = _before(calls, step)
        if before:
            return Layer(names[_outermost(before, names)])
    nearest = [names[c.module] for c in calls if c.output.dim() == 4 and c.end <= position]
    raise LayerError(
        f"the last stage's output (after {steps[position].name}) is given by no module of this "
        "network; pass layer= with the dotted name of a module that gives feature maps (N, K, h, w)"
        + (f", such as {nearest[-1]!r}" if nearest else "")
    )


_CHOOSING = frozenset({"getitem", "select", "narrow", "unbind", "split", "index_select"})
_ATTENTION = frozenset({"softmax", "scaled_dot_product_attention", "multi_head_attention_forward"})


def _last_tokens(network: nn.Module, probe: _Probe) -> Layer | None:
    """Return the module that gave the last tokens (N, T, K) on which the logits depend.

    Where the head pools over places, these are the last tokens there are. Where it reads a class
    token only, the others behind the last attention count for nothing: the maps are then those
    that enter the last block, which are the operand of the first sum behind its attention.
    """
    names = {module: name for name, module in network.named_modules() if name}
    runs = Counter(call.module for call in probe.calls)
    calls = [c for c in probe.calls if c.module in names and runs[c.module] == 1]

    def tokens(tensor: Tensor | None) -> bool:
        return tensor is not None and tensor.dim() == 3 and probe.arrangement(tensor) is not None

    readers = [s for s in probe.steps if tokens(s.first_input) and not tokens(s.output)]
    if not readers:
        return None
    if readers[-1].name in _CHOOSING:
        attention = [s.position for s in probe.steps if s.name in _ATTENTION]
        sums = [
            s
            for s in probe.steps
            if s.name == "add" and tokens(s.first_input) and tokens(s.second_input)
        ]
        behind = [s for s in sums if attention and s.position > attention[-1]]
        entering = (behind[0].first_input, behind[0].second_input) if behind else ()
        gave = [c for c in calls if attention and c.end <= attention[-1]]
        gave = [c for c in gave if any(c.output is tensor for tensor in entering)]
    else:
        gave = [c for c in calls if tokens(c.output) and c.end <= readers[-1].position]
        gave = [c for c in gave if c.output is gave[-1].output]
    if not gave:
        return None
    gave = [c for c in gave if c.end == gave[-1].end]
    return Layer(names[_outermost(gave, names)], None, probe.arrangement(gave[-1].output))


def _before(calls: list[_Call], step: _Step) -> list[_Call]:
    """Return the module calls that gave what the step was applied to, in the state it had then."""
    gave = [c for c in calls if c.output is step.first_input and c.end <= step.position]
    return [c for c in gave if c.end == gave[-1].end]


def _outermost(calls: list[_Call], names: dict[nn.Module, str]) -> nn.Module:
    """Return the outermost module that ended with the first of these calls.

    Parents end with their last child, and the outermost is the stage: `layer4` and not
    `layer4.2`. Identity modules that come next end there too, but hold nothing.
    """
    inner = f"{names[calls[0].module]}."
    ended = [c.module for c in calls if c.end == calls[0].end]
    return [module for module in ended if inner.startswith(f"{names[module]}.")][-1]


def _giver(steps: list[_Step], step: _Step) -> _Step | None:
    """Return the step that gave what this one was applied to."""
    earlier = reversed(steps[: step.position])
    return next((s for s in earlier if s.output is step.first_input), None)
