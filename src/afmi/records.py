"""Records of explanations on disk: their schema, and the numbers that lie beside them."""

from __future__ import annotations

import functools
import hashlib
import io
import os
from collections.abc import Callable, Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import IO, Any, TypeAlias

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from afmi.errors import AfmiError, RecordError
from afmi.files import parse_json, read_text_file, regular_file_size
from afmi.pictures.images import read_image
from afmi.pictures.npy import read_npy
from afmi.pictures.transforms import to_image, to_tensor

__all__ = [
    "SCHEMA",
    "area_of_runs",
    "check_record",
    "digest_of",
    "image_file",
    "map_file",
    "read_record",
    "record_files",
    "runs_of_area",
    "schema",
]

SCHEMA = 1
"""Which schema the records of this version have."""

_SIDES = ("length",), ("height", "width"), ("depth", "height", "width")
_RUN_AGAIN = "save the explanation again"

File: TypeAlias = tuple[str, Callable[[IO[bytes]], object]]
"""The ending of a file's name, and what writes it."""


@functools.cache
def schema() -> dict[str, Any]:
    """Return the JSON Schema of a record, as it is published with the package."""
    text = resources.files("afmi").joinpath("explanation.schema.json").read_text("utf-8")
    return parse_json(text)


def digest_of(values: Tensor) -> str:
    """Return a hex digest (BLAKE2b) of a tensor's numbers, as float32 where they are broken."""
    held = values.detach().to("cpu")
    held = held.to(torch.float32) if held.is_floating_point() else held
    return hashlib.blake2b(held.contiguous().numpy().data, digest_size=16).hexdigest()


def sides_as_json(sides: Sequence[int]) -> dict[str, int]:
    """Return the sides of an image or a map by their names."""
    return dict(zip(_SIDES[len(sides) - 1], sides, strict=True))


def _sides(image: Mapping[str, Any]) -> tuple[int, ...]:
    for names in reversed(_SIDES):
        if all(name in image for name in names):
            return tuple(image[name] for name in names)
    raise RecordError("its image has neither length nor height and width")


def runs_of_area(area: Tensor | None) -> list[int] | None:
    """Return an area, bool (H, W), as the lengths of its runs: outside, inside, outside, …

    Example:
        >>> runs_of_area(torch.tensor([[False, True], [True, False]]))
        [1, 2, 1]
    """
    if area is None:
        return None
    flat = area.detach().cpu().flatten().numpy()
    changes = np.flatnonzero(np.diff(flat, prepend=False))
    return np.diff(changes, prepend=0, append=flat.size).tolist()


def area_of_runs(runs: Sequence[int] | None, size: tuple[int, ...]) -> Tensor | None:
    """Return the area that `runs_of_area` describes.

    Raises:
        RecordError: the runs are of another size.
    """
    if runs is None:
        return None
    if len(size) != 2 or sum(runs) != size[0] * size[1]:
        raise RecordError(f"its area has {sum(runs)} pixels, and its map the sides {size}")
    inside = np.arange(len(runs)) % 2 == 1
    return torch.from_numpy(np.repeat(inside, runs).reshape(size))


def map_file(values: Tensor) -> File:
    """Return the file of a map: .npy, float32."""
    return "-map.npy", functools.partial(_write_npy, values)


def image_file(image: Tensor) -> File:
    """Return the file of an image: PNG where that holds it exactly, otherwise .npy, float32."""
    if image.dim() == 3 and len(image) == 3 and torch.equal(to_tensor(to_image(image)), image):
        return "-image.png", lambda file: to_image(image).save(file, "PNG")
    return "-image.npy", functools.partial(_write_npy, image)


def _write_npy(values: Tensor, file: IO[bytes]) -> None:
    # Not np.save to the file, which reports a full disk with an error of its own on real files.
    buffer = io.BytesIO()
    np.save(buffer, values.detach().to("cpu", torch.float32).numpy())
    file.write(buffer.getbuffer())


def record_files(folder: Path) -> list[Path]:
    """Return the records of explanations in a folder, by name."""
    return [path for path in sorted(folder.glob("*.json")) if _is_record(path)]


def _is_record(path: Path) -> bool:
    try:
        record = parse_json(read_text_file(path), constants=False)
    except (OSError, ValueError):
        return False
    return isinstance(record, dict) and "schema" in record and "map" in record


