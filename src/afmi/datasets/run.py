"""Explain a data set of any size: piece by piece, on any engine, with a run that resumes."""

from __future__ import annotations

import datetime
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from torch import Tensor, nn

from afmi import specs
from afmi.api import MethodLike, checked_target, method_of
from afmi.data.labelled import LabelledImages
from afmi.data.listing import Files
from afmi.data.streams import ImageStream, Window, open_data
from afmi.data.witness import Witness
from afmi.datasets.columns import Layout
from afmi.datasets.folder import DatasetFolder
from afmi.datasets.job import DatasetJob, Explained, Outcome, Range, explained_images
from afmi.datasets.reading import Explanations, open_explanations
from afmi.engines import EngineLike, as_engine
from afmi.engines.workers import WorkerPool
from afmi.errors import (
    AfmiError,
    ImageError,
    LayerError,
    OperationError,
    SourceError,
    TargetError,
    UsageError,
)
from afmi.evaluation.asked import Asked
from afmi.evaluation.code import CodeReader
from afmi.evaluation.identity import code_of, identity_of
from afmi.files import location
from afmi.methods import Method
from afmi.network.classifier import classifier_of, device_of, find_class, preparation_of
from afmi.network.fingerprint import fingerprint_of
from afmi.pictures.references import ReferenceLike
from afmi.progress import report, showing
from afmi.stores import RemotePath, shown
from afmi.targets import OneTarget, Target

__all__ = ["Progress", "explain_dataset"]

Vectors = Literal["auto", "importance", "contribution"]

_LARGEST_PIECE = 512
"""Images: a piece of a cheap method."""
_PASSES_PER_PIECE = 16384
"""Through the network, about: what a killed run may lose of a costly method."""
_MOST_BYTES = 2**30
"""Of a stream's images that are read ahead of the workers; at least a piece is."""
_TRIED = 64
"""Images: where none of so many, the first, can be explained, none is."""


@dataclass(frozen=True)
class Progress:
    """How far a run has come, in images of finished pieces.

    Attributes:
        done: images in them, those of earlier calls among them.
        failed: how many of them could not be read or explained.
        new: how many of them this call explained.
        total: of all; None: the data are still read, and nobody knows.
    """

    done: int
    failed: int
    new: int
    total: int | None


def _ignore(progress: Progress) -> None:
    """Do nothing with what is reported."""


