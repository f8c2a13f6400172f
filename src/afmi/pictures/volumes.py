"""Read volumes of NIfTI and DICOM files: voxels in their own units, and where they lie.

nibabel and pydicom are imported only when a file of theirs is read: the extra ``medical``.
"""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from afmi.errors import ImageError, UsageError, first_line
from afmi.packages import imported

__all__ = ["Volume", "read_dicom", "read_nifti"]


@dataclass(frozen=True, eq=False)
class Volume:
    """A volume as it was read.

    Attributes:
        values: float32 (C, D, H, W), in the file's own units: Hounsfield units of a CT. Slices are
            the first side, as networks and pictures here have them.
        spacing: from one voxel to the next, in millimetres, along D, H and W.
        directions: where D, H and W lead to, as letters: ``("S", "P", "L")`` are towards the
            patient's head (superior), back (posterior) and left; the others are I, A and R.
        source: the file or folder.
    """

    values: Tensor
    spacing: tuple[float, float, float]
    directions: tuple[str, str, str]
    source: str

    def windowed(self, centre: float, width: float) -> Volume:
        """Return the volume with a window of its values brought to [0, 1]: 40 and 400 for CT.

        Args:
            centre: the value that becomes 0.5, in the file's units.
            width: from the value that becomes 0 to that which becomes 1; what lies beyond is cut.
        """
        if not (width > 0 and math.isfinite(centre) and math.isfinite(width)):
            raise UsageError(f"expected a window's centre and width above 0, got {centre}, {width}")
        low = centre - width / 2
        return replace(self, values=((self.values - low) / width).clamp(0, 1))


def read_nifti(path: str | os.PathLike[str]) -> Volume:
    """Read a NIfTI file (``.nii``, ``.nii.gz``) of one volume, or of one for each channel.

    The file's slope and intercept are applied. The file's axes (x, y, z) become (W, H, D).

    Raises:
        ImageError: when it cannot be read, is no volume, or holds NaN.
        MissingPackageError: when nibabel is not installed.
    """
    nibabel = _module("nibabel")
    source = _existing(path)
    try:
        image = nibabel.load(source)
        array = np.asarray(image.get_fdata(dtype=np.float32))
        affine = np.asarray(image.affine, dtype=np.float64)
    except Exception as error:
        raise _unreadable(source, "NIfTI", error) from error
    array = array.reshape(*array.shape[:3], *[n for n in array.shape[3:] if n > 1])
    if array.ndim not in (3, 4) or 0 in array.shape:
        raise ImageError(
            f"{source!r} is no volume: expected (x, y, z) or (x, y, z, channel), got {array.shape}"
        )
    array = array if array.ndim == 4 else array[..., None]
    steps = affine[:3, :3].T[::-1]  # of z, y, x in millimetres
    spacing = np.linalg.norm(steps, axis=1)
    # NIfTI counts towards right, anterior and superior.
    directions = tuple(_direction(step, ("RL", "AP", "SI")) for step in steps)
    return _volume(np.transpose(array), spacing, directions, source)


def read_dicom(path: str | os.PathLike[str]) -> Volume:
    """Read a DICOM file of several slices, or a folder of a series' slices, one file each.

    Slices are ordered by their position along the series' normal. Rescale slope and intercept are
    applied, so that a CT is in Hounsfield units.

    Raises:
        ImageError: when a file cannot be read, or the slices are not those of one volume: of
            several series, of different sizes or directions, or not equally far apart.
        MissingPackageError: when pydicom is not installed.
    """
    pydicom = _module("pydicom")
    source = _existing(path)
    names = [source]
    if os.path.isdir(source):
        names = sorted(str(file) for file in Path(source).iterdir() if file.is_file())
    slices = [one for name in names if (one := _read_dataset(pydicom, name, names)) is not None]
    if not slices:
        raise ImageError(f"{source!r} holds no DICOM file with pixels")
    _check_series(slices, source)
    if len(slices) == 1:
        return _from_one_file(slices[0], source)
    return _from_slices(slices, source)


def _read_dataset(pydicom: Any, name: str, names: Sequence[str]) -> Any:
    """Return what a file holds; None: another file of a folder, which holds no picture."""
    try:
        dataset = pydicom.dcmread(name)
    except pydicom.errors.InvalidDicomError as error:
        if len(names) > 1:  # notes and directories lie beside slices
            return None
        raise _unreadable(name, "DICOM", error) from error
    except Exception as error:
        raise _unreadable(name, "DICOM", error) from error
    return dataset if "PixelData" in dataset else None


