"""What runs in a worker: the job built again, and a task at a time."""

from __future__ import annotations

import pickle
import platform
import shutil
import signal
import traceback
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
from torch import nn

from afmi.engines.job import Job
from afmi.engines.parcel import Parcel
from afmi.engines.workers import Answer, Died, Failed
from afmi.errors import AfmiError, DeviceError, one_line

__all__ = ["Server", "Settings", "fix_threads", "serve"]


@dataclass(frozen=True)
class Settings:
    """What decides the numbers of a process besides the job: the same in all of them.

    Attributes:
        threads: of PyTorch's operations; with another number they add in another order.
        dtype: that new tensors have by default.
        matmul: precision of float32 matrix products.
        deterministic: whether only deterministic algorithms are used, and whether others warn only.
        tf32: whether cuDNN may round to TF32.
        benchmark: whether cuDNN chooses the fastest algorithm.
        autocast: the dtype that operations are cast to; None: none.
        device: type of the one that the job's network is put on.
    """

    threads: int
    dtype: torch.dtype
    matmul: str
    deterministic: tuple[bool, bool]
    tf32: bool
    benchmark: bool
    autocast: torch.dtype | None
    device: str

    @classmethod
    def here(cls, device: str) -> Settings:
        """Return those of this process."""
        return cls(
            threads=torch.get_num_threads(),
            dtype=torch.get_default_dtype(),
            matmul=torch.get_float32_matmul_precision(),
            deterministic=_deterministic(),
            tf32=torch.backends.cudnn.allow_tf32,
            benchmark=torch.backends.cudnn.benchmark,
            autocast=torch.get_autocast_dtype(device)
            if torch.is_autocast_enabled(device)
            else None,
            device=device,
        )

    def apply(self) -> None:
        """Make them those of this process."""
        torch.set_num_threads(self.threads)
        torch.set_default_dtype(self.dtype)
        torch.set_float32_matmul_precision(self.matmul)
        if self.deterministic != _deterministic():  # the call imports the compiler, for seconds
            only, warns = self.deterministic
            torch.use_deterministic_algorithms(only, warn_only=warns)
        torch.backends.cudnn.allow_tf32 = self.tf32
        torch.backends.cudnn.benchmark = self.benchmark
        torch.set_autocast_enabled(self.device, self.autocast is not None)
        if self.autocast is not None:
            torch.set_autocast_dtype(self.device, self.autocast)


def _deterministic() -> tuple[bool, bool]:
    return (
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
    )


def fix_threads() -> None:
    """Fix the number of threads at what it is.

    Until it is set explicitly, MKL may take fewer for a small product, which adds in another order.
    """
    torch.set_num_threads(torch.get_num_threads())


class _WorkerError(Exception):
    """Shows where in a worker an error arose."""

    def __str__(self) -> str:
        return f"in a worker:\n{self.args[0]}"


class Server:
    """Does the tasks of one worker."""

    def __init__(self) -> None:
        # Ctrl-C in a terminal reaches all processes; the one that commands ends the others.
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        self._job: Job[Any, Any] | None = None

    def begin(self, parcel: Parcel, settings: Settings) -> Answer:
        """Build the job."""

        def build() -> None:
            settings.apply()
            job: Job[Any, Any] = parcel.open()
            network = job.network()
            if network is not None:
                _put(network, settings.device)
            job.begin()
            self._job = job

        return _answer(build)

    def run(self, task: Any) -> Answer:
        """Do a task."""
        job = self._job
        assert job is not None
        return _answer(lambda: job.run(task))


def serve(connection: Connection[Any, Any], parcel: str) -> None:
    """Answer one task after the other, until nobody sends any more."""
    server = Server()
    try:
        connection.send(server.begin(*pickle.loads(Path(parcel).read_bytes())))
        while True:
            connection.send(server.run(connection.recv()))
    except (EOFError, ConnectionError):  # the process that commands was killed
        shutil.rmtree(Path(parcel).parent, ignore_errors=True)


def _put(network: nn.Module, device: str) -> None:
    """Put a network on a device.

    Raises:
        AfmiError: PyTorch is a build without it, or the network cannot be moved at all.
        DeviceError: it works not, or has no room, which may be otherwise next time or elsewhere.
    """
    failed = f"a worker on {platform.node()} cannot put the network on {device}"
    try:
        network.to(device)
    except (AssertionError, NotImplementedError) as error:
        raise AfmiError(
            f"{failed} ({one_line(error)}); see that PyTorch there is a build for it"
        ) from error
    except RuntimeError as error:
        raise DeviceError(f"{failed} ({one_line(error)})") from error


def _answer(call: Callable[[], Any]) -> Answer:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("default")
        try:
            value = call()
        except DeviceError as error:  # nothing can be done in this process any more
            value = Died(error.reason)
        except Exception as error:
            trace = "".join(traceback.format_exception(error))
            value = _Traced(_portable(error), trace)
    warned = {str(w.message): _portable_warning(w.message) for w in caught}
    return Answer(value, tuple(warned.values()))


@dataclass(frozen=True)
class _Traced(Failed):
    """An error and, since a pickle drops its cause, where it arose."""

    trace: str

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self.error.__cause__ = _WorkerError(self.trace)


def _portable(error: Exception) -> Exception:
    """Return an error that the other process can build."""
    error.__traceback__ = error.__cause__ = error.__context__ = None
    if _is_portable(error):
        return error
    return AfmiError(f"{type(error).__name__}: {error}")


def _portable_warning(warning: Warning | str) -> Warning:
    if isinstance(warning, Warning) and _is_portable(warning):
        return warning
    return UserWarning(f"{type(warning).__name__}: {warning}")


def _is_portable(value: object) -> bool:
    try:
        pickle.loads(pickle.dumps(value))
    except Exception:
        return False
    return True
