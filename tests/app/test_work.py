"""The page explains as `afmi.explain` does, for one visitor at a time, until it is stopped."""

from __future__ import annotations

import threading
import warnings
import zipfile
from pathlib import Path

import pytest
import torch

import afmi
from afmi.app import work
from afmi.app.choices import Choices
from afmi.app.photographs import Photograph
from afmi.app.sessions import Explained, Session, StoppedError, noted_warnings
from afmi.errors import TargetError, UsageError
from afmi.explanation import Explanation, Gallery
from afmi.pictures.images import FileContent
from afmi.progress import report
from afmi.targets import response


def silent(what: str, done: int, total: int) -> None:
    """Show no progress."""


@pytest.fixture
def session(choices: Choices, content: FileContent) -> Session:
    made = Session()
    made.take(Photograph.of(choices.model, content))
    return made


def photograph_of(session: Session) -> Photograph:
    return work.chosen_subject(session).photograph


def explained_of(session: Session) -> Explained:
    explained = work.chosen_subject(session).explained
    assert explained is not None
    return explained


def asked(method: str = "A-FMI", of: int | None = None, versus: int | None = None) -> work.Asked:
    return work.Asked(of, versus, method, None, None)


def test_the_most_probable_classes_come_first(choices: Choices, session: Session) -> None:
    predictions = work.predict(choices, photograph_of(session))
    answers = choices.model(photograph_of(session).inputs).softmax(1)[0]
    assert [one.index for one in predictions] == answers.argsort(descending=True).tolist()
    assert [one.response for one in predictions] == pytest.approx(
        answers.sort(descending=True).values.tolist()
    )


def test_it_explains_as_afmi_does(choices: Choices, session: Session) -> None:
    wanted = work.Asked(3, None, "A-FMI (averaged=false)", "white", "2")
    photograph, explanation, notes = work.explain_photograph(choices, session, wanted, silent)
    expected = afmi.explain(
        choices.model,
        photograph.inputs,
        3,
        averaged=False,
        reference="white",
        layer="2",
    )
    assert torch.equal(explanation.map, expected.map)
    assert (explanation.source, explanation.layer, explanation.reference) == (
        "red.png",
        "2",
        "white",
    )
    assert explained_of(session).explanation is explanation
    assert photograph_of(session) is photograph
    assert notes == []


def test_a_class_rather_than_another(choices: Choices, session: Session) -> None:
    _, explanation, _ = work.explain_photograph(choices, session, asked(of=0, versus=1), silent)
    assert explanation.label == "tabby cat rather than tiger cat"
    with pytest.raises(TargetError, match="expected two classes"):
        work.explain_photograph(choices, session, asked(of=1, versus=1), silent)


def test_nothing_is_explained_without_a_photograph(choices: Choices) -> None:
    with pytest.raises(UsageError, match="no photograph is chosen yet"):
        work.explain_photograph(choices, Session(), asked(), silent)
    with pytest.raises(UsageError, match="does not allow the method 'Nonsense'"):
        work.chosen_method(choices, "Nonsense")


def test_only_what_is_listed_can_be_asked_for(choices: Choices, session: Session) -> None:
    for reference, layer in (("/etc/passwd", None), ("image:source=x.png", None), (None, "0")):
        wanted = work.Asked(None, None, "A-FMI", reference, layer)
        with pytest.raises(UsageError, match="expected one of"):
            work.explain_photograph(choices, session, wanted, silent)


def test_the_top_pixels_alone(choices: Choices, session: Session) -> None:
    work.explain_photograph(choices, session, asked(), silent)
    photograph, explained = photograph_of(session), explained_of(session)
    answer = work.kept_response(choices, photograph, explained, 0.25)
    inputs, explanation = photograph.inputs, explained.explanation
    kept = inputs * afmi.maps.top_mask(explanation.map[None, None], 0.25)
    assert answer == pytest.approx(float(response(choices.model, explanation.target, kept)))
    assert len(explained.curve) == len(work.CURVE)
    assert explained.curve[-1] == pytest.approx(explanation.probability)


@pytest.mark.usefixtures("small_figures")
def test_records_are_opened_again(choices: Choices, session: Session, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="nothing to save"):
        work.saved_archive(None, tmp_path)
    _, explanation, _ = work.explain_photograph(choices, session, asked(), silent)
    comparison = work.compare_methods(choices, session, asked(), ["A-FMI", "Grad-CAM"], silent)
    for saved, count in ((explanation, 1), (comparison, 2)):
        archive = work.saved_archive(saved, tmp_path / "saved")
        with zipfile.ZipFile(archive) as file:
            file.extractall(folder := tmp_path / archive.stem)
            assert b"/tmp" not in b"".join(file.read(n) for n in file.namelist() if "json" in n)
        assert len(Gallery.load(folder)) == count
    again = Explanation.load(next(tmp_path.glob("red-*-a-fmi/*.json")))
    assert torch.equal(again.map, explanation.map)
    assert again.source == "red.png"


def test_a_method_is_stopped_at_its_next_step(choices: Choices, session: Session) -> None:
    steps: list[int] = []
    before = choices.model.training

    def show(what: str, done: int, total: int) -> None:
        steps.append(done)
        if len(steps) == 2:
            session.stop()

    with pytest.raises(StoppedError):
        work.explain_photograph(choices, session, asked("RISE"), show)
    assert len(steps) == 2
    assert work.chosen_subject(session).explained is None
    assert choices.model.training == before


def test_what_comes_for_another_photograph_is_not_kept(
    choices: Choices, session: Session, content: FileContent
) -> None:
    with session.working(silent) as check:
        session.take(Photograph.of(choices.model, content))
        with pytest.raises(StoppedError):
            check()
    with session.working(silent):
        report("masks", 0, 1)  # by work that began later


def test_each_visitor_is_warned_of_their_own() -> None:
    both = threading.Barrier(2, timeout=10)
    notes: dict[str, list[str]] = {}

    def visit(name: str) -> None:
        with noted_warnings() as noted:
            both.wait()
            warnings.warn(f"a warning for {name}", UserWarning, stacklevel=1)
            warnings.warn(f"a warning for {name}", UserWarning, stacklevel=1)
            both.wait()
        notes[name] = noted

    threads = [threading.Thread(target=visit, args=(name,)) for name in ("ada", "ben")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert notes == {"ada": ["a warning for ada"], "ben": ["a warning for ben"]}


def test_no_warning_is_lost_to_a_file_that_is_read_meanwhile() -> None:
    with noted_warnings():  # as the page does before the first visitor
        pass
    other = warnings.catch_warnings()
    other.__enter__()
    with noted_warnings() as notes:
        other.__exit__(None, None, None)
        warnings.warn("something is assumed", UserWarning, stacklevel=1)
    assert notes == ["something is assumed"]
