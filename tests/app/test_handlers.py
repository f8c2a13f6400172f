"""Each event is answered for the photograph that is chosen, however quick the visitor is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from afmi.app import work
from afmi.app.choices import Choices
from afmi.app.handlers import Handlers
from afmi.app.photographs import Photograph
from afmi.app.sessions import Session
from afmi.pictures.images import FileContent

gradio: Any = pytest.importorskip("gradio", reason="the extra app is not installed")


@pytest.fixture
def handlers(choices: Choices, tmp_path: Path) -> Handlers:
    return Handlers(choices, [], tmp_path)


@pytest.fixture
def session(choices: Choices, content: FileContent) -> Session:
    made = Session()
    made.take(Photograph.of(choices.model, content))
    asked = work.Asked(None, None, "A-FMI", None, None)
    work.explain_photograph(choices, made, asked, lambda *_: None)
    return made


def test_top_pixels_of_a_photograph_that_was_removed_meanwhile_are_not_shown(
    handlers: Handlers, session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "From the top <b>10%</b>" in handlers.keep(session, 10)
    computed = work.kept_response

    def removed_meanwhile(*values: Any) -> float:
        session.take(None)
        return computed(*values)

    monkeypatch.setattr(work, "kept_response", removed_meanwhile)
    assert handlers.keep(session, 20) == gradio.skip()
    assert "Nothing is explained yet" in handlers.keep(session, 30)
