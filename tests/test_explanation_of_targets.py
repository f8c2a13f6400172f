"""Pictures and records of targets: what speaks for either class, words and units that follow."""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch
from networks import TinyVGG
from PIL import Image
from torch import Tensor

from afmi import Classifier, compare, explain
from afmi.explanation import Explanation
from afmi.pictures.figures import Panel, grid
from afmi.pictures.maps import Scale
from afmi.targets import Class, Difference, Output, Scalar

LABELS = ["cat", "dog", "newt", "owl", "emu"]


@pytest.fixture
def image() -> Tensor:
    return torch.rand(3, 16, 16, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def model() -> Classifier:
    torch.manual_seed(3)
    return Classifier(TinyVGG(), labels=LABELS).eval()


def words(explanation: Explanation) -> list[str]:
    return [text.get_text() for text in explanation.figure().texts]


def test_a_difference_shows_what_speaks_for_each(model, image):
    explanation = explain(model, image, Difference("dog", "owl"), method="deeplift")
    figure = explanation.figure()
    texts = [text.get_text() for text in figure.texts]
    assert {"for dog", "for owl", "Speaks for dog", "Speaks for owl"} <= set(texts)
    assert not {"For (red), against (blue)"} & set(texts)
    # Photograph, overlay and map, their colours, and the pixels for either.
    assert len(figure.axes) == 7
    ends = [text for text in figure.texts if text.get_text()[:4] == "for "]
    assert len(ends) == 4  # below the bars of the overlay and the map
    for bar in (ends[:2], ends[2:]):
        left, right = (text.get_position()[0] for text in bar)
        assert (left < right) == (texts.index("for owl") < texts.index("for dog"))
    for panel in (
        explanation._view.speaking("for dog", 1),
        explanation._view.speaking("for owl", -1),
    ):
        assert isinstance(panel.picture, Image.Image)
        shown = np.asarray(panel.picture).sum(2) > 0
        assert 0 < shown.mean() <= 0.11
    dogs = np.asarray(explanation._view.speaking("", 1).picture).sum(2) > 0
    owls = np.asarray(explanation._view.speaking("", -1).picture).sum(2) > 0
    map_ = explanation.map.numpy()
    assert not (dogs & owls).any()
    assert (map_[dogs] > 0).all() and (map_[owls] < 0).all()


def test_pixels_that_speak_for_nobody_are_not_shown(model, image):
    explanation = explain(model, image, Difference("dog", "owl"), method="deeplift")
    object.__setattr__(explanation, "map", explanation.map.abs() + 1)
    panel = explanation._view.speaking("for owl", -1)
    assert panel.subtitle == "top 0% of the pixels"
    assert not np.asarray(panel.picture).any()


def test_the_record_has_what_the_network_answers_for_both(model, image):
    probabilities = model(image[None]).softmax(1)[0].tolist()
    explanation = explain(model, image, Difference("dog", "owl"))
    record = explanation.to_dict()
    assert [one["label"] for one in record["compared"]] == ["dog", "owl"]
    assert [one["probability"] for one in record["compared"]] == pytest.approx(
        [probabilities[1], probabilities[3]], rel=1e-5
    )
    shown = f"({probabilities[1]:.1%} against {probabilities[3]:.1%})"
    assert explanation.answer.startswith("dog rather than owl, margin ")
    assert explanation.answer.endswith(shown)
    assert explain(model, image, "dog").to_dict()["compared"] == []


@pytest.mark.parametrize(
    ("target", "answer", "ends"),
    [
        (Class("dog"), "dog, ", None),
        (Output(1), "dog, value ", ("raises it", "lowers it")),
        (Difference("dog"), "dog rather than any other, log-odds ", ("for dog", "for any other")),
        (Scalar(lambda y: y.sum(1), "total"), "total, value ", ("raises it", "lowers it")),
    ],
)
def test_words_follow_the_target(model, image, target, answer, ends):
    explanation = explain(model, image, target, method="deeplift")
    assert explanation.answer.startswith(answer)
    texts = words(explanation)
    assert ("For (red), against (blue)" in texts) == (ends is None)
    assert set(ends or ()) <= set(texts)


def test_a_unit_that_the_user_named_follows_the_number(model, image):
    explanation = explain(model, image, Scalar(lambda y: y.sum(1) + 1e5, "size", unit="cm"))
    assert re.fullmatch(r"size, 1?\d\d,\d{3} cm", explanation.answer)


def test_values_have_no_percentage(image):
    torch.manual_seed(3)
    values = Classifier(TinyVGG(), output="value", labels=LABELS).eval()
    explanation = explain(values, image, 2)
    assert explanation.answer.startswith("newt, value ")
    assert "%" not in explanation._title()
    comparison = compare(values, image, 2, methods="random,gradient", fractions=(0.1,))
    texts = [text.get_text() for text in comparison.figure().texts]
    assert [text for text in texts if "%" in text] == ["10%"]  # the share of the pixels


def test_a_comparison_names_what_speaks_for_which(model, image):
    options = {"methods": "gradient,random", "fractions": (0.1,)}
    comparison = compare(model, image, Difference("dog", "owl"), **options)
    texts = " ".join(text.get_text() for text in comparison.figure().texts)
    assert re.search(r"margin −?[\d.]+(e−\d+)? ", texts)
    assert "numbers: the margin" in texts and "warm: for dog, cool: for owl" in texts


def test_ends_of_a_scale_make_room_for_themselves():
    picture, scale = Image.new("RGB", (9, 9)), Scale(-1.0, 1.0, True)
    plain = grid([[Panel(picture, scale=scale)]], side=240)
    named = grid([[Panel(picture, scale=scale, ends=("for a very long name", "no"))]], side=240)
    assert named.get_figheight() > plain.get_figheight()
    texts = [text.get_text() for text in named.texts]
    assert {"no", "for a very", "long"} <= set(texts)
