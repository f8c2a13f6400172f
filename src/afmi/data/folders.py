"""Labelled pictures in files: a folder per class, ImageNet ids in names, a list, ImageNet."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path, PurePath
from typing import Any

from afmi.data.classes import WNID
from afmi.data.fields import Fields, label_of
from afmi.data.listing import Files, Listing, listed
from afmi.data.parquet import PARQUET, parquet_columns
from afmi.errors import ImageError, UsageError
from afmi.files import regular_file_size
from afmi.pictures.finding import IMAGE_SUFFIXES, find_images

__all__ = ["SPLITS", "open_folder", "open_imagenet", "open_list", "path_labels"]

SPLITS = ("val", "validation", "test", "train")  # the first that is there is taken


def open_folder(folder: Path, name: str) -> Listing:
    base, other = _split(folder)
    if base != folder:
        name += f" ({base.name}{f', not {other}' if other else ''})"
    labels, noun = path_labels((p.relative_to(base).as_posix() for p in find_images(base)), name)
    inside = base.relative_to(folder)
    keys = {(inside / path).as_posix(): label for path, label in labels.items()}
    return _files(name, folder, sorted(keys), [keys[key] for key in sorted(keys)], noun)


def path_labels(paths: Iterable[str], name: str) -> tuple[dict[str, str], str]:
    """Return the label of each picture by its path, and what the labels are.

    Args:
        paths: below the class folders' own folder, with "/" between folders.
        name: of the data, for errors.

    Raises:
        ImageError: pictures have no label.
    """
    labels: dict[str, str | None] = {}  # each picture's class folder, or else its wnid
    in_folders = False
    for path in paths:
        parts = path.split("/")
        in_folders |= len(parts) > 1
        wnid = WNID.search(parts[-1])
        labels[path] = parts[0] if len(parts) > 1 else wnid[0] if wnid else None
    unlabelled = sorted(path for path, label in labels.items() if label is None)
    if unlabelled and not in_folders:
        raise ImageError(
            f"{len(unlabelled)} of {len(labels)} pictures in {name} have no label: they do not lie "
            f"in one folder per class, and their names hold no ImageNet id such as n01440764 "
            f"({listed(map(repr, unlabelled))}); sort them into folders, or list them in a CSV file"
        )
    known = {path: label for path, label in labels.items() if label is not None}
    return known, "class folder" if in_folders else "ImageNet id"


def _split(folder: Path) -> tuple[Path, str]:
    """Return where the class folders are, and which other half of the data was left out."""
    subfolders = sorted(entry for entry in _entries(folder) if entry.is_dir())
    splits = [split for split in SPLITS if folder / split in subfolders]
    if not splits:
        return folder, ""
    for subfolder in subfolders:
        if subfolder.name not in SPLITS and any(map(_is_picture, _entries(subfolder))):
            return folder, ""  # a class's, so the others are too
    return folder / splits[0], " or ".join(splits[1:])


def _entries(folder: Path) -> list[Path]:
    try:
        return [entry for entry in folder.iterdir() if not entry.name.startswith(".")]
    except OSError as error:
        raise ImageError(
            f"the folder {str(folder)!r} cannot be listed: {error.strerror}; "
            "change its rights, or leave it out"
        ) from error


def _is_picture(path: Path) -> bool:
    return path.name.lower().endswith(IMAGE_SUFFIXES) and path.is_file()


def _files(
    name: str, root: Path, keys: Iterable[str], labels: Sequence[str | int], noun: str
) -> Listing:
    keys = tuple(keys)
    source = Files(root)
    return Listing(name, source, keys, tuple(labels), noun, tuple(map(source.size, keys)))


def open_list(path: Path, name: str, fields: Fields) -> Listing:
    if path.suffix.lower() in IMAGE_SUFFIXES:
        raise UsageError(
            f"{name!r} is a picture; expected a folder of pictures, or a CSV file that lists them "
            "with their labels"
        )
    rows = _parquet_rows if path.suffix.lower() in PARQUET else _csv_rows
    rows = rows(path, name, fields)
    if not rows:
        raise UsageError(f"{name!r} lists no pictures; add a line with image and label for each")
    keys = [PurePath(image).as_posix() for image, _ in rows]
    opened = _files(name, path.parent, keys, [label for _, label in rows], "label")
    if max(opened.sizes) < 0:
        raise ImageError(
            f"none of the {len(keys)} files listed in {name!r} exists, such as "
            f"{opened.source.where(keys[0])}; expected paths relative to that file's folder"
        )
    return opened


def _parquet_rows(path: Path, name: str, fields: Fields) -> list[tuple[str, str | int]]:
    """Return image and label of each row of a Parquet file."""
    images, labels = parquet_columns(path, name, [fields.image or "image", fields.label or "label"])
    return [(i, label_of(label, repr(name))) for i, label in zip(images, labels, strict=True)]


def _csv_rows(path: Path, name: str, fields: Fields) -> list[tuple[str, str | int]]:
    """Return image and label of each line of a CSV file."""
    try:
        regular_file_size(path)
        with path.open(encoding="utf-8-sig", newline="") as file:
            return _lines(file, name, fields)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        reason = getattr(error, "strerror", None) or error
        raise UsageError(
            f"{name!r} cannot be read as a CSV file ({reason}); expected text in UTF-8 with the "
            "columns image and label"
        ) from error


def _lines(file: Any, name: str, fields: Fields) -> list[tuple[str, str | int]]:
    """Return image and label of each line of an open CSV file."""
    first = file.readline()
    file.seek(0)
    separator = next((sign for sign in ",;\t" if sign in first), ",")
    reader = csv.reader(file, delimiter=separator, strict=True)
    header = [cell.strip().casefold() for cell in next(reader, [])]
    wanted = [(fields.image or "image").casefold(), (fields.label or "label").casefold()]
    if any(header.count(column) != 1 for column in wanted):
        columns = ", ".join(map(repr, header)) or "nothing"
        raise UsageError(
            f"expected the columns {wanted[0]!r} and {wanted[1]!r} in the first line of {name!r}, "
            f"got {columns[:200]}; name the columns so, or say their names with image_key= and "
            "label_key="
        )
    image, label = map(header.index, wanted)
    rows: list[tuple[str, str | int]] = []
    for cells in reader:
        if not any(cell.strip() for cell in cells):
            continue
        if len(cells) != len(header) or not cells[image].strip() or not cells[label].strip():
            raise UsageError(
                f"line {reader.line_num} of {name!r} does not have an image and a label in "
                f"{len(header)} columns: {separator.join(cells)[:80]!r}; correct it, with "
                "quotation marks around a value that holds a separator"
            )
        rows.append((cells[image].strip(), cells[label].strip()))
    return rows


def open_imagenet(folder: Path, name: str) -> Listing:
    val = folder / "val"
    if not val.is_dir() or not any(WNID.fullmatch(e.name) and e.is_dir() for e in _entries(val)):
        raise ImageError(
            f"no validation pictures of ImageNet in {str(folder)!r}; expected one folder for each "
            "class in it, such as val/n01440764: make them out of ImageNet's archives with "
            f"torchvision.datasets.ImageNet({str(folder)!r}, split='val')"
        )
    opened = open_folder(val, name)
    keys = tuple(f"val/{key}" for key in opened.keys)
    return replace(opened, source=Files(folder), keys=keys)
