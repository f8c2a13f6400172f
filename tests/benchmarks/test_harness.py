"""The harness: statistics of a clock set by the test, failures, plans."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from benchmarks.speed.harness import CLOCKS, Plan, Ratio, Run, Timings, error_line, measure

CPU = torch.device("cpu")


class FakeClock:
    """Shows the next of the seconds given for what runs."""

    def __init__(self, seconds: dict[str, list[float]]) -> None:
        self.left = {name: list(values) for name, values in seconds.items()}
        self.order: list[str] = []
        self.last = ""

    def run(self, name: str) -> Callable[[], None]:
        def run() -> None:
            self.last = name

        return run

    def __call__(self, run: Run) -> float:
        run()
        self.order.append(self.last)
        return self.left[self.last].pop(0)


def test_each_ratio_is_taken_within_a_round() -> None:
    # The machine is ten times as slow in the second round, which both sides share.
    clock = FakeClock({"ours": [2.0, 30.0, 4.0], "bare": [1.0, 10.0, 1.0]})
    runs = {name: clock.run(name) for name in ("ours", "bare")}
    timings = measure(runs, Plan(0, least=3, most=3), clock, CPU)
    assert timings.seconds == {"ours": [2.0, 30.0, 4.0], "bare": [1.0, 10.0, 1.0]}
    assert timings.ratio("ours", "bare") == Ratio(median=3.0, low=2.5, high=3.5)
    assert timings.ratio("ours", "bare", scale=0.1) == pytest.approx(Ratio(0.3, 0.25, 0.35))
    assert timings.median("ours") == 4.0
    assert timings.fastest(["ours", "bare", "unknown"]) == "bare"
    assert timings.fastest(["unknown"]) is None
    assert set(timings.peak) == {"ours", "bare"}


def test_every_round_begins_with_another_contender() -> None:
    clock = FakeClock({name: [1.0] * 3 for name in "abc"})
    measure({name: clock.run(name) for name in "abc"}, Plan(0, 3, 3), clock, CPU)
    assert "".join(clock.order) == "abcbcacab"


def test_one_round_has_no_spread() -> None:
    assert Ratio.of([1.5]) == Ratio(1.5, 1.5, 1.5)


def test_a_contender_that_raises_is_recorded_and_left_out() -> None:
    calls = []

    def late() -> None:
        calls.append(1)
        if len(calls) == 4:  # after the warm-up, the memory and one round
            raise ValueError("too late\nsecond line")

    def never() -> None:
        raise RuntimeError("no rule")

    runs: dict[str, Run] = {"never": never, "late": late, "fine": lambda: None}
    timings = measure(runs, Plan(0, 3, 3), CLOCKS["wall"](CPU), CPU)
    assert timings.failures == {"never": "RuntimeError: no rule", "late": "ValueError: too late"}
    assert {name: len(values) for name, values in timings.seconds.items()} == {"fine": 3}
    assert timings.ratio("fine", "late") is None
    assert timings.ratio("never", "fine") is None


def test_nothing_is_timed_when_all_fail() -> None:
    def fails() -> None:
        raise ValueError

    timings = measure({"one": fails}, Plan(0, 3, 3), CLOCKS["cpu"](CPU), CPU)
    assert timings == Timings(failures={"one": "ValueError"})


def test_interrupts_are_not_swallowed() -> None:
    def stop() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        measure({"one": stop}, Plan(), CLOCKS["wall"](CPU), CPU)


def test_a_plan_ends_when_the_next_round_would_be_too_long() -> None:
    plan = Plan(seconds=10, least=2, most=4)
    assert plan.goes_on(0, 0)
    assert plan.goes_on(1, 100)
    assert plan.goes_on(2, 6)  # three rounds of 3 s
    assert not plan.goes_on(2, 8)  # three rounds of 4 s
    assert plan.goes_on(3, 3)
    assert not plan.goes_on(4, 1)


def test_clocks_run_what_they_time() -> None:
    for name in ("wall", "cpu"):
        done = []
        assert CLOCKS[name](CPU)(lambda done=done: done.append(1)) >= 0
        assert done == [1]
    with pytest.raises(SystemExit, match="CUDA"):
        CLOCKS["events"](CPU)


def test_an_error_is_one_line() -> None:
    assert error_line(ValueError("first\nsecond")) == "ValueError: first"
    assert error_line(ValueError()) == "ValueError"
    assert len(error_line(ValueError("x" * 1000))) == 160
