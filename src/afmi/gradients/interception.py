"""Intercept every operation of a network and hand it to the rule for its name.

While the mode is on, every PyTorch operation passes through `__torch_function__`. Up to the layer
nothing is recorded for autograd. From the layer on, an operation whose operands depend on the
feature maps is handed to the rule for its name. The network is never touched: no hooks on its
modules, no attributes, and its parameters take part as constants. To the network the run looks like
one without gradients, so that nothing of its own waits for the backward pass.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from afmi.errors import ModelError, OperationError
from afmi.gradients.dependence import Dependence, Kind, tensors_in
from afmi.gradients.disguise import FORM, OF_AUTOGRAD, SET_GRAD_ENABLED, GradMode
from afmi.gradients.operation import Awaited, Operation
from afmi.gradients.tape import Entry, Tape, TapeMismatchError, TapeReader
from afmi.network.layers import maps_of
from afmi.network.operations import Trait, ignores_values, operation_name, operations_with
from afmi.network.watch import READS, Watch

__all__ = ["ORDINARY", "BackwardState", "Handler", "Interception", "Rules"]


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

# Operations of which an output may be constant although an operand depends on the maps.
_MAY_GIVE_CONSTANTS = operations_with(Trait.LIKE_OTHER, Trait.EACH)

# What an operand is to the feature maps: differentiable from them, or made of their values where
# autograd does not follow (a mask, an index, a detached copy).
_PATH, _OF_VALUES = 1, 2


@dataclass(slots=True)
class BackwardState:
    """What one backward pass asks of the rules; written by `ForwardPass` alone.

    Attributes:
        reference: which reference's factors to use.
        reuse: whether no other pass will follow, so that the factors' memory may be written to.
        traced: whether the run is traced, so that rules take their traceable form.
    """

    reference: int = 0
    reuse: bool = False
    traced: bool = False


class Interception(TorchFunctionMode):
    """The state of one run; rules read ``recording`` and ``readers``."""

    def __init__(
        self,
        rules: Rules,
        watch: Watch,
        recording: Tape | None,
        readers: list[TapeReader],
        *,
        traced: bool = False,
    ) -> None:
        super().__init__()
        self.rules = rules
        self._watch = watch
        self.recording = recording
        self.readers = readers
        self.backward = BackwardState(traced=traced)
        self.leaf: Tensor | None = None
        self.logits: Tensor | None = None
        self.awaited: list[Awaited] = []
        self.out_of_sight: str | None = None
        """What made a tensor that depends on the maps and could not be intercepted."""
        self._dependence = Dependence()
        self._grad_mode = GradMode()

    def begin(self, tensor: Tensor) -> Tensor:
        """Make ``tensor`` the leaf of the gradients; return what the network goes on with."""
        if torch._C._are_functorch_transforms_active():
            raise ModelError(
                "the layer runs within a transform of torch.func, such as vmap, whose tensors "
                "stand for others; choose a layer around that part"
            )
        with torch._C.DisableTorchFunction():
            tensor = tensor.clone() if tensor.is_inference() else tensor.detach()
            self.leaf = tensor.requires_grad_(True)
            self._grad_mode.begin()
            # A copy, because PyTorch refuses in-place operations on a leaf.
            onward = self.leaf.clone()
            self._dependence.follow(onward)
        self._watch.reached_layer(onward)
        return onward

    def mark(self, tensor: Tensor) -> Tensor:
        """Let the network go on with a copy of a tensor, whose own gradient can be asked for."""
        with torch._C.DisableTorchFunction(), torch.enable_grad():
            onward = tensor.clone()
            self._dependence.follow(onward)
        self._watch.reached_layer(onward)
        return onward

    def leave(self) -> None:
        """Restore what `begin` changed; the run is over, and its gradients may be asked for."""
        self._grad_mode.end()

    def end(self) -> None:
        """Give up the run's graph; tensors of it that the network kept are left without it."""
        self.leaf = self.logits = None
        self._dependence.release()

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        if self.leaf is None and not self.awaited:  # nothing to look out for yet
            return self._watch.run(func, args, kwargs or {})
        return self._watch.run(func, args, kwargs or {}, self._passed)

    def _passed(
        self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        """Make a call of the network: as it is up to the layer, by the rules behind it."""
        if self.leaf is None:
            return self._captured(func, args, func(*args, **kwargs))
        if func in FORM:
            return func(*args, **kwargs)
        if func is SET_GRAD_ENABLED:
            return self._grad_mode.set(*args)
        self._grad_mode.keep()
        if func in OF_AUTOGRAD:
            return self._of_autograd(func, args, kwargs)
        args, kind = self._constants(args)
        if kwargs:
            values, in_kwargs = self._constants(tuple(kwargs.values()))
            kwargs = dict(zip(kwargs, values, strict=True))
            kind |= in_kwargs
        operation = Operation(operation_name(func), func, args, kwargs)
        self._keep_overwritten(operation)
        if not kind:
            return operation()
        if func in READS:
            return self._read(operation)
        if kind == _OF_VALUES or not torch.is_grad_enabled():
            return self._beside_autograd(operation)
        output = self._by_rule(operation, kind)
        self._follow(operation, output)
        return self._captured(func, args, output) if self.awaited else output

    def _of_autograd(
        self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        """Answer what the network asks of autograd."""
        if func is torch.autograd.grad:
            if self.rules.complete:
                raise OperationError(
                    "the network differentiates a part of its own (torch.autograd.grad) on the way "
                    f"to its logits, which has no rule for {self.rules.purpose}; write that "
                    "derivative out, or choose a layer behind it"
                )
            return func(*args, **kwargs)
        return (func if args[0].is_leaf else OF_AUTOGRAD[func])(*args, **kwargs)

    def _captured(self, func: Callable[..., Any], args: tuple[Any, ...], output: Any) -> Any:
        """Return what an operation gave, or, where that is awaited, what is made of it."""
        for one in self.awaited:
            if args and args[0] is one.tensor and operation_name(func) == one.layer.then:
                self.awaited.remove(one)
                return one.take(maps_of(one.layer, output, one.sides))
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
        written = operation.written
        if self.rules.complete and any(t.requires_grad for t in tensors_in((output, written))):
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

    def _keep_overwritten(self, operation: Operation) -> None:
        """Copy what the tape holds of a tensor that the network is about to write to."""
        if self.recording is not None and operation.written is not None:
            self.recording.keep(operation.written)

    def _read(self, operation: Operation) -> Any:
        """Let the network read values, and compare its decisions with those for the reference.

        A number that it goes on with shows in the sum, which is compared with the logit's change.
        """
        outcome = operation.with_operands(x.detach() for x in operation.path_operands)
        if not isinstance(outcome, bool):
            return outcome
        if self.recording is not None:
            decision = torch.tensor(outcome, dtype=torch.bool, device="cpu")
            self.recording.entries.append(Entry("bool", (), decision))
        for reader in self.readers:
            if bool(reader.next("bool", ()).output) != outcome:
                raise TapeMismatchError(
                    "the network decides otherwise for the images than for the reference (an `if` "
                    "on a tensor's values); its flow must not depend on the values of its input"
                )
        return outcome

    def _beside_autograd(self, operation: Operation) -> Any:
        """Make a call whose output autograd does not follow from the maps, and remember that."""
        written = operation.written
        if self.rules.complete and written is not None:
            followed = written.requires_grad and not written.is_leaf
            if followed or self._dependence.shares_memory(written):
                raise OperationError(
                    f"the network writes to its activations ({operation.name!r}) where autograd "
                    "does not follow: through .data, a detached tensor or within no_grad; write to "
                    "the tensor itself, or compute a new one"
                )
        output = operation()
        if self.rules.complete and not ignores_values(operation.name):
            for tensor in tensors_in(output):
                self._dependence.take_values(tensor, operation.args[0] if operation.args else None)
        return output

    def _constants(self, values: tuple[Any, ...]) -> tuple[tuple[Any, ...], int]:
        """Detach parameters, so that ``requires_grad`` means: depends on the feature maps."""
        kind = 0
        changed: list[Any] | None = None
        for i, value in enumerate(values):
            if isinstance(value, Tensor):
                if self._dependence.of_values(value):
                    kind |= _OF_VALUES
                if value.is_inference():  # autograd refuses weights made in inference mode
                    changed = changed if changed is not None else list(values)
                    changed[i] = value.detach().clone()
                    continue
                if not value.requires_grad:
                    continue
                if self._is_constant(value):
                    # By ordinary derivatives, the network may differentiate what is its own.
                    if self.rules.complete or isinstance(value, nn.Parameter):
                        changed = changed if changed is not None else list(values)
                        changed[i] = value.detach()
                else:
                    kind |= _PATH
            elif type(value) in (list, tuple) and value:
                inner, inner_kind = self._constants(tuple(value))
                if any(a is not b for a, b in zip(inner, value, strict=True)):
                    changed = changed if changed is not None else list(values)
                    changed[i] = type(value)(inner)
                kind |= inner_kind
        return (values if changed is None else tuple(changed)), kind

    def _is_constant(self, tensor: Tensor) -> bool:
        """Tell whether a tensor that autograd follows does not depend on the maps."""
        if tensor.is_leaf:
            return tensor is not self.leaf
        kind = self._dependence.kind(tensor)
        if kind is Kind.OUT_OF_SIGHT:
            self.out_of_sight = tensor.grad_fn.name() if tensor.grad_fn is not None else "unknown"
            if self.rules.complete:
                raise OperationError(
                    "a tensor reached the network's next operation from "
                    f"{self.out_of_sight}, which PyTorch does not let be intercepted (a compiled "
                    "or scripted part, one under torch.func such as vmap, or an autograd.Function "
                    "of the network's own, as for gradient checkpointing); use the plain form of "
                    "that part, such as the uncompiled model, and turn checkpointing off"
                )
            self._dependence.follow(tensor)
        return kind is Kind.CONSTANT

    def _follow(self, operation: Operation, output: Any) -> None:
        """Remember that what an operation gave depends on the maps."""
        if isinstance(output, Tensor) and output.requires_grad:  # as nearly always
            self._dependence.follow(output)
            return
        name = operation.name
        for tensor in tensors_in(output):
            if tensor.requires_grad:
                self._dependence.follow(tensor)
            elif not ignores_values(name) and name not in _MAY_GIVE_CONSTANTS:
                self._dependence.take_values(tensor, operation.args[0] if operation.args else None)
        if output is None and operation.written is not None and operation.written.requires_grad:
            self._dependence.follow(operation.written)

    def finish(self, logits: Tensor) -> bool:
        """Take the run's logits, and tell whether they depend on the leaf."""
        if not logits.requires_grad or self._is_constant(logits):
            return False
        self.logits = logits
        return True
