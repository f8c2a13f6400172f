"""Find the last convolutional stage of a network, and look layers up by dotted name."""

from __future__ import annotations

import weakref
from collections import Counter
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from afmi.errors import LayerError, near_matches
from afmi.network.classifier import Classifier
from afmi.network.graph import Arrangement, Call, Dataflow, Step
from afmi.network.operations import Trait, operations_with

__all__ = ["Arrangement", "Layer", "find_layer", "layer_names", "resolve_layer"]


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

# How named layers hold maps, by the images' size and the layer's name.
_arrangements: weakref.WeakKeyDictionary[
    nn.Module, dict[tuple[torch.Size, str], Arrangement | None]
] = weakref.WeakKeyDictionary()


def _arranged(model: nn.Module, layer: Layer, inputs: Tensor) -> Layer:
    """Return the layer with the arrangement of its output, for which one image may be run.

    Only networks of many linear layers, as all have whose tokens or channels come last, are
    looked at.
    """
    network = _network(model)
    linear = sum(isinstance(module, nn.Linear) for module in network.modules())
    if layer.arrangement is not None or linear < _FEWEST_LINEAR:
        return layer
    known = _arrangements.setdefault(model, {})
    key = inputs.shape[1:], str(layer)
    if key not in known:
        flow = Dataflow.of(model, inputs[:1])
        known[key] = _arrangement(flow, network.get_submodule(layer.name), layer.then)
    return replace(layer, arrangement=known[key])


def _arrangement(flow: Dataflow, module: nn.Module, then: str | None) -> Arrangement | None:
    """Return how a module's output, or that of an operation on it, holds maps."""
    for call in flow.calls:
        if call.module is not module:
            continue
        if then is None:
            return flow.holds_maps(call.output, call.end)[1]
        for step in flow.steps[call.end :]:
            if step.name == then and step.subject is call.output:
                return flow.holds_maps(step.output, step.position + 1)[1]
    return None


_FEWEST_LINEAR = 4
"""A block of a transformer has as many; VGG's head has three."""


# Operations behind the last stage that still give maps: pooling it, or passing it on unchanged.
_POOLING = operations_with(Trait.AVERAGE_POOL, Trait.MAX_POOL, Trait.NONLINEAR_POOL, Trait.RESAMPLE)
_PASSING = operations_with(Trait.DROPOUT)
# Operations that turn, cut or copy what a module gave: the module itself is the better name.
_TURNING = operations_with(Trait.RESHAPE, Trait.TRANSPOSE, Trait.CHOOSE, Trait.COPY)


def find_layer(model: nn.Module, inputs: Tensor) -> Layer:
    """Return the last convolutional stage: its output, after its activation.

    In a transformer, whose tokens stand for places, the last tokens on which the logits depend.

    One image is run. Of the tensors through which everything passes that the logits are made of,
    so that nothing goes around the layer, the last one is taken that holds feature maps with more
    than one place; pooling, and a convolution that itself makes the class scores (SqueezeNet),
    are passed over. So VGG gives its last ReLU, ResNet `layer4`, DenseNet `features+relu`. The
    answer is kept for the model and the images' size.

    Raises:
        LayerError: when there is no such tensor, or no module gives it; name a layer then.
    """
    known = _found.setdefault(model, {})
    if inputs.shape[1:] in known:
        return known[inputs.shape[1:]]
    layer = _locate(_network(model), Dataflow.of(model, inputs[:1]))
    known[inputs.shape[1:]] = layer
    return layer


_MORE_BEHIND = 8
"""Weighted operations that may follow the maps beyond as many as come before: a block's."""


