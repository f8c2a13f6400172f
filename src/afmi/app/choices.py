"""What can be chosen for a network: its classes, the methods that it allows, references, layers."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from functools import cached_property

from torch import Tensor, nn

from afmi import specs
from afmi.app.sessions import noted_warnings
from afmi.comparison import estimate
from afmi.errors import AfmiError, UsageError
from afmi.methods import CATALOGUE, LayerMethod, Method, chosen_methods
from afmi.network.checking import first_convolution
from afmi.network.classifier import Classifier, class_label, classifier_of, classify
from afmi.network.layer_list import LayerMaps, grey_image, list_layers
from afmi.network.outputs import Meaning
from afmi.network.trial import meaning_of
from afmi.progress import duration, reporting

__all__ = ["AT_ONCE", "REFERENCES", "Choices", "MethodChoice"]

REFERENCES = (
    ("a black picture", "black"),
    ("a white picture", "white"),
    ("black and white, averaged", "black+white"),
    ("a blurred copy of the photograph", "blurred"),
    ("the mean colour of photographs", "mean"),
    ("random noise", "random"),
)
"""What an image can be compared with: in words, and as `afmi.references` has it."""

AT_ONCE = 3.0
"""Seconds up to which a method is said to answer at once, and answers without being asked."""

_EXACT = "a-fmi:averaged=false"
_FIRST = ("A-FMI", "A-FMI (averaged=false)", "Multiscale A-FMI", "Grad-CAM")
_BESIDE = ("A-FMI", "Multiscale A-FMI", "Grad-CAM", "Gradient")
_CONTROL = "control"
_PICTURES = 2


@dataclass(frozen=True)
class MethodChoice:
    """A method that a network allows.

    Attributes:
        label: its name, perhaps with parameters.
        method: made for the network, with its defaults.
        seconds: that it will take on this machine, roughly.
    """

    label: str
    method: Method
    seconds: float

    @property
    def takes_reference(self) -> bool:
        """Whether it compares with a reference that can be chosen."""
        return "reference" in {one.name for one in fields(self.method)}

    @property
    def takes_layer(self) -> bool:
        """Whether it reads feature maps of a layer that can be chosen."""
        return "layer" in {one.name for one in fields(self.method)}

    @property
    def about_reference(self) -> str:
        """What is said of the choice of a reference."""
        if not self.takes_reference:
            return "The method compares with nothing."
        return f"Its own: {self._reference}."

    @property
    def about_layer(self) -> str:
        """What is said of the choice of a layer."""
        if self.takes_layer:
            return "Earlier ones are finer."
        return "The method reads no layer."

    @property
    def _reference(self) -> str:
        own = getattr(self.method, "reference", None)
        text = "what its authors chose" if own is None else specs.text(own)
        return {value: words for words, value in REFERENCES}.get(text, text)

    @property
    def quick(self) -> bool:
        """Whether it answers at once."""
        return self.seconds <= AT_ONCE

    @property
    def cost(self) -> str:
        """What it costs, in words."""
        return cost_in_words(self.seconds)

    @property
    def button(self) -> str:
        """What the button says that starts it."""
        return "Explain" if self.quick else f"Explain ({self.cost})"

    @property
    def words(self) -> str:
        """How it is listed: ``RISE – about 4 min``."""
        control = ", a control that knows nothing" * (self.method.family == _CONTROL)
        return f"{self.label} – {self.cost}{control}"


@dataclass(frozen=True, eq=False)
class Choices:
    """What can be chosen for a network.

    Attributes:
        model: the network.
        labels: the name of each class, or output.
        meaning: what its outputs are.
        layers: where feature maps can be taken, one for each size of maps.
    """

    model: Classifier
    labels: tuple[str, ...]
    meaning: Meaning
    layers: tuple[LayerMaps, ...]
    _trying: threading.Lock = field(default_factory=threading.Lock, repr=False)

    @classmethod
    def of(cls, model: nn.Module) -> Choices:
        """Find out by running a grey picture.

        Raises:
            UsageError: the network is no `Classifier`, or not one of pictures.
            ModelError: it gives no row of outputs, such as one that segments.
        """
        classifier = _checked(model)
        image = grey_image(classifier)
        with _quiet():
            outputs = classify(classifier, image).shape[1]
            meaning = meaning_of(classifier, image)
            layers = _one_a_size(list_layers(classifier), image)
        name = "output {}".format if meaning == "value" else lambda k: class_label(classifier, k)
        return cls(classifier, tuple(map(name, range(outputs))), meaning, tuple(layers))

    @property
    def methods(self) -> dict[str, MethodChoice]:
        """The methods that the network allows, by their labels, as they are listed.

        Whoever asks first waits while they are tried, which takes some seconds.
        """
        return self._tried()[0]

    @property
    def refused(self) -> dict[str, str]:
        """Why the network does not allow the others, by their names; waits as `methods` does."""
        return self._tried()[1]

    @property
    def first(self) -> MethodChoice:
        """The method that is chosen until a visitor chooses another."""
        return next(iter(self.methods.values()))

    def _tried(self) -> tuple[dict[str, MethodChoice], dict[str, str]]:
        with self._trying:  # one visitor tries, the others wait for the outcome
            return self._trial

    @cached_property
    def _trial(self) -> tuple[dict[str, MethodChoice], dict[str, str]]:
        with _quiet():
            return _methods(self.model, grey_image(self.model))

    @property
    def has_classes(self) -> bool:
        """Whether its outputs are scores of classes, one of which can be set against another."""
        return self.meaning != "value"

    @property
    def classes(self) -> list[tuple[str, int]]:
        """Each class as it is listed, with its index; names that occur twice have it behind."""
        times = Counter(self.labels)
        return [
            (f"{label} ({index})" if times[label] > 1 else label, index)
            for index, label in enumerate(self.labels)
        ]

    @property
    def layers_in_words(self) -> list[tuple[str, str]]:
        """Each layer as it is listed, with its name."""
        return [
            (f"{one.layer} ({one.maps[0]} maps of {' × '.join(map(str, one.maps[1:]))})", one.layer)
            for one in self.layers
        ]

    @property
    def methods_in_words(self) -> list[tuple[str, str]]:
        """Each method as it is listed, with its label."""
        return [(one.words, one.label) for one in self.methods.values()]

    @property
    def beside(self) -> list[str]:
        """The methods that stand side by side unless others are chosen."""
        return [label for label in _BESIDE if label in self.methods]

    @property
    def without(self) -> str:
        """Which methods the network does not allow, as a sentence behind another; "" for none."""
        names = ", ".join(self.refused)
        return f" This network does not allow {names}." if names else ""

    def cost(self, labels: Iterable[str]) -> str:
        """Return what several methods cost, in words."""
        seconds = sum(self.methods[label].seconds for label in labels if label in self.methods)
        return cost_in_words(seconds)


def cost_in_words(seconds: float) -> str:
    """Return how long something takes: ``at once``, ``about 4 min``."""
    return "at once" if seconds <= AT_ONCE else f"about {duration(seconds)}"


@contextmanager
def _quiet() -> Iterator[None]:
    """Show nothing of what a grey picture brings: it says nothing of a photograph."""
    with noted_warnings(), reporting(None):
        yield


def _checked(model: nn.Module) -> Classifier:
    classifier = classifier_of(model)
    if classifier is None:
        raise UsageError(
            f"expected a Classifier, which knows how pictures are prepared, got "
            f"{type(model).__name__}; pass afmi.load_model(…), or afmi.Classifier(network, …)"
        )
    first = first_convolution(classifier)
    if first is not None and first[0] != _PICTURES:
        raise UsageError(
            "expected a network of pictures, got one of signals or volumes; explain it "
            "from Python, with afmi.explain"
        )
    return classifier


def _methods(model: Classifier, image: Tensor) -> tuple[dict[str, MethodChoice], dict[str, str]]:
    """Return the methods that work on an image, and why others do not.

    Those of few passes are tried. Of the others, each needs no more of the network than one of
    these: gradients at the pixels, a layer, or outputs alone.
    """
    wanted = [*CATALOGUE, _EXACT]
    seconds = estimate(model, image, wanted).seconds
    works: dict[str, bool] = {}
    chosen: dict[str, MethodChoice] = {}
    refused: dict[str, str] = {}
    for label, method in chosen_methods(model, wanted).items():
        work = method.work(image)
        few = work.forwards + work.backwards <= 2 and not work.layer_forwards
        try:
            if few:
                method.attribute(image)
        except AfmiError as error:
            refused[label] = str(error)
        else:
            chosen[label] = MethodChoice(label, method, seconds[label])
        works[label] = label not in refused
    for label, one in list(chosen.items()):
        work, method = one.method.work(image), one.method
        missing = [
            needed
            for needed, needs in (
                ("Gradient", work.backwards > 0),
                ("Eigen-CAM", isinstance(method, LayerMethod)),
            )
            if needs and not works[needed]
        ]
        if missing:
            refused[label] = refused[missing[0]]
            del chosen[label]
    order = sorted(chosen.values(), key=_rank)
    return {one.label: one for one in order}, refused


def _rank(one: MethodChoice) -> tuple[int, int, str]:
    first = _FIRST.index(one.label) if one.label in _FIRST else len(_FIRST)
    kind = 2 if one.method.family == _CONTROL else int(not one.quick)
    return first, kind, one.label.casefold()


def _one_a_size(layers: Iterable[LayerMaps], image: Tensor) -> list[LayerMaps]:
    """Return the last layer of each size of maps, but for the one found automatically.

    What has not the shape of the picture is no map of places, such as tokens by their numbers.
    """
    height, width = image.shape[2:]
    last: dict[tuple[int, ...], LayerMaps] = {}
    for layer in layers:
        rows, columns = layer.maps[1:]
        alike = abs(rows * width - columns * height) <= max(height, width)
        if alike and max(rows, columns) > 1:
            last[rows, columns] = layer
    return [layer for layer in last.values() if not layer.chosen]
