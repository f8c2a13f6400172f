"""Run a network once and differentiate its logits by a layer's feature maps or by the images."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from afmi.errors import LayerError, OperationError
from afmi.gradients.interception import ORDINARY, UNSEEN, Interception, Rules, maps_of
from afmi.gradients.tape import Tape, TapeReader
from afmi.network.channels_last import in_fast_layout
from afmi.network.checking import check_run, opaque_part
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
from afmi.network.outputs import logits_of
from afmi.network.tokens import TokenLayout

__all__ = ["ForwardPass", "forward_pass"]


@dataclass(frozen=True)
class ForwardPass:
    """One finished run: the maps, the logits, and gradients of the latter by the former.

    Attributes:
        features: feature maps A (N, K, h, w), or the inputs themselves, detached.
        extra_tokens: tokens (N, P, K) beside those of the maps, such as a class token, detached.
        logits: (N, C), detached.
    """

    features: Tensor
    extra_tokens: Tensor
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
        return self._split(self._pull_back(cotangent, reference, last=last))[0]

    def _pull_back(
        self, cotangent: Tensor, reference: int, *, last: bool, batched: bool = False
    ) -> Tensor:
        self._interception.backward.reference = reference
        self._interception.backward.reuse = last and not batched
        (gradient,) = torch.autograd.grad(
            self._graph_logits,
            self._leaf,
            cotangent,
            retain_graph=not last,
            is_grads_batched=batched,
            allow_unused=True,
        )
        if gradient is None:
            raise OperationError(UNSEEN)
        return gradient

    def _split(self, gradient: Tensor) -> tuple[Tensor, Tensor]:
        return _split(gradient, self._token_layout)

    def gradients(self, targets: Tensor, reference: int = 0, *, last: bool = False) -> Tensor:
        """Return ∂y_c/∂A for several classes of each image, in one batched backward pass.

        Args:
            targets: classes, int64 (T, N).
            reference: which of the run's references the rules use.
            last: as in `gradient`.

        Returns:
            (T, *features.shape).
        """
        return self.split_gradients(targets, reference, last=last)[0]

    def split_gradients(
        self, targets: Tensor, reference: int = 0, *, last: bool = False
    ) -> tuple[Tensor, Tensor]:
        """Return the gradients by the feature maps and by the extra tokens.

        Args:
            targets: classes, int64 (T, N).
            reference: which of the run's references the rules use.
            last: as in `gradient`.

        Returns:
            (T, *features.shape) and (T, *extra_tokens.shape).
        """
        cotangents = _one_hot(targets, self.logits)
        if targets.shape[0] == 1:
            return self._split(self._pull_back(cotangents[0], reference, last=last)[None])
        return self._split(self._pull_back(cotangents, reference, last=last, batched=True))


def _split(tensor: Tensor, token_layout: TokenLayout | None) -> tuple[Tensor, Tensor]:
    """Return the feature maps in a layer's output, and the tokens beside them."""
    if token_layout is None:
        return tensor, tensor[..., :0, 0, :]
    return token_layout.maps(tensor), token_layout.extra_tokens(tensor)


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

    def run(images: Tensor) -> ForwardPass:
        if recording is not None:
            recording.entries.clear()
        return _run(model, images, layer, rules, recording, tapes or [], folded)

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
    images: Tensor,
    layer: tuple[nn.Module, Layer] | None,
    rules: Rules,
    recording: Tape | None,
    tapes: list[Tape],
    folded: FoldedExecution | None,
) -> ForwardPass:
    state = Interception(rules, recording, [TapeReader(tape) for tape in tapes])
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
        begun = state.begin(maps_of(layer[1], first if first is not None else output))
        # Of several, such as a block's maps and its attention, the first are the maps.
        return type(output)((begun, *output[1:])) if isinstance(output, (tuple, list)) else begun

    # Ends with this run, and so does what `Interception.begin` made of the gradients' mode.
    with torch.set_grad_enabled(False), ExitStack() as interception:
        if layer is None:
            images = state.begin(images)
            if not plain:
                interception.enter_context(state)
            if folded is not None:
                # On top, so that rules see what the network runs by; they pool in their own way.
                interception.enter_context(folded.intercepting(pools=plain))
        else:
            interception.enter_context(watching_module(layer[0], capture))
        graph_logits = logits_of(model(images))
    if graph_logits.device.type == "cpu" and graph_logits.requires_grad:
        _keep_from_odd_strides(graph_logits)
    return _finished(model, state, graph_logits, images, None if layer is None else layer[1])


def _finished(
    model: nn.Module, state: Interception, graph_logits: Tensor, images: Tensor, layer: Layer | None
) -> ForwardPass:
    """Check a run that ended, and return what gradients need of it."""
    if state.leaf is None:
        assert layer is not None
        raise LayerError(
            opaque_part(model)
            or f"layer {layer} was not reached in a forward pass; choose one that the network runs"
            + ("" if layer.then is None else f", followed by the operation {layer.then!r}")
        )
    state.check_logits(graph_logits)
    for reader in state.readers:
        reader.finish()
    check_run(graph_logits, images)
    token_layout = None if layer is None else layer.token_layout
    features, extra_tokens = _split(state.leaf.detach(), token_layout)
    return ForwardPass(
        features=features,
        extra_tokens=extra_tokens,
        logits=graph_logits.detach(),
        _interception=state,
        _graph_logits=graph_logits,
        _leaf=state.leaf,
        _token_layout=token_layout,
    )


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
