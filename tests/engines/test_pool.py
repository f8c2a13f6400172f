"""What a pool does with tasks, workers' deaths and errors: scripted, without any process."""

from __future__ import annotations

import warnings
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from jobs import doubling
from torch import nn

from afmi.engines.local import Local
from afmi.engines.serving import _answer, _put
from afmi.engines.workers import Died, Failed, Shared, Worker, WorkerPool, WorkerWarning
from afmi.errors import AfmiError, DeviceError
from afmi.network.memory import TOO_LITTLE_MEMORY


class Scripted(Worker):
    """Does its task when it is waited for, unless a number in it ends the worker."""

    def __init__(self, job: Any) -> None:
        self.job, self.task, self.begins = job, None, True
        self.starts = self.tasks = 0

    def start(self) -> None:
        self.begins = True
        self.starts += 1
        self.tasks = 0

    def send(self, task: object) -> None:
        self.task = task

    def stop(self) -> None:
        self.stopped = True

    def answer(self) -> Any:
        if self.begins:
            self.begins = False
            return None
        self.tasks += 1
        if self.job.deadly & {*range(*self.task)}:
            return Died("it was killed")
        try:
            return self.job.run(self.task)
        except Exception as error:
            return Failed(error)


class Pool(WorkerPool[Any, Any]):
    """Workers that answer one after the other, the last one first."""

    def __init__(self, job: Any, workers: int = 2, retries: int = 2) -> None:
        self.sent: list[Any] = []
        super().__init__(job, [Scripted(job) for _ in range(workers)], retries=retries)

    def wait(self, busy: list[Worker], seconds: float | None) -> list[tuple[Worker, Any]]:
        if seconds == 0:
            return []
        return [(worker, worker.answer()) for worker in busy[-1:]]  # type: ignore[attr-defined]

    def share(self, value: object) -> Shared:
        raise NotImplementedError


def work(pool: WorkerPool[Any, Any], *tasks: tuple[int, int]) -> dict[Any, Any]:
    results: dict[Any, Any] = {}

    def commit(task: Any, result: Any) -> None:
        assert task not in results
        results[task] = result

    for task in tasks:
        pool.submit(task)
    pool.work(commit)
    return results


TASKS = [(start, start + 4) for start in range(0, 20, 4)]
EXPECTED = {task: [2.0 * n for n in range(*task)] for task in TASKS}


@pytest.mark.filterwarnings("ignore:seven is odd")
@pytest.mark.parametrize("workers", [1, 2, 9])
def test_every_task_is_done_once(workers: int) -> None:
    with Pool(doubling(), workers) as pool:
        assert work(pool, *TASKS) == EXPECTED


@pytest.mark.filterwarnings("ignore:seven is odd")
def test_a_number_that_kills_its_workers_is_found_and_costs_no_other() -> None:
    begun: list[Any] = []
    with Pool(doubling(deadly=frozenset({5}))) as pool:
        for task in TASKS:
            pool.submit(task)
        results: dict[Any, Any] = {}
        with pytest.warns(WorkerWarning, match="killed") as deaths:
            pool.work(results.__setitem__, begun.append)
    reason = "its worker died, 3 times"
    assert results == {**EXPECTED, (4, 8): [8.0, reason, 12.0, 14.0]}
    # 4 numbers, then 2, then 1, each tried three times.
    assert len([w for w in deaths if w.category is WorkerWarning]) == 9
    assert sorted(begun) == TASKS


@pytest.mark.filterwarnings("ignore:seven is odd")
def test_what_needs_too_much_memory_is_split_and_not_retried() -> None:
    job = doubling(too_large=1)
    with Pool(job) as pool, warnings.catch_warnings():
        warnings.simplefilter("error", WorkerWarning)
        assert work(pool, *TASKS) == EXPECTED


class Leaking(Scripted):
    """Has memory for number 5 only where it has done nothing else."""

    def answer(self) -> Any:
        if not self.begins and self.tasks and 5 in range(*self.task):
            return Failed(MemoryError())
        return super().answer()


