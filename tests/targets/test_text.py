"""Targets in text: what is written is read again, labels come first, and errors fit the case."""

from __future__ import annotations

import re

import PIL.Image
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from afmi import Classifier, explain, specs
from afmi.errors import AfmiError, ImageError, TargetError, UsageError
from afmi.pictures.images import read_image
from afmi.targets import Class, Difference, Output, Target, target_in_text

INDICES = st.integers(-(10**6), 10**6)
CLASSES = INDICES | st.text(st.characters(exclude_categories=["Cs"]))
TARGETS = st.one_of(
    st.builds(Class, CLASSES),
    st.builds(Difference, st.none() | CLASSES, st.none() | CLASSES),
    st.builds(Output, st.none() | INDICES | st.lists(INDICES, min_size=1).map(tuple)),
)


@given(TARGETS)
def test_what_is_written_is_read_again(target: Target) -> None:
    assert specs.parse(specs.text(target), Target) == target
    assert specs.from_json(specs.to_json(target), Target) == target


def named(*labels: str) -> nn.Module:
    return Classifier(nn.Sequential(nn.Flatten(), nn.Linear(12, len(labels))), labels=labels)


@pytest.mark.parametrize(
    ("labels", "text", "expected"),
    [
        (["cat", "dog"], "dog", Class("dog")),
        (["cat", "dog"], "1", Class("1")),
        (["cat", "dog"], "output:index=1", Output(1)),
        (["cat", "dog"], "Output(index=1)", Output(1)),
        (["cat", "dog"], "output", Output()),
        (["cat", "dog"], "difference:of=cat:versus=dog", Difference("cat", "dog")),
        # A label that reads like a target is a label.
        (["cat", "OUTPUT:index=1"], "output:index=1", Class("output:index=1")),
        (["power output", "dog"], "output", Class(0)),
        (["cat: a pet", "dog"], "cat: a pet", Class("cat: a pet")),
    ],
)
def test_what_can_be_a_label_is_one(labels, text, expected) -> None:
    assert target_in_text(named(*labels), text) == expected


@pytest.mark.parametrize(
    ("text", "error", "words"),
    [
        ("output:indx=1", UsageError, "Output takes no parameter 'indx'; did you mean 'index'?"),
        ("output:index=x", UsageError, "index of Output as none or a whole number"),
        ("class", UsageError, "Class needs of=…"),
        ("similarity", UsageError, "Similarity needs to=…; such as similarity:to=…"),
        ("scalar:function=sum", UsageError, "only Python can pass function of Scalar"),
        ("ouput:index=1", TargetError, "no class is called 'ouput:index=1'"),
    ],
)
def test_errors_fit_the_case(text, error, words) -> None:
    model = named("cat", "dog")
    with pytest.raises(error, match=re.escape(words)):
        target_in_text(model, text).label(model)


def test_an_image_to_be_like_may_be_a_file(tmp_path) -> None:
    drawn = torch.rand(20, 24, 3, generator=torch.Generator().manual_seed(0))
    path = tmp_path / "other.png"
    PIL.Image.fromarray((drawn * 255).byte().numpy()).save(path)
    torch.manual_seed(0)
    body = nn.Sequential(nn.Conv2d(3, 6, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    model = Classifier(body, output="value", resize=16, crop=16)
    target = specs.parse(f'similarity:to="{path}"', Target)
    image = torch.rand(3, 16, 16)
    one = explain(model, image, target, method="deeplift")
    with torch.no_grad():
        both = model(torch.cat([image[None], model.prepare(read_image(path))]))
    assert one.score == pytest.approx(float(both[0] @ both[1] / both.norm(dim=1).prod()), rel=1e-5)
    assert one.label == "likeness to other.png"
    assert one.to_dict()["target"] == specs.text(target)
    with pytest.raises(ImageError, match=r"no\.png' does not exist"):
        explain(model, image, "similarity:to=no.png", method="deeplift")


def test_calls_take_the_text_too() -> None:
    model, image = named("cat", "dog"), torch.rand(3, 2, 2)
    one = explain(model, image, "difference:of=dog:versus=cat", method="gradient")
    assert one.target == Difference(1, 0)
    assert one.to_dict()["target"] == "difference:of=1:versus=0"
    with pytest.raises(AfmiError, match="no class is called 'cow'"):
        explain(model, image, "cow", method="gradient")
