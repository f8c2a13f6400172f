"""Say which methods and metrics are meant, in text, and name what came of it."""

from __future__ import annotations

import ast
import dataclasses
import json
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

from torch import nn

from afmi.errors import UsageError, near_matches
from afmi.layers import Layer
from afmi.methods import CATALOGUE, Method, method_named
from afmi.metrics import CATALOGUE as METRICS
from afmi.metrics import Metric, metric_named
from afmi.references import Reference, reference_named

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


def chosen_methods(model: nn.Module, methods: MethodsLike) -> dict[str, Method]:
    """Return the methods that were meant, by the label that tells each from the others.

    Args:
        model: the network to explain.
        methods: ``"all"``, or names joined by commas, or a sequence of names, classes or
            instances. A name may have parameters: ``"a-fmi:averaged=false:reference=white"``.

    Raises:
        UsageError: when a method or parameter does not exist, a value does not fit, or one
            instance explains another model.

    Example:
        >>> list(chosen_methods(nn.Identity(), "grad-cam,a-fmi:averaged=no"))
        ['Grad-CAM', 'A-FMI (averaged=False)']
    """
    found = _chosen(methods, list(CATALOGUE), method_named, lambda cls, given: cls(model, **given))
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
    found = _chosen(metrics, list(METRICS), metric_named, lambda cls, given: cls(**given))
    return {_metric_key(metric): metric for metric in found.values()}


def label_of(thing: Method | Metric) -> str:
    """Return the name with those parameters that are not the defaults."""
    changed = _changed(thing)
    return f"{thing.name} ({', '.join(changed)})" if changed else thing.name


def key_of(label: str) -> str:
    """Return a label as a file name: lower case letters, digits, dots and dashes."""
    return re.sub(r"[^a-z0-9.=]+", "-", label.casefold().replace("++", "-plus-plus")).strip("-")


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


def _changed(thing: Method | Metric) -> list[str]:
    parts = []
    for field in dataclasses.fields(thing):
        value = getattr(thing, field.name)
        if field.name == "model":
            continue
        if field.default_factory is not dataclasses.MISSING:
            default = field.default_factory()
        else:
            default = field.default
        if value != default:
            parts.append(f"{field.name}={_short(value)}")
    return parts


def _short(value: Any) -> str:
    if isinstance(value, (Reference, Layer)):
        return str(value)
    if isinstance(value, (Method, Metric)):
        return label_of(value)
    return type(value).__name__ if isinstance(value, nn.Module) else str(value)


def _plain(value: Any) -> Any:
    if isinstance(value, (Method, Metric)):
        return {"class": type(value).__name__, **parameters_of(value)}
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, Sequence):
        return [_plain(item) for item in value]
    return repr(value) if isinstance(value, Reference) else _short(value)


def _chosen(
    wanted: str | Sequence[Any],
    every: list[str],
    named: Callable[[str], type[T]],
    build: Callable[[type[T], dict[str, Any]], T],
) -> dict[str, T]:
    if isinstance(wanted, str):
        texts = [text.strip() for text in wanted.split(",") if text.strip()]
        wanted = every if [t.casefold() for t in texts] == ["all"] else texts
    found: dict[str, T] = {}
    for item in wanted:
        if isinstance(item, str):
            name, *pairs = item.split(":")
            cls = named(name)
            made = build(cls, _parameters(cls, pairs))
        else:
            made = build(item, {}) if isinstance(item, type) else item
        found.setdefault(label_of(made), made)
    if not found:
        raise UsageError(f"expected one name or more, or 'all', got {wanted!r}")
    return found


def _parameters(cls: type[Any], pairs: list[str]) -> dict[str, Any]:
    """Read ``key=value`` texts as what the class's fields take."""
    fields = {f.name: f for f in dataclasses.fields(cls) if f.init and f.name != "model"}
    found: dict[str, Any] = {}
    for pair in pairs:
        key, sign, text = (part.strip() for part in pair.partition("="))
        if not sign or key not in fields:
            takes = f"it takes {', '.join(fields)}" if fields else "it takes none"
            raise UsageError(
                f"{cls.name} takes no parameter {key!r}{near_matches(key, fields) or '; ' + takes}"
                + ("" if sign else "; parameters are written name:key=value")
            )
        found[key] = _value(cls, key, str(fields[key].type), text)
    return found


def _value(cls: type[Any], key: str, kind: str, text: str) -> Any:
    if "Reference" in kind:
        return reference_named(text)
    if "Method" in kind:
        raise UsageError(f"{key} of {cls.name} is a method, which only Python can pass")
    words = {"true": True, "yes": True, "false": False, "no": False, "none": None}
    if text.casefold() in words:
        value = words[text.casefold()]
    else:
        try:
            value = ast.literal_eval(text)
        except (ValueError, SyntaxError):
            value = text
    kinds = {part.strip() for part in re.sub(r"\[[^]]*\]", "", kind).split("|")}
    fits = {
        "bool": isinstance(value, bool),
        "int": isinstance(value, int) and not isinstance(value, bool),
        "float": isinstance(value, (int, float)) and not isinstance(value, bool),
        "str": isinstance(value, str),
        "None": value is None,
    }
    known = kinds & fits.keys()
    if known and not any(fits[one] for one in known):
        raise UsageError(
            f"expected {key} of {cls.name} as {' or '.join(sorted(known))}, got {text!r}"
        )
    if not known and "Sequence" in " ".join(kinds):
        return tuple(json.loads(f"[{text.replace('+', ',')}]"))
    return value
