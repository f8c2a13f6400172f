"""Callbacks of trainers that explain the same images before training and after every epoch.

`lightning` makes one for a ``Trainer`` of Lightning, `transformers` one for the ``Trainer`` of
Hugging Face. The training is what it would be without: the network is explained in evaluation
mode and left as it was, and the random state too.
"""

from __future__ import annotations

import importlib.util
import math
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from afmi.api import MethodLike
from afmi.batching import AnyImage
from afmi.errors import UsageError
from afmi.packages import imported
from afmi.targets import OneTarget
from afmi.tracking.logging import Picture
from afmi.tracking.watching import Watch
from afmi.tracking.writers import Writer, is_of, writer_of

__all__ = ["lightning", "transformers"]


def lightning(
    images: Sequence[AnyImage] | Tensor,
    targets: Sequence[OneTarget | None] | OneTarget | None = None,
    *,
    every: int = 1,
    network: str | None = None,
    classifier: Mapping[str, Any] | None = None,
    method: MethodLike = "AFMI",
    to: Any = None,
    folder: str | os.PathLike[str] | None = None,
    key: str = "explanations",
    picture: Picture = "figure",
    **parameters: Any,
) -> Any:
    """Return a callback for the ``Trainer`` of Lightning, or of ``pytorch_lightning``.

    What is wrong with the configuration raises before the first step. Later an explanation that
    fails is a warning, said once, and the training goes on. Of several processes the first alone
    explains.

    Args:
        images: what to explain: files, pictures or arrays; or tensors, which the network gets as
            they are, normalised unless ``classifier`` is given.
        targets: the target of each image, or one for all, as in `afmi.explain_many`. None: the
            class that the network predicts at the time.
        every: after how many epochs; there is always one before the first.
        network: the attribute of the LightningModule that holds the network, such as ``"model"``.
            None: the module itself, whose ``forward`` then takes images.
        classifier: settings of `afmi.Classifier.of`, such as ``{"mean": …, "std": …}``, by which
            images are prepared; ``{}`` where the network knows its own, as timm's do. None: the
            network gets images as they are.
        method: as in `afmi.explain`.
        to: where to log, as in `afmi.log`, or a list of such. None: the trainer's loggers.
        folder: a folder to save to as well, as `Explanation.save` does, one inside for each step.
        key: as in `afmi.log`; tags are ``explanations/0-dog``.
        picture: as in `afmi.log`.
        **parameters: of the method, as in `afmi.explain_many`.

    Raises:
        UsageError: when Lightning is not installed, or an argument cannot be used.
    """
    watch = Watch(
        images, targets, every, network, classifier, method, to, folder, key, picture, parameters
    )
    return _lightning(watch)


def transformers(
    images: Sequence[AnyImage] | Tensor,
    targets: Sequence[OneTarget | None] | OneTarget | None = None,
    *,
    every: int = 1,
    network: str | None = None,
    classifier: Mapping[str, Any] | None = None,
    method: MethodLike = "AFMI",
    to: Any = None,
    folder: str | os.PathLike[str] | None = None,
    key: str = "explanations",
    picture: Picture = "figure",
    **parameters: Any,
) -> Any:
    """Return a ``TrainerCallback`` for the ``Trainer`` of Hugging Face's transformers.

    Where the trainer has an image processor (``processing_class``), images are prepared by it.

    Args:
        images: as in `lightning`; tensors are in [0, 1] where there is an image processor.
        targets: as in `lightning`.
        every: as in `lightning`.
        network: as in `lightning`, inside the model. None: the model itself.
        classifier: as in `lightning`. None: by the trainer's image processor, where there is one.
        method: as in `afmi.explain`.
        to: where to log, as in `afmi.log`, or a list of such. None: the active runs of Weights &
            Biases and MLflow that the trainer reports to. A ``SummaryWriter`` of TensorBoard must
            be passed here; ``TensorBoardCallback`` takes the same.
        folder: as in `lightning`.
        key: as in `lightning`.
        picture: as in `lightning`.
        **parameters: as in `lightning`.

    Raises:
        UsageError: when transformers is not installed, or an argument cannot be used.
    """
    watch = Watch(
        images, targets, every, network, classifier, method, to, folder, key, picture, parameters
    )
    return _transformers(watch)


