"""One forward pass as a graph: what was made of what, and where channels and places lie in it."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from afmi.network.classifier import logits_of
from afmi.network.guards import (
    evaluation_mode,
    uncompiled,
    watching_modules,
    without_fused_attention,
)
from afmi.network.operations import Trait, operation_name, operations_with

__all__ = ["Arrangement", "Call", "Dataflow", "Step", "first_tensor"]

_IMAGE = -1
_MOST_OTHERS = 16
"""Tokens more than this beside those of places are no class and register tokens."""

_CHANNELS_FIRST = operations_with(Trait.CHANNELS_FIRST)
_CHANNELS_LAST = operations_with(Trait.CHANNELS_LAST)
_RESHAPING = operations_with(Trait.RESHAPE)
_WEIGHTED = operations_with(Trait.WEIGHTED)
_CHOOSING = operations_with(Trait.CHOOSE)
_MIXING = operations_with(Trait.TOKEN_MIXING)
_HEADS = operations_with(Trait.ATTENTION)


def first_tensor(output: object) -> Tensor | None:
    """Return the tensor that a module gave, or the first of several."""
    if isinstance(output, (tuple, list)) and output:
        output = output[0]
    return output if isinstance(output, Tensor) else None


@dataclass(frozen=True)
class Arrangement:
    """How an output that is not (N, K, h, w) itself holds feature maps.

    Attributes:
        places: (h, w), where the output is tokens, row by row; None: it is (N, h, w, K).
        prefix: how many tokens stand before those of places and for none: class and registers.
        suffix: how many stand behind them.
        order: of the tokens' dimensions: images (n), tokens (t), channels (k).
    """

    places: tuple[int, int] | None = None
    prefix: int = 0
    suffix: int = 0
    order: str = "ntk"

    def fits(self, output: Tensor) -> bool:
        """Tell whether an output has the shape that is expected."""
        if self.places is None:
            return output.dim() == 4
        tokens = self.prefix + self.places[0] * self.places[1] + self.suffix
        return output.dim() == 3 and output.shape[self.order.index("t")] == tokens

    def maps(self, output: Tensor) -> Tensor:
        """Return feature maps (…, K, h, w)."""
        if self.places is None:
            return output.movedim(-1, -3)
        tokens = self._ordered(output)
        count = self.places[0] * self.places[1]
        tokens = tokens.narrow(-2, self.prefix, count).unflatten(-2, self.places)
        return tokens.movedim(-1, -3)

    def others(self, output: Tensor) -> Tensor:
        """Return the tokens (…, P, K) that stand for no place."""
        if self.places is None:
            return output[..., :0, 0, :]
        tokens = self._ordered(output)
        behind = self.prefix + self.places[0] * self.places[1]
        if not self.suffix:
            return tokens[..., : self.prefix, :]
        return torch.cat([tokens[..., : self.prefix, :], tokens[..., behind:, :]], -2)

    def _ordered(self, output: Tensor) -> Tensor:
        """Return tokens (…, N, T, K)."""
        from_end = [self.order.index(axis) - 3 for axis in "ntk"]
        return output.movedim(from_end, (-3, -2, -1))


@dataclass(eq=False)
class Step:
    """One operation that gave a tensor of numbers.

    Attributes:
        name: its canonical name.
        position: its place in the list of all.
        inputs, outputs: its tensors.
        sources: the positions of the steps that made the inputs; −1: the image.
        axes: what its other arguments say, where it turns dimensions.
        first: whether its first argument is a tensor, and not a list of them.
    """

    name: str
    position: int
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    sources: tuple[int, ...]
    axes: tuple[Any, ...]
    first: bool

    @property
    def output(self) -> Tensor:
        """The first of the outputs."""
        return self.outputs[0]

    @property
    def subject(self) -> Tensor | None:
        """What it is applied to, where that is one tensor."""
        return self.inputs[0] if self.inputs and self.first else None

    @property
    def weighs(self) -> bool:
        """Tell whether it is an operation that weights take part in."""
        return self.name in _WEIGHTED

    @property
    def weighs_places(self) -> bool:
        """Tell whether it applies weights at more than one place."""
        shape = self.output.shape
        if not self.weighs or len(shape) < 3:
            return False
        places = shape[2:] if self.name.startswith("conv") else shape[1:-1]
        return math.prod(places) > 1


@dataclass(eq=False)
class Call:
    """One module's call.

    Attributes:
        module: which.
        output: the tensor that it gave, or the first of several.
        end: how many steps were done when it ended.
        made_by: the position of the step that gave the output its values, if one did.
    """

    module: nn.Module
    output: Tensor
    end: int
    made_by: int | None


def _tensors(values: Iterable[Any]) -> Iterator[Tensor]:
    for value in values:
        if isinstance(value, Tensor):
            if value.is_floating_point():
                yield value
        elif isinstance(value, (list, tuple)):
            yield from _tensors(value)


@dataclass
class Dataflow:
    """The steps of one image's forward pass, and what follows from their order.

    Attributes:
        steps: all operations that gave numbers, in order.
        calls: all module calls that gave a tensor, in the order in which they ended.
        image: the size (H, W) of the image.
        classes: the number of logits.
    """

    steps: list[Step]
    calls: list[Call]
    image: tuple[int, int]
    classes: int
    _path: list[int] = field(default_factory=list)
    _users: dict[int, list[int]] = field(default_factory=dict)
    _channels: dict[int, int] = field(default_factory=dict)

    @classmethod
    def of(cls, model: nn.Module, image: Tensor) -> Dataflow:
        """Run one image (1, C, H, W) and return what ran."""
        image = image.detach().clone()
        known = {id(t) for m in (model.parameters(), model.buffers()) for t in m}
        probe = _Probe(image, known)
        with (
            evaluation_mode(model),
            without_fused_attention(),
            uncompiled(),
            torch.no_grad(),
            watching_modules(probe.on_module),
            probe,
        ):
            logits = logits_of(model(image))
        flow = cls(probe.steps, probe.calls, (image.shape[-2], image.shape[-1]), logits.shape[1])
        flow._follow(probe.made.get(id(logits), len(probe.steps) - 1))
        flow._label()
        return flow

    def _follow(self, last: int) -> None:
        """Find the steps on the way from the image to the logits, and who uses what."""
        reached = {_IMAGE}
        for step in self.steps:
            if reached.intersection(step.sources):
                reached.add(step.position)
        needed = {last}
        for step in reversed(self.steps[: last + 1]):
            if step.position in needed:
                needed.update(step.sources)
        self._path = sorted((needed & reached) - {_IMAGE})
        for position in self._path:
            for source in self.steps[position].sources:
                self._users.setdefault(source, []).append(position)

    def path(self, start: int = 0, end: int | None = None) -> list[Step]:
        """Return the steps from ``start`` up to ``end`` that lead from the image to the logits."""
        end = len(self.steps) if end is None else end
        return [self.steps[p] for p in self._path if start <= p < end]

    def cuts(self) -> list[Step]:
        """Return the steps through whose one output all goes that the logits are made of."""
        found, furthest = [], max(self._users.get(_IMAGE, [0]))
        for position in self._path:
            step = self.steps[position]
            if furthest <= position and len(step.outputs) == 1:
                found.append(step)
            furthest = max(furthest, *self._users.get(position, [0]))
        return found

    def _label(self) -> None:
        """Find out which dimension of each tensor holds the channels."""
        channels = self._channels
        for step in self.steps:
            output = step.output
            x = step.inputs[0] if step.inputs else None
            if step.name in _CHANNELS_FIRST:
                for tensor in (t for t in (x, output) if t is not None and t.dim() > 1):
                    channels.setdefault(id(tensor), 1)
            elif step.name in _CHANNELS_LAST and (step.name == "linear" or id(x) not in channels):
                for tensor in (t for t in (x, output) if t is not None):
                    channels.setdefault(id(tensor), tensor.dim() - 1)
            elif step.name not in _HEADS:
                self._inherit(step)
        for step in reversed(self.steps):  # what comes later tells, too
            axis = channels.get(id(step.output))
            if axis is not None:
                for x in step.inputs:
                    if x.shape == step.output.shape and step.name not in _MIXING:
                        channels.setdefault(id(x), axis)

    def _inherit(self, step: Step) -> None:
        for x in step.inputs:
            axis = self._channels.get(id(x))
            if axis is None:
                continue
            for output in step.outputs:
                found = _moved(step, x, axis, output)
                if found is not None:
                    self._channels.setdefault(id(output), found)
            return

    def channels(self, tensor: Tensor) -> int | None:
        """Return which dimension holds the channels, where that is known."""
        return self._channels.get(id(tensor))

    def grid(self, tensor: Tensor) -> tuple[int, int] | None:
        """Return (h, w) of maps (1, K, h, w) or (1, h, w, K); None: attention's heads, …"""
        channels = self.channels(tensor)
        if tensor.dim() != 4 or tensor.shape[0] != 1 or channels not in (1, 3):
            return None
        height, width = tensor.shape[1:3] if channels == 3 else tensor.shape[2:4]
        return (height, width) if height * width > 1 else None

    def holds_maps(self, tensor: Tensor, end: int) -> tuple[bool, Arrangement | None]:
        """Return whether a tensor holds feature maps of more than one place, and how.

        Args:
            tensor: given by a step before ``end``.
            end: only grids that were seen before this step are those of tokens.
        """
        if tensor.dim() == 4 and self.grid(tensor) is not None:
            return True, Arrangement() if self.channels(tensor) == 3 else None
        tokens = self._tokens(tensor, end - 1)
        return tokens is not None, tokens

    def _tokens(self, tensor: Tensor, position: int) -> Arrangement | None:
        if tensor.dim() != 3 or 1 not in tensor.shape:
            return None
        channel = self._channels.get(id(tensor), 2)
        batch = next((a for a in range(3) if a != channel and tensor.shape[a] == 1), None)
        if batch is None or tensor.shape[channel] == 1:
            return None
        token = 3 - channel - batch
        count = tensor.shape[token]
        places = self._places(count, position)
        if places is None:
            return None
        prefix = self._prefix(tensor, token, math.prod(places), position)
        order = "".join({batch: "n", token: "t", channel: "k"}[axis] for axis in range(3))
        return Arrangement(places, prefix, count - prefix - math.prod(places), order)

    def _places(self, count: int, position: int) -> tuple[int, int] | None:
        """Return the grid of so many tokens: one that was seen, or one of the image's shape."""
        best: tuple[int, tuple[int, int]] | None = None
        convolved = False
        for step in reversed(self.path(end=position + 1)):
            convolved = convolved or step.name == "conv2d"
            grid = self.grid(step.output)
            if grid is not None:
                others = count - math.prod(grid)
                if 0 <= others <= _MOST_OTHERS and (best is None or others < best[0]):
                    best = others, grid
        if best is not None:
            return best[1]
        height, width = self.image
        for places in range(count, max(count - _MOST_OTHERS, 4) - 1, -1):
            h = round(math.sqrt(places * height / width))
            w = places // max(h, 1)
            fits = convolved or (height % max(h, 1) == 0 and width % max(w, 1) == 0)
            if h and h * w == places and abs(h * width - w * height) < max(height, width) and fits:
                return h, w
        return None

    def _prefix(self, tensor: Tensor, token: int, places: int, position: int) -> int:
        """Return how many tokens stand before those of places."""
        count = tensor.shape[token]
        if count == places:
            return 0
        for step in reversed(self.steps[: position + 1]):
            if step.name != "cat" or step.output.dim() != 3 or step.output.shape[token] != count:
                continue
            before = 0
            for x in step.inputs:
                if x.shape[token] >= places:  # registers may have come before, with the places
                    return before
                before += x.shape[token]
        return count - places

    def places_count(self, step: Step, how: Arrangement) -> bool:
        """Tell whether the logits depend on tokens of places, and not on class tokens only."""
        others = how.prefix + how.suffix
        if not others or how.places is None:
            return True
        axis, places = how.order.index("t"), math.prod(how.places)
        waiting, seen = [step.position], {step.position}
        while waiting:
            for user in self._users.get(waiting.pop(), []):
                reader = self.steps[user]
                if reader.name in _CHOOSING and self._leaves_places(reader, axis, others):
                    continue
                joined = reader.name in _CHOOSING or reader.name == "cat"
                kept = reader.output.dim() == 3 and reader.output.shape[axis] in (
                    (places, places + others) if joined else (step.output.shape[axis],)
                )
                if not kept or (reader.name in _MIXING and not joined):
                    return True
                if user not in seen:
                    seen.add(user)
                    waiting.append(user)
        return False

    def _leaves_places(self, reader: Step, axis: int, others: int) -> bool:
        """Tell whether a choice among tokens takes none of those of places."""
        users = [self.steps[p] for p in self._users.get(reader.position, [])]
        used = [o for o in reader.outputs if any(o is x for user in users for x in user.inputs)]
        return all(o.dim() < 3 or o.shape[axis] <= others for o in used)


