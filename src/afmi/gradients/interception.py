"""Run a network once with its operations intercepted, and differentiate from a chosen layer on.

While `ForwardPass` runs, every PyTorch operation passes through `__torch_function__`. Up to the
layer nothing is recorded for autograd. From the layer on, an operation whose operands depend on
the feature maps is handed to the rule for its name. The network is never touched: no hooks on its
modules, no attributes, and its parameters take part as constants.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from afmi.errors import LayerError, ModelError, OperationError, ShapeError
from afmi.gradients.tape import Entry, Tape, TapeMismatchError, TapeReader
from afmi.network.channels_last import in_fast_layout
from afmi.network.folding import FoldedExecution, run_folded
from afmi.network.graph import first_tensor
from afmi.network.guards import (
    all_modules,
    evaluation_mode,
    watching_module,
    without_compilation,
    without_fused_attention,
)
from afmi.network.layers import Layer
from afmi.network.operations import (
    Trait,
    ignores_values,
    is_inplace,
    operation_name,
    operations_with,
)
from afmi.network.outputs import logits_of
from afmi.network.tokens import TokenLayout

__all__ = ["ORDINARY", "ForwardPass", "Operation", "Rule", "Rules", "forward_pass"]


@dataclass(frozen=True, slots=True)
class Operation:
    """One intercepted call whose operands depend on the feature maps.

    Attributes:
        name: its canonical name, such as ``relu``.
        function, args, kwargs: the call as the network made it.
    """

    name: str
    function: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: dict[str, Any]

    def __call__(self) -> Any:
        """Make the call as it stands."""
        return self.function(*self.args, **self.kwargs)

    @property
    def inplace(self) -> bool:
        """Whether the call overwrites its first operand."""
        return is_inplace(self.function, self.args, self.kwargs)

    def on(self, first: Tensor) -> Any:
        """Make the same call with another first operand."""
        if self.args:
            return self.function(first, *self.args[1:], **self.kwargs)
        return self.function(**{**self.kwargs, "input": first})

    @property
    def operand(self) -> Tensor:
        """The first operand."""
        return self.args[0] if self.args else self.kwargs["input"]


Rule = Callable[["Interception", Operation], Any]


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

    by_name: Mapping[str, Rule]
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


_UNSEEN = (
    "the logits do not depend on the layer's feature maps, as far as autograd sees: the network "
    "detaches them or runs under no_grad; choose a layer behind that"
)


class Interception(TorchFunctionMode):
    """The state of one run; rules read ``recording`` and ``readers``."""

    def __init__(self, rules: Rules, recording: Tape | None, readers: list[TapeReader]) -> None:
        super().__init__()
        self.rules = rules
        self.recording = recording
        self.readers = readers
        # Which reference's multipliers the backward pass uses; set by ForwardPass.
        self.reference = 0
        # Whether what is saved for the backward pass may be overwritten by it, likewise.
        self.last = False
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
            output = func(*args, **kwargs)
            if self.pending is not None and self._awaited(func, args):
                layer, self.pending = self.pending[1], None
                return self.begin(_maps_of(layer, output))
            return output
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
        if kind & _OF_VALUES and self.rules.complete and not ignores_values(name):
            raise OperationError(
                f"{name!r} brings the feature maps together with values taken from them where "
                "autograd does not follow, such as a mask from a comparison, an index or a "
                f"detached copy, so {self.rules.purpose} cannot pass it; write it as one operation "
                "(relu, clamp, …) and register that where it has no rule"
            )
        if kwargs and isinstance(kwargs.get("out"), Tensor):
            raise OperationError(
                f"{name!r} writes into a tensor given as out=, where autograd cannot follow; use "
                "what it returns"
            )
        rule = self.rules.by_name.get(name)
        if rule is not None:
            output = rule(self, Operation(name, func, args, kwargs))
        else:
            output = func(*args, **kwargs)
            if self.rules.complete and _depends(output):
                raise self.no_rule(
                    f"the operation {name!r}",
                    f"register one: afmi.gradients.register_elementwise({name!r}) if it "
                    f"maps each number by itself, register_linear({name!r}) if it is linear in "
                    f"its operands, or register_path_integral({name!r}) if it is smooth",
                    name=name,
                )
        self._mark(output, name)
        if name == "setitem":
            self._mark(args[0], name)
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
            self.recording.entries.append(Entry("bool", (), torch.tensor(outcome)))
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
            raise ModelError(_UNSEEN)
        if self.rules.complete and getattr(logits, _MARK, None) is not self:
            self._out_of_sight(logits)


def _keep_from_odd_strides(logits: Tensor) -> None:
    """Have gradients of batch norms laid out as PyTorch's backward pass expects them.

    With one image, a gradient that comes from transposed tokens has the strides of channels that
    lie last but for the batch's own. PyTorch 2.15 takes it for contiguous on the CPU, and gives a
    derivative of permuted numbers, without a word. It is right where the maps are channels-last.
    """
    nodes: list[Any] = [logits.grad_fn]
    met = set(nodes)
    for node in nodes:  # which grows meanwhile
        norm = type(node).__name__.startswith("NativeBatchNorm")
        if norm and node._saved_input.is_contiguous():
            node.register_prehook(_contiguous)
        for before, _ in node.next_functions:
            if before is not None and before not in met:
                met.add(before)
                nodes.append(before)


def _contiguous(gradients: tuple[Tensor | None, ...]) -> tuple[Tensor | None, ...]:
    return tuple(g if g is None else g.contiguous() for g in gradients)


def _depends(output: Any) -> bool:
    if isinstance(output, Tensor):
        return output.requires_grad
    if isinstance(output, (tuple, list)):
        return any(_depends(item) for item in output)
    return False


@dataclass(frozen=True)
class ForwardPass:
    """One finished run: the maps, the logits, and gradients of the latter by the former.

    Attributes:
        features: feature maps A (N, K, h, w), or the inputs themselves, detached.
        others: tokens (N, P, K) beside those of the maps, such as a class token, detached.
        logits: (N, C), detached.
    """

    features: Tensor
    others: Tensor
    logits: Tensor
    _interception: Interception
    _graph_logits: Tensor
    _leaf: Tensor
    _token_layout: TokenLayout | None

    def gradient(self, target: Tensor, reference: int = 0, *, last: bool = False) -> Tensor:
        """Return ∂y_c/∂A like ``features``, with the rules of this run.

        Args:
            target: class of each image, int64 (N,).
            reference: which of the run's references the rules use.
            last: whether no other gradient will be asked for. What the pass holds is then freed
                on the way, which saves time too: memory is used again while it is warm.
        """
        return self.pull_back(_one_hot(target, self.logits), reference, last=last)

    def pull_back(self, cotangent: Tensor, reference: int = 0, *, last: bool = False) -> Tensor:
        """Return Σ_c v_c ∂y_c/∂A like ``features``: the gradient of any score of the logits.

        Args:
            cotangent: v = ∂score/∂y, (N, C).
            reference: which of the run's references the rules use.
            last: as in `gradient`.
        """
        return self._parted(self._pull_back(cotangent, reference, last=last))[0]

    def _pull_back(
        self, cotangent: Tensor, reference: int, *, last: bool, batched: bool = False
    ) -> Tensor:
        self._interception.reference = reference
        self._interception.last = last and not batched
        (gradient,) = torch.autograd.grad(
            self._graph_logits,
            self._leaf,
            cotangent,
            retain_graph=not last,
            is_grads_batched=batched,
            allow_unused=True,
        )
        if gradient is None:
            raise ModelError(_UNSEEN)
        return gradient

    def _parted(self, gradient: Tensor) -> tuple[Tensor, Tensor]:
        return _parted(gradient, self._token_layout)

    def gradients(self, targets: Tensor, reference: int = 0, *, last: bool = False) -> Tensor:
        """Return ∂y_c/∂A for several classes of each image, in one batched backward pass.

        Args:
            targets: classes, int64 (T, N).
            reference: which of the run's references the rules use.
            last: as in `gradient`.

        Returns:
            (T, *features.shape).
        """
        return self.parted_gradients(targets, reference, last=last)[0]

    def parted_gradients(
        self, targets: Tensor, reference: int = 0, *, last: bool = False
    ) -> tuple[Tensor, Tensor]:
        """Return the gradients by the feature maps and by the other tokens.

        Args:
            targets: classes, int64 (T, N).
            reference: which of the run's references the rules use.
            last: as in `gradient`.

        Returns:
            (T, *features.shape) and (T, *others.shape).
        """
        cotangents = _one_hot(targets, self.logits)
        if targets.shape[0] == 1:
            return self._parted(self._pull_back(cotangents[0], reference, last=last)[None])
        return self._parted(self._pull_back(cotangents, reference, last=last, batched=True))


def _parted(tensor: Tensor, token_layout: TokenLayout | None) -> tuple[Tensor, Tensor]:
    """Return the feature maps in a layer's output, and the tokens beside them."""
    if token_layout is None:
        return tensor, tensor[..., :0, 0, :]
    return token_layout.maps(tensor), token_layout.extra_tokens(tensor)


