"""Options that commands share: the network, the engine, the folder for results, the printing."""

from __future__ import annotations

import functools
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from afmi.errors import UsageError
from afmi.files import LONGEST_NAME, Location, check_length, location

if TYPE_CHECKING:
    from afmi.engines import Engine
    from afmi.network.classifier import Classifier
    from afmi.targets import OneTarget

__all__ = [
    "LOCATION",
    "TARGET",
    "asked_target",
    "asked_targets",
    "batch_size_option",
    "data_option",
    "engine_options",
    "image_key_option",
    "json_option",
    "label_key_option",
    "layer_option",
    "limit_option",
    "model_options",
    "out_option",
    "pieces_options",
    "quiet_option",
    "reference_option",
    "threads_option",
    "versus_option",
    "writable_folder",
]


_Place = TypeVar("_Place", Path, Location)


class _Numbers(click.ParamType):
    """Numbers joined by commas, one per channel: ``0.485,0.456,0.406``."""

    name = "numbers"

    def convert(
        self, value: object, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[float, ...]:
        if isinstance(value, tuple):
            return value
        try:
            return tuple(float(part) for part in str(value).split(","))
        except ValueError:
            self.fail(f"expected numbers joined by commas, got {value!r}", param, ctx)


class _Size(click.ParamType):
    """A side in pixels, or height x width: ``224`` or ``224x320``."""

    name = "size"

    def convert(
        self, value: object, param: click.Parameter | None, ctx: click.Context | None
    ) -> int | tuple[int, int]:
        sides = str(value).lower().split("x")
        if len(sides) > 2 or not all(side.isdecimal() and int(side) > 0 for side in sides):
            self.fail(f"expected pixels, or height x width, got {value!r}", param, ctx)
        return int(sides[0]) if len(sides) == 1 else (int(sides[0]), int(sides[1]))


class _Key(click.ParamType):
    """A name, or a whole number: ``logits`` or ``0``."""

    name = "key"

    def convert(
        self, value: object, param: click.Parameter | None, ctx: click.Context | None
    ) -> str | int:
        text = str(value)
        return int(text) if text.isdecimal() else text


class _Location(click.ParamType):
    """A folder, or a URL of fsspec: ``results`` or ``s3://bucket/results``."""

    name = "location"

    def convert(
        self, value: object, param: click.Parameter | None, ctx: click.Context | None
    ) -> Location:
        return value if isinstance(value, Path) else location(str(value))


class _Folder(_Location):
    """A folder of this machine."""

    name = "folder"

    def convert(
        self, value: object, param: click.Parameter | None, ctx: click.Context | None
    ) -> Path:
        folder = super().convert(value, param, ctx)
        if not isinstance(folder, Path):
            self.fail(f"expected a folder of this machine, got the URL '{folder}'", param, ctx)
        return folder


LOCATION = _Location()
NUMBERS = _Numbers()
SIZE = _Size()
KEY = _Key()


layer_option = click.option(
    "--layer",
    metavar="NAME",
    help="Dotted name of the layer whose feature maps are used (`afmi models NAME --layers` lists "
    "them).  [default: the last convolutional stage]",
)
batch_size_option = click.option(
    "--batch-size",
    type=click.IntRange(min=1),
    default=8,
    metavar="N",
    help="Pictures that go through the network together.",
)
TARGET = "LABEL|INDEX|TARGET"
"""What ``--target`` takes."""
versus_option = click.option(
    "--versus",
    metavar="LABEL|INDEX",
    help="Explain why the target, or else the class predicted, rather than this class.",
)
image_key_option = click.option(
    "--image-key",
    metavar="NAME",
    help="Suffix of the pictures in tar files, or column of a list, where it is another.",
)


label_key_option = click.option(
    "--label-key",
    metavar="NAME",
    help="Likewise of the labels: a suffix, a field of the JSON, or a column.",
)


def reference_option(help: str) -> Callable[..., Any]:
    """Return the option ``--reference``."""
    return click.option("--reference", metavar="NAME|FILE", help=help)


def data_option(help: str) -> Callable[..., Any]:
    """Return the option ``--data``: labelled pictures."""
    return click.option("--data", required=True, metavar="FOLDER|CSV|TAR|URL|mnist:DIR", help=help)


def limit_option(help: str, least: int = 1) -> Callable[..., Any]:
    """Return the option ``--limit``, from ``least`` pictures on."""
    return click.option("--limit", type=click.IntRange(min=least), metavar="N", help=help)


def quiet_option(help: str = "Print errors only.") -> Callable[..., Any]:
    """Return the option ``--quiet``."""
    return click.option("--quiet", is_flag=True, help=help)


def json_option(help: str = "Print the numbers as JSON.") -> Callable[..., Any]:
    """Return the option ``--json``, handed over as ``json_wanted``."""
    return click.option("--json", "json_wanted", is_flag=True, help=help)


def asked_target(model: Classifier, text: str | None, versus: str | None) -> OneTarget | None:
    """Return the only target of ``--target`` and ``--versus``, as `asked_targets` does."""
    (asked,) = asked_targets(model, () if text is None else (text,), versus) or (None,)
    return asked


def asked_targets(
    model: Classifier, texts: Sequence[str], versus: str | None
) -> list[OneTarget] | None:
    """Return the targets of ``--target`` and ``--versus``; None: the class predicted.

    Raises:
        TargetError: when there is no class of a label.
        UsageError: when a target does not fit, or is no class to set against another.
    """
    from afmi.network.classifier import find_class
    from afmi.targets import Class, Difference, target_in_text

    targets = [target_in_text(model, text) for text in texts]
    indices = [t.index(model) if isinstance(t, Class) else None for t in targets]
    if versus is None:
        every = [t if i is None else i for t, i in zip(targets, indices, strict=True)]
        return list(dict.fromkeys(every)) or None
    other = find_class(model, versus)
    if None in indices:
        raise UsageError(
            f"--versus sets a class against another, and --target {texts[indices.index(None)]} is "
            "no class; leave one of them out"
        )
    return [Difference(index, other) for index in dict.fromkeys(indices or [None])]


def out_option(default: str, help: str, *, remote: bool = False) -> Callable[..., Any]:
    """Return the option ``--out``, a folder; see `writable_folder`.

    Args:
        default: its name.
        help: what it is for.
        remote: whether it may be in a store: then it is an `afmi.files.Location`, else a path.
    """
    return click.option(
        "--out",
        type=LOCATION if remote else _Folder(),
        default=Path(default),
        metavar="FOLDER|URL" if remote else "FOLDER",
        help=help,
    )


def writable_folder(folder: _Place) -> _Place:
    """Make a folder unless it exists, and see that files can be written into it.

    A store says so with the first object that is put there.

    Raises:
        UsageError: when that fails.
        AfmiError: when names of the length that we give are too long for it.
    """
    if not isinstance(folder, Path):
        return folder
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        why = error.strerror or type(error).__name__
        raise UsageError(
            f"cannot write into the folder {str(folder)!r}: {why}; choose another with --out"
        ) from error
    check_length(folder / ("x" * LONGEST_NAME))
    return folder


_MODEL_OPTIONS = (
    click.option(
        "--model",
        metavar="NAME",
        default="imagenet",
        help="Network: imagenet (EfficientNet-Lite0; imagenet-lite1 and -lite2 are larger), photos "
        "(small: ten classes of ImageNet, and cat), a torchvision name (`afmi models`), timm:NAME, "
        "hf:OWNER/NAME or hf:FOLDER (transformers), or a factory, package.module:function or "
        "path/to/file.py:function.",
    ),
    click.option(
        "--weights",
        default="default",
        metavar="FILE|default|none",
        help="A .safetensors or .pth file, default: those that come with the network "
        "(downloaded once), none: random.",
    ),
    click.option("--device", metavar="NAME", default="auto", help="auto, cpu, cuda:1, mps, …"),
    click.option("--mean", type=NUMBERS, metavar="N,N,…", help="Own network: mean per channel."),
    click.option(
        "--std", type=NUMBERS, metavar="N,N,…", help="Own network: deviation per channel."
    ),
    click.option(
        "--labels",
        metavar="FILE",
        help="Own network: names of the classes, one per line, or JSON.",
    ),
    click.option("--resize", type=SIZE, metavar="PIXELS", help="Own network: short side, or HxW."),
    click.option(
        "--crop", type=SIZE, metavar="PIXELS", help="Own network: central square, or HxW."
    ),
    click.option(
        "--output",
        type=click.Choice(["logits", "sigmoid", "probabilities", "value"]),
        help="What the network's outputs mean: logits of classes of which one holds, logits of "
        "labels that hold or not, probabilities, or values.  [default: as it looks]",
    ),
    click.option(
        "--output-key",
        type=KEY,
        metavar="NAME|PLACE",
        help="Which of several outputs is meant: its name in a dictionary, or its place from 0.",
    ),
)


_OF_NETWORK = ("device", "mean", "std", "labels", "resize", "crop", "output", "output_key")


def model_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options, and hand them over as ``network``: what `afmi.load_model` takes."""

    @functools.wraps(command)
    def with_network(*args: Any, **kwargs: Any) -> Any:
        network = {"name": kwargs.pop("model"), "weights": kwargs.pop("weights")}
        if network["weights"].casefold() == "none":
            network["weights"] = None
        for name in _OF_NETWORK:
            network[name] = kwargs.pop(name)
        return command(*args, network=network, **kwargs)

    decorated: Callable[..., Any] = with_network
    for option in reversed(_MODEL_OPTIONS):
        decorated = option(decorated)
    return decorated


def threads_option(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the option ``--threads``, which holds from the command's begin on."""

    @functools.wraps(command)
    def with_threads(*args: Any, **kwargs: Any) -> Any:
        threads = kwargs.pop("threads")
        if threads is not None:
            import torch

            torch.set_num_threads(threads)
        return command(*args, **kwargs)

    return click.option(
        "--threads",
        type=click.IntRange(min=1),
        metavar="N",
        help="CPU threads of each process; part of what a run is, since they decide the last "
        "digits.  [default: PyTorch's]",
    )(with_threads)


_ENGINE_OPTIONS = (
    click.option(
        "--engine",
        type=click.Choice(["local", "ray"]),
        default="local",
        help="Where the work is done: on this machine, or by a Ray cluster (the extra ray).",
    ),
    click.option(
        "--workers",
        type=click.IntRange(min=1),
        default=1,
        metavar="N",
        help="Processes that work at once, each with a copy of the network and as many threads as "
        "this one.",
    ),
    click.option(
        "--address",
        metavar="auto|HOST:PORT",
        help="Ray: the cluster.  [default: one of this machine alone, ended with the work]",
    ),
    click.option(
        "--cpus-per-worker",
        type=click.FloatRange(min=0),
        metavar="N",
        help="Ray: cores set aside for each worker.  [default: 1]",
    ),
    click.option(
        "--gpus-per-worker",
        type=click.FloatRange(min=0),
        metavar="N",
        help="Ray: GPUs for each worker, also a part of one.  [default: 0]",
    ),
)


def engine_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options, and hand them over as ``engine``: an `afmi.engines.Engine`.

    Raises:
        click.UsageError: when an option of Ray's is given with another engine.
    """

    @functools.wraps(command)
    def with_engine(*args: Any, **kwargs: Any) -> Any:
        name, workers = kwargs.pop("engine"), kwargs.pop("workers")
        placing = {
            "address": kwargs.pop("address"),
            "cpus": kwargs.pop("cpus_per_worker"),
            "gpus": kwargs.pop("gpus_per_worker"),
        }
        return command(*args, engine=_engine(name, workers, placing), **kwargs)

    decorated: Callable[..., Any] = with_engine
    for option in reversed(_ENGINE_OPTIONS):
        decorated = option(decorated)
    return decorated


def pieces_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options of work in pieces: batches, threads, and the engine; see these."""
    return batch_size_option(threads_option(engine_options(command)))


def _engine(name: str, workers: int, placing: dict[str, Any]) -> Engine:
    given = {key: value for key, value in placing.items() if value is not None}
    if given and name != "ray":
        options = {"address": "--address", "cpus": "--cpus-per-worker", "gpus": "--gpus-per-worker"}
        raise click.UsageError(f"{options[next(iter(given))]} needs --engine ray")
    from afmi.engines import Local, Ray

    return Ray(workers=workers, **given) if name == "ray" else Local(workers=workers)
