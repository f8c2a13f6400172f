"""Build classifiers by name: the embedded network, torchvision's, or a user's own factory."""

from __future__ import annotations

import http.client
import importlib
import importlib.resources
import importlib.util
import json
import os
import pickle
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn

from afmi.classifier import Classifier
from afmi.demo import network as photo_network
from afmi.errors import ModelError, UsageError, near_matches
from afmi.layers import Layer, resolve_layer
from afmi.weights import class_count, fit_names, load_weights, read_weights

__all__ = ["EMBEDDED", "ModelEntry", "describe_models", "load_model", "model_names"]

EMBEDDED = "photos"
"""Name of the network that comes with the package."""

_EMBEDDED_WEIGHTS = "photo_vgg.safetensors"
_EMBEDDED_RESIZE = 144  # the short side of the photographs that it was trained on
_WEIGHT_SUFFIXES = (".safetensors", ".pth", ".pt", ".bin", ".ckpt", ".tar")


@dataclass(frozen=True)
class ModelEntry:
    """What is known of a model before it is built.

    Attributes:
        name: for `load_model`.
        parameters: in millions.
        top1: accuracy of the default weights on their own test set, in percent; None: unknown.
        input_size: side of the square that the network sees, in pixels.
        weights_file: file name of the default weights.
    """

    name: str
    parameters: float | None
    top1: float | None
    input_size: int | None
    weights_file: str | None


@dataclass(frozen=True)
class _View:
    """How a network wants to see pictures, and what its classes are called."""

    mean: Sequence[float] = (0.0, 0.0, 0.0)
    std: Sequence[float] = (1.0, 1.0, 1.0)
    labels: Sequence[str] = ()
    resize: int | tuple[int, int] | None = None
    crop: int | tuple[int, int] | None = None
    interpolation: Image.Resampling = Image.Resampling.BILINEAR


def _zoo() -> ModuleType:
    """Return torchvision's models; importing them takes seconds that the embedded one saves."""
    return importlib.import_module("torchvision.models")


def model_names() -> list[str]:
    """Return the names that `load_model` knows: the embedded network's, then torchvision's."""
    return [EMBEDDED, *_zoo().list_models(module=_zoo())]


def describe_models() -> list[ModelEntry]:
    """Return an entry for each of `model_names`, building nothing and downloading nothing."""
    shapes = [p.shape for p in _embedded_network(device="meta").parameters()]
    millions = sum(shape.numel() for shape in shapes) / 1e6
    entries = [
        ModelEntry(EMBEDDED, millions, None, photo_network.INPUT_SIZE, _EMBEDDED_WEIGHTS),
    ]
    for name in model_names()[1:]:
        weights = _zoo().get_model_weights(name).DEFAULT  # type: ignore[attr-defined]
        count = weights.meta.get("num_params")
        top1 = weights.meta.get("_metrics", {}).get("ImageNet-1K", {}).get("acc@1")
        size = _torchvision_view(weights).crop
        entries.append(
            ModelEntry(
                name,
                count / 1e6 if count else None,
                top1,
                size if isinstance(size, int) else None,
                _file_name(weights.url),
            )
        )
    return entries


