"""Read arrays from .npy files: bounded in size before they are read, and never by unpickling."""

from __future__ import annotations

import math
from typing import BinaryIO

import numpy as np

from afmi.errors import ImageError

__all__ = ["NPY", "read_npy"]

NPY = b"\x93NUMPY"
"""How such files begin."""


def read_npy(file: BinaryIO, name: str, size: int) -> np.ndarray:
    """Read the one array of a .npy file.

    Args:
        file: at its beginning.
        name: what to call it in errors.
        size: of the file, in bytes.

    Raises:
        ImageError: it holds objects, or more or less than its header says.
    """
    try:
        version = np.lib.format.read_magic(file)
        reader = {
            (1, 0): np.lib.format.read_array_header_1_0,
            (2, 0): np.lib.format.read_array_header_2_0,
        }[version]
        shape, fortran, dtype = reader(file)
        if any(side < 0 for side in shape):
            raise ValueError(f"its shape is {shape}")
    except Exception as error:  # a header is text that is evaluated, with errors of many types
        raise ImageError(
            f"{name} is a .npy file whose header cannot be read ({error}); save it again with "
            "numpy.save"
        ) from error
    if dtype.hasobject:
        raise ImageError(
            f"{name} holds pickled objects, which could run code and are not read; expected an "
            "array of numbers: save it with numpy.save(…, allow_pickle=False)"
        )
    expected, left = math.prod(shape) * dtype.itemsize, size - file.tell()
    if expected != left:
        raise ImageError(
            f"{name} is cut short or damaged: its header says {expected} bytes of pixels, and "
            f"{left} follow; get the file again"
        )
    flat = np.frombuffer(file.read(expected), dtype=dtype)
    array = flat.reshape(shape[::-1]).T if fortran else flat.reshape(shape)
    return array.astype(dtype.newbyteorder("="))
