"""Explain fixed images again and again while a network is trained."""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping, Sequence, Sized
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from afmi.api import MethodLike, explain_many
from afmi.batching import AnyImage, Unexplained
from afmi.errors import ModelError, UsageError, near_matches, one_line
from afmi.explanation import Explanation
from afmi.network.classifier import Classifier
from afmi.targets import OneTarget
from afmi.tracking.logging import Picture, tag_of, write
from afmi.tracking.writers import Writer

__all__ = ["Watch"]


@dataclass
class Watch:
    """What is explained every so many epochs, and how.

    An explanation leaves the network as it was: its modes, gradients and hooks, and the random
    state. See `afmi.tracking.callbacks.lightning` for the arguments.
    """

    images: Sequence[AnyImage] | Tensor
    targets: Sequence[OneTarget | None] | OneTarget | None = None
    every: int = 1
    network: str | None = None
    classifier: Mapping[str, Any] | None = None
    method: MethodLike = "AFMI"
    to: Any = None
    folder: str | os.PathLike[str] | None = None
    key: str = "explanations"
    picture: Picture = "figure"
    parameters: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._warned = False
        if type(self.every) is not int or self.every < 1:
            raise UsageError(f"expected every as a number of epochs from 1, got {self.every!r}")
        several = isinstance(self.images, Sized) and not isinstance(self.images, (str, os.PathLike))
        if not several or not len(self.images):
            raise UsageError(f"expected a list of images, got {self.images!r:.80}")
        if self.picture not in ("figure", "overlay"):
            raise UsageError(f"expected picture as 'figure' or 'overlay', got {self.picture!r}")

    def is_due(self, epochs: int) -> bool:
        """Tell whether the images are explained after so many epochs."""
        return epochs % self.every == 0

    def model_of(self, module: nn.Module, classifier: Mapping[str, Any] | None) -> nn.Module:
        """Return what is explained of the module that is trained.

        Raises:
            ModelError: it has no such network.
        """
        inside = module
        if self.network is not None:
            known = dict(module.named_modules())
            if self.network not in known:
                raise ModelError(
                    f"expected network as the name of a module of {type(module).__name__}, got "
                    f"{self.network!r}{near_matches(self.network, known)}"
                )
            inside = known[self.network]
        return inside if classifier is None else Classifier.of(inside, **classifier)

    def check_places(self, writers: Sequence[Writer]) -> None:
        """Raise a `UsageError` where there is nowhere to write."""
        if not writers and self.folder is None:
            raise UsageError(
                "expected a logger that takes images (TensorBoard, Weights & Biases, MLflow), or "
                "a folder, got neither; pass folder=… or to=…"
            )

    def show(
        self,
        module: nn.Module,
        step: int,
        writers: Sequence[Writer],
        classifier: Mapping[str, Any] | None = None,
    ) -> None:
        """Explain the images and write what comes out.

        Args:
            module: that is trained.
            step: of the training.
            writers: where to write.
            classifier: as in `Watch`, where that has none.

        Raises:
            UsageError: one of them cannot be explained; the others are written.
        """
        settings = classifier if self.classifier is None else self.classifier
        results = explain_many(
            self.model_of(module, settings),
            self.images,
            self.targets,
            method=self.method,
            progress=False,
            **self.parameters,
        )
        failed = None
        for place, result in enumerate(results):
            if isinstance(result, Unexplained):
                failed = failed or result.reason
            else:
                self._write(result, place, step, writers)
        if failed is not None:
            raise UsageError(f"an image cannot be explained: {failed}")

    def show_again(
        self,
        module: nn.Module,
        step: int,
        writers: Sequence[Writer],
        classifier: Mapping[str, Any] | None = None,
    ) -> None:
        """Do as `show`, but warn where that fails, once: the training goes on."""
        try:
            self.show(module, step, writers, classifier)
        except Exception as error:
            if not self._warned:
                self._warned = True
                warnings.warn(
                    f"explaining the images failed at step {step}, and the training goes on "
                    f"(said once): {one_line(error)}",
                    stacklevel=2,
                )

    def _write(
        self, explanation: Explanation, place: int, step: int, writers: Sequence[Writer]
    ) -> None:
        tag = tag_of(self.key, explanation, place)
        for writer in writers:
            write(explanation, tag, step, writer, key=self.key, picture=self.picture)
        if self.folder is not None:
            stem = tag.rpartition("/")[2]
            explanation.save(Path(self.folder) / f"step-{step:08d}", stem)
