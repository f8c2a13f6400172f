"""What the page says of an explanation, and that names cannot become HTML."""

from __future__ import annotations

from dataclasses import replace

import pytest

from afmi.app import words, work
from afmi.app.choices import Choices
from afmi.app.handlers import in_words
from afmi.app.photographs import Photograph
from afmi.app.sessions import Session
from afmi.errors import ImageError
from afmi.explanation import Explanation
from afmi.network.memory import TOO_LITTLE_MEMORY
from afmi.pictures.images import FileContent


@pytest.fixture
def session(choices: Choices, content: FileContent) -> Session:
    made = Session()
    made.take(Photograph.of(choices.model, content))
    work.explain_photograph(
        choices, made, work.Asked(4, None, "A-FMI", None, None), lambda *_: None
    )
    return made


@pytest.fixture
def explanation(session: Session) -> Explanation:
    assert session.subject is not None and session.subject.explained is not None
    return session.subject.explained.explanation


@pytest.mark.parametrize(
    ("residual", "kind", "text"),
    [
        (0.0001, "good", "The map accounts for the score to within 0.1%."),
        (-0.08, "note", "The map accounts for the score to within 8%."),
        (-0.28, "care", "The map misses 28% of what it should account for: treat it with care."),
        (None, "note", "There is no sum to check"),
    ],
)
def test_residuals_in_words(
    explanation: Explanation, residual: float | None, kind: str, text: str
) -> None:
    checks = words.checks_of(replace(explanation, residual=residual, agreement=None))
    assert any(check.kind == kind and check.text.startswith(text) for check in checks)


def test_what_calls_for_care_comes_first(explanation: Explanation) -> None:
    checks = words.checks_of(
        replace(explanation, agreement=0.1, predicted=0, predicted_label="tabby cat"),
        ["something is assumed"],
    )
    care = [check.text for check in checks if check.kind == "care"]
    assert [check.kind for check in checks][: len(care)] == ["care"] * len(care)
    assert any("predicts something else: tabby cat" in text for text in care)
    assert any(text.startswith("Averaging hides evidence") for text in care)
    assert "Something is assumed." in care
    assert any("at the layer 1" in check.text or "compared with" in check.text for check in checks)


def test_labels_stay_text(choices: Choices, session: Session, explanation: Explanation) -> None:
    subject = session.subject
    assert subject is not None and subject.explained is not None
    photograph, explained = subject.photograph, subject.explained
    response = work.kept_response(choices, photograph, explained, 0.1)
    comparison = work.compare_methods(
        choices, session, work.Asked(4, None, "", None, None), ["A-FMI"], lambda *_: None
    )
    pieces = [
        words.predictions_html(choices, work.predict(choices, photograph)),
        words.map_html(explanation, photograph, words.checks_of(explanation)),
        words.kept_html(explanation, 0.1, response, explained.curve),
        words.comparison_html(comparison),
    ]
    for piece in pieces:
        assert "&lt;b&gt;owl&lt;/b&gt;" in piece
        assert "<b>owl</b>" not in piece
        assert "http" not in piece.replace("http://www.w3.org", "")


def test_the_maps_picture_has_words(session: Session, explanation: Explanation) -> None:
    assert session.subject is not None
    piece = words.map_html(explanation, session.subject.photograph, [])
    assert explanation.where in piece.lower()
    assert "blue: speaks against it" in piece and "red: speaks for it" in piece
    assert "inside of the frame only" in piece  # it is wider than high, and the crop is square


def test_errors_are_one_line_without_a_trace(caplog: pytest.LogCaptureFixture) -> None:
    assert in_words(ImageError("'x' is empty\nget it again")) == "'x' is empty get it again"
    assert TOO_LITTLE_MEMORY in in_words(MemoryError("12345 bytes"))
    assert "12345" not in in_words(MemoryError("12345 bytes"))
    assert not caplog.records
    assert in_words(KeyError("/secret/place")) == (
        "unexpected KeyError; the log of the server says where"
    )
    assert len(caplog.records) == 1
