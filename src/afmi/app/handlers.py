"""What happens when a visitor chooses something: each function answers one event of the page.

Gradio takes seconds to import, so that nothing here imports it before there is a page.
"""

from __future__ import annotations

import html
import inspect
import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from afmi.app import words, work
from afmi.app.choices import Choices
from afmi.app.photographs import Example, Photograph, frame_content, uploaded_content
from afmi.app.sessions import Session, StoppedError
from afmi.errors import AfmiError, one_line
from afmi.network.memory import TOO_LITTLE_MEMORY, from_lack_of_memory
from afmi.progress import Reporter

__all__ = ["NO_CLASS", "Handlers", "in_words", "with_event", "with_progress"]

NO_CLASS = -1
"""Stands for no class in a list of them."""

_TIMES = "Times are for this computer."
_FAILED = "That did not work"
_LOG = logging.getLogger(__name__)


def in_words(error: Exception) -> str:
    """Return one line for the visitor; what nobody expected goes to the server's log as well."""
    if isinstance(error, AfmiError):
        return one_line(error)
    if from_lack_of_memory(error):
        return f"The photograph cannot be explained so: {TOO_LITTLE_MEMORY}."
    _LOG.error("unexpected error", exc_info=error)
    return f"unexpected {type(error).__name__}; the log of the server says where"


def with_progress(handler: Callable[..., Any], inputs: int) -> Callable[..., Any]:
    """Return a handler in the form in which Gradio hands over what shows progress, as the last.

    Args:
        handler: takes it behind the inputs.
        inputs: how many there are.
    """
    import gradio as gr

    def run(*values: Any) -> Any:
        return handler(*values)

    kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
    names = [inspect.Parameter(f"input{k}", kind) for k in range(inputs)]
    last = inspect.Parameter("progress", kind, default=gr.Progress())
    vars(run)["__signature__"] = inspect.Signature([*names, last])
    return run


def with_event(handler: Callable[..., Any], kind: type) -> Callable[..., Any]:
    """Return a handler of a session in the form in which Gradio hands over what happened.

    Args:
        handler: takes the session, and the event.
        kind: Gradio's class of the event.
    """

    def run(session: Any, event: Any) -> Any:
        return handler(session, event)

    run.__annotations__ = {"event": kind}  # the class itself: Gradio resolves no text here
    return run