def _check_series(slices: Sequence[Any], source: str) -> None:
    for what, name in (
        ("series", "SeriesInstanceUID"),
        ("sizes", "Rows"),
        ("sizes", "Columns"),
        ("directions", "ImageOrientationPatient"),
    ):
        values = [getattr(one, name, None) for one in slices]
        if any(not _alike(value, values[0]) for value in values):
            raise ImageError(
                f"{source!r} holds slices of different {what} ({name}); keep those of one volume"
            )
    if int(getattr(slices[0], "SamplesPerPixel", 1)) != 1:
        raise ImageError(f"{source!r} holds colour pictures; expected grey slices")


def _alike(value: Any, first: Any) -> bool:
    if value is None or first is None or isinstance(value, (str, int)):
        return value == first
    return np.allclose(np.asarray(value, float), np.asarray(first, float), atol=1e-3)


def _pixels(dataset: Any, source: str) -> np.ndarray:
    """Return a file's pixels in its units: stored values × slope + intercept."""
    try:
        stored = dataset.pixel_array.astype(np.float32)
    except Exception as error:
        raise _unreadable(source, "DICOM", error) from error
    slope = float(getattr(dataset, "RescaleSlope", 1))
    return stored * slope + float(getattr(dataset, "RescaleIntercept", 0))


def _geometry(dataset: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray, tuple[float, float]]:
    """Return the unit steps along D, H and W, and the spacing along H and W."""
    along_w, along_h = np.asarray(
        getattr(dataset, "ImageOrientationPatient", (1, 0, 0, 0, 1, 0)), float
    ).reshape(2, 3)
    down, right = (float(n) for n in getattr(dataset, "PixelSpacing", (1, 1)))
    return np.cross(along_w, along_h), along_h, along_w, (down, right)


def _from_slices(slices: Sequence[Any], source: str) -> Volume:
    normal, along_h, along_w, (down, right) = _geometry(slices[0])
    if any("ImagePositionPatient" not in one for one in slices):
        raise ImageError(
            f"{source!r} holds slices without a position (ImagePositionPatient), so their order is "
            "not known"
        )
    places = np.array([np.asarray(one.ImagePositionPatient, float) @ normal for one in slices])
    order = np.argsort(places, kind="stable")
    gaps = np.diff(places[order])
    step = float(np.median(gaps))
    if not step > 0 or np.abs(gaps - step).max() > 0.05 * step + 1e-3:
        raise ImageError(
            f"{source!r} holds slices that are not equally far apart ({gaps.min():.3g} to "
            f"{gaps.max():.3g} mm): some are missing, or there twice"
        )
    values = np.stack([_pixels(slices[i], source) for i in order])
    directions = tuple(_direction(s, ("LR", "PA", "SI")) for s in (normal, along_h, along_w))
    return _volume(values[None], (step, down, right), directions, source)


def _from_one_file(dataset: Any, source: str) -> Volume:
    """Return the volume of one file, whose slices are its frames."""
    if "SharedFunctionalGroupsSequence" in dataset:
        raise ImageError(
            f"{source!r} is an enhanced multi-frame file, whose units and positions are not read "
            "here; convert it to NIfTI or to a file for each slice"
        )
    values = _pixels(dataset, source)
    if values.ndim != 3:
        raise ImageError(
            f"{source!r} holds a single slice of {values.shape}; read the folder of all its series'"
        )
    normal, along_h, along_w, (down, right) = _geometry(dataset)
    step = getattr(dataset, "SpacingBetweenSlices", None) or getattr(dataset, "SliceThickness", 1)
    directions = tuple(_direction(s, ("LR", "PA", "SI")) for s in (normal, along_h, along_w))
    return _volume(values[None], (float(step), down, right), directions, source)


def _direction(step: np.ndarray, letters: Sequence[str]) -> str:
    """Return the letter of the direction nearest to a step; of a pair, the first is upwards."""
    axis = int(np.abs(step).argmax())
    return letters[axis][0 if step[axis] > 0 else 1]


def _volume(
    values: np.ndarray, spacing: Sequence[float] | np.ndarray, directions: Any, source: str
) -> Volume:
    if not np.isfinite(values).all():
        raise ImageError(f"{source!r} holds NaN or infinity; expected finite voxels")
    tensor = torch.from_numpy(np.ascontiguousarray(values, dtype=np.float32))
    down, height, width = (float(n) for n in spacing)
    return Volume(tensor, (down, height, width), directions, source)


def _existing(path: str | os.PathLike[str]) -> str:
    source = os.fspath(path)
    if not os.path.exists(source):
        raise ImageError(f"no file or folder is called {source!r}")
    return source


def _unreadable(source: str, kind: str, error: Exception) -> ImageError:
    return ImageError(f"{source!r} cannot be read as {kind}: {first_line(error)}")


def _module(name: str) -> Any:
    return imported(name, "reading this file", "afmi[medical]")
