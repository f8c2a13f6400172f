"""Say which methods and metrics are meant, in text, and name what came of it."""

from __future__ import annotations

import dataclasses
import hashlib
import math
import re
from collections import abc
from collections.abc import Callable, Mapping, Sequence
from types import NoneType, UnionType
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

import numpy as np
from torch import Tensor, nn

from afmi.errors import UsageError, near_matches
from afmi.methods import CATALOGUE, Method, method_named
from afmi.metrics import CATALOGUE as METRICS
from afmi.metrics import Metric, metric_named
from afmi.pictures.references import Image, Reference, Several, reference_named

__all__ = [
    "MethodsLike",
    "MetricsLike",
    "chosen_methods",
    "chosen_metrics",
    "key_of",
    "label_of",
    "parameters_of",
]

MethodsLike = str | Sequence[str | type[Method] | Method]
MetricsLike = str | Sequence[str | type[Metric] | Metric]

T = TypeVar("T", Method, Metric)

_LONGEST_KEY = 80
# Names are told apart by the catalogue; values in other signs might lose what sets them apart.
_PLAIN_VALUE = r"(?:True|False|None|(?!(?:true|false|none)\b)[a-z0-9](?:[a-z0-9.]*[a-z0-9])?)"
_PLAIN_LABEL = re.compile(rf"[^()]+(?: \(\w+={_PLAIN_VALUE}(?:, \w+={_PLAIN_VALUE})*\))?", re.ASCII)


def chosen_methods(model: nn.Module, methods: MethodsLike) -> dict[str, Method]:
    """Return the methods that were meant, by the label that tells each from the others.

    Args:
        model: the network to explain.
        methods: ``"all"``, or names joined by commas, or a sequence of names, classes or
            instances. A name may have parameters: ``"a-fmi:averaged=false:reference=white"``;
            several values of one are joined by "+": ``"xrai:scales=50+100"``.

    Raises:
        UsageError: when a method or parameter does not exist, a value does not fit, one instance
            explains another model, or two that differ have one label.

    Example:
        >>> list(chosen_methods(nn.Identity(), "grad-cam,a-fmi:averaged=no"))
        ['Grad-CAM', 'A-FMI (averaged=False)']
    """

    def build(cls: type[Method], given: dict[str, Any]) -> Method:
        return cls(model, **given)

    found = _chosen(methods, Method, list(CATALOGUE), method_named, build)
    for label, method in found.items():
        if method.model is not model:
            raise UsageError(f"the {label} given explains another model; pass the class instead")
    return found


def chosen_metrics(metrics: MetricsLike | None) -> dict[str, Metric]:
    """Return the metrics that were meant, by the key that begins their rows' names.

    Args:
        metrics: ``"all"``, names joined by commas (``"insertion,insertion:canvas=mean"``), or a
            sequence of names, classes or instances; None: those that are standard.

    Raises:
        UsageError: as for `chosen_methods`.

    Example:
        >>> list(chosen_metrics("Insertion,insertion:canvas=mean"))
        ['insertion', 'insertion(canvas=mean)']
    """
    if metrics is None:
        metrics = [cls for cls in METRICS.values() if cls.standard]
    found = _chosen(metrics, Metric, list(METRICS), metric_named, lambda cls, given: cls(**given))
    return {_metric_key(metric): metric for metric in found.values()}


def label_of(thing: Method | Metric) -> str:
    """Return the name with those parameters that are not the defaults."""
    changed = _changed(thing)
    return f"{thing.name} ({', '.join(changed)})" if changed else thing.name


def key_of(label: str) -> str:
    """Return a label as a file name: lower case letters, digits, dots, "=" and dashes.

    Labels that differ have keys that differ, also where case does not count: what a file name
    cannot tell of a label is told by a digest at its end.

    Example:
        >>> key_of("A-FMI (averaged=False)"), key_of("Grad-CAM (layer=Block.1)")
        ('a-fmi-averaged=false', 'grad-cam-layer=block.1-db03a6ff')
    """
    folded = label.casefold().replace("++", "-plus-plus")
    key = re.sub(r"[^a-z0-9.=]+", "-", folded).strip("-.")
    if key and len(key) <= _LONGEST_KEY and _PLAIN_LABEL.fullmatch(label):
        return key
    digest = hashlib.blake2b(label.encode(errors="surrogatepass"), digest_size=4).hexdigest()
    return f"{key[:_LONGEST_KEY]}-{digest}".lstrip("-")


