"""A user's own factory: a function in a module or file that returns a network."""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import nn

from afmi.errors import ModelError, near_matches
from afmi.models.building import call, error_text, weights_path
from afmi.models.weights import fit_names, load_weights, read_weights
from afmi.network.classifier import Classifier
from afmi.network.preprocessing import Preprocessing
from afmi.network.wrappers import within

__all__ = ["FILE_PREFIX", "build", "with_settings"]

FILE_PREFIX = "_afmi_factory_"
"""What the names of modules begin with that are loaded from a factory's file."""


def build(name: str, weights: object, options: dict[str, Any]) -> tuple[nn.Module, Preprocessing]:
    """Call the factory ``package.module:function`` or ``path/to/file.py:function``."""
    home, _, attribute = name.rpartition(":")
    if not home or not attribute:
        raise ModelError(
            f"expected package.module:function or path/to/file.py:function, got {name!r}"
        )
    folder = str(Path(home).parent) if home.endswith(".py") else os.getcwd()
    with _importable(folder):
        made = function = _attribute(_module(home), home, attribute)
        if not isinstance(function, nn.Module):
            if not callable(function):
                raise ModelError(
                    f"{name} is a {type(function).__name__}; expected a function that returns an "
                    "nn.Module"
                )
            made = call(name, function, options)
    if not isinstance(made, nn.Module):
        raise ModelError(
            f"{name} returned a {type(made).__name__}; expected an nn.Module or an afmi.Classifier"
        )
    if weights is not None and weights != "default":
        inner = within(made)
        state = fit_names(read_weights(weights_path(weights)), inner)
        load_weights(inner, state, f"the file {str(weights)!r}")
    return made, Preprocessing()


@contextmanager
def _importable(folder: str) -> Iterator[None]:
    """Let modules be imported from a folder, as they are for a script that lies there."""
    sys.path.insert(0, folder)
    try:
        yield
    finally:
        if folder in sys.path:
            sys.path.remove(folder)


def _module(home: str) -> object:
    if not home.endswith(".py"):
        try:
            importlib.invalidate_caches()
            return importlib.import_module(home)
        except ModuleNotFoundError as error:
            if error.name and (home == error.name or home.startswith(error.name + ".")):
                raise ModelError(
                    f"there is no module {error.name!r} here; install it, or start afmi where it "
                    "lies, or name its file: path/to/file.py:function"
                ) from error
            raise ModelError(f"importing {home} raised {error_text(error)}") from error
        except Exception as error:
            raise ModelError(f"importing {home} raised {error_text(error)}") from error
    path = Path(home).expanduser().resolve()
    if not path.is_file():
        raise ModelError(f"there is no file {home!r}; expected path/to/file.py:function")
    module_name = f"{FILE_PREFIX}{path.stem}"
    spec = importlib.util.spec_from_file_location(module_name, path)
    if spec is None or spec.loader is None:
        raise ModelError(f"{home!r} cannot be imported; expected path/to/file.py:function")
    module = importlib.util.module_from_spec(spec)
    sys.modules[module_name] = module  # dataclasses and pickles look their module up there
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        del sys.modules[module_name]
        raise ModelError(f"importing {home} raised {error_text(error)}") from error
    return module


def _attribute(module: object, home: str, attribute: str) -> Any:
    value: Any = module
    for part in attribute.split("."):
        if not hasattr(value, part):
            public = [n for n, v in vars(value).items() if not n.startswith("_") and callable(v)]
            near = near_matches(part, public)
            raise ModelError(
                f"{home} has no {part!r}"
                + (near or f"; it has {', '.join(public[:8]) or 'no functions'}")
            )
        value = getattr(value, part)
    return value


def with_settings(model: Classifier, given: dict[str, Any]) -> Classifier:
    """Return a factory's classifier with the settings that the caller gave."""
    if not given:
        return model
    if type(model) is not Classifier:
        raise ModelError(
            f"the factory returns a {type(model).__name__}, which may use {', '.join(given)} "
            "differently; set them in the factory"
        )
    return model.with_settings(**given)
