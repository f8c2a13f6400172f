"""Run a network once and differentiate its logits by a layer's feature maps or by the images."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from afmi.errors import LayerError, ModelError, OperationError
from afmi.gradients.interception import ORDINARY, Interception, Rules
from afmi.gradients.stages import Stage, plain, split, taken_at
from afmi.gradients.strides import keep_from_odd_strides
from afmi.gradients.tape import Tape, TapeReader
from afmi.network.channels_last import in_fast_layout
from afmi.network.checking import check_run, opaque_part
from afmi.network.guards import (
    evaluation_mode,
    without_compilation,
    without_fused_attention,
    without_modules_in_backward,
)
from afmi.network.layers import Layer, LayerChoice, Place, check_place
from afmi.network.memory import is_out_of_memory
from afmi.network.outputs import scores_of
from afmi.network.scored import check_differentiable
from afmi.network.trace import Remembered, Trace, form_of
from afmi.network.trial import try_once
from afmi.network.watch import Watch

__all__ = ["ForwardPass", "UnseenError", "forward_pass", "layer_pass"]


class UnseenError(OperationError):
    """The logits depend on the layer in no way that autograd could follow."""


@dataclass(frozen=True)
class ForwardPass:
    """One finished run: the maps, the logits, and gradients of the latter by the former.

    Attributes:
        features: feature maps A (N, K, h, w), or the inputs themselves, detached.
        extra_tokens: tokens (N, P, K) beside those of the maps, such as a class token, detached.
        logits: (N, C), detached.
        layer: where the feature maps were taken; None: at the inputs.
        stages: the layers behind it whose gradients can be asked for as well.
    """

    features: Tensor
    extra_tokens: Tensor
    logits: Tensor
    layer: Layer | None
    stages: tuple[Stage, ...]
    _interception: Interception
    _model: nn.Module

    def __del__(self) -> None:
        """Leave nothing of the run's graph to the network, which may have kept tensors of it."""
        self._interception.end()

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
        gradient = self._pull_back(cotangent, reference, last=last)[0]
        return split(gradient, self.layer, self.features.dim() - 2)[0]

    def _pull_back(
        self, cotangent: Tensor, reference: int, *, last: bool, batched: bool = False
    ) -> list[Tensor]:
        """Return the gradients by what the run begins with, and by each stage's output."""
        self._interception.backward.reference = reference
        self._interception.backward.reuse = last and not batched
        logits, leaf = self._interception.logits, self._interception.leaf
        assert logits is not None
        assert leaf is not None
        with self._naming_failures():
            gradients = torch.autograd.grad(
                logits,
                [leaf, *(stage.reached for stage in self.stages)],
                cotangent,
                retain_graph=not last,
                is_grads_batched=batched,
                allow_unused=True,
            )
        for gradient, layer in zip(gradients, self._layers, strict=True):
            if gradient is None:
                raise _unseen(layer)
        return [plain(gradient) for gradient in gradients]

    @property
    def _layers(self) -> list[Layer | None]:
        return [self.layer, *(stage.place[1] for stage in self.stages)]

    @contextmanager
    def _naming_failures(self) -> Iterator[None]:
        """Name what the network does that the backward pass cannot follow."""
        function = self._interception.out_of_sight
        advice = "turn gradient checkpointing off, which runs parts of the network again"
        again = ModelError(
            f"the backward pass of {function} runs modules of the network, where nothing of the "
            f"forward pass holds; {advice}"
        )
        try:
            with without_modules_in_backward(self._model, again) if function else nullcontext():
                yield
        except RuntimeError as error:
            if "modified by an inplace operation" in str(error):
                raise ModelError(
                    f"the network overwrites in place what its derivative needs ({error}); have it "
                    "compute a new tensor there"
                ) from error
            if function is None or is_out_of_memory(error):
                raise
            raise ModelError(
                f"the backward pass of the network's own functions, such as {function}, failed: "
                f"{error}; {advice} there, or use the plain form of that part"
            ) from error

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
        return self.stage_gradients(targets, reference, last=last)[0]

    def stage_gradients(
        self, targets: Tensor, reference: int = 0, *, last: bool = False
    ) -> list[tuple[Tensor, Tensor]]:
        """Do as `split_gradients`, and return the same of each stage as well, from one pass."""
        cotangents = _one_hot(targets, self.logits)
        if targets.shape[0] == 1:
            gradients = [g[None] for g in self._pull_back(cotangents[0], reference, last=last)]
        else:
            gradients = self._pull_back(cotangents, reference, last=last, batched=True)
        sides = self.features.dim() - 2
        return [split(g, layer, sides) for g, layer in zip(gradients, self._layers, strict=True)]


def _unseen(layer: Layer | None) -> UnseenError:
    """Return the error to raise where no gradient leads to the maps or the images."""
    if layer is None:
        return UnseenError(
            "the logits do not depend on the images, as far as autograd sees: the network detaches "
            "its activations or runs under no_grad; leave that out, or explain the network from a "
            "layer behind it, or by a method that only looks at outputs, such as RISE"
        )
    return UnseenError(
        "the logits do not depend on the layer's feature maps, as far as autograd sees: the "
        "network detaches them, runs under no_grad, or has the layer inside of an "
        "autograd.Function of its own, such as gradient checkpointing; choose a layer behind "
        "that, or a method that needs no gradient (RISE, LIME, …)"
    )


