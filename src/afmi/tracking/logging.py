"""Log explanations where a training is tracked, so that they can be followed from step to step."""

from __future__ import annotations

import io
import operator
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Literal, TypeAlias

import PIL.Image

from afmi.batching import Unexplained
from afmi.comparison import Comparison
from afmi.errors import UsageError
from afmi.explanation import Explanation
from afmi.files import slug
from afmi.pictures.figures import figure_png
from afmi.tracking.writers import Entry, Writer, writer_of

__all__ = ["Picture", "log", "tag_of", "write"]

Picture: TypeAlias = Literal["figure", "overlay"]


def log(
    explanation: Explanation | Comparison | Iterable[Explanation],
    step: int,
    to: Any,
    *,
    key: str = "explanations",
    picture: Picture = "figure",
) -> tuple[str, ...]:
    """Log an explanation at a step of a training: its picture, its numbers and its record.

    The tags are the same at every step, so that a slider goes through the pictures:
    ``explanations/dog`` of the file ``dog.jpg`` (``image`` of what comes from memory), and in a
    list ``explanations/0-dog``, ``explanations/1-cat``. Below that are ``score``, and
    ``probability`` and ``residual`` where they exist, and ``record``, the JSON record.

    Args:
        explanation: one, several (a `Gallery`, what `afmi.explain_many` yields), or a
            `Comparison`.
        step: of the training, from 0.
        to: a ``SummaryWriter`` of TensorBoard or tensorboardX; a run of Weights & Biases, or the
            module ``wandb`` while one is active; a run of MLflow, ``(MlflowClient(), run_id)``, or
            the module ``mlflow`` while a run is active; or a logger of Lightning's around one.
        key: what the tags begin with.
        picture: the whole figure, or the overlay alone, which is drawn faster.

    Returns:
        The tags, one for each picture.

    Raises:
        UsageError: when ``to`` is something else, or there is nothing to log.

    Example:
        >>> import torch
        >>> from afmi import Classifier, explain
        >>> class Printer:  # in place of torch.utils.tensorboard.SummaryWriter
        ...     def add_image(self, tag, pixels, step, dataformats): print(tag, step, pixels.dtype)
        ...     def add_scalar(self, tag, value, step): print(tag)
        ...     def add_text(self, tag, text, step): print(tag)
        >>> network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(48, 2))
        >>> explanation = explain(Classifier(network), torch.rand(3, 4, 4), method="gradient")
        >>> _ = log(explanation, 10, to=Printer(), picture="overlay")
        explanations/image 10 uint8
        explanations/image/score
        explanations/image/probability
        explanations/image/record
    """
    writer, step = writer_of(to), _checked_step(step)
    if not slug(key, 80):
        raise UsageError(f"expected a key with letters or digits, got {key!r}")
    if isinstance(explanation, (Explanation, Comparison)):
        each = [(tag_of(key, explanation), explanation)]
    else:
        several = enumerate(_checked(explanation))
        each = [(tag_of(key, one, n), one) for n, one in several]
    if not each:
        raise UsageError("expected an explanation, got an empty list")
    for tag, one in each:
        write(one, tag, step, writer, key=key, picture=picture)
    return tuple(tag for tag, _ in each)


def tag_of(key: str, of: Explanation | Comparison, place: int | None = None) -> str:
    """Return the tag of an explanation, which nothing that changes in a training decides."""
    source = (of if isinstance(of, Explanation) else of.explanations[0]).source
    name = slug(Path(source).stem if source else "", 80) or "image"
    return f"{key}/{name}" if place is None else f"{key}/{place}-{name}"


def write(
    of: Explanation | Comparison,
    tag: str,
    step: int,
    writer: Writer,
    *,
    key: str,
    picture: Picture,
) -> None:
    """Write one explanation or comparison under a tag."""
    if picture not in ("figure", "overlay"):
        raise UsageError(f"expected picture as 'figure' or 'overlay', got {picture!r}")
    if isinstance(of, Explanation):
        scalars = {"score": of.score, "probability": of.probability, "residual": of.residual}
        image = of.overlay() if picture == "overlay" else _drawn(of)
        caption = str(of)
    else:
        first = of.explanations[0]
        scalars = {"score": first.score, "probability": first.probability}
        scalars |= {f"{slug(e.method, 80)}/residual": e.residual for e in of.explanations}
        image, caption = _drawn(of), of.alt_text
    known = {name: value for name, value in scalars.items() if value is not None}
    writer.write(Entry(key, tag, step, image, caption, known, of.to_dict()))


def _drawn(of: Explanation | Comparison) -> PIL.Image.Image:
    figure_png(of.figure(), buffer := io.BytesIO())
    return PIL.Image.open(buffer).convert("RGB")


def _checked(explanations: Iterable[Any]) -> Iterator[Explanation]:
    if not isinstance(explanations, Iterable):
        raise UsageError(
            f"expected an explanation, a list of them or a comparison, got {explanations!r:.80}"
        )
    for one in explanations:
        if isinstance(one, Unexplained):
            raise UsageError(f"expected explanations only, got one that failed: {one.reason}")
        if not isinstance(one, Explanation):
            raise UsageError(f"expected explanations only, got {one!r:.80}")
        yield one


def _checked_step(step: Any) -> int:
    try:
        whole = -1 if isinstance(step, bool) else operator.index(step)
    except TypeError:
        whole = -1
    if whole < 0:
        raise UsageError(f"expected step as a whole number from 0, got {step!r:.80}")
    return whole
