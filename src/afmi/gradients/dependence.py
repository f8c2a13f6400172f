"""Which tensors of a run depend on its leaf: known without a mark on any of them.

Autograd knows what a tensor was made of, so what the operations in sight gave is told by its nodes.
Where autograd does not follow, a tensor is known by its identity, as long as the run lasts.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from enum import Enum, auto
from typing import Any

import torch
from torch import Tensor
from torch._subclasses import FakeTensor

__all__ = ["Dependence", "Kind", "tensors_in"]


class Kind(Enum):
    """What a tensor that autograd follows is to the leaf."""

    CONSTANT = auto()
    """Made of other tensors alone."""
    IN_SIGHT = auto()
    """Made of the leaf by operations that were intercepted."""
    OUT_OF_SIGHT = auto()
    """Made of the leaf, by others as well."""


def tensors_in(value: Any) -> Iterator[Tensor]:
    """Yield the tensors in what an operation gave: itself, or in tuples and lists."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, (tuple, list)):
        for item in value:
            yield from tensors_in(item)


class Dependence:
    """The tensors that depend on one run's leaf.

    Autograd's nodes stay the same objects as long as one refers to them, so they are held until
    `release`.
    """

    def __init__(self) -> None:
        self._nodes: set[Any] = set()
        self._constant: set[Any] = set()
        self._followed: list[weakref.ref[Tensor]] = []
        # Held as well, so that no other tensor gets their identity.
        self._of_values: dict[int, Tensor] = {}
        self._aliases: set[int] = set()

    def follow(self, tensor: Tensor) -> None:
        """Take a tensor that autograd follows for one made of the leaf in sight."""
        self._nodes.add(tensor.grad_fn)
        self._followed.append(weakref.ref(tensor))
        base = tensor._base if tensor._is_view() else None
        if base is not None and base.requires_grad and base.grad_fn not in self._nodes:
            # Written through a view, the whole depends on the leaf.
            self.follow(base)

    def kind(self, tensor: Tensor) -> Kind:
        """Tell what a tensor that autograd follows, and that is no leaf, is to the run's leaf."""
        node = tensor.grad_fn
        if node in self._nodes:
            return Kind.IN_SIGHT
        if not self._reaches_leaf(node):
            return Kind.CONSTANT
        # A view of what was written to since then has a new node, behind that of the whole.
        if tensor._is_view() and tensor._base is not None and tensor._base.grad_fn in self._nodes:
            return Kind.IN_SIGHT
        return Kind.OUT_OF_SIGHT

    def _reaches_leaf(self, node: Any) -> bool:
        """Tell whether a way leads from a node to one that depends on the leaf."""
        met = {node}
        open_nodes = [node]
        while open_nodes:
            for before, _ in open_nodes.pop().next_functions:
                if before in self._nodes:
                    return True
                if before is not None and before not in met and before not in self._constant:
                    met.add(before)
                    open_nodes.append(before)
        self._constant |= met
        return False

    def take_values(self, tensor: Tensor, source: Any = None) -> None:
        """Take a tensor for one made of the leaf's values where autograd does not follow.

        Args:
            tensor: a mask, an index, a detached copy.
            source: the operand that it may share its memory with.
        """
        self._of_values[id(tensor)] = tensor
        if isinstance(source, Tensor) and (source.requires_grad or id(source) in self._aliases):
            shared = tensor.device == source.device and _memory(tensor) == _memory(source)
            if shared and tensor.numel():
                self._aliases.add(id(tensor))

    def of_values(self, tensor: Tensor) -> bool:
        """Tell whether a tensor was made of the leaf's values where autograd does not follow."""
        return bool(self._of_values) and id(tensor) in self._of_values

    def shares_memory(self, tensor: Tensor) -> bool:
        """Tell whether a tensor lies in the memory of one that autograd follows, unknown to it."""
        return id(tensor) in self._aliases

    def release(self) -> None:
        """Leave the tensors that somebody still holds, such as the network, without a graph.

        They become what a run without gradients gives. To be called when no gradient will be asked
        for any more.
        """
        self._nodes.clear()
        self._constant.clear()
        self._of_values.clear()
        self._aliases.clear()
        with torch.no_grad():
            while self._followed:  # the latest first, which hold the graph of those before
                tensor = self._followed.pop()()
                if tensor is not None and tensor.requires_grad and not tensor.is_leaf:
                    _cut_off(tensor)


def _memory(tensor: Tensor) -> int:
    storage = tensor.untyped_storage()
    return storage._cdata if isinstance(tensor, FakeTensor) else storage.data_ptr()


def _cut_off(tensor: Tensor) -> None:
    """Detach a tensor in place."""
    if not tensor._is_view():
        tensor.detach_()
        return
    try:
        torch._C._swap_tensor_impl(tensor, tensor.detach())
    except RuntimeError:  # C++ code holds it, too
        return
