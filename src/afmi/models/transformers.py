"""Hugging Face's image classifiers: ``hf:owner/name``, ``hf:path/to/folder``, ``hf:vit``."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import nn

from afmi.errors import ModelError, first_line, near_matches
from afmi.models.building import ModelEntry, build_error, quiet, weights_path
from afmi.models.hub import fetching
from afmi.models.weights import (
    classes_in_file,
    fit_names,
    read_weights,
    refuse_misfits,
    refuse_other_numbers,
)
from afmi.network import image_processors
from afmi.network.in_hand import BlueFirst, of_processor, with_config_labels
from afmi.network.preprocessing import Preprocessing
from afmi.packages import imported

__all__ = ["PREFIX", "build", "entries"]

PREFIX = "hf"

_INSTEAD = f"pass a folder that save_pretrained wrote, {PREFIX}:path/to/folder"
_UNLISTED = ("attn_implementation", "num_labels")  # options that a configuration does not show


def entries() -> list[ModelEntry]:
    """Return an entry for each type of image classifier; a type has no weights of its own."""
    with _transformers():
        return [ModelEntry(f"{PREFIX}:{name}", None, None, None, None) for name in sorted(_types())]


def build(
    name: str, weights: object, options: dict[str, Any]
) -> tuple[nn.Module, Preprocessing, str]:
    """Return an image classifier, its preprocessing, and its name with the prefix.

    Args:
        name: a folder that save_pretrained wrote, a repository on the Hub, or a type of network.
        weights: "default": the folder's or repository's; None: random; or a file.
        options: changes of the configuration.

    Raises:
        ModelError: transformers is not installed, there is no such model, or it does not fit.
    """
    with _transformers() as library:
        source = _Source(library, name, _kind(name), options)
        config = source.config()
        network = source.network(config, weights)
        preprocessing, blue_first = source.preprocessing(network.config)
    if "image_size" in options:
        preprocessing = image_processors.at_size(preprocessing, options["image_size"])
    return BlueFirst(network) if blue_first else network, preprocessing, source.title


@contextmanager
def _transformers() -> Iterator[Any]:
    """Import the library, and keep it from writing to the terminal."""
    library = _library()
    logging = library.utils.logging
    bars = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        with quiet("transformers", "huggingface_hub"):
            yield library
    finally:
        if bars:
            logging.enable_progress_bar()


def _library() -> Any:
    return imported("transformers", "a network of transformers", "afmi[transformers]")


def _types() -> dict[str, Any]:
    """Return the names of the image classifiers' classes, by the type of network."""
    auto = _library().models.auto.modeling_auto
    return dict(auto.MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES)


def _kind(name: str) -> str:
    """Return what a name stands for: "folder", "type" or "repository"."""
    if name and Path(name).expanduser().is_dir():
        return "folder"
    if name in _types():
        return "type"
    owner, slash, rest = name.partition("/")
    if slash and owner.strip(".~") and rest and "/" not in rest:
        return "repository"
    raise ModelError(
        f"there is no folder {name!r}, and no type of image classifier is called so"
        + near_matches(name, _types())
        + f"; expected {PREFIX}: and a folder, a repository owner/name on the Hugging Face Hub, or "
        f"a type, which `afmi models {PREFIX}:` lists"
    )