def read_record(place: str | os.PathLike[str]) -> tuple[dict[str, Any], Tensor, Tensor]:
    """Read a record, with the image and the map beside it.

    Args:
        place: the record's file, or a folder that holds one record.

    Returns:
        The record; the image (C, *spatial) and the map (*spatial), float32 on the CPU.

    Raises:
        RecordError: it is none, is damaged, or lacks a file; one line says which and what to do.
    """
    path = Path(place)
    try:
        path = _one_record(path) if path.is_dir() else path
        record = _parsed(path)
        sides = _sides(record["image"])
        image = _numbers(path, record, "image", (record["image"]["channels"], *sides))
        return record, image, _numbers(path, record, "map", sides)
    except OSError as error:
        missing = error.filename or str(path)
        why = error.strerror or " ".join(str(error).split())
        raise RecordError(
            f"'{missing}' cannot be read: {why}; a record is opened by its .json file, with the "
            "files beside it that were saved with it"
        ) from error
    except (AfmiError, ValueError) as error:
        if isinstance(error, RecordError) and str(path) in str(error):
            raise
        raise RecordError(f"'{path}' is no whole record of an explanation: {error}") from error


def _one_record(folder: Path) -> Path:
    found = record_files(folder)
    if len(found) == 1:
        return found[0]
    if not found:
        raise RecordError(
            f"'{folder}' holds no record of an explanation; give a folder that Explanation.save or "
            "afmi explain wrote to"
        )
    names = ", ".join(path.name for path in found[:3]) + (", …" if len(found) > 3 else "")
    raise RecordError(
        f"'{folder}' holds {len(found)} records ({names}); name one of them, or open all with "
        "afmi.Gallery.load"
    )


def _parsed(path: Path) -> dict[str, Any]:
    try:
        record = parse_json(read_text_file(path), constants=False)
    except ValueError as error:  # text that is no UTF-8 as well
        first = " ".join(str(error).split())
        raise RecordError(f"it is no JSON ({first}); {_RUN_AGAIN}") from error
    check_record(record)
    return record


def check_record(record: Any) -> None:
    """Check a record against the schema.

    Raises:
        RecordError: it does not fit.
    """
    number = record.get("schema") if isinstance(record, dict) else None
    if type(number) is int and number > SCHEMA:
        raise RecordError(
            f"it has schema {number}, and this version of afmi reads schema {SCHEMA}; install a "
            "later version"
        )
    # Imported here, since who explains an image opens no record.
    from jsonschema import Draft202012Validator
    from jsonschema.exceptions import best_match

    wrong = best_match(Draft202012Validator(schema()).iter_errors(record))
    if wrong is not None:
        where = wrong.json_path.removeprefix("$").lstrip(".") or "it"
        raise RecordError(f"{where}: {wrong.message:.120} (schema {SCHEMA})")


def _numbers(path: Path, record: Mapping[str, Any], kind: str, shape: tuple[int, ...]) -> Tensor:
    """Return the image or the map of a record, checked."""
    name = record.get("files", {}).get(kind)
    if name is None:
        raise RecordError(
            f"it names no file of its {kind}, as records that were printed; open one that "
            "Explanation.save wrote"
        )
    if Path(name).name != name or "\\" in name:  # which would lead out of the folder
        raise RecordError(f"its {kind} is {name!r}, and expected a file beside it; {_RUN_AGAIN}")
    values = _read_numbers(path.with_name(name), name)
    if tuple(values.shape) != shape or digest_of(values) != record[kind]["digest"]:
        raise RecordError(
            f"its {kind}, {name!r}, is not the one that it was saved with (it was replaced, or is "
            f"damaged); {_RUN_AGAIN}"
        )
    return values


def _read_numbers(path: Path, name: str) -> Tensor:
    size = regular_file_size(path)
    if path.suffix == ".png":
        picture = read_image(path)
        assert isinstance(picture, Image.Image)
        return to_tensor(picture)
    with path.open("rb") as file:
        values = read_npy(file, repr(name), size)
    if values.dtype != np.float32:
        raise RecordError(f"expected float32 in {name!r}, got {values.dtype}; {_RUN_AGAIN}")
    return torch.from_numpy(np.ascontiguousarray(values))
