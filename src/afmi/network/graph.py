"""One forward pass as a graph: which tensor came from which, and where channels and places are."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from afmi.network.checking import check_images, check_model, named_failures
from afmi.network.guards import (
    evaluation_mode,
    watching_all_modules,
    without_compilation,
    without_fused_attention,
)
from afmi.network.operations import Trait, operation_name, operations_with
from afmi.network.outputs import scores_of

__all__ = ["Call", "Dataflow", "Step", "first_tensor"]

_IMAGE = -1

_CHANNELS_FIRST = operations_with(Trait.CHANNELS_FIRST)
_CHANNELS_LAST = operations_with(Trait.CHANNELS_LAST)
_RESHAPING = operations_with(Trait.RESHAPE)
_WEIGHTED = operations_with(Trait.WEIGHTED)
_MIXING = operations_with(Trait.TOKEN_MIXING)
_HEADS = operations_with(Trait.ATTENTION)


def first_tensor(output: object) -> Tensor | None:
    """Return the tensor that a module returned, or the first of several."""
    if isinstance(output, (tuple, list)) and output:
        output = output[0]
    return output if isinstance(output, Tensor) else None


@dataclass(eq=False)
class Step:
    """One operation whose output is a tensor that carries the image on; see `Dataflow`.

    Attributes:
        name: its canonical name.
        position: its place in the list of all.
        inputs, outputs: its tensors.
        sources: the positions of the steps that made the inputs; −1: the image.
        axes: its other arguments, which tell how it moves dimensions.
        first: whether its first argument is the first of the inputs, and no list or mask.
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
        """The tensor that it is applied to; None where it takes a list."""
        return self.inputs[0] if self.inputs and self.first else None

    @property
    def weighs(self) -> bool:
        """Tell whether the operation applies weights."""
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
        module: the module.
        output: the tensor that it returned, or the first of several.
        end: the number of steps done when it returned.
        made_by: the position of the step that computed the output, if one did.
    """

    module: nn.Module
    output: Tensor
    end: int
    made_by: int | None


def _tensors(values: Iterable[Any], *, whole: bool) -> Iterator[Tensor]:
    """Yield the tensors among some values, those of whole numbers and of bools only if asked."""
    for value in values:
        if isinstance(value, Tensor):
            if whole or value.is_floating_point() or value.is_complex():
                yield value
        elif isinstance(value, (list, tuple)):
            yield from _tensors(value, whole=whole)


@dataclass
class Dataflow:
    """The steps of one image's forward pass, and what follows from their order.

    Real and complex numbers carry the image to the logits. Whole numbers do so only in a network
    where no other way leads there, such as one that rounds to bytes: elsewhere they are indices
    and masks, which stand beside the maps.

    Attributes:
        steps: all operations whose outputs carry the image, in order.
        calls: all module calls that returned a tensor, in the order in which they returned.
        image: the size of the image: (H, W), or (L,) or (D, H, W).
        classes: the number of logits.
    """

    steps: list[Step]
    calls: list[Call]
    image: tuple[int, ...]
    classes: int
    _path: list[int] = field(default_factory=list)
    _users: dict[int, list[int]] = field(default_factory=dict)
    _channels: dict[int, int] = field(default_factory=dict)

    @classmethod
    def of(cls, model: nn.Module, image: Tensor) -> Dataflow:
        """Run one image (1, C, *spatial) and return the steps of its forward pass."""
        if not image.is_meta:  # shapes alone are enough here
            check_model(model)
            check_images(model, image)
        with named_failures(model, image):
            flow = cls._of(model, image, whole=False)
            return flow if flow._path else cls._of(model, image, whole=True)

    @classmethod
    def _of(cls, model: nn.Module, image: Tensor, *, whole: bool) -> Dataflow:
        image = image.detach().clone()
        known = {id(t) for m in (model.parameters(), model.buffers()) for t in m}
        probe = _Probe(image, known, whole=whole)
        with (
            evaluation_mode(model),
            without_fused_attention(),
            without_compilation(),
            torch.no_grad(),
            watching_all_modules(probe.on_module),
            probe,
        ):
            logits = scores_of(model, image)
        flow = cls(probe.steps, probe.calls, tuple(image.shape[2:]), logits.shape[1])
        flow._follow(probe.made.get(id(logits), len(probe.steps) - 1))
        flow._label()
        return flow

    def _follow(self, last: int) -> None:
        """Determine the steps on the way from the image to the logits, and the users of each."""
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

    def dominators(self) -> list[Step]:
        """Return the steps that dominate the logits: every path from the image meets them."""
        dominators, furthest = [], max(self._users.get(_IMAGE, [0]))
        for position in self._path:
            step = self.steps[position]
            if furthest <= position and len(step.outputs) == 1:
                dominators.append(step)
            furthest = max(furthest, *self._users.get(position, [0]))
        return dominators

    def _label(self) -> None:
        """Determine which dimension of each tensor holds the channels."""
        for step in self.steps:
            ends = (*step.inputs[:1], step.output)
            bare = step.name == "linear" or self.channels(ends[0]) is None
            if step.name in _CHANNELS_FIRST:
                self._note({id(tensor): 1 for tensor in ends if tensor.dim() > 1})
            elif step.name in _CHANNELS_LAST and bare:
                self._note({id(tensor): tensor.dim() - 1 for tensor in ends})
            elif step.name not in _HEADS:
                self._inherit(step)
        for step in reversed(self.steps):  # later steps tell about earlier ones, too
            axis = self.channels(step.output)
            if axis is not None and step.name not in _MIXING:
                same = [x for x in step.inputs if x.shape == step.output.shape]
                self._note(dict.fromkeys(map(id, same), axis))

    def _note(self, channels: dict[int, int]) -> None:
        """Keep the dimension of the channels, by a tensor's id, where none is known yet."""
        for key, axis in channels.items():
            self._channels.setdefault(key, axis)

    def _inherit(self, step: Step) -> None:
        for x in step.inputs:
            axis = self._channels.get(id(x))
            if axis is None:
                continue
            for output in step.outputs:
                moved = _moved(step, x, axis, output)
                if moved is not None:
                    self._channels.setdefault(id(output), moved)
            return

    def channels(self, tensor: Tensor) -> int | None:
        """Return which dimension holds the channels, where that is known."""
        return self._channels.get(id(tensor))

    def grid(self, tensor: Tensor) -> tuple[int, ...] | None:
        """Return the sides of maps (1, K, *spatial) or (1, *spatial, K); None: attention's heads, …

        These have as many sides as the image.
        """
        channels, last = self.channels(tensor), len(self.image) + 1
        if tensor.dim() != last + 1 or tensor.shape[0] != 1 or channels not in (1, last):
            return None
        grid = tuple(tensor.shape[1:last] if channels == last else tensor.shape[2:])
        return grid if math.prod(grid) > 1 else None

    def users(self, step: Step) -> list[Step]:
        """Return the steps on the way to the logits that take what a step gave."""
        return [self.steps[position] for position in self._users.get(step.position, [])]