def _maps_of(layer: Layer, output: object) -> Tensor:
    """Return a layer's output, where it has the shape that the layer is said to give."""
    layout = layer.token_layout
    if isinstance(output, Tensor) and (layout.fits(output) if layout else output.dim() == 4):
        return output
    came = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
    raise LayerError(
        f"layer {layer} must give feature maps (N, K, h, w), but gives {came}; choose a "
        "convolutional layer, or one whose tokens are those of places"
    )


def _one_hot(target: Tensor, logits: Tensor) -> Tensor:
    hot = torch.zeros(*target.shape, logits.shape[1], dtype=logits.dtype, device=logits.device)
    return hot.scatter_(-1, target.unsqueeze(-1), 1.0)


def _inferred(model: nn.Module) -> bool:
    """Tell whether a weight was made in inference mode, which autograd refuses."""
    return any(
        tensor is not None and tensor.is_inference()
        for module in all_modules(model)
        for owned in (module._parameters, module._buffers)
        for tensor in owned.values()
    )


def forward_pass(
    model: nn.Module,
    inputs: Tensor,
    *,
    layer: tuple[nn.Module, Layer] | None,
    rules: Rules = ORDINARY,
    recording: Tape | None = None,
    tapes: list[Tape] | None = None,
    fast: bool | None = None,
    folded: FoldedExecution | None = None,
) -> ForwardPass:
    """Run the network on images and keep what the gradients from a layer on need.

    Args:
        model: maps (N, C, H, W) to logits.
        inputs: images (N, C, H, W); never written to.
        layer: module and name of the feature maps; None: gradients by the inputs themselves.
        rules: what to do with the operations behind the layer.
        recording: a tape to fill, where this is the reference's run.
        tapes: the references' tapes, where rules need them.
        fast: the images' memory layout; see `afmi.network.channels_last.in_fast_layout`.
        folded: the network's folded execution, where the gradients are by the inputs; None: the
            network runs its own operations.

    Raises:
        LayerError: when the layer is not reached, reached twice, or gives no (N, K, h, w).
        OperationError: when an operation has no rule and the rules must be complete.
    """

    def run(own: Tensor) -> ForwardPass:
        if recording is not None:
            recording.entries.clear()
        return _run(model, own, layer, rules, recording, tapes or [], folded)

    def attempt(_: FoldedExecution | None) -> ForwardPass:
        return in_fast_layout(model, run, inputs.detach(), fast=fast)

    with (
        torch.inference_mode(False),
        torch.set_grad_enabled(False),
        evaluation_mode(model),
        without_fused_attention(),
        without_compilation(),
    ):
        if folded is None:
            return attempt(None)
        return run_folded(model, attempt, inputs.detach(), folded)