@pytest.mark.filterwarnings("ignore:seven is odd")
def test_what_needs_too_much_memory_by_itself_is_done_once_more_by_a_new_worker() -> None:
    # Each of the two numbers by a worker of its own, which has done nothing before.
    with Pool(doubling(too_large=0), workers=1) as pool:
        assert work(pool, (0, 2)) == {(0, 2): [TOO_LITTLE_MEMORY] * 2}
        assert sum(worker.starts for worker in pool._workers) == 1 + 2  # type: ignore[attr-defined]
    with Pool(doubling(too_large=0), workers=1, retries=0) as pool:
        assert work(pool, (0, 2)) == {(0, 2): [TOO_LITTLE_MEMORY] * 2}
        assert sum(worker.starts for worker in pool._workers) == 1  # type: ignore[attr-defined]
    pool = Pool(doubling())
    pool._idle = deque(Leaking(pool._job) for _ in range(2))
    with pool:
        assert work(pool, *TASKS) == EXPECTED


def test_a_worker_that_dies_at_its_start_leaves_its_task_to_another() -> None:
    class Stillborn(Scripted):
        def answer(self) -> Any:
            if self.begins and self.starts == 2:
                self.begins = False
                return Died("no memory for the network")
            return super().answer()

    pool = Pool(doubling(too_large=0))
    pool._idle = deque([Stillborn(pool._job)])
    with pool:
        assert work(pool, (0, 1)) == {(0, 1): [TOO_LITTLE_MEMORY]}


@pytest.mark.filterwarnings("ignore:seven is odd")
def test_an_error_ends_the_work_but_loses_nothing() -> None:
    results: dict[Any, Any] = {}
    with Pool(doubling(wrong=frozenset({9})), workers=2) as pool:
        for task in TASKS:
            pool.submit(task)
        with pytest.raises(ValueError, match=r"wrong numbers in \(8, 12\)"):
            pool.work(results.__setitem__)
    # What ran beside it was waited for; what had not begun was not.
    assert results.items() <= EXPECTED.items()
    assert {(0, 4), (4, 8)} <= results.keys() and (16, 20) not in results


@pytest.mark.filterwarnings("ignore:seven is odd")
def test_ctrl_c_commits_what_is_finished() -> None:
    results: list[Any] = []

    def commit(task: Any, result: Any) -> None:
        if len(results) == 2 and task not in [seen for seen, _ in results]:
            results.append((task, "interrupted"))
            raise KeyboardInterrupt
        results.append((task, result))

    with Pool(doubling()) as pool:
        for task in TASKS:
            pool.submit(task)
        with pytest.raises(KeyboardInterrupt):
            pool.work(commit)
    # The one whose commit was interrupted is committed again, and none after it is begun.
    assert len(results) == 4 and results[2][0] == results[3][0]
    assert results[3][1] == EXPECTED[results[3][0]]


@pytest.mark.filterwarnings("ignore:seven is odd")
def test_cancelled_tasks_are_dropped_and_late_results_ignored() -> None:
    results: dict[Any, Any] = {}
    with Pool(doubling(), workers=3) as pool:

        def commit(task: Any, result: Any) -> None:
            results[task] = result
            pool.cancel(lambda other: other[0] >= 8)

        for task in TASKS:
            pool.submit(task)
        pool.work(commit)
    # The first to finish is kept whatever it is; it cancelled those from 8 on.
    assert {(0, 4), (4, 8)} <= results.keys() and len(results) <= 3
    assert (16, 20) not in results


@pytest.mark.filterwarnings("ignore:seven is odd")
def test_tasks_may_follow_from_results() -> None:
    results: dict[Any, Any] = {}
    with Pool(doubling()) as pool:

        def commit(task: Any, result: Any) -> None:
            results[task] = result
            if task[1] < 12:
                pool.submit((task[0] + 4, task[1] + 4))

        pool.submit((0, 4))
        pool.work(commit)
    assert list(results) == TASKS[:3]


def test_workers_that_never_get_ready_end_the_work() -> None:
    class Stillborn(Scripted):
        def answer(self) -> Any:
            return Died("no memory for the network")

    pool = Pool(doubling())
    pool._idle = deque([Stillborn(pool._job)])
    with pytest.raises(AfmiError, match="5 workers in a row died before they were ready: no mem"):
        work(pool, (0, 4))


