"""Real workers: processes of this machine, and actors of Ray."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from jobs import doubling

from afmi import engines
from afmi.engines.workers import WorkerWarning
from afmi.errors import MissingPackageError, UsageError

pytest.importorskip("ray", reason="needs the extra ray")

ENGINES = [
    pytest.param(engines.Local(workers=2), id="local"),
    pytest.param(engines.Ray(workers=2), id="ray", marks=pytest.mark.slow),
]
TASKS = [(start, start + 4) for start in range(0, 24, 4)]


def work(pool: Any, tasks: list[tuple[int, int]]) -> dict[Any, Any]:
    results: dict[Any, Any] = {}
    for task in tasks:
        pool.submit(task)
    pool.work(results.__setitem__)
    return results


@pytest.mark.parametrize("engine", ENGINES)
def test_a_killed_worker_loses_nothing_and_warnings_arrive(
    engine: engines.Engine, tmp_path: Path
) -> None:
    harm = {"deadly_once": frozenset({6}), "broken_once": frozenset({17})}
    job = doubling(**harm, wrong=frozenset({21}), marks=tmp_path)
    with engine.pool(job) as pool:
        with pytest.warns() as warned:
            results = work(pool, TASKS[:5])
        assert results == {task: [2.0 * n for n in range(*task)] for task in TASKS[:5]}
        kinds = {warning.category for warning in warned}
        assert kinds == {UserWarning, WorkerWarning}
        said = {str(warning.message) for warning in warned}
        assert {"seven is odd", "a worker died: cuda:0 works no longer since 17"} <= said
        # The same pool goes on after an error, which says where in the worker it arose.
        with pytest.raises(ValueError, match="wrong numbers") as raised:
            work(pool, TASKS[5:])
        assert "in run" in str(raised.value.__cause__)
        shared = pool.share({"image": torch.arange(4.0)})
        assert isinstance(shared.get(), dict)
        shared.free()


def test_engines_that_cannot_be(monkeypatch: pytest.MonkeyPatch) -> None:
    for wrong in ({"workers": 0}, {"retries": -1}, {"gpus": -1}, {"address": "ray://head:10001"}):
        with pytest.raises(UsageError, match="expected"):
            engines.Ray(**wrong)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="expected workers from 1"):
        engines.Local(workers=0)
    with pytest.raises(UsageError, match="expected an engine, local or ray, got 'rai'"):
        engines.as_engine("rai")
    assert engines.as_engine(None) == engines.as_engine("local") == engines.Local()
    monkeypatch.setitem(__import__("sys").modules, "ray", None)
    with pytest.raises(MissingPackageError, match=r"pip install 'afmi\[ray\]'"):
        engines.Ray().pool(doubling())
