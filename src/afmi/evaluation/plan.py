"""A method on its way through the data of an evaluation: what is done, and what may be begun."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from afmi.data.labelled import LabelledImages
from afmi.data.streams import ImageStream, Window
from afmi.evaluation.folder import ResultsFolder
from afmi.evaluation.identity import code_of
from afmi.evaluation.job import Refusal
from afmi.evaluation.results import Results
from afmi.evaluation.shard import ShardResult
from afmi.methods import Method
from afmi.methods.work import Work
from afmi.metrics import Metric
from afmi.specs import key_of, parameters

__all__ = ["MethodPlan", "Piece", "smallest_window"]

_LARGEST_PIECE = 64
"""Pictures: a piece of a cheap method."""
_PASSES_PER_PIECE = 4096
"""Through the network, about: what a killed run may lose of a costly method."""
_HOPELESS = _LARGEST_PIECE
"""Pictures: a method that fails on each of so many, the first, is given up."""


@dataclass(frozen=True)
class Piece:
    """A part of the work that is kept as a whole.

    Attributes:
        label: the method's.
        start: the first picture.
        stop: the one after the last.
        passes: through the network that it takes, about; a backward pass counts as two.
    """

    label: str
    start: int
    stop: int
    passes: float


def smallest_window() -> int:
    """Return how many pictures of a stream must be ready at once: one piece of a cheap method."""
    return _LARGEST_PIECE


@dataclass
class MethodPlan:
    """A method on its way through the data.

    Attributes:
        label: the method's.
        method: explains.
        entry: of the method in the manifest.
        passes: through the network that a picture takes, metrics included, about.
        missing: pieces of the present window that are not done, by their starts.
        pictures: in them.
        unbegun: those of them that are not submitted yet, in order.
        resumed: whether pieces of it were finished before.
        explained: pictures that it explained.
        failed: pictures that it failed on.
        refusal: why it is given up, if it is.
        told: whether its end in the present window was told.
    """

    label: str
    method: Method
    entry: dict[str, Any]
    passes: float
    missing: dict[int, Piece] = field(default_factory=dict)
    pictures: int = 0
    unbegun: deque[Piece] = field(default_factory=deque)
    resumed: bool = False
    explained: int = 0
    failed: int = 0
    refusal: str | None = None
    told: bool = False

    @classmethod
    def of(
        cls,
        label: str,
        method: Method,
        metrics: Mapping[str, Metric],
        first: torch.Tensor,
        images: LabelledImages | ImageStream,
        batch_size: int,
    ) -> MethodPlan:
        """Plan a method's work: the costlier it is, the fewer pictures a piece has."""
        work = [method.work(first), *(metric.work(method, first) for metric in metrics.values())]
        passes = sum(_passes(one) for one in work)
        size = int(min(max(_PASSES_PER_PIECE // max(passes, 1), 1), _LARGEST_PIECE))
        if isinstance(images, LabelledImages):
            # Whole batches, which stay what they are where a piece is split.
            size = min(max(size // batch_size * batch_size, 0) or size, len(images))
        else:  # a window is made of whole pieces
            size = max(n for n in range(1, size + 1) if _LARGEST_PIECE % n == 0)
        return cls(label, method, _entry(method, label, size), passes)

    @property
    def supported(self) -> bool:
        """Whether the method is known to work on the network."""
        return self.resumed or self.explained > 0

    @property
    def waiting(self) -> float:
        """Passes that the missing pieces take."""
        return self.pictures * self.passes

    @property
    def ended(self) -> bool:
        """Whether nothing of it is left to do in the window, and nobody was told so yet."""
        return not self.missing and not self.told

    def begin(self, window: Window, folder: ResultsFolder) -> None:
        """Find the pieces of a window that are missing."""
        self.told = False
        self._enter([])
        if self.refusal is not None:
            return
        size, end = self.entry["images_per_piece"], window.start + len(window.images)
        pieces = [
            Piece(self.label, start, stop := min(start + size, end), (stop - start) * self.passes)
            for start in range(window.start, end, size)
        ]
        missing = [p for p in pieces if not folder.has_piece(self.label, self.entry, p.start)]
        self._enter(missing)
        self.resumed |= len(missing) < len(pieces)

    def next(self) -> list[Piece]:
        """Return the pieces that can be begun: one by one until the method is known to work.

        So a method is refused for the same pictures however many workers there are.
        """
        if self.supported:
            pieces, self.unbegun = [*self.unbegun], deque()
            return pieces
        one_runs = len(self.unbegun) < len(self.missing)
        return [self.unbegun.popleft()] if self.unbegun and not one_runs else []

    def _enter(self, missing: list[Piece]) -> None:
        # Kept apart, since to look at a million pieces for each of them would take days.
        self.missing = {piece.start: piece for piece in missing}
        self.pictures = sum(piece.stop - piece.start for piece in missing)
        self.unbegun = deque(missing)

    def refuses(self, result: ShardResult | Refusal) -> bool:
        """Tell whether the method is given up for a piece's result; ``refusal`` says why."""
        if isinstance(result, Refusal):
            self.refusal = result.reason
        elif not self.supported and not result.explained:
            failed = self.failed + len(result.failures)
            if failed >= _HOPELESS:
                reason = next(iter(result.failures.values()), "")
                self.refusal = f"it fails on each of the first {failed} pictures: {reason}"
        if self.refusal is not None:
            self._enter([])
        return self.refusal is not None

    def committed(self, start: int, result: ShardResult) -> float:
        """Enter a piece that is kept; return its passes."""
        piece = self.missing.pop(start, None)
        if piece is None:  # Ctrl-C came between
            return 0.0
        self.pictures -= piece.stop - piece.start
        self.explained += result.explained
        self.failed += len(result.failures)
        return piece.passes

    def end(
        self,
        window: Window,
        folder: ResultsFolder,
        on_method: Callable[[str, Results], object],
        on_refusal: Callable[[str, str], object],
    ) -> None:
        """Enter and tell what became of the method, as soon as that is known."""
        self.told = True
        given_up = self.refusal is not None and self.entry["refused"] is None
        self.entry["refused"] = self.refusal
        if window.last or given_up:
            # Again, in case another process overwrote the manifest.
            folder.add_method(self.label, self.entry)
        if given_up:
            on_refusal(self.label, str(self.refusal))
        elif window.last and self.refusal is None:
            on_method(self.label, Results.open(folder.path))


def _passes(work: Work) -> float:
    return work.forwards + 2 * work.backwards


def _entry(method: Method, label: str, size: int) -> dict[str, Any]:
    return {
        "class": type(method).__name__,
        "code": code_of(method),
        "key": key_of(label),
        "parameters": parameters(method),
        "images_per_piece": size,
        "family": method.family,
        "paper": method.paper,
        "refused": None,
    }