def load_model(
    name: str = EMBEDDED,
    *,
    weights: str | os.PathLike[str] | Any | None = "default",
    labels: Sequence[str] | str | os.PathLike[str] | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    resize: int | tuple[int, int] | None = None,
    crop: int | tuple[int, int] | None = None,
    layer: str | Layer | None = None,
    device: str | torch.device | None = None,
    **options: Any,
) -> Classifier:
    """Build a classifier, load its weights, and put it into evaluation mode.

    Args:
        name: ``"photos"``, the network that comes with the package; a torchvision classifier
            (``"vgg19"``); or a factory of yours, ``"package.module:function"`` or
            ``"path/to/file.py:function"``, which is called and returns an ``nn.Module`` or a
            `Classifier`. Naming a factory runs its code.
        weights: ``"default"``: the best that come with the model (torchvision downloads them
            once), or whatever a factory loads itself. A .safetensors or .pth file: loaded without
            running code from it; where it tells another number of classes apart, so does the
            network. ``"IMAGENET1K_V1"``: torchvision's by that name. None: random weights (seed
            them with ``torch.manual_seed``), or a factory's own.
        labels: one name per class, or a file of them: one per line, or a JSON list, or a JSON
            object from index to name or [id, name]. None: the model's own.
        mean: what is subtracted from each channel, in [0, 1]. None: the model's own.
        std: what each channel is divided by. None: the model's own.
        resize: short side that pictures are resized to, in pixels. None: the model's own.
        crop: side of the central square that the network sees. None: the model's own.
        layer: dotted name of the feature-map layer that methods use. None: found automatically.
        device: ``"cuda:0"``, ``"cpu"``, …; ``"auto"``: a GPU where there is one. None: as built,
            that is, the CPU.
        **options: passed on to torchvision's builder or to the factory.

    Returns:
        In evaluation mode.

    Raises:
        ModelError: no such model, or it cannot be built, or its weights cannot be loaded.
        LayerError: the network has no layer of that name.
        UsageError: the device does not exist.

    Example:
        >>> model = load_model("squeezenet1_1", weights=None)
        >>> model.name, model.crop, model.labels[207]
        ('squeezenet1_1', 224, 'golden retriever')
    """
    if not isinstance(name, str):
        raise ModelError(
            f"expected the name of a model, got {type(name).__name__}; "
            "wrap a network of yours with afmi.Classifier(network, mean=…, std=…)"
        )
    place = _device(device)
    given = {"mean": mean, "std": std, "resize": resize, "crop": crop}
    given = {key: value for key, value in given.items() if value is not None}
    if labels is not None:
        given["labels"] = _labels(labels)
    if name == EMBEDDED:
        network, view = _embedded(weights, options)
    elif ":" in name:
        network, view = _from_factory(name, weights, options)
    elif name.lower() in (known := model_names()):
        name = name.lower()
        network, view = _from_torchvision(name, weights, options)
    else:
        hint = near_matches(name, known)
        if name.lower().endswith(_WEIGHT_SUFFIXES):
            hint = "; a file of weights goes with the network that it is for: weights=…"
        raise ModelError(
            f"no model is called {name!r}"
            + (hint or "; `afmi models` lists them, and package.module:function names your own")
        )
    if isinstance(network, Classifier):
        model = _changed(network, given)
    else:
        count = class_count(network.state_dict(), network)
        if ":" not in name and "labels" in given and len(given["labels"]) != count:
            raise ModelError(
                f"{name} tells {count} classes apart, but {len(given['labels'])} labels came; "
                "pass one label per class, in the order of the logits"
            )
        view = replace(view, **given)
        model = Classifier(network, name=name.rpartition(":")[2], **vars(view))
    if layer is not None:
        model.layer = str(resolve_layer(model, layer, torch.empty(0))[1])
    return model.to(place).eval() if place is not None else model.eval()


# --- the embedded network -------------------------------------------------------------------


def _embedded_network(device: str = "cpu", **options: Any) -> nn.Module:
    with torch.device(device):
        return photo_network.PhotoVGG(**options)


def _embedded(weights: object, options: dict[str, Any]) -> tuple[nn.Module, _View]:
    view = _View(
        photo_network.MEAN,
        photo_network.STD,
        photo_network.LABELS,
        _EMBEDDED_RESIZE,
        photo_network.INPUT_SIZE,
    )

    def build(**more: Any) -> nn.Module:
        return _call(EMBEDDED, _embedded_network, {**options, **more})

    if weights is None:
        network = build()
    elif weights == "default":
        folder = importlib.resources.files(photo_network.__package__ or "afmi.demo")
        with importlib.resources.as_file(folder / _EMBEDDED_WEIGHTS) as path:
            network = _with_weights(build, read_weights(path), f"the file {path.name!r}", options)
    else:
        source = f"the file {str(weights)!r}"
        network = _with_weights(build, read_weights(_path(weights)), source, options)
    return network, _with_classes(view, network)


