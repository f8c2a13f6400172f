"""The engine of a cluster: Ray places, starts and ends the workers, on one machine or many."""

from __future__ import annotations

import functools
import math
import os
import warnings
from dataclasses import dataclass
from typing import Any

from afmi.engines.base import Engine, check_workers
from afmi.engines.job import Job
from afmi.engines.parcel import Parcel
from afmi.engines.serving import Server, Settings
from afmi.engines.workers import (
    Died,
    Failed,
    Shared,
    Worker,
    WorkerPool,
    WorkerWarning,
)
from afmi.errors import AfmiError, UsageError, first_line
from afmi.packages import imported

__all__ = ["Ray"]

_PATIENCE = 120.0
"""Seconds to wait for a first worker before a warning."""


@dataclass(frozen=True)
class Ray(Engine):
    """A Ray cluster; the extra ``ray`` installs it.

    Each worker is an actor with the network in it, and has one piece of the work at a time. Its
    place, resources, and a cluster that grows and shrinks are Ray's business. Pieces go to the
    workers that are there: where the cluster has room for fewer, the others wait for theirs.

    Args:
        workers: actors.
        address: of the cluster: ``"auto"`` for the one that this machine belongs to, or
            ``"HOST:6379"``. None: a cluster of this machine alone, ended with the work; where
            ``ray.init`` was called before, that one is used and left as it is, and otherwise the
            one of ``RAY_ADDRESS`` where that is set.
        cpus: cores that Ray sets aside for a worker. How many it uses is a question of its threads,
            which are this process's (``torch.set_num_threads``, ``--threads``).
        gpus: GPUs for a worker, also a part of one; with any, the network runs on the GPU, wherever
            it lies here.
        memory: bytes of main memory that Ray sets aside for a worker.
        retries: how often a piece is tried again after its worker died, before it is split.
    """

    workers: int = 1
    address: str | None = None
    cpus: float = 1
    gpus: float = 0
    memory: int | None = None
    retries: int = 2

    def __post_init__(self) -> None:
        check_workers(self, self.retries)
        if self.cpus < 0 or self.gpus < 0 or (self.memory is not None and self.memory < 1):
            raise UsageError(
                f"expected cpus, gpus from 0 and memory from 1, got {self.cpus}, {self.gpus} and "
                f"{self.memory}"
            )
        if self.address is not None and self.address.startswith("ray://"):
            raise UsageError(
                f"expected 'auto' or HOST:PORT as address, got {self.address!r}: Ray's client "
                "keeps no files; start afmi on a machine of the cluster (`ray job submit`)"
            )

    def device(self, model_device: str) -> str:
        return "cuda" if self.gpus else model_device

    def pool(self, job: Job[Any, Any], device: str = "cpu") -> WorkerPool[Any, Any]:
        if device != "cpu" and not self.gpus:
            raise UsageError(
                f"the network lies on {device}, and no worker was given a GPU; pass gpus=1 "
                "(--gpus-per-worker 1), or put the network on the CPU (--device cpu)"
            )
        return _RayPool(self, job, device)


def _ray() -> Any:
    return imported("ray", "the engine ray", "afmi[ray]")