class _Hooks:
    """What the callbacks of both share."""

    _make: Callable[[Watch], Any]

    def __init__(self, watch: Watch) -> None:
        self.watch = watch
        self.writers: list[Writer] = []
        self.settings: Mapping[str, Any] | None = None

    def __reduce__(self) -> Any:
        # Its class is made for the packages that are there, and has no name to be found by.
        return type(self)._make, (self.watch,)

    def _begin(self, places: Sequence[Any]) -> None:
        """Take the writers that the user passes, or those of these places that take images."""
        to = self.watch.to
        if to is not None:
            self.writers = [writer_of(one) for one in (to if isinstance(to, list) else [to])]
        else:
            self.writers = []
            for place in places:
                try:
                    self.writers.append(writer_of(place))
                except UsageError:
                    continue  # such as a logger of numbers alone
        self.watch.check_places(self.writers)

    def _show(self, module: nn.Module, step: int) -> None:
        self.watch.show(module, step, self.writers, self.settings)

    def _show_again(self, module: nn.Module, step: int) -> None:
        self.watch.show_again(module, step, self.writers, self.settings)


class _LightningHooks(_Hooks):
    """The hooks of Lightning's callbacks."""

    def on_fit_start(self, trainer: Any, pl_module: Any) -> None:
        """Check where to write, and whether the network is whole on one process."""
        strategy = type(trainer.strategy).__name__
        _check_whole(any(kind in strategy for kind in _SPLIT), f"the strategy {strategy}")
        if trainer.is_global_zero:
            self._begin(trainer.loggers)

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Explain the images before the first step."""
        if trainer.is_global_zero:
            self._show(pl_module, trainer.global_step)

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        """Explain the images after an epoch."""
        if trainer.is_global_zero and self.watch.is_due(trainer.current_epoch + 1):
            self._show_again(pl_module, trainer.global_step)


class _TransformersHooks(_Hooks):
    """The hooks of transformers' callbacks."""

    def on_train_begin(
        self, args: Any, state: Any, control: Any, *, model: Any, processing_class: Any, **_: Any
    ) -> None:
        """Explain the images before the first step."""
        _check_whole(bool(args.fsdp or args.deepspeed), "FSDP or DeepSpeed")
        if not state.is_world_process_zero:
            return
        active = [sys.modules.get(name) for name in ("wandb", "mlflow") if name in args.report_to]
        self._begin(active)
        if _is_image_processor(processing_class):
            self.settings = {"processor": processing_class}
        self._show(model, state.global_step)

    def on_epoch_end(self, args: Any, state: Any, control: Any, *, model: Any, **_: Any) -> None:
        """Explain the images after an epoch."""
        # One that ends before its last step, by max_steps, is an epoch as well.
        epochs = math.ceil(round(state.epoch, 6))
        if state.is_world_process_zero and self.watch.is_due(epochs):
            self._show_again(model, state.global_step)


_SPLIT = ("FSDP", "DeepSpeed", "ModelParallel")
"""In the names of strategies that part one network's weights over processes."""


def _check_whole(split: bool, by: str) -> None:
    if split:
        raise UsageError(
            f"expected a network that is whole on each process, got one whose weights {by} parts: "
            "the first process cannot run it alone; explain its checkpoints after the training"
        )


def _is_image_processor(processor: Any) -> bool:
    inside = getattr(processor, "image_processor", processor)
    return is_of(inside, "transformers.", "ImageProcessingMixin")


def _lightning(watch: Watch) -> Any:
    """Return the callback, of the kinds that the trainers of both packages want."""
    names = ("lightning.pytorch", "pytorch_lightning")
    found = [name for name in names if name in sys.modules] or [
        name for name in names if _is_installed(name)
    ][:1]
    bases = [
        imported(name, "a callback of Lightning", "lightning").Callback
        for name in found or names[:1]
    ]
    return _made(_LightningHooks, bases, watch)


def _transformers(watch: Watch) -> Any:
    library = imported("transformers", "a callback of transformers", "afmi[transformers]")
    return _made(_TransformersHooks, [library.TrainerCallback], watch)


_LightningHooks._make = staticmethod(_lightning)
_TransformersHooks._make = staticmethod(_transformers)


def _made(hooks: type[_Hooks], bases: Sequence[type], watch: Watch) -> Any:
    return type("ExplanationCallback", (hooks, *bases), {})(watch)


def _is_installed(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None
    except ModuleNotFoundError:  # of the package around it
        return False