@dataclass(frozen=True)
class _Source:
    """Where a network comes from, and the caller's changes of its configuration."""

    library: Any
    name: str
    kind: str
    options: Mapping[str, Any]

    @property
    def title(self) -> str:
        return f"{PREFIX}:{Path(self.name).resolve().name if self.kind == 'folder' else self.name}"

    @contextmanager
    def _reading(self, what: str) -> Iterator[bool]:
        """Let files be read, and tell whether all there are can be; failures are in one line."""
        try:
            if self.kind == "repository":
                with fetching(self.name, f"{what} of {self.title}", _INSTEAD) as reachable:
                    yield reachable
            else:
                yield True
        except OSError as error:
            raise ModelError(
                f"{what} of {self.title} cannot be read ({first_line(error)}); {_INSTEAD}"
            ) from error

    def _call(self, function: Callable[..., Any], *args: Any, **more: Any) -> Any:
        """Call the library, which may run no code that comes with a model."""
        try:
            return function(*args, **more, trust_remote_code=False)
        except OSError:
            raise
        except Exception as error:
            raise ModelError(build_error(self.title, self.options, error)) from error

    @property
    def _place(self) -> str:
        return os.path.expanduser(self.name) if self.kind == "folder" else self.name

    def config(self) -> Any:
        """Return the configuration with the caller's options."""
        if self.kind == "type":
            classes = self.library.CONFIG_MAPPING[self.name]
            plain = classes()
            unused = [k for k in self.options if k not in _UNLISTED and not hasattr(plain, k)]
            try:
                config = plain if unused else classes(**self.options)
            except Exception as error:
                raise ModelError(build_error(self.title, self.options, error)) from error
        else:
            with self._reading("the configuration"):
                config, unused = self._call(
                    self.library.AutoConfig.from_pretrained,
                    self._place,
                    return_unused_kwargs=True,
                    **self.options,
                )
        # Options that were not used come back with the keyword of the library.
        unused = [key for key in unused if key in self.options]
        if unused:
            near = near_matches(unused[0], config.to_dict())
            raise ModelError(f"the configuration of {self.title} has no {unused[0]!r}{near}")
        if config.model_type not in _types():
            raise ModelError(
                f"{self.title} is a network of type {config.model_type!r}, of which transformers "
                "has no image classifier"
            )
        return config

    def network(self, config: Any, weights: object) -> Any:
        """Return the network, in single precision unless the options say otherwise."""
        if weights is None:
            network = self._random(config)
        elif weights != "default":
            network = self._from_file(config, weights_path(weights))
        elif self.kind == "type":
            raise ModelError(
                f"{self.title} is a type of network and has no weights of its own; pass "
                "weights=None for random ones or a file, or name a folder or repository that has"
            )
        else:
            classes = self.library.AutoModelForImageClassification
            with self._reading("the weights"):
                network, differences = self._filled(classes, self._place, config)
            _refuse(differences, f"the checkpoint of {self.title}", network)
        return network if "dtype" in self.options else network.float()

    def _random(self, config: Any) -> Any:
        if config.architectures is None:  # which of the type's classes, where it has several
            classes = _types()[config.model_type]
            config.architectures = [classes if isinstance(classes, str) else classes[0]]
        return self._call(self.library.AutoModelForImageClassification.from_config, config)

    def _from_file(self, config: Any, path: Path) -> Any:
        network = self._random(config)
        state = fit_names(read_weights(path), network)
        refuse_other_numbers(f"the file {str(path)!r}", network, state)
        # The library knows the names that the weights of its networks have in files, old and new.
        loaded, differences = self._filled(type(network), None, config, state_dict=dict(state))
        shapes = [(stored, expected) for _, stored, expected in differences["mismatched_keys"]]
        count = classes_in_file(shapes, config.num_labels)
        if count is not None and "num_labels" not in self.options:
            config.num_labels = count
            loaded, differences = self._filled(type(network), None, config, state_dict=dict(state))
        _refuse(differences, f"the file {str(path)!r}", loaded)
        return loaded

    def _filled(self, classes: Any, place: str | None, config: Any, **more: Any) -> Any:
        """Load weights, and return how they differ from the network's."""
        return self._call(
            classes.from_pretrained,
            place,
            config=config,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # `_refuse` names them
            **more,
        )

    def preprocessing(self, config: Any) -> tuple[Preprocessing, bool]:
        """Return the preprocessing, and whether blue comes first."""
        with self._reading("the preparation") as reachable:
            saved = self._saved_processor(config)
        processor = saved or _usual_processor(self.library, config)
        preprocessing, blue_first = image_processors.DEFAULT, False
        if processor is not None:
            preprocessing, blue_first = of_processor(processor)
        if saved is None and getattr(config, "image_size", None):
            preprocessing = image_processors.at_size(preprocessing, config.image_size)
        if saved is None and not reachable:
            why = f"the preprocessing of {self.title} cannot be read: no answer from the Hub"
            preprocessing = replace(
                preprocessing, unknown=("mean", "std", "resize", "crop"), why=why
            )
        return with_config_labels(preprocessing, config), blue_first

    def _saved_processor(self, config: Any) -> Any:
        """Return the image processor that was saved with the model, or None."""
        if self.kind == "type":
            return None
        saved = config.model_type == "timm_wrapper" or any(
            self.library.utils.cached_file(
                self._place, file, _raise_exceptions_for_missing_entries=False
            )
            for file in ("processor_config.json", "preprocessor_config.json")
        )
        if not saved:
            return None
        return self._call(self.library.AutoImageProcessor.from_pretrained, self._place)


def _usual_processor(library: Any, config: Any) -> Any:
    """Return the image processor of a type of network as it is by default, or None."""
    try:
        known = library.IMAGE_PROCESSOR_MAPPING[type(config)]
    except KeyError:
        return None
    return next(iter(known.values()))()


def _refuse(differences: Mapping[str, Any], source: str, network: nn.Module) -> None:
    """Raise where weights are missing, left over or of another shape."""
    refuse_misfits(
        source,
        network,
        missing=sorted(differences["missing_keys"]),
        unexpected=sorted(differences["unexpected_keys"]),
        shapes={
            name: (stored, expected)
            for name, stored, expected in sorted(differences["mismatched_keys"])
        },
    )
