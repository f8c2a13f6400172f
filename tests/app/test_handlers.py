"""Each event is answered for the photograph that is chosen, however quick the visitor is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import afmi.app.choices as choices_module
from afmi.app import work
from afmi.app.choices import Choices
from afmi.app.handlers import Handlers
from afmi.app.photographs import Photograph
from afmi.app.sessions import Session
from afmi.network.memory import TOO_LITTLE_MEMORY
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


def test_methods_are_listed_once_the_page_is_open(handlers: Handlers, choices: Choices) -> None:
    method, reference, layer, go, methods, both = handlers.list_methods()
    assert (method["value"], method["interactive"]) == ("A-FMI", True)
    assert [label for _, label in method["choices"]] == list(choices.methods)
    assert reference["interactive"] and layer["interactive"] and go["interactive"]
    assert methods["value"] == choices.beside
    assert all(name in methods["info"] for name in choices.refused)
    assert both["interactive"]


def test_a_photograph_that_comes_before_the_methods_are_listed_is_explained(
    handlers: Handlers, session: Session
) -> None:
    session.take(work.chosen_subject(session).photograph)
    text, _ = handlers.explain_first(session, None, None, None, "", "", lambda *_, **__: None)
    assert "A-FMI" in text


def test_it_is_said_where_the_methods_cannot_be_tried(
    handlers: Handlers, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> None:
        raise MemoryError

    fresh = Choices.of(handlers._choices.model)
    monkeypatch.setattr(handlers, "_choices", fresh)
    monkeypatch.setattr(choices_module, "_methods", fail)
    method, *_, methods, both = handlers.list_methods()
    assert method["info"].startswith("That did not work: ")
    assert TOO_LITTLE_MEMORY in method["info"]
    assert method["info"] == methods["info"]
    assert both == gradio.skip()