def _moved(step: Step, x: Tensor, axis: int, output: Tensor) -> int | None:
    """Return the dimension to which an operation moved one of its input's."""
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

    def __init__(self, image: Tensor, known: set[int], *, whole: bool) -> None:
        super().__init__()
        self.steps: list[Step] = []
        self.calls: list[Call] = []
        # The steps keep their tensors alive, so no other gets the same id.
        self.made: dict[int, int] = {id(image): _IMAGE}
        self._image = image
        self._known = known
        self._whole = whole

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        inputs = tuple(_tensors([*args, *kwargs.values()], whole=self._whole))
        output = func(*args, **kwargs)
        name = operation_name(func)
        result = args[0] if name == "setitem" else output
        outputs = tuple(_tensors([result], whole=self._whole))
        if outputs:
            position = len(self.steps)
            # A tensor made out of sight is taken to come from the step before.
            sources = [
                self.made.get(id(x), position - 1)
                for x in inputs
                if id(x) in self.made or id(x) not in self._known
            ]
            axes = tuple(a for a in (*args[1:], *kwargs.values()) if not isinstance(a, Tensor))
            first = bool(args and inputs) and args[0] is inputs[0]
            step = Step(name, position, inputs, outputs, tuple(sources), axes, first)
            self.steps.append(step)
            self.made.update((id(tensor), position) for tensor in outputs)
        return output

    def on_module(self, module: nn.Module, output: object) -> None:
        output = first_tensor(output)
        if output is not None:
            made_by = self.made.get(id(output))
            self.calls.append(Call(module, output, len(self.steps), made_by))
