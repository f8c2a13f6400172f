"""The folder of an evaluation: a manifest, and finished pieces that are never half written."""

from __future__ import annotations

import hashlib
import io
import json
import os
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import PIL.Image
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import nn

import afmi
from afmi.data.sources import LabelledImages
from afmi.errors import AfmiError, UsageError
from afmi.files import write_files
from afmi.metrics import Metric
from afmi.network.classifier import Classifier
from afmi.specs import key_of, to_json

if sys.platform != "win32":
    import fcntl

__all__ = ["MANIFEST", "Rows", "Store", "identity_of"]

MANIFEST = "manifest.json"
_STALE = 3600
"""Seconds after which an unfinished file is one that a killed run left behind."""

_PARTIAL = ".afmi-*.part"
_MARK = b"PAR1"  # at both ends of every Parquet file

Row = tuple[int, str, float, str | None]
Rows = Sequence[Row]
"""(image, metric, value, note) each."""

_SCHEMA = pa.schema(
    [
        ("image", pa.int32()),
        ("method", pa.dictionary(pa.int16(), pa.string())),
        ("metric", pa.dictionary(pa.int16(), pa.string())),
        ("value", pa.float64()),
        ("note", pa.string()),
    ]
)


@dataclass(frozen=True)
class Store:
    """The results of one run: one network, one set of pictures, one set of metrics.

    Several processes may work in one folder. Every file is seen whole or not at all, and a piece
    that two of them finish has the same numbers but for its seconds and bytes, so it does not
    matter whose stays. The manifest is read, changed and replaced by one process at a time where
    the system can lock the folder (Linux and macOS, most network file systems); where it cannot,
    a method that another process entered in the same few milliseconds may go missing from it, and
    `evaluate` enters it again as soon as the method is done.

    Args:
        folder: where the results are.
    """

    folder: Path

    @classmethod
    def open(
        cls,
        folder: Path,
        run: Mapping[str, Any],
        images: tuple[Sequence[str], Sequence[int]],
        about: Mapping[str, Any],
    ) -> Store:
        """Make the folder of a run, or open the one that it began in.

        Args:
            folder: where the results are, or shall be.
            run: what makes the run what it is; all of it must be as it was.
            images: key and label of each picture.
            about: what else the manifest tells, of the run that began it.

        Raises:
            UsageError: when the folder holds another run's results, or other files.
            AfmiError: when it cannot be written.
        """
        store = cls(folder)
        wanted = json.loads(json.dumps(run))
        path, listed = folder / MANIFEST, folder / "images.parquet"
        with _alone(folder):
            if path.exists():
                _compare(folder, store.manifest()["run"], wanted)
            else:
                _check_new(folder)
                write_files({path: _json({"run": wanted, "methods": {}, **about})})
            if not _whole(listed):
                keys, labels = images
                table = pa.table(
                    {
                        "image": pa.array(range(len(keys)), pa.int32()),
                        "key": pa.array([_storable(key) for key in keys], pa.string()),
                        "label": pa.array([int(label) for label in labels], pa.int32()),
                    }
                )
                write_files({listed: _parquet(table)})
        store._sweep()
        return store

    def manifest(self) -> dict[str, Any]:
        """Return the manifest.

        Raises:
            AfmiError: when it cannot be read.
        """
        path = self.folder / MANIFEST
        try:
            found = json.loads(path.read_bytes())
            if not isinstance(found["run"], dict) or not isinstance(found["methods"], dict):
                raise ValueError
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise AfmiError(
                f"expected the manifest of an evaluation in {str(path)!r}, but it cannot be read "
                f"({type(error).__name__}); choose another folder"
            ) from error
        return found

    def add_method(self, label: str, entry: Mapping[str, Any]) -> None:
        """Enter a method, unless it is there, or note that it cannot be used (``refused``).

        Raises:
            UsageError: when it is there with other parameters.
        """
        wanted = json.loads(json.dumps(entry))
        with _alone(self.folder):
            manifest = self.manifest()
            known = manifest["methods"].get(label)
            if known == wanted:
                return
            same = ("class", "parameters", "images_per_piece")
            if known is not None and any(known[part] != wanted[part] for part in same):
                raise UsageError(
                    f"{str(self.folder)!r} holds results of {label} with "
                    f"{_brief(known['parameters'])} in pieces of {known['images_per_piece']}, "
                    f"asked for are {_brief(wanted['parameters'])} in pieces of "
                    f"{wanted['images_per_piece']}; choose another --out"
                )
            manifest["methods"][label] = wanted
            write_files({self.folder / MANIFEST: _json(manifest)})

    def has(self, label: str, start: int) -> bool:
        """Tell whether a method's piece is finished, which begins with image ``start``.

        One that a crash of the machine left empty or cut off is not, so it is done again. Other
        damage is not looked for here; `Results.read` names the file.
        """
        return _whole(self._piece(label, start))

    def write(
        self, label: str, start: int, rows: Rows, pictures: Mapping[str, PIL.Image.Image]
    ) -> None:
        """Keep a finished piece.

        Args:
            label: of the method.
            start: the piece's first image.
            rows: its numbers.
            pictures: examples, by file name.

        Raises:
            AfmiError: when it cannot be written; nothing that was there is lost.
        """
        images, metrics, values, notes = list(zip(*rows, strict=True)) or [(), (), (), ()]
        columns = (images, [label] * len(rows), metrics, values, notes)
        table = pa.Table.from_arrays(
            [
                pa.array(list(column), field.type)
                for column, field in zip(columns, _SCHEMA, strict=True)
            ],
            schema=_SCHEMA,
        )
        files: dict[Path, Any] = {
            self.folder / "examples" / name: _png(picture) for name, picture in pictures.items()
        }
        files[self._piece(label, start)] = _parquet(table)
        write_files(files)

    def _piece(self, label: str, start: int) -> Path:
        return self.folder / "pieces" / key_of(label) / f"{start:08d}.parquet"

    def _sweep(self) -> None:
        """Remove what a killed run was writing, and leave what another run may be writing now."""
        now = time.time()
        for partial in self.folder.rglob(_PARTIAL):
            with suppress(OSError):
                if now - partial.stat().st_mtime > _STALE:
                    partial.unlink()


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Keep other processes out of this block while one is in it, where the system can lock."""
    descriptor = None
    if sys.platform != "win32":
        # What is wrong with the folder is better told when something is written into it.
        with suppress(OSError):
            folder.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(folder, os.O_RDONLY)
            fcntl.flock(descriptor, fcntl.LOCK_EX)  # ends with the process, however it ends
    try:
        yield
    finally:
        if descriptor is not None:
            os.close(descriptor)


def _check_new(folder: Path) -> None:
    """Raise unless a run can begin in a folder: one that a run was killed in at once may be."""
    if folder.is_dir():
        if all(entry.match(_PARTIAL) for entry in folder.iterdir()):
            return
        found = "it holds other files"
    elif folder.exists():
        found = "it is a file"
    else:
        return
    raise UsageError(
        f"expected {str(folder)!r} to be a new or empty folder, or results of this run; {found}; "
        "choose another"
    )


def _whole(path: Path) -> bool:
    """Tell whether a file begins and ends as a Parquet file does."""
    try:
        with path.open("rb") as file:
            begin = file.read(len(_MARK))
            end = file.seek(-len(_MARK), os.SEEK_END)
            return begin == file.read() == _MARK and end > len(_MARK)
    except OSError:  # it is not there, or too short
        return False


def _storable(key: str) -> str:
    """Return a key without the lone surrogates that stand for bytes that are no UTF-8."""
    return key.encode(errors="backslashreplace").decode()


def identity_of(
    model: nn.Module, images: LabelledImages, metrics: Mapping[str, Metric], batch_size: int
) -> dict[str, Any]:
    """Return what makes a run what it is, as JSON holds it."""
    return {
        "afmi": afmi.__version__,
        "torch": torch.__version__,
        "model": {
            "name": model.name if isinstance(model, Classifier) else type(model).__name__,
            "fingerprint": _fingerprint(model),
            "labels": list(getattr(model, "labels", ())),
            "preparation": _preparation(model),
        },
        "data": {
            "name": images.name,
            "fingerprint": images.fingerprint,
            "images": len(images),
        },
        "metrics": {key: to_json(metric) for key, metric in metrics.items()},
        "batch_size": batch_size,
    }


def _preparation(model: nn.Module) -> dict[str, Any]:
    """Return what becomes of a picture before the network sees it, and the layer explained."""
    if not isinstance(model, Classifier):
        return {}
    return {
        "mean": model.mean.flatten().tolist(),
        "std": model.std.flatten().tolist(),
        "resize": model.resize,
        "crop": model.crop,
        "interpolation": str(model.interpolation),
        "layer": model.layer,
    }


@torch.no_grad()
def _fingerprint(model: nn.Module) -> str:
    """Return a digest of the network's structure and of every weight."""
    digest = hashlib.blake2b(str(model).encode(), digest_size=16)
    for name, tensor in model.state_dict(keep_vars=False).items():
        if not isinstance(tensor, torch.Tensor):
            continue
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        flat = tensor.detach().cpu().contiguous().flatten()
        digest.update(flat.view(torch.uint8).numpy().tobytes() if flat.numel() else b"")
    return digest.hexdigest()


