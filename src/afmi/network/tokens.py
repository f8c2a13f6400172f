"""Feature maps in tokens: which tokens stand for places of the image, and which are extra."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from afmi.network.graph import Dataflow, Step
from afmi.network.operations import Trait, operations_with

__all__ = ["TokenLayout", "depends_on_places", "map_layout"]

_MOST_EXTRA = 16
"""More tokens than this beside those of places are no class and register tokens."""

_CHOOSING = operations_with(Trait.CHOOSE)
_MIXING = operations_with(Trait.TOKEN_MIXING)


@dataclass(frozen=True)
class TokenLayout:
    """How a layer's output that is not (N, K, *spatial) itself holds feature maps.

    Attributes:
        grid: the sides, such as (h, w), of the tokens that stand for places, row by row; None: the
            output is (N, *spatial, K).
        prefix: number of extra tokens before them, such as class and register tokens.
        suffix: number of extra tokens after them.
        order: of the dimensions: images (n), tokens (t), channels (k).
        sides: how many spatial dimensions there are where ``grid`` is None.
    """

    grid: tuple[int, ...] | None = None
    prefix: int = 0
    suffix: int = 0
    order: str = "ntk"
    sides: int = 2

    @property
    def extra(self) -> int:
        """The number of extra tokens."""
        return self.prefix + self.suffix

    def fits(self, output: Tensor) -> bool:
        """Tell whether an output has the shape that is expected."""
        if self.grid is None:
            return output.dim() == 2 + self.sides
        tokens = math.prod(self.grid) + self.extra
        return output.dim() == 3 and output.shape[self.order.index("t")] == tokens

    def maps(self, output: Tensor) -> Tensor:
        """Return feature maps (…, K, *spatial)."""
        if self.grid is None:
            return output.movedim(-1, -1 - self.sides)
        tokens = self._ordered(output)
        tokens = tokens.narrow(-2, self.prefix, math.prod(self.grid)).unflatten(-2, self.grid)
        return tokens.movedim(-1, -1 - len(self.grid))

    def extra_tokens(self, output: Tensor) -> Tensor:
        """Return the tokens (…, P, K) that stand for no place: class and register tokens."""
        if self.grid is None:
            return output[(..., slice(0), *[0] * (self.sides - 1), slice(None))]
        tokens = self._ordered(output)
        behind = self.prefix + math.prod(self.grid)
        if not self.suffix:
            return tokens[..., : self.prefix, :]
        return torch.cat([tokens[..., : self.prefix, :], tokens[..., behind:, :]], -2)

    def _ordered(self, output: Tensor) -> Tensor:
        """Return tokens (…, N, T, K)."""
        from_end = [self.order.index(axis) - 3 for axis in "ntk"]
        return output.movedim(from_end, (-3, -2, -1))


def map_layout(flow: Dataflow, tensor: Tensor, end: int) -> tuple[bool, TokenLayout | None]:
    """Return whether a tensor holds feature maps of more than one place, and how.

    Args:
        flow: the forward pass in which the tensor was made.
        tensor: made by a step before ``end``.
        end: only grids that occur before this step count as those of tokens.

    Returns:
        Whether it does, and its layout; None where that is (N, K, *spatial).
    """
    sides = len(flow.image)
    if flow.grid(tensor) is not None:
        if flow.channels(tensor) == 1:
            return True, None
        joined = _joined(flow, tensor, end - 1) if sides == 1 else None
        return True, joined or TokenLayout(sides=sides)
    layout = _token_layout(flow, tensor, end - 1)
    return layout is not None, layout


def _joined(flow: Dataflow, tensor: Tensor, position: int) -> TokenLayout | None:
    """Return the layout of a signal's tokens (1, T, K) to which extra ones were joined, if any.

    As maps with the channels last they have the same shape; only their history tells.
    """
    count = tensor.shape[1]
    for step in reversed(flow.path(end=position + 1)):
        if step.name != "cat" or step.output.dim() != 3 or step.output.shape[1] != count:
            continue
        lengths = [x.shape[1] for x in step.inputs]
        places = max(lengths)
        if sum(lengths) == count and 0 < count - places <= _MOST_EXTRA:
            prefix = sum(lengths[: lengths.index(places)])
            return TokenLayout((places,), prefix, count - places - prefix)
    return None


def _token_layout(flow: Dataflow, tensor: Tensor, position: int) -> TokenLayout | None:
    if tensor.dim() != 3 or 1 not in tensor.shape:
        return None
    channel = flow.channels(tensor)
    channel = 2 if channel is None else channel
    batch = next((a for a in range(3) if a != channel and tensor.shape[a] == 1), None)
    if batch is None or tensor.shape[channel] == 1:
        return None
    token = 3 - channel - batch
    count = tensor.shape[token]
    grid = _grid_of(flow, count, position)
    if grid is None:
        return None
    prefix = _prefix(flow, tensor, token, math.prod(grid), position)
    order = "".join({batch: "n", token: "t", channel: "k"}[axis] for axis in range(3))
    return TokenLayout(grid, prefix, count - prefix - math.prod(grid), order)


def _grid_of(flow: Dataflow, count: int, position: int) -> tuple[int, ...] | None:
    """Return the grid of so many tokens: one that occurred, or one of the image's shape."""
    best: tuple[int, tuple[int, ...]] | None = None
    convolved = False
    for step in reversed(flow.path(end=position + 1)):
        convolved = convolved or step.name.startswith("conv")
        grid = flow.grid(step.output)
        if grid is not None:
            extra = count - math.prod(grid)
            if 0 <= extra <= _MOST_EXTRA and (best is None or extra < best[0]):
                best = extra, grid
    if best is not None:
        return best[1]
    if len(flow.image) != 2:
        return _grid_in_proportion(flow.image, count)
    height, width = flow.image
    for places in range(count, max(count - _MOST_EXTRA, 4) - 1, -1):
        h = round(math.sqrt(places * height / width))
        w = places // max(h, 1)
        fits = convolved or (height % max(h, 1) == 0 and width % max(w, 1) == 0)
        if h and h * w == places and abs(h * width - w * height) < max(height, width) and fits:
            return h, w
    return None