# --- torchvision ----------------------------------------------------------------------------


def _from_torchvision(
    name: str, weights: object, options: dict[str, Any]
) -> tuple[nn.Module, _View]:
    known = _zoo().get_model_weights(name)
    builder = _zoo().get_model_builder(name)
    # Auxiliary heads only serve training, and their initial weights take long to draw.
    quiet: dict[str, Any] = {}
    if name in ("googlenet", "inception_v3"):
        quiet = {"aux_logits": False, "init_weights": False}
    chosen = _known_weights(name, known, weights)

    def build(**more: Any) -> nn.Module:
        return _call(name, builder, {**quiet, "weights": None, **options, **more})

    if weights is None:
        network = build()
    elif chosen is not None:
        quiet.pop("init_weights", None)
        network = _downloaded(name, builder, chosen, {**quiet, **options})
    else:
        path = _path(weights)
        state = _current_names(name, read_weights(path))
        chosen = next((w for w in known if Path(_file_name(w.url)).stem == path.stem), None)
        size = _vit_size(state) if name.startswith("vit_") else None
        if size is not None:
            options = {"image_size": size, **options}
        if quiet:  # torchvision's weights, and so what is trained on from them, expect this
            options = {"transform_input": True, **options}
        network = _with_weights(build, state, f"the file {str(path)!r}", options)
        view = _torchvision_view(chosen or known.DEFAULT)  # type: ignore[attr-defined]
        if size is not None and view.crop != size:
            view = replace(view, crop=size, resize=size)
        return network, _with_classes(view, network)
    view = _torchvision_view(chosen or known.DEFAULT)  # type: ignore[attr-defined]
    return network, _with_classes(view, network)


def _known_weights(name: str, known: Any, weights: object) -> Any:
    """Return torchvision's record of the weights named, or None where a file is meant."""
    if isinstance(weights, known):
        return weights
    if not isinstance(weights, str):
        if weights is None or isinstance(weights, os.PathLike):
            return None
        raise ModelError(
            f"expected weights for {name!r} that are 'default', None, a file or one of "
            f"{', '.join(known.__members__)}; got {weights!r}"
        )
    entry = weights.rpartition(".")[2] if weights.startswith(known.__name__) else weights
    if entry.upper() in known.__members__:
        return known[entry.upper()]
    if Path(weights).exists() or weights.lower().endswith(_WEIGHT_SUFFIXES) or "/" in weights:
        return None
    choices = ["default", *known.__members__]
    raise ModelError(
        f"{name!r} has no weights called {weights!r}, and no such file exists"
        + (near_matches(weights, choices) or f"; it has {', '.join(choices)}")
    )


def _downloaded(name: str, builder: Any, chosen: Any, options: dict[str, Any]) -> nn.Module:
    what = f"{_file_name(chosen.url)}, the weights of {name!r},"
    otherwise = "pass weights= a local file, or weights=None for random weights"
    try:
        return builder(**options, weights=chosen)
    except (OSError, http.client.HTTPException) as error:
        reason = getattr(error, "reason", None) or error
        raise ModelError(f"{what} cannot be downloaded ({reason}); {otherwise}") from error
    except (RuntimeError, EOFError, pickle.UnpicklingError) as error:
        folder = Path(torch.hub.get_dir()) / "checkpoints"
        raise ModelError(
            f"{what} cannot be loaded ({_first_line(error)}); remove the file from {folder} to "
            f"download it again; or {otherwise}"
        ) from error
    except Exception as error:
        raise ModelError(_raised(name, options, error)) from error


def _file_name(url: str) -> str:
    return url.rpartition("/")[2]


def _torchvision_view(weights: Any) -> _View:
    preset = weights.transforms()
    return _View(
        tuple(preset.mean),
        tuple(preset.std),
        tuple(weights.meta["categories"]),
        preset.resize_size[0],
        preset.crop_size[0],
        Image.Resampling[preset.interpolation.name],
    )


