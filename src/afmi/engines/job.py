"""What engines carry out: a job that goes to each worker once, and its tasks, which are small."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, Generic, TypeVar

from torch import nn

__all__ = ["Job", "Result", "Task"]

Task = TypeVar("Task")
Result = TypeVar("Result")


class Job(ABC, Generic[Task, Result]):
    """The work of all tasks: it holds the network, the data and the settings.

    `begin` and `run` are called in a worker, the others in the process that commands the workers.
    Whatever `run` returns for a task must not depend on where and when it runs, so that a task
    whose worker died can be run again.
    """

    def network(self) -> nn.Module | None:
        """Return the network, which a worker puts on its device; None: there is none."""
        return None

    def begin(self) -> None:
        """Get ready, once in each worker; raise where this worker would give other results."""

    @abstractmethod
    def run(self, task: Task) -> Result:
        """Return a task's result."""

    @abstractmethod
    def parts(self, task: Task) -> Sequence[Task]:
        """Return smaller tasks in place of one that costs its worker; none: it is too small."""

    @abstractmethod
    def joined(self, task: Task, results: Sequence[Any]) -> Result:
        """Return a task's result from those of its parts, in their order."""

    @abstractmethod
    def lost(self, task: Task, reason: str) -> Result:
        """Return what stands for a task that has no smaller parts and costs each worker."""