class Restarted(Scripted):
    """Gets ready once; then its task kills it, and it fails to get ready."""

    fails: Callable[[], object]

    def answer(self) -> Any:
        if self.begins and self.starts > 1:
            return _answer(self.fails)
        answer = super().answer()
        return Died("its GPU is lost") if self.tasks else answer


class Unplaceable(nn.Module):
    def __init__(self, error: Exception) -> None:
        super().__init__()
        self.error = error

    def to(self, *_: Any) -> Any:
        raise self.error


def no_memory() -> None:
    raise MemoryError("no room beside the others")


@pytest.mark.filterwarnings("ignore:seven is odd", "ignore:a worker died")
@pytest.mark.parametrize(
    ("fails", "reason"),
    [
        (no_memory, "MemoryError: no room"),
        (
            lambda: _put(Unplaceable(RuntimeError("CUDA error: launch failure")), "cuda"),
            r"a worker on .* cannot put the network on cuda \(.*launch failure\)",
        ),
    ],
)
def test_a_worker_that_cannot_be_replaced_is_given_up_and_the_others_go_on(
    fails: Callable[[], object], reason: str
) -> None:
    pool = Pool(doubling())
    bad = Restarted(pool._job)
    bad.fails = fails
    pool._workers = [bad, pool._workers[0]]
    pool._idle = deque(pool._workers)
    pool.wait = lambda busy, _: [(w, w.answer()) for w in busy]  # type: ignore
    tasks = [(n, n + 1) for n in range(20)]
    with pool, pytest.warns(WorkerWarning, match=f"one of 2 workers is given up.* 5 .*: {reason}"):
        assert work(pool, *tasks) == {task: [2.0 * task[0]] for task in tasks}
    assert bad.starts == 6 and bad.stopped
    pool = Pool(doubling(), workers=1)
    pool._idle = deque([bad])
    with pytest.raises(AfmiError, match=f"5 workers in a row died before .*: {reason}"):
        work(pool, *TASKS)


def test_a_build_without_the_device_ends_the_work_at_once() -> None:
    pool = Pool(doubling())
    missing = Restarted(pool._job)
    missing.starts = 1
    missing.fails = lambda: _put(Unplaceable(AssertionError("not compiled with CUDA")), "cuda")
    pool._idle = deque([missing])
    with pytest.raises(AfmiError, match=r"not compiled with CUDA\); see that PyTorch there is a b"):
        work(pool, (0, 4))
    assert missing.starts == 2


@pytest.mark.filterwarnings("ignore:seven is odd")
@pytest.mark.parametrize("deaf", ["send", "start"])
def test_a_worker_that_nothing_can_be_sent_to_is_not_waited_for(deaf: str) -> None:
    pool = Pool(doubling(too_large=0), workers=1)
    (worker,) = pool._workers

    def lost(*_: Any) -> None:
        raise RuntimeError("the head is lost")

    if deaf == "send":
        worker.send = lost  # type: ignore[method-assign]
    else:  # at the second start, for what ran out of memory
        start = worker.start
        worker.start = lambda: start() if not worker.starts else lost()  # type: ignore
    with pytest.raises(RuntimeError, match="the head is lost"):
        work(pool, (0, 1))
    assert not pool._running and pool.ending


def test_in_this_process_an_error_keeps_its_traceback(tmp_path: Path) -> None:
    with (
        Local().pool(doubling(wrong=frozenset({1}))) as pool,
        pytest.raises(ValueError, match="wrong numbers") as raised,
    ):
        work(pool, (0, 4))
    assert raised.traceback[-1].name == "run"
    with Local().pool(doubling(too_large=2)) as pool:
        assert work(pool, (0, 4)) == {(0, 4): EXPECTED[0, 4]}
    with Local().pool(doubling(too_large=0)) as pool:
        assert work(pool, (0, 1)) == {(0, 1): [TOO_LITTLE_MEMORY]}
    with (
        Local().pool(doubling(broken_once=frozenset({1}), marks=tmp_path)) as pool,
        pytest.raises(DeviceError, match="works no longer since 1; start the command again"),
    ):
        work(pool, (0, 4))
    shared = pool.share(torch.ones(1, dtype=torch.float32, device="cpu"))
    assert float(shared.get()) == 1.0