_OLD_DENSENET = re.compile(r"^(.*denselayer\d+\.(?:norm|relu|conv))\.([12]\..*)$")


def _current_names(name: str, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Leave out auxiliary heads, and name DenseNet's weights as today's torchvision does."""
    if name in ("googlenet", "inception_v3"):
        auxiliary = re.compile(r"^(module\.|model\.)*(aux1|aux2|AuxLogits)\.")
        return {key: tensor for key, tensor in state.items() if not auxiliary.match(key)}
    if name.startswith("densenet"):
        return {_OLD_DENSENET.sub(r"\1\2", key): tensor for key, tensor in state.items()}
    return state


def _vit_size(state: Mapping[str, Tensor]) -> int | None:
    """Return the side in pixels of the images that a vision transformer's weights are for."""
    position = next((t for k, t in state.items() if k.endswith("encoder.pos_embedding")), None)
    patches = next((t for k, t in state.items() if k.endswith("conv_proj.weight")), None)
    if position is None or patches is None or position.dim() != 3 or patches.dim() != 4:
        return None
    return round((position.shape[1] - 1) ** 0.5) * patches.shape[-1]


# --- a user's factory -----------------------------------------------------------------------


def _from_factory(name: str, weights: object, options: dict[str, Any]) -> tuple[nn.Module, _View]:
    home, _, attribute = name.rpartition(":")
    if not home or not attribute:
        raise ModelError(
            f"expected package.module:function or path/to/file.py:function, got {name!r}"
        )
    folder = str(Path(home).parent) if home.endswith(".py") else os.getcwd()
    with _importable(folder):
        found = _attribute(_module(home), home, attribute)
        made = found
        if not isinstance(found, nn.Module):
            if not callable(found):
                raise ModelError(
                    f"{name} is a {type(found).__name__}; expected a function that returns an "
                    "nn.Module"
                )
            made = _call(name, found, options)
    if not isinstance(made, nn.Module):
        raise ModelError(
            f"{name} returned a {type(made).__name__}; expected an nn.Module or an afmi.Classifier"
        )
    if weights is not None and weights != "default":
        inner = made.network if isinstance(made, Classifier) else made
        state = fit_names(read_weights(_path(weights)), inner)
        load_weights(inner, state, f"the file {str(weights)!r}")
    return made, _View()


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
            raise ModelError(f"importing {home} raised {_told(error)}") from error
        except Exception as error:
            raise ModelError(f"importing {home} raised {_told(error)}") from error
    path = Path(home).expanduser().resolve()
    if not path.is_file():
        raise ModelError(f"there is no file {home!r}; expected path/to/file.py:function")
    module_name = f"_afmi_factory_{path.stem}"
    spec = importlib.util.spec_from_file_location(module_name, path)
    if spec is None or spec.loader is None:
        raise ModelError(f"{home!r} cannot be imported; expected path/to/file.py:function")
    module = importlib.util.module_from_spec(spec)
    sys.modules[module_name] = module  # dataclasses and pickles look their module up there
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        del sys.modules[module_name]
        raise ModelError(f"importing {home} raised {_told(error)}") from error
    return module


def _attribute(module: object, home: str, attribute: str) -> Any:
    found: Any = module
    for part in attribute.split("."):
        if not hasattr(found, part):
            public = [n for n, v in vars(found).items() if not n.startswith("_") and callable(v)]
            near = near_matches(part, public)
            raise ModelError(
                f"{home} has no {part!r}"
                + (near or f"; it has {', '.join(public[:8]) or 'no functions'}")
            )
        found = getattr(found, part)
    return found


def _changed(model: Classifier, given: dict[str, Any]) -> Classifier:
    """Return a factory's classifier with what the caller asked to be different."""
    if not given:
        return model
    if type(model) is not Classifier:
        raise ModelError(
            f"the factory returns a {type(model).__name__}, which may use {', '.join(given)} in "
            "its own way; set them in the factory"
        )
    own = {
        "mean": model.mean.flatten().tolist(),
        "std": model.std.flatten().tolist(),
        **{k: getattr(model, k) for k in ("labels", "resize", "crop", "interpolation")},
    }
    return Classifier(model.network, name=model.name, layer=model.layer, **{**own, **given})


# --- shared ---------------------------------------------------------------------------------


def _call(name: str, function: Callable[..., Any], options: dict[str, Any]) -> Any:
    """Call a builder; what it raises is told in one line."""
    try:
        return function(**options)
    except Exception as error:
        raise ModelError(_raised(name, options, error)) from error


def _raised(name: str, options: Mapping[str, Any], error: Exception) -> str:
    passed = ", ".join(f"{key}={value!r}" for key, value in options.items() if key != "weights")
    return f"building {name} with ({passed}) raised {_told(error)}"


def _told(error: BaseException | None) -> str:
    return f"{type(error).__name__}: {_first_line(error)}"


def _first_line(error: BaseException | None) -> str:
    lines = str(error).strip().splitlines()
    return lines[0][:200] if lines else "(no message)"


def _path(weights: object) -> Path:
    if not isinstance(weights, (str, os.PathLike)):
        raise ModelError(
            f"expected weights that are 'default', None or a file, got {type(weights).__name__}"
        )
    return Path(weights).expanduser()


def _with_weights(
    build: Callable[..., nn.Module],
    state: dict[str, Tensor],
    source: str,
    options: Mapping[str, Any],
) -> nn.Module:
    """Build a network with as many classes as the weights tell apart, and load them.

    A number of classes among the caller's options stands, so that other weights are refused.
    """
    network = build()
    state = fit_names(state, network)
    count = class_count(state, network)
    adaptable = count is not None and "num_classes" not in options
    if adaptable and count != class_count(network.state_dict(), network):
        network = build(num_classes=count)
    load_weights(network, state, source)
    return network


def _with_classes(view: _View, network: nn.Module) -> _View:
    """Drop the labels of a network that tells other classes apart."""
    count = class_count(network.state_dict(), network)
    return view if count == len(view.labels) else replace(view, labels=())


def _labels(labels: Sequence[str] | str | os.PathLike[str]) -> tuple[str, ...]:
    if not isinstance(labels, (str, os.PathLike)):
        return tuple(str(label) for label in labels)
    path = Path(labels).expanduser()
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise ModelError(
            f"the labels {str(path)!r} cannot be read ({_first_line(error)}); "
            "expected a text file with one label per line, or JSON"
        ) from error
    if text.lstrip()[:1] not in ("[", "{"):
        return tuple(line.strip() for line in text.rstrip().splitlines())
    try:
        return _json_labels(json.loads(text))
    except (ValueError, TypeError, KeyError) as error:
        raise ModelError(
            f"the labels {str(path)!r} are no JSON list of names, nor an object from each index, "
            f"0 to the last, to its name ({_first_line(error)})"
        ) from error


def _json_labels(data: Any) -> tuple[str, ...]:
    if isinstance(data, dict) and "id2label" in data:  # a Hugging Face config.json
        data = data["id2label"]
    if isinstance(data, dict) and all(type(value) is int for value in data.values()):
        data = {index: label for label, index in data.items()}
    if isinstance(data, dict):
        by_index = {int(index): label for index, label in data.items()}
        if sorted(by_index) != list(range(len(by_index))):
            raise ValueError("indices are missing")
        data = [by_index[index] for index in range(len(by_index))]
    # ImageNet's usual file gives [WordNet id, name] for each class.
    names = [entry[-1] if isinstance(entry, list) else entry for entry in data]
    if not names or not all(isinstance(entry, str) for entry in names):
        raise ValueError("not every name is text")
    return tuple(names)


def _device(device: str | torch.device | None) -> torch.device | None:
    if device is None:
        return None
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        place = torch.device(device)
        torch.empty(1, device=place).cpu()
    except Exception as error:  # builds of PyTorch without the device raise errors of many types
        raise UsageError(
            f"the device {str(device)!r} cannot be used here ({_first_line(error)}); "
            "use 'cpu', or 'auto' for a GPU where there is one"
        ) from error
    return place