def _moved(step: Step, x: Tensor, axis: int, output: Tensor) -> int | None:
    """Return where an operation moved a dimension to."""
    if step.name == "permute":
        given = step.axes[0] if len(step.axes) == 1 else step.axes
        order = [int(a) % x.dim() for a in given]
        return order.index(axis)
    if step.name == "transpose":
        first, second = (int(a) % x.dim() for a in (step.axes or (-2, -1))[:2])
        return {first: second, second: first}.get(axis, axis)
    if step.name in _RESHAPING:
        before = math.prod(x.shape[:axis])
        for candidate in range(output.dim()):
            size = output.shape[candidate]
            if size == x.shape[axis] and math.prod(output.shape[:candidate]) == before:
                return candidate
        return None
    return axis if output.dim() == x.dim() and axis < output.dim() else None


class _Probe(TorchFunctionMode):
    """List the operations and module calls of one forward pass."""

    def __init__(self, image: Tensor, known: set[int]) -> None:
        super().__init__()
        self.steps: list[Step] = []
        self.calls: list[Call] = []
        # The steps keep their tensors alive, so no other gets the same id.
        self.made: dict[int, int] = {id(image): _IMAGE}
        self._image = image
        self._known = known

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        inputs = tuple(_tensors([*args, *kwargs.values()]))
        output = func(*args, **kwargs)
        name = operation_name(func)
        outputs = tuple(_tensors([args[0] if name == "setitem" else output]))
        if outputs:
            position = len(self.steps)
            # What was made out of sight came from the step before, as far as one can tell.
            sources = [
                self.made.get(id(x), position - 1)
                for x in inputs
                if id(x) in self.made or id(x) not in self._known
            ]
            axes = tuple(a for a in (*args[1:], *kwargs.values()) if not isinstance(a, Tensor))
            first = bool(args) and isinstance(args[0], Tensor)
            step = Step(name, position, inputs, outputs, tuple(sources), axes, first)
            self.steps.append(step)
            self.made.update((id(tensor), position) for tensor in outputs)
        return output

    def on_module(self, module: nn.Module, output: object) -> None:
        output = first_tensor(output)
        if output is not None:
            made_by = self.made.get(id(output))
            self.calls.append(Call(module, output, len(self.steps), made_by))
