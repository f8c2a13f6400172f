"""Volumes of NIfTI and DICOM files, which the tests write."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from afmi.errors import ImageError, MissingPackageError, UsageError
from afmi.pictures.volumes import read_dicom, read_nifti


def nifti(path: Path, array: np.ndarray, affine: np.ndarray) -> Path:
    nibabel = pytest.importorskip("nibabel")
    nibabel.save(nibabel.Nifti1Image(array, affine), path)
    return path


def test_nifti_becomes_slices_first(tmp_path: Path) -> None:
    array = np.arange(24, dtype=np.int16).reshape(2, 3, 4)  # x, y, z
    volume = read_nifti(nifti(tmp_path / "a.nii.gz", array, np.diag([-1.0, 2.0, 3.0, 1.0])))
    assert volume.values.shape == (1, 4, 3, 2)
    assert float(volume.values[0, 3, 2, 1]) == array[1, 2, 3]
    assert volume.spacing == (3.0, 2.0, 1.0)
    assert volume.directions == ("S", "A", "L")


def test_nifti_of_several_channels(tmp_path: Path) -> None:
    array = np.random.default_rng(0).random((2, 3, 4, 5)).astype(np.float32)
    volume = read_nifti(nifti(tmp_path / "a.nii", array, np.eye(4)))
    assert volume.values.shape == (5, 4, 3, 2)
    assert float(volume.values[4, 3, 2, 1]) == array[1, 2, 3, 4]
    with pytest.raises(ImageError, match="no volume"):
        read_nifti(nifti(tmp_path / "b.nii", array[:, :, 0, 0], np.eye(4)))


def test_a_window_brings_units_to_one(tmp_path: Path) -> None:
    array = np.array([[[-1000, -160, 40, 240, 900]]], dtype=np.int16)
    volume = read_nifti(nifti(tmp_path / "a.nii", array, np.eye(4))).windowed(40, 400)
    assert volume.values.flatten().tolist() == [0, 0, 0.5, 1, 1]
    with pytest.raises(UsageError, match="width above 0"):
        volume.windowed(40, 0)


def dicom(path: Path, z: float, value: int, **changes: Any) -> None:
    pydicom = pytest.importorskip("pydicom")
    meta = pydicom.dataset.FileMetaDataset()
    meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
    meta.MediaStorageSOPClassUID = pydicom.uid.CTImageStorage
    meta.MediaStorageSOPInstanceUID = pydicom.uid.generate_uid()
    data = pydicom.Dataset()
    data.file_meta = meta
    data.SOPClassUID, data.SOPInstanceUID = meta.MediaStorageSOPClassUID, meta[0x20003].value
    data.SeriesInstanceUID = "1.2.3"
    data.Rows, data.Columns, data.SamplesPerPixel = 2, 3, 1
    data.BitsAllocated, data.BitsStored, data.HighBit = 16, 16, 15
    data.PixelRepresentation, data.PhotometricInterpretation = 0, "MONOCHROME2"
    data.ImageOrientationPatient, data.PixelSpacing = [1, 0, 0, 0, 1, 0], [0.5, 0.7]
    data.ImagePositionPatient = [0, 0, z]
    data.RescaleSlope, data.RescaleIntercept = 2, -1024
    data.PixelData = np.full((2, 3), value, dtype=np.uint16).tobytes()
    for name, changed in changes.items():
        setattr(data, name, changed)
    data.save_as(path, enforce_file_format=True)


def test_slices_are_ordered_by_position_in_hounsfield_units(tmp_path: Path) -> None:
    for name, z, value in (("a", 10.0, 600), ("b", 2.5, 512), ("c", 5.0, 520), ("d", 7.5, 530)):
        dicom(tmp_path / name, z, value)
    (tmp_path / "notes.txt").write_text("not a slice")
    volume = read_dicom(tmp_path)
    assert volume.values[0, :, 0, 0].tolist() == [0.0, 16.0, 36.0, 176.0]
    assert volume.values.shape == (1, 4, 2, 3)
    assert volume.spacing == (2.5, 0.5, 0.7)
    assert volume.directions == ("S", "P", "L")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"z": 9.0}, "not equally far apart"),
        ({"z": 2.0}, "not equally far apart"),
        ({"SeriesInstanceUID": "1.2.4"}, "different series"),
        ({"ImageOrientationPatient": [0, 1, 0, 0, 0, -1]}, "different directions"),
        ({"Rows": 3, "Columns": 2}, "different sizes"),
    ],
)
def test_slices_of_no_one_volume(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    for z in (0.0, 1.0, 2.0):
        dicom(tmp_path / f"{z}", z, 5)
    dicom(tmp_path / "odd", **({"z": 3.0, "value": 5} | changes))
    with pytest.raises(ImageError, match=message):
        read_dicom(tmp_path)


def test_what_is_no_volume(tmp_path: Path) -> None:
    pytest.importorskip("pydicom")
    pytest.importorskip("nibabel")
    text = tmp_path / "a.nii"
    text.write_text("hello")
    with pytest.raises(ImageError, match="cannot be read as NIfTI"):
        read_nifti(text)
    with pytest.raises(ImageError, match="cannot be read as DICOM"):
        read_dicom(text)
    with pytest.raises(ImageError, match="no file or folder"):
        read_dicom(tmp_path / "nothing")
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(ImageError, match="holds no DICOM"):
        read_dicom(empty)
    dicom(tmp_path / "one.dcm", 0.0, 1)
    with pytest.raises(ImageError, match="a single slice"):
        read_dicom(tmp_path / "one.dcm")


@pytest.mark.parametrize(("read", "name"), [(read_nifti, "nibabel"), (read_dicom, "pydicom")])
def test_a_missing_extra(
    read: Any, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(MissingPackageError, match=r"pip install 'afmi\[medical\]'"):
        read(tmp_path)