def _compare(folder: Path, was: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
    """Raise unless two runs are the same; only the data's name, a path often, may differ."""
    was, wanted = ({**run, "data": {**run["data"], "name": ""}} for run in (was, wanted))
    for part in sorted({*was, *wanted}):
        old, new = was.get(part), wanted.get(part)
        if old == new:
            continue
        if isinstance(old, dict) and isinstance(new, dict):
            # A digest says the least to a reader, so it comes last.
            ordered = sorted({*old, *new}, key=lambda key: (key == "fingerprint", key))
            inner = next(key for key in ordered if old.get(key) != new.get(key))
            part, old, new = f"{part}: {inner}", old.get(inner), new.get(inner)
        raise UsageError(
            f"{str(folder)!r} holds results of another run ({part} was {_brief(old)}, now "
            f"{_brief(new)}); choose another --out, or delete the folder to begin anew"
        )


def _brief(value: Any) -> str:
    if value is None:
        return "not there"
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 120 else text[:117] + "…"


def _json(value: Any) -> Any:
    text = json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    return lambda file: file.write(text.encode(errors="backslashreplace"))


def _parquet(table: pa.Table) -> Any:
    def write(file: IO[bytes]) -> None:
        # In memory first: a full disk then raises an OSError, not one of Arrow's own.
        buffer = io.BytesIO()
        pq.write_table(table, buffer, compression="zstd")
        file.write(buffer.getvalue())

    return write


def _png(picture: PIL.Image.Image) -> Any:
    return lambda file: picture.save(file, "PNG")
