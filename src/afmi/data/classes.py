"""Find a model's classes by name, strictly: names must match as a whole, and one class only.

A wrong label is the worst error of an evaluation, because nothing reveals it later.
"""

from __future__ import annotations

import importlib.resources
import re
import unicodedata
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, cached_property

from afmi.data.listing import listed
from afmi.errors import TargetError, near_matches
from afmi.models.torchvision import imagenet_labels

__all__ = ["WNID", "Classes", "imagenet_wnids"]

WNID = re.compile(r"(?<![0-9A-Za-z])n\d{8}(?!\d)")
"""An ImageNet id in a text."""


def imagenet_wnids() -> tuple[str, ...]:
    """Return the ids of ImageNet's 1000 classes (ILSVRC 2012), in the order of their indices.

    Example:
        >>> imagenet_wnids()[0], len(imagenet_wnids())
        ('n01440764', 1000)
    """
    return tuple(_wnid_indices())


def _words(label: str) -> str:
    """Return the words of a label in lower case, without punctuation."""
    plain = unicodedata.normalize("NFC", label).casefold().replace("_", " ")
    return " ".join(re.findall(r"\w+", plain))


@dataclass(frozen=True)
class Classes:
    """Finds a model's classes by name; stricter than `find_class`, which takes parts of labels.

    Attributes:
        labels: of the model; empty where it has none.
        count: how many classes it has.
    """

    labels: tuple[str, ...]
    count: int

    @cached_property
    def _known(self) -> tuple[dict[str, set[int]], ...]:
        """Which classes have a label, from the strictest reading of it to the loosest."""
        exact: dict[str, set[int]] = {}
        words: dict[str, set[int]] = {}
        synonyms: dict[str, set[int]] = {}
        for index, label in enumerate(self.labels):
            exact.setdefault(label.strip(), set()).add(index)
            words.setdefault(_words(label), set()).add(index)
            for part in label.split(","):
                synonyms.setdefault(_words(part), set()).add(index)
        return exact, words, synonyms

    @cached_property
    def _numbers_are_labels(self) -> bool:
        return any(
            label.strip().isdecimal() and int(label) != index
            for index, label in enumerate(self.labels)
        )

    @cached_property
    def _in_imagenet_order(self) -> bool:
        """Whether a model of 1000 classes has ImageNet's, as far as its labels can tell."""
        if self.count != 1000:
            return False
        places = [(i, self._labelled(name)) for i, name in enumerate(imagenet_labels())]
        right = sum(i in matches for i, matches in places)
        return right >= sum(bool(matches) and i not in matches for i, matches in places)

    def _labelled(self, text: str) -> set[int]:
        exact, words, synonyms = self._known
        plain = _words(text)
        matches = exact.get(text)
        if not matches and plain:
            matches = words.get(plain) or synonyms.get(plain)
        return matches or set()

    def find(self, wanted: str | int) -> int:
        """Return the index of a class.

        Raises:
            TargetError: no class or several match; the message is the reason alone.
        """
        if isinstance(wanted, int):
            return self._in_range(wanted)
        text = wanted.strip()
        if text not in self._known[0]:
            if WNID.fullmatch(text):
                return self._by_wnid(text)
            if re.fullmatch(r"[+-]?\d+", text) and not self._numbers_are_labels:
                return self._in_range(int(text))
        return self._one_of(self._labelled(text), text)

    def of_names(self, names: Sequence[str]) -> tuple[str | int, ...]:
        """Return the model's class for each class of a data set, by the data set's names for them.

        A name that is no label stands for the class by which all its synonyms go that are labels;
        two names never stand for one class. Where the rest have the model's indices, the names are
        spelled otherwise than the labels, but the classes are the same, and have these indices.

        Returns:
            For each name the index, or the name itself where the model has no such class.
        """
        if not self.labels:
            return tuple(range(len(names)))
        indices = [self._synonymous(name) for name in names]
        times = Counter(indices)
        known = {place: i for place, i in enumerate(indices) if i is not None and times[i] == 1}
        same = all(place == index for place, index in known.items())
        if same and len(names) == self.count and 2 * len(known) >= len(names):
            return tuple(range(len(names)))
        return tuple(known.get(place, name) for place, name in enumerate(names))

    def _synonymous(self, name: str) -> int | None:
        """Return the class that a name, or else some of its synonyms, stand for; None: unclear."""
        found = set()
        for text in (name, *name.split(",")):
            try:
                found.add(self.find(text))
            except TargetError:
                continue
            if text == name:
                break
        return found.pop() if len(found) == 1 else None

    def _in_range(self, index: int) -> int:
        if not 0 <= index < self.count:
            raise TargetError(f"indices go from 0 to {self.count - 1}")
        return index

    def _by_wnid(self, wnid: str) -> int:
        index = _wnid_indices().get(wnid)
        if index is None:
            raise TargetError("not one of ImageNet's 1000 classes")
        if self.count == 1000 and (not self.labels or self._in_imagenet_order):
            return index
        name = imagenet_labels()[index]
        try:
            return self._one_of(self._labelled(name), name)
        except TargetError as error:
            raise TargetError(f"in ImageNet {name!r}: {error}") from None

    def _one_of(self, matches: set[int], text: str) -> int:
        if len(matches) == 1:
            return next(iter(matches))
        if matches:
            fits = (f"{self.labels[i]!r} ({i})" for i in sorted(matches))
            raise TargetError(f"fits {listed(fits)}")
        if not self.labels:
            raise TargetError("the model has no labels, only indices")
        raise TargetError(near_matches(text, self.labels)[2:] or "no label is like it")


@cache
def _wnid_indices() -> dict[str, int]:
    path = importlib.resources.files("afmi.data").joinpath("imagenet_wnids.txt")
    return {wnid: index for index, wnid in enumerate(path.read_text(encoding="ascii").split())}