def _run(
    model: nn.Module,
    own: Tensor,
    layer: tuple[nn.Module, Layer] | None,
    rules: Rules,
    recording: Tape | None,
    tapes: list[Tape],
    folded: FoldedExecution | None,
) -> ForwardPass:
    readers = [TapeReader(tape) for tape in tapes]
    state = Interception(rules, recording, readers)
    # Without rules, and with nothing to look out for, PyTorch may go its way alone.
    plain = rules is ORDINARY and (layer is None or layer[1].then is None) and not _inferred(model)

    def capture(output: object) -> object:
        assert layer is not None
        if state.leaf is not None or state.pending is not None:
            raise LayerError(
                f"layer {layer[1]} runs more than once in a forward pass, so its maps are not one "
                "thing; choose the module around it"
            )
        # Only now, because a mode costs time for every operation, also in the trunk.
        if not plain:
            interception.enter_context(state)
        first = first_tensor(output)
        if layer[1].then is not None and first is not None:
            state.pending = (first, layer[1])
            return None
        begun = state.begin(_maps_of(layer[1], first if first is not None else output))
        # Of several, such as a block's maps and its attention, the first are the maps.
        return type(output)((begun, *output[1:])) if isinstance(output, (tuple, list)) else begun

    # Ends with this run, and so does what `Interception.begin` made of the gradients' mode.
    with torch.set_grad_enabled(False), ExitStack() as interception:
        if layer is None:
            own = state.begin(own)
            if not plain:
                interception.enter_context(state)
            if folded is not None:
                # On top, so that rules see what the network runs by; they pool in their own way.
                interception.enter_context(folded.intercepting(pools=plain))
        else:
            interception.enter_context(watching_module(layer[0], capture))
        graph_logits = logits_of(model(own))
    if state.leaf is None:
        assert layer is not None
        raise LayerError(
            f"layer {layer[1]} was not reached in a forward pass; choose one that the network runs"
            + ("" if layer[1].then is None else f", followed by the operation {layer[1].then!r}")
        )
    state.check_logits(graph_logits)
    if own.device.type == "cpu":
        _keep_from_odd_strides(graph_logits)
    for reader in readers:
        reader.finish()
    if graph_logits.shape[0] != own.shape[0]:
        raise ShapeError(
            f"expected logits for {own.shape[0]} images, got {graph_logits.shape[0]} rows"
        )
    token_layout = None if layer is None else layer[1].token_layout
    features, others = _parted(state.leaf.detach(), token_layout)
    return ForwardPass(
        features=features,
        others=others,
        logits=graph_logits.detach(),
        _interception=state,
        _graph_logits=graph_logits,
        _leaf=state.leaf,
        _token_layout=token_layout,
    )
