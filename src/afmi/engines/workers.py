"""Carry out tasks on workers that may die: retried, split, and never lost or done twice."""

from __future__ import annotations

import warnings
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Generic

from afmi.engines.job import Job, Result, Task
from afmi.errors import AfmiError, one_line
from afmi.network.memory import TOO_LITTLE_MEMORY, is_out_of_memory

__all__ = ["Answer", "Died", "Failed", "Shared", "Worker", "WorkerPool", "WorkerWarning"]


class WorkerWarning(UserWarning):
    """A worker died, and its piece of the work is done again; or none can be started any more."""


class Shared(ABC):
    """A value that workers read where they are, sent once and not with every task."""

    @abstractmethod
    def get(self) -> Any:
        """Return the value."""

    def free(self) -> None:  # noqa: B027
        """Forget the value, which no task needs any longer."""


@dataclass(frozen=True)
class Died:
    """A worker's process ended in the middle of a task, or can do no other; says why."""

    reason: str


@dataclass(frozen=True)
class Failed:
    """A task, or getting ready for tasks, raised an error."""

    error: Exception


@dataclass(frozen=True)
class Answer:
    """What a call in another process gave, on its way back.

    Attributes:
        value: the result; `Failed` where it raised.
        warned: warnings, each once.
    """

    value: Any
    warned: tuple[Warning, ...] = ()


class Worker(ABC):
    """One process with the job in it, or this one."""

    @abstractmethod
    def start(self) -> None:
        """Begin to get ready; after a death in a new process."""

    @abstractmethod
    def send(self, task: object) -> None:
        """Give it a task; it must be ready and have none."""

    @abstractmethod
    def stop(self) -> None:
        """End it at once, whatever it does."""


@dataclass(eq=False, slots=True)  # of which there may be millions
class _Ticket(Generic[Task]):
    """A task on its way.

    Attributes:
        task: what is to be done.
        deaths: how many workers died of it.
        whole: the ticket that it is a part of.
        place: among the parts.
        results: of its own parts, in their order.
        missing: how many of them are not there yet.
        alone: whether a new worker was started for it, since it ran out of memory.
        cancelled: whether nobody wants its result.
    """

    task: Task
    deaths: int = 0
    whole: _Ticket[Task] | None = None
    place: int = 0
    results: list[Any] | None = None
    missing: int = 0
    alone: bool = False
    cancelled: bool = False

    @property
    def outermost(self) -> _Ticket[Task]:
        """The ticket of the task that was submitted."""
        return self if self.whole is None else self.whole.outermost


_MOST_STARTS = 5
"""How often in a row a worker, or while none is ready any of them, may die before it is ready."""