class Handlers:
    """The functions that answer events, for one network.

    Those of a photograph's arrival return what the page shows of it: a preview, predictions, frame
    slider, class, other class, map, its record, top pixels, comparison, its records.

    Args:
        choices: of the network.
        offered: the examples.
        uploads: the folder in which uploads lie.
    """

    def __init__(self, choices: Choices, offered: Sequence[Example], uploads: Path) -> None:
        import gradio

        self._gr: Any = gradio
        self._uploads = uploads
        self._choices = choices
        self._offered = offered

    def list_methods(self) -> tuple[Any, ...]:
        """Return what is listed once the methods were tried.

        The method, its reference, its layer and button, the methods side by side and their button.
        """
        update, same = self._gr.update, self._gr.skip()
        try:
            listed, first = self._choices.methods_in_words, self._choices.first.label
        except Exception as error:  # such as too little memory; the next visit tries again
            failed = update(info=f"{_FAILED}: {in_words(error)}")
            return failed, same, same, same, failed, same
        beside, without = self._choices.beside, self._choices.without
        about = f"Each with its own reference and layer.{without}"
        return (
            update(choices=listed, value=first, interactive=True, info=_TIMES),
            *self.choose_method(first),
            update(choices=listed, value=beside, interactive=True, info=about),
            self.choose_methods(beside),
        )

    def take(self, session: Session, upload: Any) -> tuple[Any, ...]:
        """Take an uploaded photograph; None: it was removed."""
        if upload is None:
            session.take(None)
            return self._nothing()
        content = partial(uploaded_content, upload, self._uploads)
        return self._arrived(session, lambda: Photograph.of(self._choices.model, content()))

    def take_example(self, session: Session, event: Any) -> tuple[Any, ...]:
        """Take the example at ``event.index``."""
        return self._arrived(
            session,
            lambda: Photograph.of(self._choices.model, self._offered[event.index].content),
        )

    def take_frame(self, session: Session, event: Any) -> tuple[Any, ...]:
        """Take a frame of a video, which the browser decoded."""
        sent = event._data if isinstance(event._data, dict) else {}
        content = partial(frame_content, sent.get("frame"), sent.get("name"))
        return self._arrived(session, lambda: Photograph.of(self._choices.model, content()))

    def turn(self, session: Session, number: float) -> tuple[Any, ...]:
        """Take another frame, from 1, of the same file."""
        return self._arrived(
            session,
            lambda: work.chosen_subject(session).photograph.at_page(
                self._choices.model, int(number) - 1
            ),
        )

    def explain(
        self,
        session: Session,
        of: int | None,
        versus: int | None,
        method: str,
        reference: str,
        layer: str,
        progress: Any,
    ) -> tuple[Any, ...]:
        """Return the map, and the button that saves its record."""
        with self._told():
            return self._explained(session, _asked(of, versus, method, reference, layer), progress)

    def explain_first(
        self,
        session: Session,
        of: int | None,
        versus: int | None,
        method: str | None,
        reference: str,
        layer: str,
        progress: Any,
    ) -> tuple[Any, ...]:
        """Do as `explain` for a photograph that has just arrived, unless that takes long.

        It may have come before the methods are listed, of which the first is chosen then.
        """
        with self._told():
            if session.subject is None:
                return self._gr.skip(), self._gr.skip()
            choice = work.chosen_method(self._choices, method or self._choices.first.label)
            if not choice.quick:
                text = f"Press Explain: {choice.label} takes {choice.cost}."
                return words.waiting_html(text), self._gr.skip()
            wanted = _asked(of, versus, choice.label, reference, layer)
            return self._explained(session, wanted, progress)

    def keep(self, session: Session, share: float) -> Any:
        """Return the top pixels, so many per cent, and what the network says of them."""
        with self._told():
            subject = session.subject
            explained = None if subject is None else subject.explained
            if subject is None or explained is None:
                return words.waiting_html()
            fraction = min(max(share / 100, 0.0), 1.0)
            response = work.kept_response(self._choices, subject.photograph, explained, fraction)
            if session.subject is not subject:  # another one was chosen meanwhile
                return self._gr.skip()
            return words.kept_html(explained.explanation, fraction, response, explained.curve)

    def save(self, session: Session, folder: Path) -> Path:
        """Write the record of the explanation into a folder."""
        with self._told():
            explained = None if session.subject is None else session.subject.explained
            return work.saved_archive(explained and explained.explanation, folder)

    def save_comparison(self, session: Session, folder: Path) -> Path:
        """Likewise of the comparison."""
        with self._told():
            comparison = None if session.subject is None else session.subject.comparison
            return work.saved_archive(comparison, folder)

    def compare(
        self,
        session: Session,
        of: int | None,
        versus: int | None,
        methods: list[str],
        progress: Any,
    ) -> tuple[Any, ...]:
        """Return the maps side by side, and the button that saves their records."""
        with self._told():
            wanted = _asked(of, versus, "", "", "")
            show = _reporter(progress)
            made = work.compare_methods(self._choices, session, wanted, methods, show)
            return words.comparison_html(made), self._gr.update(interactive=True)

    def stop(self, session: Session) -> None:
        """Let the visitor's work end."""
        session.stop()
        self._gr.Info("The work ends at its next step.", title="Stopped")

    def choose_method(self, method: str) -> tuple[Any, ...]:
        """Return what can be chosen of a method: reference, layer, the button's text."""
        choice, update = self._choices.methods[method], self._gr.update
        return (
            update(value="", interactive=choice.takes_reference, info=choice.about_reference),
            update(value="", interactive=choice.takes_layer, info=choice.about_layer),
            update(value=choice.button, interactive=True),
        )

    def choose_methods(self, methods: list[str]) -> Any:
        """Return the button that compares methods."""
        text = f"Compare ({self._choices.cost(methods)})" if methods else "Compare"
        return self._gr.update(value=text, interactive=bool(methods))

    @contextmanager
    def _told(self) -> Iterator[None]:
        """Turn what goes wrong into one line for the visitor."""
        try:
            yield
        except StoppedError:
            text = "The work was stopped, or another photograph was chosen."
            raise self._gr.Error(text, title="Stopped", print_exception=False) from None
        except Exception as error:
            text = html.escape(in_words(error))
            raise self._gr.Error(text, 20, title=_FAILED, print_exception=False) from None

    def _cleared(self) -> tuple[Any, ...]:
        off = self._gr.update(interactive=False)
        return words.waiting_html(), off, words.waiting_html(), "", off

    def _nothing(self) -> tuple[Any, ...]:
        hidden, same = self._gr.update(visible=False), self._gr.skip()
        return (None, hidden, hidden, same, same, *self._cleared())

    def _arrived(self, session: Session, read: Callable[[], Photograph]) -> tuple[Any, ...]:
        try:
            photograph = read()
            predictions = work.predict(self._choices, photograph)
        except Exception as error:
            # Nothing of the photograph before stays beside the name of another.
            session.take(None)
            self._gr.Warning(html.escape(in_words(error)), 20, title=_FAILED)
            return self._nothing()
        session.take(photograph)
        turning = self._gr.update(
            visible=photograph.pages > 1,
            maximum=max(photograph.pages, 2),
            value=photograph.page + 1,
            label=f"Frame, of {photograph.pages}",
        )
        table = words.predictions_html(self._choices, predictions)
        shown = self._gr.update(value=table, visible=True)
        news = (shown, turning, predictions[0].index, NO_CLASS, *self._cleared())
        return (photograph.preview(), *news)

    def _explained(self, session: Session, wanted: work.Asked, progress: Any) -> tuple[Any, ...]:
        show = _reporter(progress)
        photograph, explanation, notes = work.explain_photograph(
            self._choices, session, wanted, show
        )
        checks = words.checks_of(explanation, notes)
        text = words.map_html(explanation, photograph, checks)
        return text, self._gr.update(interactive=True)


def _asked(of: int | None, versus: int | None, *how: str) -> work.Asked:
    method, reference, layer = how
    other = None if versus in (None, NO_CLASS) else versus
    return work.Asked(of, other, method, reference or None, layer or None)


def _reporter(progress: Any) -> Reporter:
    return lambda what, done, total: progress((done, total), desc=what, unit="steps")