def _grid_in_proportion(image: tuple[int, ...], count: int) -> tuple[int, ...] | None:
    """Return the grid of a signal's or a volume's patches, all of one length a side."""
    for places in range(count, max(count - _MOST_EXTRA, 4) - 1, -1):
        patch = round((math.prod(image) / places) ** (1 / len(image)))
        if all(size % max(patch, 1) == 0 for size in image):
            grid = tuple(size // patch for size in image)
            if math.prod(grid) == places:
                return grid
    return None


def _prefix(flow: Dataflow, tensor: Tensor, token: int, places: int, position: int) -> int:
    """Return how many extra tokens come before those of places."""
    count = tensor.shape[token]
    if count == places:
        return 0
    for step in reversed(flow.steps[: position + 1]):
        if step.name != "cat" or step.output.dim() != 3 or step.output.shape[token] != count:
            continue
        before = 0
        for x in step.inputs:
            if x.shape[token] >= places:  # registers may have come before, with the places
                return before
            before += x.shape[token]
    return count - places


def depends_on_places(flow: Dataflow, step: Step, layout: TokenLayout) -> bool:
    """Tell whether the logits depend on a step's tokens of places, and not on extra ones only."""
    if not layout.extra or layout.grid is None:
        return True
    axis, places = layout.order.index("t"), math.prod(layout.grid)
    waiting, visited = [step], {step.position}
    while waiting:
        for user in flow.users(waiting.pop()):
            chooses = user.name in _CHOOSING
            if chooses and _takes_no_places(flow, user, axis, layout.extra):
                continue
            joined = chooses or user.name == "cat"
            kept = user.output.dim() == 3 and user.output.shape[axis] in (
                (places, places + layout.extra) if joined else (step.output.shape[axis],)
            )
            if not kept or (user.name in _MIXING and not joined):
                return True
            if user.position not in visited:
                visited.add(user.position)
                waiting.append(user)
    return False


def _takes_no_places(flow: Dataflow, choice: Step, axis: int, extra: int) -> bool:
    """Tell whether a choice among tokens takes extra tokens only."""
    used = [x for user in flow.users(choice) for x in user.inputs]
    outputs = [output for output in choice.outputs if any(output is x for x in used)]
    return all(output.dim() < 3 or output.shape[axis] <= extra for output in outputs)
