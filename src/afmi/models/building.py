"""What the sources of networks share: preprocessing, calling builders, loading weights."""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from afmi.errors import ModelError, first_line
from afmi.models.weights import classes_in_file, fit_names, load_weights, reshaped
from afmi.network.preprocessing import class_count

__all__ = [
    "ModelEntry",
    "build_error",
    "build_with_weights",
    "call",
    "error_text",
    "quiet",
    "weights_path",
]


@dataclass(frozen=True)
class ModelEntry:
    """What is known of a model before it is built.

    Attributes:
        name: for `load_model`.
        parameters: in millions; None: unknown before it is built.
        top1: accuracy of the default weights on their test set, in percent; None: unknown.
        input_size: side of the square that the network sees, in pixels.
        weights_file: file name of the default weights, or their repository on the Hub, or their
            package.
    """

    name: str
    parameters: float | None
    top1: float | None
    input_size: int | None
    weights_file: str | None


@contextmanager
def quiet(*loggers: str) -> Iterator[None]:
    """Silence warnings and logs of libraries that concern their developers only."""
    before = {name: logging.getLogger(name).level for name in loggers}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for name in loggers:
            logging.getLogger(name).setLevel(logging.CRITICAL)
        try:
            yield
        finally:
            for name, level in before.items():
                logging.getLogger(name).setLevel(level)


def call(
    name: str,
    function: Callable[..., Any],
    options: Mapping[str, Any],
    passing: type[Exception] | tuple[type[Exception], ...] = (),
) -> Any:
    """Call a builder; an error other than those passed on becomes a `ModelError` of one line."""
    try:
        return function(**options)
    except passing:
        raise
    except Exception as error:
        raise ModelError(build_error(name, options, error)) from error


def build_error(name: str, options: Mapping[str, Any], error: Exception) -> str:
    """Return the text of an error: which call raised what."""
    passed = ", ".join(f"{key}={value!r}" for key, value in options.items() if key != "weights")
    return f"building {name} with ({passed}) raised {error_text(error)}"


def error_text(error: BaseException | None) -> str:
    """Return an error's type and the first line of its text."""
    return f"{type(error).__name__}: {first_line(error)}"


def weights_path(weights: object) -> Path:
    """Return the path of a file of weights.

    Raises:
        ModelError: what was passed as weights is no path.
    """
    if not isinstance(weights, (str, os.PathLike)):
        raise ModelError(
            f"expected weights that are 'default', None or a file, got {type(weights).__name__}"
        )
    return Path(weights).expanduser()


def build_with_weights(
    build: Callable[..., nn.Module],
    state: dict[str, Tensor],
    source: str,
    options: Mapping[str, Any],
    classes: Callable[[nn.Module], int | None] = class_count,
) -> nn.Module:
    """Build a network with as many classes as the weights have, and load them.

    A number of classes among the caller's options stands, so that other weights are refused.

    Args:
        build: takes ``num_classes``.
        state: tensors by name.
        source: what to call the weights in errors.
        options: the caller's.
        classes: returns how many classes a network has.
    """
    network = build()
    state = fit_names(state, network)
    count = classes_in_file(reshaped(state, network).values(), classes(network))
    if count is not None and "num_classes" not in options:
        network = build(num_classes=count)
    load_weights(network, state, source)
    return network
