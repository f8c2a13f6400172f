"""Experiment, the base of every table and figure of the paper that afmi reproduces."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal

from afmi.engines import Engine, Local
from afmi.errors import ModelError, UsageError
from afmi.experiments.shared.published import WEIGHTS
from afmi.files import write_files
from afmi.models import load_model
from afmi.network.classifier import Classifier
from afmi.network.trial import meaning_of
from afmi.report.tables import csv_text

__all__ = ["Experiment", "Request", "Result", "networks", "write_csv"]


@dataclass(frozen=True)
class Request:
    """What the user asked of an experiment; everything else is as in the paper.

    Attributes:
        out: folder for the results.
        images: picture files.
        imagenet: folder of ImageNet, or any folder or CSV file of labelled pictures that
            `afmi.evaluation.open_images` takes.
        mnist: folder of MNIST.
        limit: the most pictures to take; None: the experiment's number.
        models: names for `afmi.load_model`; none: the paper's.
        network: further arguments of `afmi.load_model`, ``weights`` and ``device`` among them.
        methods: names joined by commas; None: the paper's.
        targets: classes to explain, as index or label.
        engine: where the work is done of an experiment with `Experiment.on_engines`.
        report: called with each line that the user is to see.
    """

    out: Path
    images: tuple[Path, ...] = ()
    imagenet: Path | None = None
    mnist: Path | None = None
    limit: int | None = None
    models: tuple[str, ...] = ()
    network: Mapping[str, Any] = field(default_factory=dict)
    methods: str | None = None
    targets: tuple[str, ...] = ()
    engine: Engine = field(default_factory=Local)
    report: Callable[[str], object] = print

    def __post_init__(self) -> None:
        if self.limit is not None and self.limit < 1:
            raise UsageError(f"expected a limit of at least 1 picture, got {self.limit}")


@dataclass(frozen=True)
class Result:
    """What an experiment made.

    Attributes:
        files: that it wrote, the most interesting one first.
        rows: its numbers, as the CSV file holds them; none where it only draws.
    """

    files: tuple[Path, ...]
    rows: tuple[dict[str, Any], ...] = ()


class Experiment(ABC):
    """Reproduce one table or figure of the paper.

    A subclass fills in the class variables and writes `_run`. `afmi.experiments` lists every
    subclass in its folder, and ``afmi reproduce`` runs it.
    """

    name: ClassVar[str]
    """What the command line calls it: ``figure4``."""
    shows: ClassVar[str]
    """What it shows, in one clause."""
    section: ClassVar[str]
    """Where the paper has it."""
    finding: ClassVar[str]
    """What the paper concludes from it, in one sentence; printed beside ours."""
    models: ClassVar[tuple[str, ...]] = ("vgg19",)
    """The paper's networks, by `afmi.load_model`'s names."""
    methods: ClassVar[tuple[str, ...]]
    """The paper's methods, by their names in `afmi.methods`."""
    data: ClassVar[Literal["pictures", "ImageNet", "MNIST"]]
    """What it needs."""
    on_engines: ClassVar[bool] = False
    """Whether others than this process can do its work."""

    def run(self, request: Request) -> Result:
        """Reproduce it.

        Raises:
            UsageError: when what it needs was not given; says what to give.
            ModelError: when a network cannot be loaded; says what to fetch.
        """
        if self.data == "pictures" and not request.images and request.imagenet is None:
            raise UsageError(
                f"{self.name} needs pictures: give --image FILE (may be repeated), or --imagenet "
                "DIR, a folder with a folder of pictures for each class"
            )
        if self.data == "ImageNet" and request.imagenet is None:
            raise UsageError(
                f"{self.name} needs ImageNet: give --imagenet DIR, where val/<wnid>/*.JPEG lie, or "
                "any folder with a folder of pictures for each class"
            )
        if self.data == "MNIST" and request.mnist is None:
            raise UsageError(
                f"{self.name} needs MNIST: give --mnist DIR, where torchvision has put MNIST/raw"
            )
        if request.engine != Local() and not self.on_engines:
            raise UsageError(
                f"{self.name} is made in this process, got the engine {request.engine}; leave out "
                "--engine and --workers"
            )
        for path in (request.imagenet, request.mnist):
            if path is not None and not path.exists():
                raise UsageError(f"there is no {str(path)!r}; check the path")
        return self._run(request)

    @abstractmethod
    def _run(self, request: Request) -> Result:
        """Reproduce it; what it needs has been given."""


def networks(experiment: Experiment, request: Request) -> list[Classifier]:
    """Load the networks asked for, or else the paper's with the weights of its time.

    Raises:
        ModelError: when one cannot be loaded; says what to fetch and what else to do.
        UsageError: when there are not as many files of weights as networks.
    """
    names = request.models or experiment.models
    options = dict(request.network)
    given = options.pop("weights", "default")
    weights: list[Any] = [given] * len(names)
    if len(names) > 1 and given is not None and given != "default":
        weights = [part.strip() for part in str(given).split(",")]
        if len(weights) != len(names):
            raise UsageError(
                f"expected weights for each of {', '.join(names)}, joined by commas, got "
                f"{given!r}; leave --weights out, or choose one network with --model"
            )
    loaded, missing, reason = [], [], None
    for name, file in zip(names, weights, strict=True):
        papers = not request.models and file == "default"
        try:
            loaded.append(load_model(name, weights=WEIGHTS if papers else file, **options))
            _check_classes(experiment, loaded[-1])
        except ModelError as error:
            if not papers:
                raise
            missing.append(name)
            reason = error
    if missing:
        from torchvision.models import get_model_weights

        addresses = ", ".join(get_model_weights(name)[WEIGHTS].url for name in missing)
        raise ModelError(
            f"{experiment.name} is about {', '.join(missing)} with ImageNet weights, which are "
            f"not here and cannot be downloaded: fetch {addresses} and "
            "pass --model and --weights (several joined by commas), or choose another network "
            "(--model imagenet and --model photos are always here)"
        ) from reason
    return loaded


def _check_classes(experiment: Experiment, model: Classifier) -> None:
    size = model.crop or model.resize or 224
    sides = (size, size) if isinstance(size, int) else size
    image = model.mean.new_zeros((1, len(model.mean), *sides))
    if meaning_of(model, image) == "value":
        raise UsageError(
            f"{experiment.name} is about the probabilities of classes, and {model.name} returns "
            "values; choose a network that tells classes apart, or see `afmi explain --help`"
        )


def write_csv(path: Path, rows: Sequence[Mapping[str, Any]]) -> Path:
    """Write rows with a header of their keys, whole or not at all, and return the path.

    Numbers keep all their digits; NaN and None are empty cells.

    Raises:
        AfmiError: when the file cannot be written.
    """
    columns = list(dict.fromkeys(key for row in rows for key in row))
    lines = [columns, *([row.get(column) for column in columns] for row in rows)]
    write_files({path: csv_text(lines).encode("utf-8", "backslashreplace")})
    return path
