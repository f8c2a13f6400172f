"""What an engine is: where the workers are, and nothing of what they compute."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

from afmi.engines.job import Job
from afmi.engines.workers import WorkerPool
from afmi.errors import UsageError

__all__ = ["Engine", "check_workers"]


class Engine(ABC):
    """Places the work. What is computed, and every number, is the same with each engine.

    Attributes:
        workers: processes that run at once.
    """

    workers: int

    @abstractmethod
    def pool(self, job: Job[Any, Any], device: str = "cpu") -> WorkerPool[Any, Any]:
        """Return workers for a job; they start when there are tasks for them.

        Args:
            job: what they do.
            device: type of the one that they put its network on: what `device` returns.

        Raises:
            AfmiError: when there can be none.
        """

    def device(self, model_device: str) -> str:
        """Return the type of the device that workers compute on, for a network on this one."""
        return model_device


def check_workers(engine: Engine, retries: int) -> None:
    """Raise unless the counts can be used."""
    if engine.workers < 1 or retries < 0:
        raise UsageError(
            f"expected workers from 1 and retries from 0, got {engine.workers} and {retries}"
        )