class WorkerPool(ABC, Generic[Task, Result]):
    """Workers that share a job; a context manager that ends them all.

    A task whose worker dies is done again, by a new worker, ``retries`` times; then its parts are
    done in its place, down to those that have none, for which the job says what stands in the
    result. One that runs out of memory is split at once; what has no parts is done once more, by a
    new worker, unless there are no retries. A worker that dies before it is ready, or lacks memory
    to get ready, is started again; after five times in a row the others do without it.

    Args:
        job: what is done.
        workers: as many as run at once; each is started when there is a task for it.
        retries: how often a task is tried again after its worker died.
    """

    _anew = True
    """Whether a worker is started in a new process, which may have memory that the last lacked."""

    def __init__(self, job: Job[Task, Result], workers: list[Worker], *, retries: int) -> None:
        self._job = job
        self._workers = workers
        self._retries = retries
        self._failed_starts = 0
        self._failed: dict[Worker, int] = {}  # starts in a row
        self._ending = False
        self._waiting: deque[_Ticket[Task]] = deque()
        # So kept that a task costs as much with ten thousand workers as with one.
        self._idle = deque(workers)
        self._starting: dict[Worker, None] = {}
        self._ready: deque[Worker] = deque()
        self._running: dict[Worker, _Ticket[Task]] = {}
        self._finished: deque[tuple[Task, Any]] = deque()
        self._warned: list[Warning] = []

    def __enter__(self) -> WorkerPool[Task, Result]:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
    ) -> None:
        self.close()

    @abstractmethod
    def wait(self, busy: list[Worker], seconds: float | None) -> list[tuple[Worker, Any]]:
        """Wait until one of these workers answers, or so many seconds; None: for ever.

        Returns:
            The workers that have answered: with a task's result; with None, when one is ready; or
            with `Failed` or `Died`.
        """

    @property
    def any_ready(self) -> bool:
        """Whether any worker has got ready so far."""
        return bool(self._ready or self._running)

    @property
    def ending(self) -> bool:
        """Whether no task is begun any more, since Ctrl-C or an error came."""
        return self._ending

    @abstractmethod
    def share(self, value: object) -> Shared:
        """Put a value where all workers can read it."""

    def close(self) -> None:
        """End all workers at once."""
        for worker in self._workers:
            worker.stop()

    def submit(self, task: Task) -> None:
        """Add a task to those that wait."""
        self._waiting.append(_Ticket(task))

    def cancel(self, unwanted: Callable[[Task], bool]) -> None:
        """Drop tasks that wait, and ignore the results of those that run."""
        for ticket in [*self._waiting, *self._running.values()]:
            whole = ticket.outermost
            whole.cancelled = whole.cancelled or unwanted(whole.task)
        self._waiting = deque(ticket for ticket in self._waiting if not ticket.outermost.cancelled)

    def work(
        self,
        commit: Callable[[Task, Result], object],
        begin: Callable[[Task], object] = lambda task: None,
    ) -> None:
        """Do all tasks, and those that are submitted meanwhile.

        At Ctrl-C, or when a task raises an error, no task is begun any more; what is finished is
        committed before the exception goes on. Tasks that run are waited for at an error, and not
        at Ctrl-C.

        Args:
            commit: called with a task and its result, in the order in which they finish; again,
                where Ctrl-C interrupted it.
            begin: called when a task is first given to a worker.

        Raises:
            AfmiError: workers die before they are ready.
            Exception: what a task raised.
        """
        try:
            while self._waiting or self._running:
                self._send(begin)
                self._receive(self.wait([*{**self._starting, **self._running}], None))
                self._commit(commit)
        except KeyboardInterrupt:
            self._ending = True
            self._waiting.clear()
            self._receive(self.wait([*self._running], 0))
            self._commit(commit)
            raise
        except Exception:
            self._ending = True
            with suppress(Exception):  # the first error is the one to tell
                while self._running:
                    for worker, answer in self.wait([*self._running], None):
                        self._take(worker, answer)
            self._waiting.clear()  # also of what is to be done again
            self._commit(commit)
            raise

    def _commit(self, commit: Callable[[Task, Result], object]) -> None:
        while self._finished:
            commit(*self._finished[0])
            self._finished.popleft()

    def _send(self, begin: Callable[[Task], object]) -> None:
        """Give tasks to workers that are ready, and start as many others as are needed."""
        while self._ready and self._waiting:
            ticket = self._waiting[0]
            if ticket.whole is None and not (ticket.deaths or ticket.alone):
                begin(ticket.task)  # which may raise: nothing is sent then
            worker = self._ready.popleft()
            self._waiting.popleft()
            # Entered only when it is sent: nobody answers what could not be.
            worker.send(ticket.task)
            self._running[worker] = ticket
        while self._idle and len(self._starting) < len(self._waiting):
            worker = self._idle.popleft()
            worker.start()
            self._starting[worker] = None

    def _receive(self, answers: list[tuple[Worker, Any]]) -> None:
        errors = [error for worker, answer in answers if (error := self._take(worker, answer))]
        # Only now, when all is entered: where warnings are errors, they end the work.
        warned, self._warned = self._warned, []
        for warning in warned:
            warnings.warn(warning, stacklevel=3)
        if errors:
            raise errors[0]

    def _take(self, worker: Worker, answer: Any) -> Exception | None:
        """Enter a worker's answer; return the error that ends the work, if it is one."""
        if isinstance(answer, Answer):
            self._warned += answer.warned
            answer = answer.value
        if worker in self._starting:
            del self._starting[worker]
            return self._started(worker, answer)
        ticket = self._running.pop(worker)
        if isinstance(answer, Died):
            worker.stop()  # its process may be there still, with all that it holds
            self._idle.append(worker)
            if ticket.outermost.cancelled:
                return None
            ticket.deaths += 1
            self._warned.append(WorkerWarning(f"a worker died: {answer.reason}"))
            if ticket.deaths <= self._retries:
                self._waiting.appendleft(ticket)
            else:
                # What it died of is not told here: the result must not depend on the engine.
                times = "once" if ticket.deaths == 1 else f"{ticket.deaths} times"
                self._split(ticket, f"its worker died, {times}")
            return None
        if isinstance(answer, Failed) and is_out_of_memory(answer.error):
            self._relieve(worker, ticket)
            return None
        self._ready.append(worker)
        if not isinstance(answer, Failed):
            self._done(ticket, answer)
        elif not ticket.outermost.cancelled:
            return answer.error
        return None

    def _relieve(self, worker: Worker, ticket: _Ticket[Task]) -> None:
        """Split a task that ran out of memory, or do it once more where nothing else was done."""
        last = not self._job.parts(ticket.task) and not ticket.outermost.cancelled
        if last and self._retries and not ticket.alone:
            ticket.alone = True
            worker.start()
            self._running[worker] = ticket  # it is sent when the worker is ready
            self._starting[worker] = None
            return
        self._ready.append(worker)
        self._split(ticket, TOO_LITTLE_MEMORY)

    def _started(self, worker: Worker, answer: Any) -> Exception | None:
        ticket = self._running.pop(worker, None)
        if not isinstance(answer, (Failed, Died)):
            self._failed_starts = 0
            self._failed.pop(worker, None)
            if ticket is None:
                self._ready.append(worker)
            else:
                worker.send(ticket.task)
                self._running[worker] = ticket
            return None
        if ticket is not None:
            self._waiting.appendleft(ticket)
        if isinstance(answer, Failed):
            if not (self._anew and is_out_of_memory(answer.error)):
                self._idle.append(worker)
                return answer.error
            answer = Died(one_line(answer.error))
        worker.stop()  # its process may be there still, with all that it holds
        return self._start_failed(worker, answer.reason)

    def _start_failed(self, worker: Worker, reason: str) -> Exception | None:
        """Let a worker be started again, unless that is hopeless; return the error if all are."""
        self._failed[worker] = self._failed.get(worker, 0) + 1
        retired = self._failed[worker] >= _MOST_STARTS
        if not retired:
            self._idle.append(worker)
        self._failed_starts = 0 if self.any_ready else self._failed_starts + 1
        others = self._idle or self._starting or self._ready or self._running
        if self._failed_starts >= _MOST_STARTS or not others:
            return AfmiError(
                f"{_MOST_STARTS} workers in a row died before they were ready: {reason}; see that "
                "the machines have the packages, and devices that work with memory for the "
                "network; the same command resumes"
            )
        if retired:
            said = f"one of {len(self._workers)} workers is given up, since it died {_MOST_STARTS}"
            self._warned.append(WorkerWarning(f"{said} times before it was ready: {reason}"))
        return None

    def _split(self, ticket: _Ticket[Task], reason: str) -> None:
        """Put a task's parts in its place, or what stands for one that has none."""
        if ticket.outermost.cancelled:
            return
        parts = self._job.parts(ticket.task)
        if not parts:
            self._done(ticket, self._job.lost(ticket.task, reason))
            return
        ticket.results, ticket.missing = [None] * len(parts), len(parts)
        tickets = [_Ticket(part, whole=ticket, place=n) for n, part in enumerate(parts)]
        self._waiting.extendleft(reversed(tickets))

    def _done(self, ticket: _Ticket[Task], result: Any) -> None:
        """Keep a result, and join those of parts once they are all there."""
        whole = ticket.whole
        if whole is None:
            if not ticket.cancelled:
                self._finished.append((ticket.task, result))
            return
        assert whole.results is not None
        whole.results[ticket.place] = result
        whole.missing -= 1
        if not whole.missing:
            self._done(whole, self._job.joined(whole.task, whole.results))
