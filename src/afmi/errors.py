"""The errors that afmi raises: each says what was expected, what came, and what to do."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

__all__ = [
    "AfmiError",
    "CompletenessWarning",
    "ConditioningWarning",
    "DeviceError",
    "ExportError",
    "ImageError",
    "ImageIndependenceWarning",
    "LayerError",
    "MissingPackageError",
    "ModelError",
    "OperationError",
    "OutputsWarning",
    "PreprocessingWarning",
    "RecordError",
    "ShapeError",
    "SourceError",
    "TargetError",
    "UsageError",
    "near_matches",
    "one_line",
]


class AfmiError(Exception):
    """Base of every error that afmi raises on purpose; its text is meant for the user."""


class UsageError(AfmiError, ValueError):
    """An option or hyperparameter has a value that cannot be used."""


class ShapeError(AfmiError, ValueError):
    """A tensor has the wrong shape, dtype or device."""


class TargetError(AfmiError, ValueError):
    """A class index is out of range, or a label names no class or several."""


class LayerError(AfmiError, ValueError):
    """A layer does not exist, was not reached, or does not give feature maps (N, K, h, w)."""


class ImageError(AfmiError, ValueError):
    """A file cannot be read as an image."""


class RecordError(AfmiError, ValueError):
    """A file is no record of an explanation, is damaged, or lacks what lies beside it."""


class SourceError(AfmiError, ConnectionError):
    """The place that images come from cannot be reached, or ends where it should not."""


class MissingPackageError(AfmiError, ImportError):
    """A part of afmi needs a package that is not installed; says how to install it."""


class ModelError(AfmiError, ValueError):
    """A network cannot be built, loaded or called."""


class OperationError(AfmiError, NotImplementedError):
    """The network has an operation without a rule, or one through which no gradient passes."""


class ExportError(AfmiError, RuntimeError):
    """A network and its maps cannot be written as a file for another runtime."""


class DeviceError(AfmiError):
    """A device works no longer, as a GPU after an assertion of its own, or one that is lost.

    Args:
        reason: which device, and since when.
    """

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason

    def __str__(self) -> str:
        return (
            f"{self.reason}; start the command again, in a new process: evaluations and data sets "
            "resume after the last finished piece"
        )


class CompletenessWarning(UserWarning):
    """The modified gradients do not sum to the change of the output as they must."""


class ConditioningWarning(CompletenessWarning):
    """A part of the network turns rounding errors into what the modified gradients rest on."""


class OutputsWarning(UserWarning):
    """What a network's outputs mean was concluded from how they look."""


class ImageIndependenceWarning(UserWarning):
    """A map follows from the network and the class alone, and is the same for every image."""


class PreprocessingWarning(UserWarning):
    """A network sees pictures as they are, because nobody said how they are prepared for it."""


def near_matches(word: str, choices: Iterable[str], count: int = 5) -> str:
    """Return a clause such as ``"; did you mean 'layer4'?"``, or "" when nothing is near.

    Args:
        word: what the user typed.
        choices: what would have been accepted.
        count: the most choices to name.
    """
    known = list(dict.fromkeys(choices))
    by_folded = {choice.casefold(): choice for choice in reversed(known)}
    folded = word.casefold()
    near = [by_folded[m] for m in difflib.get_close_matches(folded, by_folded, count, 0.6)]
    near += [c for c in known if folded and folded in c.casefold() and c not in near]
    near = near[:count]
    if not near:
        return ""
    return "; did you mean " + ", ".join(repr(choice) for choice in near) + "?"


def first_line(error: BaseException | None) -> str:
    """Return the first line of an error's text, cut where it is long."""
    lines = str(error).strip().splitlines()
    return lines[0][:200] if lines else "(no message)"


_LONGEST_LINE = 1000
"""Characters: an error of another package may hold a whole tensor."""


def one_line(error: BaseException) -> str:
    """Return what an error says in one line, with its type where it is not one of ours.

    A row of results that stands for an image says this.

    Example:
        >>> one_line(KeyError("maps")), one_line(ValueError())
        ("KeyError: 'maps'", 'ValueError: no message')
    """
    text = " ".join(str(error).split())
    if not (isinstance(error, AfmiError) and text):
        text = f"{type(error).__name__}: {text or 'no message'}"
    return text[:_LONGEST_LINE]
