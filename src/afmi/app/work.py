"""What the page does with a photograph: predict, explain, keep the top pixels, compare, save."""

from __future__ import annotations

import dataclasses
import secrets
import tempfile
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from afmi.api import explain
from afmi.app.choices import REFERENCES, Choices, MethodChoice
from afmi.app.photographs import Photograph
from afmi.app.sessions import Explained, Session, Subject, noted_warnings
from afmi.comparison import Comparison, compare, inserted_responses
from afmi.errors import UsageError
from afmi.explanation import Explanation
from afmi.files import slug
from afmi.network.classifier import classify
from afmi.network.outputs import responses
from afmi.progress import Reporter
from afmi.targets import Class, Difference, OneTarget, Output

__all__ = [
    "CURVE",
    "MOST_METHODS",
    "TOP",
    "Asked",
    "Prediction",
    "chosen_method",
    "chosen_subject",
    "compare_methods",
    "explain_photograph",
    "kept_response",
    "predict",
    "saved_archive",
]

TOP = 5
"""How many classes are shown."""
MOST_METHODS = 8
"""How many methods stand side by side at most."""
CURVE = (0.01, 0.02, 0.05, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0)
"""Shares of the pixels at which the curve is computed."""


@dataclass(frozen=True)
class Prediction:
    """What the network says of a class.

    Attributes:
        index: of the class or output.
        label: its name.
        response: its probability, or the value.
    """

    index: int
    label: str
    response: float


@dataclass(frozen=True)
class Asked:
    """What a visitor wants explained, and how.

    Attributes:
        of: the class or output, by its index; None: the predicted class.
        versus: the class that it is set against; None: none.
        method: the label of one of `Choices.methods`.
        reference: the text of one; None: the method's own.
        layer: its name; None: found automatically.
    """

    of: int | None
    versus: int | None
    method: str
    reference: str | None
    layer: str | None

    def target(self, choices: Choices) -> OneTarget | None:
        """Return the target."""
        if not choices.has_classes:
            return Output(self.of or 0)
        if self.versus is not None:
            return Difference(self.of, self.versus)
        return None if self.of is None else Class(self.of)


def predict(choices: Choices, photograph: Photograph) -> list[Prediction]:
    """Return the most probable classes from the most probable down, or values in their order."""
    scores = classify(choices.model, photograph.inputs)[0]
    if choices.has_classes:
        answers = responses(scores.to("cpu", torch.float64), choices.meaning)
        # Stable, so that among equals the first comes first, as with arg-max.
        ranked = scores.argsort(descending=True, stable=True)[:TOP].tolist()
    else:
        answers, ranked = scores.cpu(), range(min(len(scores), TOP))
    return [Prediction(k, choices.labels[k], float(answers[k])) for k in ranked]


def explain_photograph(
    choices: Choices, session: Session, asked: Asked, show: Reporter
) -> tuple[Photograph, Explanation, list[str]]:
    """Explain the photograph of a session, and keep the explanation there.

    Args:
        choices: of the network.
        session: the visitor's.
        asked: what is to be explained.
        show: gets the progress.

    Returns:
        The photograph, its explanation, and what the visitor is to be warned of.

    Raises:
        StoppedError: the visitor stopped it.
        AfmiError: it cannot be explained so.
    """
    choice = chosen_method(choices, asked.method)
    given = {}
    if asked.reference is not None and choice.takes_reference:
        # Of those that are listed alone: another text could name a file of this machine.
        given["reference"] = _listed(asked.reference, [value for _, value in REFERENCES])
    if asked.layer is not None and choice.takes_layer:
        given["layer"] = _listed(asked.layer, [layer.layer for layer in choices.layers])
    with noted_warnings() as notes, session.working(show) as check:
        subject = chosen_subject(session)
        photograph = subject.photograph
        method = dataclasses.replace(choice.method, **given)
        made = explain(None, photograph.inputs, asked.target(choices), method=method)
        check()
        explanation = dataclasses.replace(made, method=asked.method, source=photograph.name)
        subject.explained = Explained(explanation)
    return photograph, explanation, notes


def compare_methods(
    choices: Choices, session: Session, asked: Asked, methods: Sequence[str], show: Reporter
) -> Comparison:
    """Explain the photograph of a session by several methods, with their own references and layers.

    Args:
        choices: as in `explain_photograph`.
        session: as in `explain_photograph`.
        asked: whose target is explained.
        methods: labels of `Choices.methods`.
        show: as in `explain_photograph`.

    Raises:
        StoppedError: the visitor stopped it.
        AfmiError: none of them can be used.
    """
    if not 1 <= len(methods) <= MOST_METHODS:
        raise UsageError(f"expected one to {MOST_METHODS} methods, got {len(methods)}")
    chosen = [chosen_method(choices, label).method for label in methods]
    with noted_warnings(), session.working(show) as check:
        subject = chosen_subject(session)
        photograph = subject.photograph
        made = compare(
            choices.model,
            photograph.inputs,
            asked.target(choices),
            methods=chosen,
            on_result=lambda *_: check(),
            progress=False,
        )
        check()
        named = [dataclasses.replace(one, source=photograph.name) for one in made.explanations]
        comparison = dataclasses.replace(made, explanations=tuple(named))
        subject.comparison = comparison
    return comparison


def kept_response(
    choices: Choices, photograph: Photograph, explained: Explained, fraction: float
) -> float:
    """Return what the network answers for the pixels that an explanation puts first.

    The curve of it, at the shares of `CURVE`, is kept beside the explanation.

    Args:
        choices: as in `explain_photograph`.
        photograph: that is explained.
        explained: its explanation.
        fraction: share of the pixels, from 0 to 1.
    """
    wanted = (fraction, *(() if explained.curve else CURVE))
    answer, *curve = inserted_responses(
        choices.model, photograph.inputs, explained.explanation, wanted
    )
    if curve:
        explained.curve = tuple(curve)
    return answer


def saved_archive(saved: Explanation | Comparison | None, folder: Path) -> Path:
    """Write what `Explanation.save`, or `Comparison.save`, writes into one zip file.

    Args:
        saved: what is saved; of a comparison each explanation, too.
        folder: of the file, to which a folder of a name that nobody guesses is added.
    """
    if saved is None:
        raise UsageError("nothing is explained yet, so there is nothing to save")
    place = folder / secrets.token_hex(16)
    place.mkdir(parents=True)
    each = [saved] if isinstance(saved, Explanation) else list(saved.explanations)
    first = each[0]
    names = [Path(first.source or "image").stem, first.label]
    names.append(first.method if isinstance(saved, Explanation) else "comparison")
    archive = place / f"{'-'.join(slug(name, 60) for name in names).lower()}.zip"
    with tempfile.TemporaryDirectory() as written:
        for one in (*each, *([saved] if isinstance(saved, Comparison) else [])):
            one.save(written)
        with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as file:
            for path in sorted(Path(written).iterdir()):
                file.write(path, path.name)
    return archive


def _listed(value: str, values: Sequence[str]) -> str:
    if value not in values:
        raise UsageError(f"expected one of {', '.join(values)}, got {value!r}")
    return value


def chosen_subject(session: Session) -> Subject:
    """Return the photograph of a session, with what was made of it."""
    subject = session.subject
    if subject is None:
        raise UsageError("no photograph is chosen yet; drop one, or take one of the examples")
    return subject


def chosen_method(choices: Choices, label: str) -> MethodChoice:
    """Return a method by its label."""
    if label not in choices.methods:
        raise UsageError(f"this network does not allow the method {label!r}; choose another")
    return choices.methods[label]
