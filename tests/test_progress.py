"""Progress is reported to whoever asked for it."""

from __future__ import annotations

from afmi.progress import reporting, track


def test_progress_is_reported_only_inside_the_block() -> None:
    steps: list[tuple[str, int, int]] = []
    assert list(track(range(2), "quiet")) == [0, 1]
    with reporting(lambda *step: steps.append(step)):
        assert list(track(range(2), "loud")) == [0, 1]
        with reporting(None):
            list(track(range(2), "quiet"))
    list(track(range(2), "quiet"))
    assert steps == [("loud", 0, 2), ("loud", 1, 2), ("loud", 2, 2)]
