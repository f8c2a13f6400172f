"""Intercept every operation of a network and hand it to the rule for its name.

While the mode is on, every PyTorch operation passes through `__torch_function__`. Up to the layer
nothing is recorded for autograd. From the layer on, an operation whose operands depend on the
feature maps is handed to the rule for its name. The network is never touched: no hooks on its
modules, no attributes, and its parameters take part as constants.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from afmi.errors import LayerError, OperationError
from afmi.gradients.operation import Operation
from afmi.gradients.tape import Entry, Tape, TapeMismatchError, TapeReader
from afmi.network.layers import Layer
from afmi.network.operations import Trait, ignores_values, operation_name, operations_with

__all__ = ["ORDINARY", "UNSEEN", "BackwardState", "Handler", "Interception", "Rules", "maps_of"]


Handler = Callable[["Interception", Operation], Any]
"""What the table has for an operation: makes the call and returns its output. A
`afmi.gradients.rule.Rule`, or a function where the ordinary backward pass is the right one."""


@dataclass(frozen=True)
class Rules:
    """What to do with each operation.

    Attributes:
        by_name: a rule for each operation's name.
        complete: whether every operation on the way to the logits must have a rule. If so, one
            that has none raises an `OperationError`; if not, it keeps its ordinary derivative.
        purpose: what they make of the backward pass, as that error calls it.
        extensible: whether `register_rule` adds to them.
    """

    by_name: Mapping[str, Handler]
    complete: bool = True
    purpose: str = "the modified gradient"
    extensible: bool = False


ORDINARY = Rules({}, complete=False)
"""Ordinary derivatives for every operation."""

# What tells a tensor's form and gives no tensor; networks ask for it at every other step.
_FORM = frozenset(
    {
        *(Tensor.dim, Tensor.size, Tensor.stride, Tensor.numel, Tensor.__len__),
        *(Tensor.is_contiguous, Tensor.is_floating_point),
        *(
            getattr(Tensor, name).__get__
            for name in ("shape", "ndim", "dtype", "device", "requires_grad")
        ),
    }
)

_MARK = "_afmi_pass"
_VALUES = "_afmi_values"

# What an operand is to the feature maps: differentiable from them, or made of their values where
# autograd does not follow (a mask, an index, a detached copy).
_PATH, _OF_VALUES = 1, 2


UNSEEN = (
    "the logits do not depend on the layer's feature maps, as far as autograd sees: the network "
    "detaches them or runs under no_grad; choose a layer behind that, or a method that needs no "
    "gradient (RISE, LIME, …)"
)


@dataclass(slots=True)
class BackwardState:
    """What one backward pass asks of the rules; written by `ForwardPass` alone.

    Attributes:
        reference: which reference's factors to use.
        reuse: whether no other pass will follow, so that the factors' memory may be written to.
    """

    reference: int = 0
    reuse: bool = False


class Interception(TorchFunctionMode):
    """The state of one run; rules read ``recording`` and ``readers``."""

    def __init__(self, rules: Rules, recording: Tape | None, readers: list[TapeReader]) -> None:
        super().__init__()
        self.rules = rules
        self.recording = recording
        self.readers = readers
        self.backward = BackwardState()
        self.leaf: Tensor | None = None
        self.pending: tuple[Tensor, Layer] | None = None
        self._aside = False

    def begin(self, tensor: Tensor) -> Tensor:
        """Make ``tensor`` the leaf of the gradients; return what the network goes on with."""
        self._aside = True
        self.leaf = tensor.detach().requires_grad_(True)
        torch.set_grad_enabled(True)
        # A copy, because PyTorch refuses in-place operations on a leaf.
        onward = self.leaf.clone()
        setattr(onward, _MARK, self)
        self._aside = False
        return onward

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        if self.leaf is None:
            return self._before_the_layer(func, args, kwargs)
        if self._aside or func in _FORM:
            return func(*args, **kwargs)
        args, kind = self._constants(args)
        if kwargs:
            values, in_kwargs = self._constants(tuple(kwargs.values()))
            kwargs = dict(zip(kwargs, values, strict=True))
            kind |= in_kwargs
        name = operation_name(func)
        if self.recording is not None:
            self._keep_overwritten(name, Operation(name, func, args, kwargs))
        if not kind:
            return func(*args, **kwargs)
        if name == "bool":
            return self._decided(func(*args, **kwargs))
        if kind == _OF_VALUES or not torch.is_grad_enabled():
            output = func(*args, **kwargs)
            if not ignores_values(name):
                self._mark_values(output)
            return output
        output = self._by_rule(Operation(name, func, args, kwargs), kind)
        self._mark(output, name)
        if name == "setitem":
            self._mark(args[0], name)
        return output

    def _before_the_layer(
        self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        """Make a call of the trunk, and begin where it gives the awaited maps."""
        output = func(*args, **kwargs)
        if self.pending is not None and self._awaited(func, args):
            layer, self.pending = self.pending[1], None
            return self.begin(maps_of(layer, output))
        return output

    def _by_rule(self, operation: Operation, kind: int) -> Any:
        """Make a call whose operands depend on the maps, by its rule or, without one, as it is."""
        name = operation.name
        if kind & _OF_VALUES and self.rules.complete and not ignores_values(name):
            raise OperationError(
                f"{name!r} brings the feature maps together with values taken from them where "
                "autograd does not follow, such as a mask from a comparison, an index or a "
                f"detached copy, so {self.rules.purpose} cannot pass it; write it as one operation "
                "(relu, clamp, …) and register that where it has no rule"
            )
        if isinstance(operation.kwargs.get("out"), Tensor):
            raise OperationError(
                f"{name!r} writes into a tensor given as out=, where autograd cannot follow; use "
                "what it returns"
            )
        rule = self.rules.by_name.get(name)
        if rule is not None:
            return rule(self, operation)
        output = operation()
        if self.rules.complete and _depends(output):
            raise self.no_rule(
                f"the operation {name!r}",
                f"register one: afmi.gradients.register_elementwise({name!r}) if it "
                f"maps each number by itself, register_linear({name!r}) if it is linear in "
                f"its operands, or register_path_integral({name!r}) if it is smooth",
                name=name,
            )
        return output

    def no_rule(self, what: str, advice: str = "", *, name: str | None = None) -> OperationError:
        """Return the error to raise for what these rules do not cover.

        Args:
            what: the operation, and what is special about this call of it.
            advice: what the user can do.
            name: the operation's name, where a rule that the user registers would help.
        """
        if name is not None and self.rules.extensible:
            rule = f"afmi.gradients.register_rule({name!r}, rule)"
            advice = f"{advice}; otherwise {rule}" if advice else f"register one with {rule}"
        text = f"{what} has no rule for {self.rules.purpose}"
        return OperationError(f"{text}; {advice}" if advice else text)

    def _keep_overwritten(self, name: str, operation: Operation) -> None:
        """Copy what the tape holds of a tensor that the network is about to write to."""
        assert self.recording is not None
        written = operation.kwargs.get("out")
        if written is None and operation.args and (name == "setitem" or operation.inplace):
            written = operation.args[0]
        if isinstance(written, Tensor):
            self.recording.keep(written)

    def _decided(self, outcome: bool) -> bool:
        """Compare a decision that the network takes on the maps' values with the reference's."""
        if self.recording is not None:
            self.recording.entries.append(
                Entry("bool", (), torch.tensor(outcome, dtype=torch.bool, device="cpu"))
            )
        for reader in self.readers:
            if bool(reader.next("bool", ()).output) != outcome:
                raise TapeMismatchError(
                    "the network decides otherwise for the images than for the reference (an `if` "
                    "on a tensor's values); its flow must not depend on the values of its input"
                )
        return outcome

    def _awaited(self, func: Callable[..., Any], args: tuple[Any, ...]) -> bool:
        """Tell whether this is the operation on the layer's output that ends the trunk."""
        return (
            self.pending is not None
            and bool(args)
            and args[0] is self.pending[0]
            and operation_name(func) == self.pending[1].then
        )

    def _constants(self, values: tuple[Any, ...]) -> tuple[tuple[Any, ...], int]:
        """Detach parameters, so that ``requires_grad`` means: depends on the feature maps."""
        kind = 0
        changed: list[Any] | None = None
        for i, value in enumerate(values):
            if isinstance(value, Tensor):
                if getattr(value, _VALUES, None) is self:
                    kind |= _OF_VALUES
                if value.is_inference():  # autograd refuses weights made in inference mode
                    changed = changed if changed is not None else list(values)
                    changed[i] = value.detach().clone()
                    continue
                if not value.requires_grad:
                    continue
                if value.is_leaf and value is not self.leaf:
                    changed = changed if changed is not None else list(values)
                    changed[i] = value.detach()
                else:
                    kind |= _PATH
                    if self.rules.complete and getattr(value, _MARK, None) is not self:
                        self._out_of_sight(value)
            elif type(value) in (list, tuple) and value:
                inner, inner_kind = self._constants(tuple(value))
                if any(a is not b for a, b in zip(inner, value, strict=True)):
                    changed = changed if changed is not None else list(values)
                    changed[i] = type(value)(inner)
                kind |= inner_kind
        return (values if changed is None else tuple(changed)), kind

    def _mark(self, output: Any, name: str) -> None:
        if isinstance(output, Tensor):
            if output.requires_grad:
                setattr(output, _MARK, self)
            elif not ignores_values(name) and name not in operations_with(Trait.LIKE_OTHER):
                setattr(output, _VALUES, self)
        elif isinstance(output, (tuple, list)):
            for item in output:
                self._mark(item, name)

    def _mark_values(self, output: Any) -> None:
        if isinstance(output, Tensor):
            setattr(output, _VALUES, self)
        elif isinstance(output, (tuple, list)):
            for item in output:
                self._mark_values(item)

    def _out_of_sight(self, value: Tensor) -> None:
        maker = value.grad_fn.name() if value.grad_fn is not None else "unknown"
        raise OperationError(
            f"a tensor reached the network's next operation from {maker}, which PyTorch does not "
            "let be intercepted (a compiled or scripted part, or an autograd.Function of the "
            "network's own); use the plain form of that part, such as the uncompiled model"
        )

    def check_logits(self, logits: Tensor) -> None:
        """Raise unless the logits depend on the feature maps by operations that were seen."""
        if not logits.requires_grad:
            raise OperationError(UNSEEN)
        if self.rules.complete and getattr(logits, _MARK, None) is not self:
            self._out_of_sight(logits)


def maps_of(layer: Layer, output: object) -> Tensor:
    """Return a layer's output, where it has the shape that the layer is said to give."""
    layout = layer.token_layout
    if isinstance(output, Tensor):
        fits = layout.fits(output) if layout else output.dim() == 4
        if fits and output.is_floating_point():
            return output
        form = f"{tuple(output.shape)} {output.dtype}"
    else:
        form = type(output).__name__
    raise LayerError(
        f"layer {layer} must give feature maps (N, K, h, w), but gives {form}; choose a "
        "convolutional layer, or one whose tokens are those of places"
    )


def _depends(output: Any) -> bool:
    if isinstance(output, Tensor):
        return output.requires_grad
    if isinstance(output, (tuple, list)):
        return any(_depends(item) for item in output)
    return False
