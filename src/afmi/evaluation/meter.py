"""Measure the seconds and the memory that a piece of work takes."""

from __future__ import annotations

import ctypes
import math
import platform
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch

__all__ = ["Measurement", "measured", "processor"]


@dataclass
class Measurement:
    """What a piece of work took; NaN until it has ended without an error.

    Attributes:
        seconds: by the wall clock, until the device had finished.
        peak_bytes: the most memory in use at once, less what was in use before: allocated on a
            CUDA device; else the process's resident memory, which other threads share. NaN where
            the system does not tell (on other devices, and without Linux's /proc).
    """

    seconds: float = math.nan
    peak_bytes: float = math.nan


@contextmanager
def measured(device: torch.device) -> Iterator[Measurement]:
    """Measure the work inside on this device.

    Example:
        >>> with measured(torch.device("cpu")) as took:
        ...     numbers = torch.ones(1000)
        >>> took.seconds > 0
        True
    """
    took = Measurement()
    cuda = device.type == "cuda"
    _finish(device)
    if cuda:
        torch.cuda.reset_peak_memory_stats(device)
        before = float(torch.cuda.memory_allocated(device))
    else:
        before = _reset_peak() if device.type == "cpu" else math.nan
    start = time.perf_counter()
    yield took
    _finish(device)
    took.seconds = time.perf_counter() - start
    peak = float(torch.cuda.max_memory_allocated(device)) if cuda else _status("VmHWM")
    took.peak_bytes = max(peak - before, 0.0) if not math.isnan(peak - before) else math.nan


def _finish(device: torch.device) -> None:
    """Wait for what the device was given to do, where it works on by itself."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


def _reset_peak() -> float:
    """Let the kernel's mark of the highest resident memory begin at the present; return that."""
    # What was freed but kept for reuse would hide what the work needs.
    trim = getattr(_libc(), "malloc_trim", None)
    if trim is not None:
        trim(0)
    try:
        with open("/proc/self/clear_refs", "w", encoding="ascii") as file:
            file.write("5")
    except OSError:
        return math.nan
    return _status("VmRSS")


def _libc() -> ctypes.CDLL | None:
    try:
        return ctypes.CDLL(None)
    except (OSError, TypeError):  # Windows has no library of that kind
        return None


def _status(key: str) -> float:
    """Return a size in bytes from /proc/self/status, or NaN."""
    try:
        with open("/proc/self/status", encoding="ascii", errors="replace") as file:
            for line in file:
                if line.startswith(f"{key}:"):
                    return float(line.split()[1]) * 1024
    except OSError:
        pass
    return math.nan


def processor() -> str:
    """Return the name of the CPU, for records and tables."""
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()