def parameters_of(thing: Method | Metric) -> dict[str, Any]:
    """Return every parameter as JSON holds it."""
    return {
        field.name: _plain(getattr(thing, field.name))
        for field in dataclasses.fields(thing)
        if field.name != "model"
    }


def _metric_key(metric: Metric) -> str:
    name = re.sub(r"(?<=[a-z])(?=[A-Z])", "_", type(metric).__name__).lower()
    changed = _changed(metric)
    return f"{name}({','.join(changed)})" if changed else name


def _changed(thing: Any) -> list[str]:
    """Return ``name=value`` of each field of a dataclass that is not its default."""
    parts = []
    for field in dataclasses.fields(thing):
        if field.name == "model" or not field.init:
            continue
        value = getattr(thing, field.name)
        if field.default_factory is not dataclasses.MISSING:
            default = field.default_factory()
        else:
            default = field.default
        if _plain(value) != _plain(default):
            parts.append(f"{field.name}={_short(value, getattr(thing, 'model', None))}")
    return parts


def _short(value: Any, model: nn.Module | None = None) -> str:
    if isinstance(value, Reference):
        return _reference_label(value)
    if isinstance(value, (Method, Metric)):
        return label_of(value)
    if isinstance(value, nn.Module):
        inside = model.named_modules() if model is not None else ()
        return next((name for name, module in inside if module is value), type(value).__name__)
    if isinstance(value, (Tensor, np.ndarray)):
        value = value.tolist()
    if isinstance(value, float):
        return repr(value).removesuffix(".0")
    if isinstance(value, Sequence) and not isinstance(value, (str, bytes)):
        return f"({', '.join(_short(item, model) for item in value)})"
    # A function's own text holds its address, which is another in every run.
    return getattr(value, "__qualname__", None) or str(value)


def _reference_label(reference: Reference) -> str:
    if isinstance(reference, Several):
        return "+".join(_reference_label(one) for one in reference.references)
    if isinstance(reference, Image):
        source = reference.source
        return f"image {_digest(source)}" if isinstance(source, Tensor) else str(reference)
    name = type(reference).__name__.lower()
    return " ".join([name, *_changed(reference)] if dataclasses.is_dataclass(reference) else [name])


def _reference_text(reference: Reference) -> str:
    """Return what Python shows of a reference, but of a picture all that counts."""
    if isinstance(reference, Several):
        parts = [_reference_text(one) for one in reference.references]
        return f"Several(references=({', '.join(parts)}{',' if len(parts) == 1 else ''}))"
    if isinstance(reference, Image) and isinstance(reference.source, Tensor):
        return f"Image(source={tuple(reference.source.shape)} {_digest(reference.source)})"
    return repr(reference)


def _digest(picture: Tensor) -> str:
    pixels = picture.detach().cpu().double().contiguous().numpy().tobytes()
    return hashlib.blake2b(pixels, digest_size=8).hexdigest()


def _plain(value: Any) -> Any:
    if isinstance(value, (Method, Metric)):
        return {"class": type(value).__name__, **parameters_of(value)}
    if isinstance(value, float) and not math.isfinite(value):
        return repr(value)  # JSON has no word for it
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, (Tensor, np.ndarray, np.generic)):
        return _plain(value.tolist())
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, Sequence):
        return [_plain(item) for item in value]
    return _reference_text(value) if isinstance(value, Reference) else _short(value)


