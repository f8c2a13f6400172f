"""Processes for the engine of one machine, forked from one that has imported PyTorch.

The engine starts each anew, which imports PyTorch for seconds; here that is done once. What a
worker does, and how it dies, is the same. `test_processes.py` and the drivers of `test_engines.py`
start some as the engine does.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from multiprocessing import forkserver
from multiprocessing.connection import Connection
from typing import Any

from afmi.engines.serving import serve

_PRELOADED = [
    *("afmi.engines.serving", "afmi.evaluation", "afmi.evaluation.shard", "afmi.datasets.job"),
    *("afmi.evaluation.prototypes", "pyarrow.parquet", "torch.fx"),
]


def ready() -> None:
    """Start the process that others are forked from, unless there is one."""
    before = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = os.pathsep.join(sys.path)  # else it finds another copy of afmi
    try:
        forkserver.set_forkserver_preload(_PRELOADED)
        forkserver.ensure_running()
    finally:
        if before is None:
            del os.environ["PYTHONPATH"]
        else:
            os.environ["PYTHONPATH"] = before


class ForkedProcess:
    """Stands for `subprocess.Popen` in `afmi.engines.local`."""

    def __init__(
        self, command: Sequence[str], *, env: dict[str, str], pass_fds: Sequence[int], **_: Any
    ) -> None:
        *_start, socket, parcel = command
        connection: Connection[Any, Any] = Connection(os.dup(int(socket)))
        with connection:
            self._process = multiprocessing.get_context("forkserver").Process(
                target=_serve, args=(connection, parcel, env), daemon=True
            )
            self._process.start()

    def kill(self) -> None:
        self._process.kill()

    def wait(self, timeout: float | None = None) -> int:
        self._process.join(timeout)
        if self._process.exitcode is None:
            raise subprocess.TimeoutExpired("a worker", timeout or 0)
        return self._process.exitcode


def _serve(connection: Connection[Any, Any], parcel: str, env: dict[str, str]) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.environ.clear()
    os.environ.update(env)
    serve(connection, parcel)