def explain_dataset(
    model: nn.Module | None,
    source: Any,
    out: str | os.PathLike[str] | RemotePath,
    *,
    target: OneTarget | None = None,
    labelled: bool = False,
    classes: Sequence[int | str] = (),
    method: MethodLike = "AFMI",
    layer: Any = None,
    reference: ReferenceLike | None = None,
    vectors: Vectors | None = "auto",
    maps: bool = True,
    pictures: bool = False,
    limit: int | None = None,
    image_key: str | None = None,
    label_key: str | None = None,
    batch_size: int = 8,
    images_per_piece: int | None = None,
    engine: EngineLike = None,
    command: str | None = None,
    on_piece: Callable[[Progress], object] = _ignore,
    progress: bool | None = None,
    **parameters: Any,
) -> Explanations:
    """Explain every image of a data set, and keep what is found in tables.

    The work is cut into pieces of neighbouring images, and a piece is written as soon as it is
    done: a row for each image with the class, its probability, the residual, a vector over the
    feature maps, and the map at the layer's size. An image that cannot be read or explained has a
    row that says why. The same call on the same folder resumes, however the last one stopped, and
    ends with the bytes of an uninterrupted run. Memory does not grow with the number of images,
    their names apart; of a stream at most 1 GiB of images is read ahead, and at least a piece.

    Args:
        model: as in `afmi.explain`; None: the one that `afmi.load_model` gives without a name.
        source: images, which need no labels: a folder with images at any depth, a glob, a CSV or
            Parquet file with the column ``image``, tar files of WebDataset, a data set of PyTorch
            or Hugging Face, a URL of fsspec, or an iterable; see `afmi.evaluate`.
        out: folder of the tables, or its URL in a store (``"s3://bucket/explained"``), where one
            call writes at a time; new, empty, or of the same run.
        target: what is explained of every image, as in `afmi.explain`. None: the class that the
            model predicts for it.
        labelled: whether the images have labels, as in `afmi.evaluate`, and what is explained of
            each is the class that it is labelled with; with a `Difference` from another class as
            ``target``, its class rather than that.
        classes: those whose contributions are kept of every image besides, one class after the
            other in the column ``contributions``, (classes · K).
        method: as in `afmi.explain`.
        layer: as in `afmi.explain`.
        reference: as in `afmi.explain`.
        vectors: what is kept for each feature map: ``"importance"`` (FMI, Eq. 6), or
            ``"contribution"``, the part of the score's change that goes through the map; these
            sum to the change. ``"auto"``: the importance, where the method gives it. None: nothing.
        maps: whether the maps are kept, in float16.
        pictures: whether an overlay of each image is drawn, as a PNG file.
        limit: explain this many of the images, evenly spread; of a stream the first.
        image_key: what the image is called in items that are mappings; see `afmi.evaluate`.
        label_key: likewise the label.
        batch_size: images that go through the network at once. Other batches give other last
            digits, so this belongs to the run.
        images_per_piece: made a multiple of ``batch_size``. None: 512, or less where the method is
            costly.
        engine: where the work is done, as in `afmi.evaluate`. The tables are the same to the bit.
        command: what the user typed, for the manifest.
        on_piece: called at the start, and after each piece.
        progress: whether to show how far it has come. None: in a terminal and in a notebook.
        **parameters: other hyperparameters of the method.

    Returns:
        The `Explanations`.

    Raises:
        UsageError: when the folder holds another run's results, or an argument does not fit.
        LayerError, OperationError, TargetError: when the method cannot explain this network.
        ImageError: when there are no images.
        SourceError: when the data can be read no further; what was finished is kept.
        AfmiError: when none of the first images can be explained, or a file cannot be written.

    Example:
        >>> import tempfile, torch
        >>> from afmi import Classifier
        >>> body = [nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
        >>> model = Classifier(nn.Sequential(*body), labels=["cat", "dog", "newt", "owl"])
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     table = explain_dataset(model, torch.rand(5, 3, 8, 8), folder).table()
        >>> len(table), len(table["importance"][0])
        (5, 4)
    """
    _check_counts(batch_size, images_per_piece)
    chosen = method_of(model, method, layer=layer, reference=reference, **parameters)
    wanted: OneTarget | Asked | None = target
    if labelled:
        wanted = Asked.of(chosen.model, target)
    elif target is not None:
        wanted = checked_target(chosen.model, target)
    further = _classes(chosen, classes, wanted)
    placed = as_engine(engine)
    device = placed.device(device_of(chosen.model).type)
    size = images_per_piece or _LARGEST_PIECE
    images = open_data(
        *(source, chosen.model),
        limit=limit,
        image_key=image_key,
        label_key=label_key if labelled else None,
        window=max(size // batch_size, 1) * batch_size,
        labelled=labelled,
    )
    first = images.first()
    if isinstance(wanted, Asked):
        held = images.begin if isinstance(images, ImageStream) else images
        wanted = wanted.on(first, held.labels)
    if images_per_piece is None and isinstance(images, LabelledImages):
        size = _affordable(chosen, first)
    plan = _Plan(
        method=chosen,
        target=wanted,
        images=images,
        vector=_vector(chosen, vectors),
        classes=further,
        maps=maps,
        pictures=pictures,
        batch_size=batch_size,
        size=max(size // batch_size, 1) * batch_size,
        device=device,
    )
    folder = DatasetFolder(location(out))
    run = plan.identity()
    if folder.known(run) is None:
        manifest = {"run": run, **plan.facts(first), "source": _source(source, images, image_key)}
        folder = folder.begin({**manifest, "command": command, "created": _now()})
    listed = images if isinstance(images, LabelledImages) else None
    job = DatasetJob(
        *(chosen, wanted, listed),
        *(folder.layout, batch_size, pictures, fingerprint_of(chosen.model)),
        witness=None if listed is None else Witness.of(listed),
    )
    with showing(progress), placed.pool(job, device) as pool:
        # Enough for each worker to find the next piece ready.
        _Run(plan, folder, pool, 2 * placed.workers, on_piece).explain_all()
    return open_explanations(folder.path, data=source, model=chosen.model)


def _check_counts(batch_size: int, images_per_piece: int | None) -> None:
    for name, value in (("batch_size", batch_size), ("images_per_piece", images_per_piece)):
        if value is not None and (type(value) is not int or value < 1):
            raise UsageError(f"expected a whole number from 1 as {name}, got {value!r}")


def _vector(method: Method, vectors: str | None) -> str | None:
    if vectors == "auto":
        return next(iter(method.vectors), None)
    if vectors is not None and vectors not in method.vectors:
        gives = " or ".join(method.vectors)
        raise UsageError(
            f"expected {gives or 'None'} as the vectors of {method.name}, got {vectors!r}"
            + ("" if gives else "; methods with vectors are A-FMI alone")
        )
    return vectors


def _classes(method: Method, classes: Sequence[int | str], target: Any) -> tuple[int, ...]:
    if classes and "contribution" not in method.vectors:
        raise UsageError(f"{method.name} gives no contributions of classes; A-FMI alone does")
    if classes and target is None:
        raise UsageError(
            "classes= keeps contributions besides those of what is explained, so say what that is: "
            "labelled=True or target=…"
        )
    found = tuple(find_class(method.model, one) for one in classes)
    if len(set(found)) < len(found):
        raise UsageError(f"expected each of the classes once, got {list(classes)}")
    return found


def _affordable(method: Method, first: Tensor) -> int:
    """Return the images of a piece: the costlier the method, the fewer."""
    work = method.work(first)
    passes = max(work.forwards + 2 * work.backwards, 1)
    return int(min(max(_PASSES_PER_PIECE // passes, 1), _LARGEST_PIECE))


@dataclass(frozen=True)
class _Plan:
    """What is explained, and how.

    Attributes:
        method: explains.
        target: of every image; None: the class predicted.
        images: the data.
        vector: kept for each image, or None.
        classes: whose contributions are kept besides.
        maps: whether maps are kept.
        pictures: whether overlays are drawn.
        batch_size: images that go through the network at once.
        size: images of a piece.
        device: type of the device that computes.
    """

    method: Method
    target: OneTarget | Asked | None
    images: LabelledImages | ImageStream
    vector: str | None
    classes: tuple[int, ...]
    maps: bool
    pictures: bool
    batch_size: int
    size: int
    device: str

    def identity(self) -> dict[str, Any]:
        """Return what must be the same for the run to be resumed, as JSON holds it."""
        run = identity_of(self.method.model, self.images, {}, self.batch_size, self.device)
        del run["metrics"]
        reader = CodeReader()
        if isinstance(self.target, Asked):
            target = self.target.identity()
        else:
            text = None if self.target is None else reader.text(self.target)
            if isinstance(self.target, Target):
                text = specs.text(self.target)
            target = {"text": text, "code": reader.code}
        return {
            **run,
            "code": code_of(self.method),
            "method": {
                "class": type(self.method).__name__,
                "parameters": specs.parameters(self.method),
            },
            "target": target,
            "vectors": self.vector,
            "classes": list(self.classes),
            "maps": self.maps,
            "pictures": self.pictures,
            "images_per_piece": self.size,
        }

    def facts(self, first: Tensor) -> dict[str, Any]:
        """Return what is the same for all images, by explaining one of the first.

        Args:
            first: an image, (1, C, *spatial), as the network sees it.

        Raises:
            AfmiError: when none of them can be explained.
        """
        explained = self._try()
        one = explained.explanation
        layout = Layout.of(
            *(explained.attributions[0], one),
            vector=self.vector,
            classes=self.classes,
            maps=self.maps,
            alike=self._alike(),
            predicted=self.target is not None,
        )
        names = ("signed", "unit", "method", "parameters", "layer", "reference", "model", "ends")
        names += ("fingerprint",)
        return {
            "images": len(self.images) if isinstance(self.images, LabelledImages) else None,
            "layout": layout.as_json(),
            "record": {
                **{name: getattr(one, name) for name in names},
                "versions": dict(one.versions),
                "channels": first.shape[1],
            },
            "preparation": preparation_of(self.method.model),
        }

    def _try(self) -> Explained:
        images = self.images
        if isinstance(images, ImageStream):
            images = images.begin
        reason: Exception | None = None
        for number in range(min(len(images), _TRIED)):
            try:
                ((_, result),) = explained_images(
                    *(self.method, images, [number], self.target, 1), classes=self.classes
                )
            except MemoryError as error:  # a smaller one may follow
                result = error
            if isinstance(result, Explained):
                return result
            # What the network or the method can never do is tried on no further image.
            if isinstance(result, (LayerError, OperationError, TargetError, UsageError)):
                raise result
            reason = result if reason is None or isinstance(reason, ImageError) else reason
        raise AfmiError(f"none of the first images can be explained; the first: {reason}")

    def _alike(self) -> bool:
        """Tell whether all images have one size: those that are cropped, tensors apart."""
        classifier = classifier_of(self.method.model)
        if classifier is None or classifier.crop is None:
            return False
        if isinstance(self.images, ImageStream):
            return not self.images.has_tensors
        if isinstance(self.images.source, Files):
            return True
        for key in self.images.keys:
            try:
                return not isinstance(self.images.source.picture(key), Tensor)
            except SourceError:
                raise
            except Exception:  # the next may be readable
                continue
        return False


def _source(source: Any, images: LabelledImages | ImageStream, key: str | None) -> dict[str, Any]:
    """Return how images can be found again, where they can."""
    listed = isinstance(images, LabelledImages)
    text = os.fspath(source) if listed and isinstance(source, (str, os.PathLike)) else None
    if text is not None and shown(text) != text:
        text = None  # tables are for other eyes than passwords; who opens them gives the data
    root = str(images.source.root) if listed and isinstance(images.source, Files) else None
    return {"data": text, "root": root, "image_key": key}


class _Run:
    """Gives the pieces to workers, and keeps what comes of them.

    Args:
        plan: what is done.
        folder: where the pieces are kept.
        pool: the workers.
        ahead: pieces that are given to them at a time, at most.
        on_piece: see `explain_dataset`.
    """

    def __init__(
        self,
        plan: _Plan,
        folder: DatasetFolder,
        pool: WorkerPool[Range, Outcome],
        ahead: int,
        on_piece: Callable[[Progress], object],
    ) -> None:
        self._plan = plan
        self._folder = folder
        self._pool = pool
        self._ahead = ahead
        self._on_piece = on_piece
        images = plan.images
        total = images.limit if isinstance(images, ImageStream) else len(images)
        self._progress = Progress(0, 0, 0, total)
        self._tasks = self._missing()
        self._sizes: dict[int, int] = {}
        self._bytes = self._largest = 0
        self._failure: Exception | None = None

    def explain_all(self) -> None:
        """Do what is missing."""
        self._submit()
        self._tell()
        self._pool.work(self._commit)
        if self._failure is not None:
            raise self._failure
        if isinstance(self._plan.images, ImageStream):
            self._folder.end(self._progress.done)

    def _submit(self) -> None:
        """Give the workers as many pieces as may be ahead."""
        while self._may_read_on():
            try:
                task = next(self._tasks, None)
            except Exception as error:  # the data are at an end; what came before is still done
                self._failure, task = error, None
            if task is None:
                return
            self._pool.submit(task)

    def _may_read_on(self) -> bool:
        # How many pieces are ahead decides no number: where each begins is fixed.
        room = self._bytes + self._largest <= _MOST_BYTES
        return not self._sizes or (room and len(self._sizes) < self._ahead)

    def _missing(self) -> Iterator[Range]:
        """Yield the pieces that are not finished."""
        images, size = self._plan.images, self._plan.size
        if isinstance(images, LabelledImages):
            for start in range(0, len(images), size):
                stop = min(start + size, len(images))
                if not self._finished(start, images.keys[start:stop]):
                    self._sizes[start] = 0
                    yield Range(start, stop)
            return
        # Not in a loop over windows, whose variable would hold one while the next is read.
        yield from (task for task in map(self._task, images.windows()) if task is not None)

    def _task(self, window: Window) -> Range | None:
        """Return what is to be done of a window of a stream."""
        start, stop = window.start, window.start + len(window.images)
        if self._finished(start, window.images.keys):
            return None
        self._sizes[start] = size = window.size
        self._bytes += size
        self._largest = max(self._largest, size)
        return Range(start, stop, self._pool.share(window.part(start, stop)), start)

    def _finished(self, start: int, keys: tuple[str, ...]) -> bool:
        failed = self._folder.failed(start, keys)
        if failed is None:
            return False
        self._count(len(keys), failed)
        return True

    def _commit(self, task: Range, outcome: Outcome) -> None:
        self._folder.write_piece(task.start, outcome.table, outcome.pictures)
        if task.window is not None:
            task.window.free()
        self._bytes -= self._sizes.pop(task.start, 0)  # Ctrl-C may have come between
        count = len(outcome.table)
        self._count(count, count - outcome.table["error"].null_count, new=count)
        if not self._pool.ending:  # else nothing is read any more
            self._submit()
        self._tell()

    def _count(self, done: int, failed: int, new: int = 0) -> None:
        before = self._progress
        self._progress = replace(
            before, done=before.done + done, failed=before.failed + failed, new=before.new + new
        )

    def _tell(self) -> None:
        progress = self._progress
        if progress.total is not None:
            report("images explained", progress.done, progress.total)
        self._on_piece(progress)


def _now() -> str:
    return datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")
