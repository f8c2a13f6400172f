"""The manifest of an evaluation: checked when it is read, and compared with another run."""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import MISSING, fields
from types import NoneType
from typing import Any, Literal, get_args, get_origin, get_type_hints

from afmi.files import parse_json
from afmi.metrics.columns import Column, MetricFacts

__all__ = ["differences", "parse_manifest", "run_digest"]

_MOST_DIFFERENCES = 3


_Check = Callable[[Any, str], None]
"""Raises ValueError where a value, found at the place named, is not what it must be."""


def _kind(*kinds: type) -> _Check:
    def check(value: Any, where: str) -> None:
        # Python counts true and false among the whole numbers.
        if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds):
            raise ValueError(f"{where or 'it'} is {type(value).__name__}, not {kinds[0].__name__}")

    return check


def _one_of(*choices: str) -> _Check:
    def check(value: Any, where: str) -> None:
        _kind(str)(value, where)
        if value not in choices:
            raise ValueError(f"{where} is none of {', '.join(choices)}")

    return check


def _matching(pattern: str) -> _Check:
    def check(value: Any, where: str) -> None:
        _kind(str)(value, where)
        if not re.fullmatch(pattern, value):
            raise ValueError(f"{where} is {value[:40]!r}")

    return check


def _list(item: _Check) -> _Check:
    def check(value: Any, where: str) -> None:
        _kind(list)(value, where)
        for place, one in enumerate(value):
            item(one, f"{where}.{place}")

    return check


def _each(item: _Check) -> _Check:
    """An object whose keys are free."""

    def check(value: Any, where: str) -> None:
        _kind(dict)(value, where)
        for key, one in value.items():
            item(one, f"{where}.{key}")

    return check


def _object(**parts: _Check) -> _Check:
    """An object with these keys; one whose name ends in an underscore may be missing."""

    def check(value: Any, where: str) -> None:
        _kind(dict)(value, where)
        for name, part in parts.items():
            key = name.removesuffix("_")
            if key in value:
                part(value[key], f"{where}.{key}" if where else key)
            elif key == name:
                raise ValueError(f"{where or 'it'} has no {key!r}")

    return check


def _anything(value: Any, where: str) -> None:
    pass


def _of_hint(hint: Any) -> _Check:
    options = get_args(hint)
    return _one_of(*options) if get_origin(hint) is Literal else _kind(*options or (hint,))


_text, _number = _kind(str, NoneType), _kind(float, int)
_name = _matching("[^/]*")  # a slash parts a metric's name from those of its columns
_column = _object(
    **{
        field.name if field.default is MISSING else f"{field.name}_": _name
        if field.name in ("name", "value", "per", "among", "area")
        else _of_hint(get_type_hints(Column)[field.name])
        for field in fields(Column)
    }
)
_manifest = _object(
    run=_object(
        afmi_=_kind(str),
        torch_=_kind(str),
        model_=_object(name=_kind(str), labels_=_list(_kind(str))),
        data_=_object(name=_kind(str)),
        metrics_=_each(_each(_anything)),
    ),
    methods=_each(
        _object(
            **{"class": _kind(str)},
            key=_matching(r"[a-z0-9=][a-z0-9.=-]*"),  # a folder's name, and no path
            parameters=_each(_anything),
            images_per_piece=_kind(int),
            family_=_text,
            paper_=_text,
            refused_=_text,
        )
    ),
    metrics=_each(
        _object(
            name=_kind(str),
            about=_kind(str),
            standard=_kind(bool),
            ranks=_kind(bool),
            fractions=_list(_number),
            columns=_list(_column),
        )
    ),
    machine_=_each(_anything),
    command_=_text,
    created_=_text,
)


def parse_manifest(data: bytes) -> dict[str, Any]:
    """Return the manifest in a file's bytes.

    Raises:
        ValueError: when it is no JSON, or a part is missing or of the wrong kind; says which.
    """
    manifest = parse_json(data, constants=False)
    _manifest(manifest, "")
    for label, entry in manifest["methods"].items():
        if entry["images_per_piece"] < 1:
            raise ValueError(f"methods.{label}.images_per_piece is below 1")
    for key, record in manifest["metrics"].items():
        _check_metric(record, f"metrics.{key}")
    return manifest


def _check_metric(record: Mapping[str, Any], where: str) -> None:
    shares = record["fractions"]
    if sorted(set(shares)) != shares or not all(0 <= share <= 1 for share in shares):
        raise ValueError(f"{where}.fractions do not rise within 0 to 1")
    if not record["columns"]:
        raise ValueError(f"{where} has no columns")
    try:
        MetricFacts.from_dict(record)
    except TypeError as error:
        raise ValueError(f"{where}: {error}") from error


def run_digest(manifest: Mapping[str, Any]) -> str:
    """Return a digest of what was run and measured, alike wherever it is exactly the same.

    The data's name, a path often, does not count, nor what the network computes, which differs by
    rounding between machines.
    """
    run = _unnamed(manifest["run"])
    model = {key: part for key, part in run.get("model", {}).items() if key != "outputs"}
    text = json.dumps([{**run, "model": model}, manifest["metrics"]], sort_keys=True)
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """Tell in what two runs, or two settings of a method, differ; "" where they are the same.

    A run's outputs are the same within rounding, and the data's name does not count.
    """
    lines = list(_differences(_unnamed(before), _unnamed(now), ()))
    more = len(lines) - _MOST_DIFFERENCES
    return "; ".join(lines[:_MOST_DIFFERENCES]) + (f"; and {more} more" if more > 0 else "")


def _unnamed(run: Mapping[str, Any]) -> dict[str, Any]:
    return {**run, "data": {**run.get("data", {}), "name": ""}}


def _differences(before: Any, now: Any, path: tuple[str, ...]) -> Iterator[str]:
    if before == now:
        return
    where = ": ".join(path)
    if path == ("model", "outputs") and before and now:
        gap = _largest_gap(before, now)
        if gap > 1:
            yield f"{where} differ by {gap:.3g} times what rounding explains"
    elif isinstance(before, dict) and isinstance(now, dict):
        # A digest says the least to a reader, so it comes last.
        for key in sorted({*before, *now}, key=lambda key: (key == "fingerprint", key)):
            yield from _differences(before.get(key), now.get(key), (*path, key))
    elif _is_digest(before) and _is_digest(now):
        yield f"{where} has changed"
    else:
        yield f"{where} was {_brief(before)}, now {_brief(now)}"


def _largest_gap(before: Mapping[str, Any], now: Mapping[str, Any]) -> float:
    """Return the largest difference of two networks' outputs, in units of the tolerance."""
    try:
        pairs = list(zip(before["numbers"], now["numbers"], strict=True))
        scale = now["tolerance"] * max(
            (abs(b) for _, b in pairs if isinstance(b, float)), default=0.0
        )
        gaps = [
            0.0 if a == b else math.inf if a is None or b is None else abs(a - b) for a, b in pairs
        ]
    except (KeyError, TypeError, ValueError):
        return math.inf
    largest = max(gaps, default=0.0)
    return largest / scale if largest and scale else math.inf if largest else 0.0


def _is_digest(value: Any) -> bool:
    return isinstance(value, str) and re.fullmatch(r"[0-9a-f]{16,}", value) is not None


def _brief(value: Any) -> str:
    if value is None:
        return "not there"
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 120 else text[:117] + "…"
