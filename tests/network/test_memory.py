"""Errors that say that memory ran out, however they say it."""

from __future__ import annotations

import errno

import pytest

from afmi.network.memory import check_memory


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("CUDA error: out of memory"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        OSError(errno.ENOMEM, "Cannot allocate memory"),
    ],
)
def test_lack_of_memory_is_known(error: Exception) -> None:
    with pytest.raises(MemoryError):
        check_memory(error)
    check_memory(OSError(errno.ENOENT, "No such file"))