def _one_hot(target: Tensor, logits: Tensor) -> Tensor:
    columns = torch.arange(logits.shape[1], device=logits.device)
    return (target.unsqueeze(-1) == columns).to(logits.dtype)


def forward_pass(
    model: nn.Module,
    inputs: Tensor,
    *,
    layer: Place | None,
    stages: Sequence[Place] = (),
    rules: Rules = ORDINARY,
    recording: Tape | None = None,
    tapes: list[Tape] | None = None,
    fast: bool | None = None,
    trace: Trace | None = None,
    traced: bool = False,
) -> ForwardPass:
    """Run the network on images and keep what the gradients from a layer on need.

    Args:
        model: maps (N, C, *spatial) to logits.
        inputs: images (N, C, *spatial); never written to.
        layer: module and name of the feature maps; None: gradients by the inputs themselves.
        stages: layers behind it whose gradients will be asked for as well.
        rules: what to do with the operations behind the layer.
        recording: a tape to fill, where this is the reference's run.
        tapes: the references' tapes, where rules need them.
        fast: the images' memory layout; see `afmi.network.channels_last.in_fast_layout`.
        trace: note the images' run here.
        traced: whether the operations are recorded, to be run again for other images: the network
            has been tried, and the rules take their traceable form.

    Raises:
        LayerError: when the layer is not reached, reached twice, or gives no (N, K, *spatial).
        OperationError: when an operation has no rule and the rules must be complete.
        TargetError: when no gradient can pass through what is scored.
    """

    def run(images: Tensor, fast: bool) -> ForwardPass:
        if recording is not None:
            recording.entries.clear()
        watch = Watch(images, fast=fast, trace=trace)
        readers = [TapeReader(tape) for tape in tapes or []]
        state = Interception(rules, watch, recording, readers, traced=traced)
        return _run(model, images, layer, tuple(map(Stage, stages)), state)

    check_differentiable(model)
    # The network is explained and not the kind of tensor, whose own operations may be slow.
    images = plain(inputs.detach())

    with (
        torch.inference_mode(False),
        torch.set_grad_enabled(False),
        evaluation_mode(model),
        without_fused_attention(),
        without_compilation(),
    ):
        if traced:
            return run(images, False)
        try_once(model, images)
        return in_fast_layout(model, run, images, fast=fast)


_remembered: Remembered[object, Place] = Remembered(8)


def layer_pass(
    model: nn.Module, inputs: Tensor, choice: LayerChoice, rules: Rules = ORDINARY
) -> ForwardPass:
    """Do as `forward_pass`, at the layer that was chosen.

    A stage that had to be searched for is kept for the next images of this form, and searched for
    again where these run through another network: see `afmi.network.trace`.
    """

    def run(place: Place, trace: Trace | None) -> ForwardPass:
        check_place(model, place)
        return forward_pass(model, inputs, layer=place, rules=rules, trace=trace)

    def learn() -> Place:
        return choice.resolve(model, inputs)

    return _remembered.use(model, (choice.key(model), *form_of(inputs)), learn, run, contents=False)


def _run(
    model: nn.Module,
    images: Tensor,
    layer: Place | None,
    stages: tuple[Stage, ...],
    state: Interception,
) -> ForwardPass:
    sides = images.dim() - 2
    try:
        # Ends with this run, and so does what `Interception.begin` made of the gradients' mode.
        with torch.set_grad_enabled(False), ExitStack() as contexts:
            contexts.callback(state.leave)
            if layer is None:
                images = state.begin(images)
            else:
                contexts.enter_context(taken_at(state, layer, sides, state.begin))
            for stage in stages:
                contexts.enter_context(stage.watched(state, sides))
            contexts.enter_context(state)
            graph_logits = scores_of(model, images)
        # Again, because the network may have left it in the midst of its own inference mode.
        with torch.inference_mode(False), torch.set_grad_enabled(False):
            if graph_logits.device.type == "cpu" and graph_logits.requires_grad:
                keep_from_odd_strides(graph_logits)
            named = None if layer is None else layer[1]
            return _finished(model, state, graph_logits, images, named, stages)
    except BaseException:
        state.end()
        raise


def _finished(
    model: nn.Module,
    state: Interception,
    graph_logits: Tensor,
    images: Tensor,
    layer: Layer | None,
    stages: tuple[Stage, ...],
) -> ForwardPass:
    """Check a run that ended, and return what gradients need of it."""
    if state.leaf is None:
        assert layer is not None
        raise LayerError(
            opaque_part(model)
            or f"layer {layer} was not reached in a forward pass; choose one that the network runs"
            + ("" if layer.then is None else f", followed by the operation {layer.then!r}")
        )
    if not state.finish(graph_logits):
        raise _unseen(layer)
    for reader in state.readers:
        reader.finish()
    check_run(graph_logits, images)
    features, extra_tokens = split(plain(state.leaf.detach()), layer, images.dim() - 2)
    return ForwardPass(
        features=features,
        extra_tokens=extra_tokens,
        logits=plain(graph_logits.detach()),
        layer=layer,
        stages=stages,
        _interception=state,
        _model=model,
    )