def _chosen(
    wanted: str | Sequence[Any],
    kind: type[T],
    every: list[str],
    named: Callable[[str], type[T]],
    build: Callable[[type[T], dict[str, Any]], T],
) -> dict[str, T]:
    if isinstance(wanted, str):
        texts = [text.strip() for text in wanted.split(",") if text.strip()]
        wanted = every if [t.casefold() for t in texts] == ["all"] else texts
    if not isinstance(wanted, Sequence):
        raise UsageError(
            f"expected names, classes or instances in a list, got {type(wanted).__name__}; write "
            "[…] around it"
        )
    found: dict[str, T] = {}
    for item in wanted:
        if isinstance(item, str):
            name, *pairs = item.split(":")
            cls = named(name)
            made = build(cls, _parameters(cls, pairs))
        elif isinstance(item, kind):
            made = item
        elif isinstance(item, type) and issubclass(item, kind):
            made = build(item, {})
        else:
            raise UsageError(f"expected a name, a class or an instance of one, got {item!r}")
        label = label_of(made)
        if found.setdefault(label, made) != made:
            raise UsageError(
                f"two that differ are both called {label!r}; leave one out, or evaluate them by "
                "themselves"
            )
    if not found:
        what = kind.__name__.lower()
        raise UsageError(f"expected one {what} or more, or 'all', got {wanted!r}")
    return found


def _parameters(cls: type[Any], pairs: list[str]) -> dict[str, Any]:
    """Read ``key=value`` texts as what the class's fields take."""
    fields = [f.name for f in dataclasses.fields(cls) if f.init and f.name != "model"]
    kinds = get_type_hints(cls)
    found: dict[str, Any] = {}
    for pair in pairs:
        key, sign, text = (part.strip() for part in pair.partition("="))
        if not sign:
            raise UsageError(
                f"expected a parameter of {cls.name} as key=value, got {pair!r}; such as "
                "a-fmi:averaged=false"
            )
        if key not in fields:
            takes = f"; it takes {', '.join(fields)}" if fields else "; it takes none"
            raise UsageError(
                f"{cls.name} takes no parameter {key!r}{near_matches(key, fields) or takes}"
            )
        if key in found:
            raise UsageError(f"{key} of {cls.name} is given twice; leave one out")
        found[key] = _value(cls, key, kinds[key], text)
    return found


def _value(cls: type[Any], key: str, kind: Any, text: str) -> Any:
    kinds = get_args(kind) if get_origin(kind) in (Union, UnionType) else (kind,)
    # "none" is never a picture's name, and everything is a text.
    order = sorted(kinds, key=lambda one: (one is not NoneType, one is str))
    readers = [_reader(one) for one in order]
    names = [reader[0] for reader in readers if reader is not None]
    for reader in readers:
        if reader is None:
            continue
        try:
            return reader[1](text)
        except UsageError:  # which says what is wrong
            raise
        except ValueError:
            continue
    if None in readers:
        told = f"; a text can only say {' or '.join(names)}" if names else ""
        raise UsageError(f"only Python can pass {key} of {cls.name}{told}, got {text!r}")
    raise UsageError(f"expected {key} of {cls.name} as {' or '.join(names)}, got {text!r}")


def _reader(kind: Any) -> tuple[str, Callable[[str], Any]] | None:
    """Return what a kind of value is called and what reads it; None: no text stands for it."""
    if kind in _READERS:
        return _READERS[kind]
    if get_origin(kind) not in (tuple, abc.Sequence):
        return None
    inner = _reader(get_args(kind)[0])
    if inner is None:
        return None
    name, read = inner
    # Not the "+" of 1e+3.
    split = re.compile(r"(?<![\d.][eE])\+").split
    each = name.removeprefix("a ")
    return f"{each}s joined by '+'", lambda text: tuple(read(part.strip()) for part in split(text))


def _one_of(words: Mapping[str, Any]) -> Callable[[str], Any]:
    def read(text: str) -> Any:
        if text.casefold() not in words:
            raise ValueError
        return words[text.casefold()]

    return read


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError
    return value


_READERS: dict[Any, tuple[str, Callable[[str], Any]]] = {
    NoneType: ("none", _one_of({"none": None})),
    bool: ("true or false", _one_of({"true": True, "yes": True, "false": False, "no": False})),
    int: ("a whole number", int),
    float: ("a number", _finite),
    Reference: ("a reference", reference_named),
    str: ("a text", str),
}
