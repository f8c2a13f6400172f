"""Recognise where trainings are tracked, and write there.

Nothing is imported that has not been: who passes a writer has its package already.
"""

from __future__ import annotations

import json
import sys
from abc import ABC, abstractmethod
from collections.abc import Mapping, MutableMapping
from dataclasses import dataclass
from types import ModuleType
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import PIL.Image

from afmi.errors import UsageError

__all__ = ["Entry", "MLflow", "TensorBoard", "WeightsAndBiases", "Writer", "is_of", "writer_of"]

TAKEN = (
    "a SummaryWriter of TensorBoard or tensorboardX; a run of Weights & Biases, or the module "
    "wandb while a run is active; a run of MLflow, (MlflowClient(), run_id), or the module mlflow "
    "while a run is active; or a logger of Lightning around one of these"
)


@dataclass(frozen=True)
class Entry:
    """What is written of an explanation at a step.

    Attributes:
        key: what the tags of one call begin with.
        tag: its name, the same at every step.
        step: of the training.
        image: its picture.
        caption: it in words.
        scalars: numbers by their names.
        record: as JSON holds it.
    """

    key: str
    tag: str
    step: int
    image: PIL.Image.Image
    caption: str
    scalars: Mapping[str, float]
    record: Mapping[str, Any]


class Writer(ABC):
    """A place where trainings are tracked."""

    @abstractmethod
    def write(self, entry: Entry) -> None:
        """Write an entry."""


@dataclass(frozen=True)
class TensorBoard(Writer):
    """TensorBoard.

    Args:
        writer: a ``SummaryWriter`` of PyTorch's or of tensorboardX.
    """

    writer: Any

    def write(self, entry: Entry) -> None:
        """See `Writer.write`."""
        pixels = np.asarray(entry.image.convert("RGB"))
        self.writer.add_image(entry.tag, pixels, entry.step, dataformats="HWC")
        for name, value in entry.scalars.items():
            self.writer.add_scalar(f"{entry.tag}/{name}", value, entry.step)
        # It is shown as Markdown, where four spaces begin code.
        lines = json.dumps(entry.record, indent=1, ensure_ascii=False).splitlines()
        text = "\n".join([entry.caption, "", *(f"    {line}" for line in lines)])
        self.writer.add_text(f"{entry.tag}/record", text, entry.step)


@dataclass(frozen=True)
class WeightsAndBiases(Writer):
    """Weights & Biases.

    A run drops what comes with a step behind its own, which need not be that of the training: so
    entries go to the later of both, and the training's step is written beside them, as their axis.
    A row holds one value of a name, so entries of another step of the training begin another row.

    Args:
        run: as ``wandb.init`` returns it.
    """

    run: Any

    def write(self, entry: Entry) -> None:
        """See `Writer.write`."""
        wandb = sys.modules["wandb"]
        axis = f"{entry.key}_step"
        self.run.define_metric(axis, hidden=True)
        self.run.define_metric(f"{entry.key}/*", step_metric=axis)
        values: dict[str, Any] = {f"{entry.tag}/{k}": v for k, v in entry.scalars.items()}
        values[entry.tag] = wandb.Image(entry.image, caption=entry.caption)
        values[f"{entry.tag}/record"] = json.dumps(entry.record, ensure_ascii=False)
        row = max(entry.step, self.run.step)
        rows = _ROWS.setdefault(self.run, {})
        last, step = rows.get(axis, (-1, entry.step))
        if last == row and step != entry.step:
            row += 1
        rows[axis] = row, entry.step
        self.run.log({**values, axis: entry.step}, step=row)


_ROWS: MutableMapping[Any, dict[str, tuple[int, int]]] = WeakKeyDictionary()
"""Of each run of Weights & Biases, by axes: the row written last, and the training's step in it."""


@dataclass(frozen=True)
class MLflow(Writer):
    """MLflow.

    Args:
        client: an ``MlflowClient``.
        run_id: of the run.
    """

    client: Any
    run_id: str

    def write(self, entry: Entry) -> None:
        """See `Writer.write`."""
        now = {"step": entry.step, "synchronous": True}
        self.client.log_image(self.run_id, entry.image, key=entry.tag, **now)
        for name, value in entry.scalars.items():
            self.client.log_metric(self.run_id, f"{entry.tag}/{name}", value, **now)
        file = f"{entry.tag}/record-{entry.step:08d}.json"
        self.client.log_dict(self.run_id, dict(entry.record), file)


def is_of(value: object, modules: str | tuple[str, ...], name: str) -> bool:
    """Tell whether a value's class is one of this name out of a package, or derives from it."""
    kinds = type(value).__mro__
    return any(kind.__name__ == name and kind.__module__.startswith(modules) for kind in kinds)


def writer_of(to: Any) -> Writer:
    """Return the writer for what a user passes, by what it is.

    Raises:
        UsageError: it is none that is known, or nothing is being tracked.
    """
    if isinstance(to, Writer):
        return to
    if is_of(to, ("lightning.", "pytorch_lightning."), "Logger"):
        return _of_logger(to)
    if isinstance(to, ModuleType):
        return _of_module(to)
    if is_of(to, "wandb.", "Run"):
        return WeightsAndBiases(to)
    if is_of(to, "mlflow.", "Run"):
        return MLflow(sys.modules["mlflow"].MlflowClient(), to.info.run_id)
    if isinstance(to, tuple) and len(to) == 2 and is_of(to[0], "mlflow.", "MlflowClient"):
        return MLflow(to[0], str(to[1]))
    if is_of(to, "mlflow.", "MlflowClient"):
        raise UsageError(
            "expected the run as well, since an MlflowClient knows none; pass to=(client, run_id)"
        )
    if all(callable(getattr(to, f"add_{kind}", None)) for kind in ("image", "scalar", "text")):
        return TensorBoard(to)
    raise UsageError(f"expected to as {TAKEN}; got {to!r:.80}")


def _of_logger(logger: Any) -> Writer:
    """Return the writer within a logger of Lightning's."""
    inside = logger.experiment
    if is_of(inside, "mlflow.", "MlflowClient"):
        return MLflow(inside, str(logger.run_id))
    try:
        return writer_of(inside)
    except UsageError:
        raise UsageError(
            f"expected a logger that takes images, got {type(logger).__name__}; take "
            "TensorBoardLogger, WandbLogger or MLFlowLogger, or save the explanations to a folder"
        ) from None


def _of_module(module: ModuleType) -> Writer:
    """Return the writer of the run that is active in a package."""
    name = module.__name__
    if name not in ("wandb", "mlflow"):
        raise UsageError(f"expected to as {TAKEN}; got the module {name}")
    run = module.run if name == "wandb" else module.active_run()
    if run is None:
        begin = "wandb.init()" if name == "wandb" else "mlflow.start_run()"
        raise UsageError(f"expected an active run of {name}, got none; begin one by {begin}")
    return writer_of(run)