class _RayPool(WorkerPool[Any, Any]):
    """Actors; the job lies in Ray's object store, once on each machine that has one."""

    def __init__(self, engine: Ray, job: Job[Any, Any], device: str) -> None:
        self._ray = _ray()
        parcel = Parcel.of(job)
        self._began = _connect(self._ray, engine)
        try:
            begin = self._ray.put(parcel), Settings.here(device)
            actor = self._ray.remote(Server).options(
                num_cpus=engine.cpus,
                num_gpus=engine.gpus,
                memory=engine.memory,
                # One that died is replaced by the pool, which counts the pieces that it cost.
                max_restarts=0,
                max_task_retries=0,
            )
        except BaseException:
            self._leave()
            raise
        self._wanted = f"{engine.cpus} cores, {engine.gpus} GPUs"
        workers: list[Worker] = [_Actor(self._ray, actor, begin) for _ in range(engine.workers)]
        super().__init__(job, workers, retries=engine.retries)

    def wait(self, busy: list[Worker], seconds: float | None) -> list[tuple[Worker, Any]]:
        # One without a reference was being sent something when Ctrl-C came.
        by_reference = {w.reference: w for w in busy if isinstance(w, _Actor) and w.reference}
        if not by_reference:
            return []
        answered, others = self._ray.wait(
            list(by_reference), timeout=_PATIENCE if seconds is None else seconds
        )
        while not answered and seconds is None:
            if not self.any_ready:
                there = self._ray.cluster_resources()
                warnings.warn(
                    f"no worker has started for {_PATIENCE:.0f} s: each wants {self._wanted}, and "
                    f"the cluster has {there.get('CPU', 0):g} cores and {there.get('GPU', 0):g} "
                    "GPUs in all; wait for machines that are being started, or ask for less",
                    WorkerWarning,
                    stacklevel=2,
                )
            answered, others = self._ray.wait(list(by_reference), timeout=_PATIENCE)
        if answered and others:  # all that have answered, since each call looks at all workers
            more, _ = self._ray.wait(others, num_returns=len(others), timeout=0)
            answered += more
        return [(by_reference[one], by_reference[one].answer()) for one in answered]

    def share(self, value: object) -> Shared:
        return _Put(self._ray.put(Parcel.of(value)))

    def close(self) -> None:
        try:
            super().close()
        finally:
            self._leave()

    def _leave(self) -> None:
        if self._began:
            self._ray.shutdown()


class _Actor(Worker):
    """An actor of Ray's, in a process somewhere."""

    def __init__(self, ray: Any, actor: Any, begin: tuple[Any, Settings]) -> None:
        self._ray = ray
        self._class = actor
        self._begin = begin
        self._actor: Any = None
        self.reference: Any = None

    def start(self) -> None:
        self.stop()
        self._actor = self._class.remote()
        self.reference = self._actor.begin.remote(*self._begin)

    def send(self, task: object) -> None:
        self.reference = None  # the old one has been answered, and must not be taken again
        self.reference = self._actor.run.remote(task)

    def stop(self) -> None:
        if self._actor is not None:
            self._ray.kill(self._actor)
        self._actor = self.reference = None

    def answer(self) -> Any:
        """Return what the actor has answered, or how it died."""
        try:
            return self._ray.get(self.reference)
        except self._ray.exceptions.RayTaskError as error:
            return Failed(AfmiError(f"a worker raised {_last_line(error)}"))
        except self._ray.exceptions.RayError as error:
            return Died(f"{type(error).__name__}: {_last_line(error)}")


@dataclass(frozen=True)
class _Put(Shared):
    reference: Any

    def get(self) -> Any:
        return _opened(self.reference)


@functools.lru_cache(maxsize=1)
def _opened(reference: Any) -> Any:
    return _ray().get(reference).open()


def _last_line(error: Exception) -> str:
    """Return the line of one of Ray's errors that says why."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1][:300] if lines else "(no message)"


def _connect(ray: Any, engine: Ray) -> bool:
    """Join the cluster, or start one; tell whether it is to be left at the end."""
    if ray.is_initialized():
        if engine.address not in (None, "auto"):
            raise UsageError(
                f"expected no address where ray.init was called before, got {engine.address!r}; "
                "leave it out, which takes that cluster, or call ray.shutdown()"
            )
        return False
    options: dict[str, Any] = {"log_to_driver": False, "logging_level": "error"}
    if engine.address is None and "RAY_ADDRESS" not in os.environ:
        cores = max(1, math.ceil(engine.workers * engine.cpus))
        options |= {"address": "local", "include_dashboard": False, "num_cpus": cores}
        if engine.gpus:
            options["num_gpus"] = max(1, math.ceil(engine.workers * engine.gpus))
    else:
        options["address"] = engine.address or os.environ["RAY_ADDRESS"]
    try:
        ray.init(**options)
    except Exception as error:  # of many types
        raise AfmiError(
            f"there is no Ray cluster to work on ({first_line(error)}); start one with `ray start "
            "--head`, see that it is reached from here, or leave the address out"
        ) from error
    return True