def _locate(network: nn.Module, flow: Dataflow) -> Layer:
    end = _behind(flow)
    missed: Step | None = None  # the last stage's output, where no module gives it
    for step in reversed(flow.cuts()):
        if step.position >= end or step.name in _POOLING:
            continue
        if step.name in _PASSING and missed is None:
            continue
        holds, how = flow.holds_maps(step.output, step.position + 1)
        if not holds or (how is not None and step.name == "linear"):
            continue  # a bare projection of tokens, such as an attending head's keys and values
        if how is not None and not flow.places_count(step, how):
            continue
        # A class token's last block is left whole; nothing else is left out.
        classes = how is not None and how.prefix + how.suffix > 0
        if missed is not None and not classes:
            between = flow.path(step.position + 1, missed.position + 1)
            if any(s.weighs_places for s in between):
                break
        before = sum(s.weighs_places for s in flow.path(end=step.position + 1))
        behind = sum(s.weighs_places for s in flow.path(step.position + 1))
        if before == 0 or behind > before + _MORE_BEHIND:
            break
        layer = _named(network, flow, step, how)
        if layer is not None:
            return layer
        if step.name not in _TURNING:
            missed = missed or step
    if missed is None:
        raise LayerError(
            "this network has no last convolutional stage that could be found: no feature maps "
            "(N, K, h, w) or tokens of places through which all goes that its logits are made of; "
            "pass layer= with the dotted name of a module that gives such maps"
        )
    nearest = [
        name
        for name, call in _single_calls(network, flow)
        if call.end <= missed.position and flow.holds_maps(call.output, call.end)[0]
    ]
    raise LayerError(
        f"the last stage's output (after {missed.name}) is given by no module of this network; "
        "pass layer= with the dotted name of a module that gives feature maps (N, K, h, w)"
        + (f", such as {nearest[-1]!r}" if nearest else "")
    )


def _behind(flow: Dataflow) -> int:
    """Return the position of a last operation that makes scores of each place; none: the end.

    The stage is what it sees. An only convolution is the stage all the same.
    """
    steps = flow.path()
    weighing = [s for s in steps if s.weighs_places]
    weighted = [s for s in steps if s.weighs]
    if len(weighing) > 1 and weighted[-1] is weighing[-1]:
        head = weighing[-1]
        channels = flow.channels(head.output)
        if channels is not None and head.output.shape[channels] == flow.classes:
            return head.position
    return len(flow.steps)


def _single_calls(network: nn.Module, flow: Dataflow) -> list[tuple[str, Call]]:
    """Return the calls of modules that run once, with their names; others cannot be told apart."""
    names = {module: name for name, module in network.named_modules() if name}
    runs = Counter(call.module for call in flow.calls)
    return [(names[c.module], c) for c in flow.calls if c.module in names and runs[c.module] == 1]


def _named(network: nn.Module, flow: Dataflow, step: Step, how: Arrangement | None) -> Layer | None:
    """Return the module that gave what a step gave, or that and the step; None: no module did."""
    calls = _single_calls(network, flow)
    # In-place operations give back the tensor they were given, so who wrote last counts.
    gave = [c for c in calls if c[1].output is step.output and c[1].made_by == step.position]
    if gave:
        return Layer(_outermost(gave), None, how)
    # An activation called as a function, on a module's output.
    x = step.subject
    if x is None or step.name in _TURNING:
        return None
    gave = [c for c in calls if c[1].output is x and c[1].made_by == step.sources[0]]
    gave = [c for c in gave if c[1].end == gave[-1][1].end]
    if not gave or any(
        s.name == step.name and s.subject is x for s in flow.steps[gave[0][1].end : step.position]
    ):
        return None
    return Layer(_outermost(gave), step.name, how)


def _outermost(calls: list[tuple[str, Call]]) -> str:
    """Return the outermost module that ended with the first of these calls.

    Parents end with their last child, and the outermost is the stage: `layer4` and not
    `layer4.2`. Identity modules that come next end there too, but hold nothing.
    """
    first, end = calls[0][0], calls[0][1].end
    around = [name for name, c in calls if c.end == end and f"{first}.".startswith(f"{name}.")]
    return around[-1]
