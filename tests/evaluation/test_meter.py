"""Seconds and memory: known sleeps and allocations; systems that do not report them."""

from __future__ import annotations

import builtins
import math
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from afmi.evaluation.meter import _status, measured

CPU = torch.device("cpu")
MIB = 2**20


def _resettable() -> bool:
    try:
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    except OSError:
        return False
    return not math.isnan(_status("VmHWM"))


tells = pytest.mark.skipif(not _resettable(), reason="this system does not reset the peak")


def test_seconds() -> None:
    with measured(CPU) as took:
        assert math.isnan(took.seconds)
        time.sleep(0.05)
    assert 0.05 <= took.seconds < 1


def test_seconds_on_apples_gpus_count_what_is_not_finished(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    waits: list[float] = []
    monkeypatch.setattr(torch.mps, "synchronize", lambda: waits.append(time.sleep(0.02) or 0.02))
    with measured(torch.device("mps")) as took:
        pass
    assert len(waits) == 2  # before the clock starts, and before it stops
    assert 0.02 <= took.seconds < 1
    assert math.isnan(took.peak_bytes)


@tells
def test_memory_at_its_highest() -> None:
    # Twice: what the first left to be used again must not hide what the second needs.
    for _ in range(2):
        with measured(CPU) as took:
            parts = [torch.ones(MIB // 4) for _ in range(60)]  # 60 MiB in pieces of 1 MiB
            del parts
        assert 55 * MIB < took.peak_bytes < 80 * MIB


@tells
def test_memory_held_before_is_not_counted() -> None:
    held = torch.ones(50 * MIB // 4)
    with measured(CPU) as took:
        held.sum()
    assert took.peak_bytes < 20 * MIB


def test_an_error_inside_passes_and_nothing_is_told() -> None:
    with pytest.raises(KeyError), measured(CPU) as took:
        raise KeyError("x")
    assert math.isnan(took.seconds)
    assert math.isnan(took.peak_bytes)


@pytest.mark.parametrize("missing", ["/proc/self/clear_refs", "/proc/self/status"])
def test_a_system_that_does_not_tell(missing: str, monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.open

    def refuse(path: Any, *args: Any, **kwargs: Any) -> Any:
        if path == missing:
            raise PermissionError(path)
        return real(path, *args, **kwargs)

    monkeypatch.setattr(builtins, "open", refuse)
    with measured(CPU) as took:
        pass
    assert math.isnan(took.peak_bytes)
    assert took.seconds >= 0


def test_other_devices_have_seconds_only() -> None:
    with measured(torch.device("meta")) as took:
        torch.ones(3, device="meta")
    assert math.isnan(took.peak_bytes)
    assert took.seconds > 0


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_cuda() -> None:
    device = torch.device("cuda")
    held = torch.ones(20 * MIB // 4, device=device)
    with measured(device) as took:
        more = torch.ones(30 * MIB // 4, device=device)
        del more
    assert took.peak_bytes == pytest.approx(30 * MIB, rel=0.05)
    assert held.numel() > 0
