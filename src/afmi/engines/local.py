"""The engine of one machine: this process alone, or several."""

from __future__ import annotations

import functools
import os
import pickle
import signal
import socket
import subprocess
import sys
import tempfile
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

from afmi.engines.base import Engine, check_workers
from afmi.engines.job import Job
from afmi.engines.parcel import Parcel
from afmi.engines.serving import Settings, fix_threads
from afmi.engines.workers import Died, Failed, Shared, Worker, WorkerPool
from afmi.errors import UsageError

__all__ = ["Local"]

_BOOT = """
import signal, sys
signal.signal(signal.SIGINT, signal.SIG_IGN)
sys.path.remove("")  # else files of the working directory could pass for modules
from multiprocessing.connection import Connection
from afmi.engines.serving import serve
serve(Connection(int(sys.argv[1])), sys.argv[2])
"""


@dataclass(frozen=True)
class Local(Engine):
    """This machine.

    With one worker the work is done in this process, and a crash ends it, as ever. With more it is
    done in processes of their own, each with a copy of the network, that may die without loss.
    Each has as many threads as this process, so set those to the cores divided by the workers
    (``torch.set_num_threads``, ``--threads``).

    Args:
        workers: processes.
        retries: how often a piece is tried again after its process died, before it is split.
    """

    workers: int = 1
    retries: int = 2

    def __post_init__(self) -> None:
        check_workers(self, self.retries)

    def pool(self, job: Job[Any, Any], device: str = "cpu") -> WorkerPool[Any, Any]:
        if self.workers == 1:
            return _HerePool(job)
        if os.name == "nt":
            raise UsageError(
                "several processes on one machine need Linux or macOS; leave workers out, or use "
                "the engine ray"
            )
        return _ProcessPool(job, self.workers, self.retries, device)


class _Here(Worker):
    """This process."""

    def __init__(self, job: Job[Any, Any]) -> None:
        self._job = job
        self.task: Any = None
        self.has_task = False

    def start(self) -> None:
        self.has_task = False

    def send(self, task: object) -> None:
        self.task, self.has_task = task, True

    def stop(self) -> None:
        pass

    def answer(self) -> Any:
        # An error goes on as it is, with its traceback: there is nobody who could do the rest.
        return self._job.run(self.task) if self.has_task else self._job.begin()


class _HerePool(WorkerPool[Any, Any]):
    """Does each task when it is waited for."""

    _anew = False

    def __init__(self, job: Job[Any, Any]) -> None:
        fix_threads()
        self._here = _Here(job)
        super().__init__(job, [self._here], retries=0)

    def wait(self, busy: list[Worker], seconds: float | None) -> list[tuple[Worker, Any]]:
        if not busy or seconds is not None:
            return []
        try:
            return [(self._here, self._here.answer())]
        except Exception as error:
            return [(self._here, Failed(error))]

    def share(self, value: object) -> Shared:
        return _Held(value)


@dataclass
class _Held(Shared):
    value: object

    def get(self) -> Any:
        return self.value

    def free(self) -> None:
        self.value = None


class _Process(Worker):
    """A process of its own, which reads tasks and writes answers."""

    def __init__(self, parcel: Path) -> None:
        self._parcel = parcel
        self._process: subprocess.Popen[bytes] | None = None
        self.connection: Connection[Any, Any] | None = None

    def start(self) -> None:
        self.stop()
        ours, theirs = socket.socketpair()
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-c", _BOOT, str(theirs.fileno()), str(self._parcel)],
                env={
                    **os.environ,
                    "PYTHONPATH": os.pathsep.join(p or os.getcwd() for p in sys.path),
                },
                stdin=subprocess.DEVNULL,
                pass_fds=[theirs.fileno()],
            )
        self.connection = Connection(ours.detach())

    def send(self, task: object) -> None:
        assert self.connection is not None
        with suppress(ConnectionError):  # it is dead, as its answer will say
            self.connection.send(task)

    def answer(self) -> Any:
        """Return what the process has answered, or how it died."""
        assert self.connection is not None
        try:
            return self.connection.recv()
        except (EOFError, OSError):  # also in the middle of an answer
            return Died(self._end())

    def stop(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
        if self.connection is not None:
            self.connection.close()
        self._process = self.connection = None

    def _end(self) -> str:
        assert self._process is not None
        try:
            code = self._process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            return "its connection broke"
        if code >= 0:
            return f"exit code {code}"
        try:
            name = signal.Signals(-code).name
        except ValueError:
            name = f"signal {-code}"
        killed = ", by which systems end processes when memory runs out"
        return f"{name}{killed if name == 'SIGKILL' else ''}"


class _ProcessPool(WorkerPool[Any, Any]):
    """Processes of this machine; the job lies in a file that each of them reads."""

    def __init__(self, job: Job[Any, Any], workers: int, retries: int, device: str) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="afmi-")
        self._shared = 0
        path = Path(self._folder.name) / "job"
        path.write_bytes(pickle.dumps((Parcel.of(job), Settings.here(device))))
        super().__init__(job, [_Process(path) for _ in range(workers)], retries=retries)

    def wait(self, busy: list[Worker], seconds: float | None) -> list[tuple[Worker, Any]]:
        by_connection = {w.connection: w for w in busy if isinstance(w, _Process)}
        answered = wait([c for c in by_connection if c is not None], seconds)
        return [(worker := by_connection[c], worker.answer()) for c in answered]  # type: ignore[index]

    def share(self, value: object) -> Shared:
        self._shared += 1
        path = Path(self._folder.name) / f"{self._shared}"
        path.write_bytes(pickle.dumps(Parcel.of(value)))
        return _InFile(path)

    def close(self) -> None:
        super().close()
        self._folder.cleanup()


@dataclass(frozen=True)
class _InFile(Shared):
    path: Path

    def get(self) -> Any:
        return _opened(self.path)

    def free(self) -> None:
        self.path.unlink(missing_ok=True)


@functools.lru_cache(maxsize=1)
def _opened(path: Path) -> Any:
    return pickle.loads(path.read_bytes()).open()
