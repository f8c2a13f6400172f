"""Find the last convolutional stage of a network, and look layers up by dotted name."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace

from torch import Tensor, nn

from afmi.errors import LayerError, ModelError, near_matches
from afmi.network.checking import check_images, opaque_part
from afmi.network.classifier import classifier_of
from afmi.network.graph import Call, Dataflow, Step
from afmi.network.operations import Trait, operations_with
from afmi.network.scored import Scored, check_differentiable
from afmi.network.tokens import TokenLayout, depends_on_places, map_layout
from afmi.network.wrappers import within

__all__ = [
    "FinerStage",
    "Layer",
    "LayerChoice",
    "Place",
    "check_layer",
    "check_place",
    "find_layer",
    "layer_names",
    "maps_of",
    "named_layer",
    "resolve_layer",
]


@dataclass(frozen=True)
class Layer:
    """A place in a network where feature maps (N, K, h, w), or of other sides, are taken.

    Attributes:
        name: dotted name of the module whose output is meant, as ``named_modules`` gives it.
        then: operation on that output whose result is the layer, for activations that are
            function calls and not modules (DenseNet's last ReLU); None: the output itself.
        token_layout: set where the output is tokens or has the channels last; None: it has them
            first.
    """

    name: str
    then: str | None = None
    token_layout: TokenLayout | None = None

    def __str__(self) -> str:
        return self.name if self.then is None else f"{self.name}+{self.then}"


Place = tuple[nn.Module, Layer]
"""A layer, and the module that it names."""


def layer_names(model: nn.Module) -> list[str]:
    """Return the dotted names of all modules in the network, within all wrappers."""
    return [name for name, _ in within(model).named_modules() if name]


def check_layer(layer: object) -> None:
    """Raise a `LayerError` unless this can name a layer: text, a module or a `Layer`."""
    if not isinstance(layer, (str, nn.Module, Layer)):
        several = isinstance(layer, (list, tuple, set, dict))
        raise LayerError(
            "expected one layer, as a dotted name such as 'layer4' or a module of the network, got "
            f"{layer!r}; " + ("explain with each by itself" if several else "name it by a text")
        )


def resolve_layer(model: nn.Module, layer: str | nn.Module | Layer | None, inputs: Tensor) -> Place:
    """Return the module and the `Layer` that the caller meant.

    Args:
        model: a Classifier or any ``nn.Module``.
        layer: dotted name (``"layer4"``, ``"features+relu"``), module or Layer; None for the
            model's own default, else the last convolutional stage.
        inputs: images (N, C, *spatial) that fit the model; one of them is run where the stage has
            yet to be found.

    Raises:
        LayerError: when the layer is not part of the network; near matches are listed.
    """
    network = within(model)
    layer = _chosen(model, layer)
    if layer is None:
        layer = find_layer(model, inputs)
        return network.get_submodule(layer.name), layer
    check_layer(layer)
    if isinstance(layer, nn.Module):
        for name, module in network.named_modules():
            if module is layer:
                return module, _with_layout(model, Layer(name), inputs)
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
    return modules[layer.name], _with_layout(model, layer, inputs)


def _chosen(
    model: nn.Module, layer: str | nn.Module | Layer | None
) -> str | nn.Module | Layer | None:
    classifier = classifier_of(model)
    return classifier.layer if layer is None and classifier is not None else layer


@dataclass(frozen=True)
class LayerChoice:
    """A layer as the user chose it, to be found in the network as it is when images run.

    Attributes:
        layer: as in `resolve_layer`.
    """

    layer: str | nn.Module | Layer | None

    def key(self, model: nn.Module) -> object:
        """Return what was chosen, by the user or by the model."""
        return _chosen(model, self.layer)

    def resolve(self, model: nn.Module, inputs: Tensor) -> Place:
        """Return the module and the layer, as `resolve_layer` does."""
        return resolve_layer(model, self.layer, inputs)


@dataclass(frozen=True)
class FinerStage:
    """The last stage before a chosen layer whose maps are finer: have more places than its own.

    Attributes:
        coarse: the chosen layer.
    """

    coarse: LayerChoice

    def key(self, model: nn.Module) -> object:
        """Return what was chosen, by the user or by the model."""
        return "finer", self.coarse.key(model)

    def resolve(self, model: nn.Module, inputs: Tensor) -> Place | None:
        """Return its module and layer; None: every path to the layer leads through none.

        One image is run. Between operations that act on each place by itself, such as a
        convolution of 1 × 1 pixels and an activation, it makes no difference to what a place
        contributes which of them is taken.
        """
        module, layer = self.coarse.resolve(model, inputs)
        network, flow = within(model), _flow(model, inputs[:1])
        made = _made(flow, module, layer)
        if made is None:
            return None
        output, position = made
        last = _maps_at(flow, output, layer)
        for step in reversed(flow.dominators()):
            # What only moves numbers, such as padding, is no stage of its own.
            if (
                step.position >= position
                or step.name in _MOVING
                or not step.output.is_floating_point()
            ):
                continue
            holds, layout = map_layout(flow, step.output, step.position + 1)
            if not holds or (layout is not None and step.name == "linear"):
                continue
            found = named_layer(network, flow, step, layout)
            if found is not None and _maps_at(flow, step.output, found) > last:
                return network.get_submodule(found.name), found
        return None


def _made(flow: Dataflow, module: nn.Module, layer: Layer) -> tuple[Tensor, int] | None:
    """Return what a layer gave in a run, and the position of the step that made it."""
    for call in flow.calls:
        if call.module is not module:
            continue
        if layer.then is None:
            return call.output, call.end if call.made_by is None else call.made_by
        for step in flow.steps[call.end :]:
            if step.name == layer.then and step.subject is call.output:
                return step.output, step.position
    return None


def _maps_at(flow: Dataflow, output: Tensor, layer: Layer) -> int:
    """Return how many places the maps have that a layer gave."""
    maps = maps_of(layer, output, len(flow.image))
    return (layer.token_layout.maps(maps) if layer.token_layout else maps)[0, 0].numel()


def maps_of(layer: Layer, output: object, sides: int) -> Tensor:
    """Return a layer's output, where it has the shape that the layer is said to give.

    Args:
        layer: whose output it is.
        output: of the module, or of the operation behind it.
        sides: how many spatial dimensions the images have.
    """
    layout = layer.token_layout
    if isinstance(output, Tensor):
        fits = layout.fits(output) if layout else output.dim() == 2 + sides
        if fits and output.is_floating_point():
            return output
        form = f"{tuple(output.shape)} {output.dtype}"
    else:
        form = type(output).__name__
    raise LayerError(
        f"layer {layer} must give feature maps {_MAPS[sides]}, but gives {form}; choose a "
        "convolutional layer, or one whose tokens are those of places"
    )


_MAPS = {1: "(N, K, l)", 2: "(N, K, h, w)", 3: "(N, K, d, h, w)"}


def check_place(model: nn.Module, place: Place) -> None:
    """Raise a `LayerError` unless the module still has the layer's name."""
    module: object = within(model)
    for name in filter(None, place[1].name.split(".")):
        module = getattr(module, name, None)
    if module is not place[0]:
        raise LayerError(f"{place[1].name!r} is another module by now, or none; find it again")


def _with_layout(model: nn.Module, layer: Layer, inputs: Tensor) -> Layer:
    """Return the layer with the token layout of its output, for which one image may be run.

    Only networks with several linear layers are examined, as all have whose channels come last.
    """
    network = within(model)
    linear = sum(isinstance(module, nn.Linear) for module in network.modules())
    if layer.token_layout is not None or linear < _FEWEST_LINEAR:
        return layer
    flow = Dataflow.of(model, inputs[:1])
    token_layout = _layout_of(flow, network.get_submodule(layer.name), layer.then)
    return replace(layer, token_layout=token_layout)


def _layout_of(flow: Dataflow, module: nn.Module, then: str | None) -> TokenLayout | None:
    """Return how a module's output, or that of an operation on it, holds maps."""
    for call in flow.calls:
        if call.module is not module:
            continue
        if then is None:
            return map_layout(flow, call.output, call.end)[1]
        for step in flow.steps[call.end :]:
            if step.name == then and step.subject is call.output:
                return map_layout(flow, step.output, step.position + 1)[1]
    return None


_FEWEST_LINEAR = 4
"""A block of a transformer has as many; VGG's head has three."""


# Operations behind the last stage that still give maps: pooling, or dropout, which changes none.
_POOLING = operations_with(Trait.AVERAGE_POOL, Trait.MAX_POOL, Trait.NONLINEAR_POOL, Trait.RESAMPLE)
_PASSING = operations_with(Trait.DROPOUT)
_BENDING = operations_with(Trait.RECTIFIER, Trait.NORMALISATION)
_MOVING = operations_with(Trait.REARRANGE, Trait.RESHAPE, Trait.TRANSPOSE)
# Operations that turn, cut or copy a module's output: the module itself is the better name.
_TURNING = operations_with(Trait.RESHAPE, Trait.TRANSPOSE, Trait.CHOOSE, Trait.COPY)


def find_layer(model: nn.Module, inputs: Tensor) -> Layer:
    """Return the last convolutional stage: its output, after its activation.

    In a transformer, whose tokens stand for places: the last tokens on which the logits depend.

    One image is run. Among the tensors that dominate the logits (every path from the image leads
    through them, so nothing bypasses the layer), the last is taken that holds feature maps with
    more than one place. Pooling, and a convolution that itself computes the class scores
    (SqueezeNet), are skipped. So VGG gives its last ReLU, ResNet `layer4`, DenseNet
    `features+relu`.

    Raises:
        LayerError: when there is no such tensor, or no module returns it; name a layer then.
    """
    if not isinstance(inputs, Tensor) or not inputs.is_meta:  # whose shapes are enough
        check_images(model, inputs)
    check_differentiable(model)
    return _locate(within(model), _flow(model, inputs[:1]))


def _flow(model: nn.Module, image: Tensor) -> Dataflow:
    """Return the run of one image, up to the classes' scores where there are rows of them.

    So the layer is the same for all that is made of these.
    """
    if isinstance(model, Scored):
        try:
            return Dataflow.of(model.model, image)
        except ModelError:  # it has none, such as one that segments
            pass
    return Dataflow.of(model, image)


_MORE_BEHIND = 8
"""Weighted operations that may follow the maps beyond as many as come before: a block's."""


def _locate(network: nn.Module, flow: Dataflow) -> Layer:
    end = _head_position(flow)
    missed: Step | None = None  # the last stage's output, where no module gives it
    for step in reversed(flow.dominators()):
        passing = step.name in _PASSING and missed is None
        if step.position >= end or step.name in _POOLING or passing:
            continue
        holds, layout = map_layout(flow, step.output, step.position + 1)
        if (
            not holds
            or not step.output.is_floating_point()
            or (layout is not None and step.name == "linear")
        ):
            continue  # a bare projection of tokens, such as an attending head's keys and values
        if layout is not None and not depends_on_places(flow, step, layout):
            continue
        # A class token's last block is left whole; nothing else is left out.
        classes = layout is not None and layout.extra > 0
        if missed is not None and not classes:
            between = flow.path(step.position + 1, missed.position + 1)
            if any(s.weighs_places for s in between):
                break
        before = sum(s.weighs_places for s in flow.path(end=step.position + 1))
        behind = sum(s.weighs_places for s in flow.path(step.position + 1))
        if before == 0 or behind > before + _MORE_BEHIND:
            break
        layer = named_layer(network, flow, step, layout)
        if layer is not None:
            return layer
        if step.name not in _TURNING:
            missed = missed or step
    raise _no_stage(network, flow, missed)


def _no_stage(network: nn.Module, flow: Dataflow, missed: Step | None) -> LayerError:
    """Return the error to raise where no module returns the last stage's output (``missed``)."""
    opaque = opaque_part(network)
    if opaque is not None:
        calls = [(name, call.output) for name, call in _single_calls(network, flow)]
        shaped = [one for one in calls if one[1].dim() == 2 + len(flow.image)]
        maps = [name for name, output in shaped if output[0, 0].numel() > 1]
        return LayerError(
            f"found no last convolutional stage in this network: {opaque}"
            + (f"; or pass a layer that gives feature maps, as layer={maps[-1]!r}" if maps else "")
        )
    end = _head_position(flow) if missed is None else missed.position
    # Of several heads that score each place, none is a stage.
    scores = flow.steps[end].output.shape[1:2] if missed is None and end < len(flow.steps) else None
    nearest = [
        name
        for name, call in _single_calls(network, flow)
        if call.end <= end
        and call.output.shape[1:2] != scores
        and map_layout(flow, call.output, call.end)[0]
    ]
    if missed is None:
        return LayerError(
            "found no last convolutional stage in this network: no feature maps "
            f"{_MAPS[len(flow.image)]} or tokens of places dominate its logits, so that every path "
            "from the image leads through them; pass layer= with the dotted name of a module that "
            "gives feature maps"
            + (f", such as {nearest[-1]!r}, which other paths lead around" if nearest else "")
        )
    return LayerError(
        f"the output of the last stage (after {missed.name}) is returned by no module; "
        f"pass layer= with the dotted name of a module that gives feature maps "
        f"{_MAPS[len(flow.image)]}" + (f", such as {nearest[-1]!r}" if nearest else "")
    )


def _head_position(flow: Dataflow) -> int:
    """Return the position of a last operation that scores each place; the end if there is none.

    The stage is its input. A network's only convolution is the stage all the same.
    """
    steps = flow.path()
    weighing = [s for s in steps if s.weighs_places]
    weighted = [s for s in steps if s.weighs]
    if len(weighing) > 1 and weighted[-1] is weighing[-1] and _scores_places(flow, weighing[-1]):
        return weighing[-1].position
    return len(flow.steps)


def _scores_places(flow: Dataflow, head: Step) -> bool:
    """Tell whether a network's last convolution computes scores, one map for each."""
    channels = flow.channels(head.output)
    # One logit tells two classes apart.
    classes = (flow.classes, 1) if flow.classes == 2 else (flow.classes,)
    if channels is not None and head.output.shape[channels] in classes:
        return True
    # A score made of maps: what nothing bends behind the convolution is made of scores.
    bent = any(step.name in _BENDING for step in flow.path(head.position + 1))
    return flow.classes == 1 and not bent


def _single_calls(network: nn.Module, flow: Dataflow) -> list[tuple[str, Call]]:
    """Return the calls of modules that run once, with their names; only these are unambiguous."""
    names = {module: name for name, module in network.named_modules() if name}
    runs = Counter(call.module for call in flow.calls)
    return [(names[c.module], c) for c in flow.calls if c.module in names and runs[c.module] == 1]


def named_layer(
    network: nn.Module, flow: Dataflow, step: Step, layout: TokenLayout | None
) -> Layer | None:
    """Return the layer whose output a step made: a module, or one and the step; None: neither."""
    calls = _single_calls(network, flow)
    # In-place operations return their operand, so the last writer counts.
    returned = [c for c in calls if c[1].output is step.output and c[1].made_by == step.position]
    if returned:
        return Layer(_outermost(returned), None, layout)
    # An activation called as a function, on a module's output.
    x = step.subject
    if x is None or step.name in _TURNING:
        return None
    returned = [c for c in calls if c[1].output is x and c[1].made_by == step.sources[0]]
    returned = [c for c in returned if c[1].end == returned[-1][1].end]
    if not returned:
        return None
    later = flow.steps[returned[0][1].end : step.position]
    if any(s.name == step.name and s.subject is x for s in later):
        return None
    return Layer(_outermost(returned), step.name, layout)


def _outermost(calls: list[tuple[str, Call]]) -> str:
    """Return the outermost module that ended with the first of these calls.

    Parents return together with their last child, and the outermost is the stage: `layer4` and
    not `layer4.2`. Identity modules that follow return at the same step, but contain nothing.
    """
    first, end = calls[0][0], calls[0][1].end
    around = [name for name, c in calls if c.end == end and f"{first}.".startswith(f"{name}.")]
    return around[-1]
