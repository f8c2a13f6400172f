"""Methods and metrics in text: parameters of every kind, labels, file names, and refusals."""

from __future__ import annotations

import dataclasses
import itertools
import json
import re
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from afmi.errors import UsageError
from afmi.methods import (
    AFMI,
    CATALOGUE,
    LIME,
    RISE,
    GradCAM,
    Gradient,
    Method,
    SmoothGrad,
    chosen_methods,
)
from afmi.metrics import CATALOGUE as METRICS
from afmi.metrics import Insertion, Metric, chosen_metrics
from afmi.pictures.references import (
    Black,
    Blurred,
    Image,
    Mean,
    Random,
    Reference,
    Several,
    White,
)
from afmi.pictures.superpixels import Grid, Quickshift, Segmentation, Slic
from afmi.specs import from_json, key_of, label_of, parameters, parse, text, to_json


class Network(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 4, 3)
        self.second = nn.Conv2d(4, 4, 3)


MODEL = Network()


def one(text: str) -> Any:
    """Return the only method or metric that a text names."""
    name = text.partition(":")[0].casefold()
    known = {key.casefold() for key in METRICS}
    chosen = chosen_metrics(text) if name in known else chosen_methods(MODEL, text)
    (made,) = chosen.values()
    return made


@pytest.mark.parametrize(
    ("text", "field", "expected"),
    [
        ("a-fmi:averaged=false", "averaged", False),
        ("a-fmi:averaged=Yes", "averaged", True),
        ("rise:masks=40", "masks", 40),
        ("rise:seed=-1", "seed", -1),
        ("rise:batch_size=none", "batch_size", None),
        ("rise:batch_size=3", "batch_size", 3),
        ("lrp:epsilon=1", "epsilon", 1.0),
        ("lrp:epsilon=1e-3", "epsilon", 0.001),
        ("grad-cam:layer=features.12", "layer", "features.12"),
        ("grad-cam:layer=12", "layer", "12"),  # the name of a module in an nn.Sequential
        ("grad-cam:layer=4.0", "layer", "4.0"),
        ("grad-cam:layer=none", "layer", None),
        ("a-fmi:reference=white", "reference", White()),
        ("xrai:reference=black+white", "reference", Several([Black(), White()])),
        ("lime:reference=none", "reference", None),
        ("lime:reference=mean", "reference", Mean()),
        ("smoothgrad:base=none", "base", None),
        ("extremal-perturbation:areas=0.1+0.2", "areas", (0.1, 0.2)),
        ("extremal-perturbation:areas=0.1", "areas", (0.1,)),
        ("xrai:scales=50+1e+2 + 150", "scales", (50.0, 100.0, 150.0)),
        ("insertion:fractions=0.5+1", "fractions", (0.5, 1.0)),
        ("insertion:canvas=blurred", "canvas", Blurred()),
        ("parameterrandomisation:depths=0+1", "depths", (0.0, 1.0)),
        ("referencereliability:references=black+random", "references", (Black(), Random())),
    ],
)
def test_parameters_in_text(text: str, field: str, expected: object) -> None:
    value = getattr(one(text), field)
    assert value == expected and type(value) is type(expected)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("gradcamm", "no method is called 'gradcamm'; did you mean 'gradcam'"),
        ("", "expected one method or more, or 'all'"),
        (" , ", "expected one method or more, or 'all'"),
        ("a-fmi:avraged=no", "A-FMI takes no parameter 'avraged'; did you mean 'averaged'?"),
        ("a-fmi:model=x", "takes no parameter 'model'; it takes layer, reference, averaged"),
        ("gradient:seed=1", "Gradient takes no parameter 'seed'; it takes none"),
        ("a-fmi:averaged", "expected a parameter of A-FMI as key=value, got 'averaged'"),
        ("a-fmi:", "expected a parameter of A-FMI as key=value, got ''"),
        ("a-fmi:averaged=no:averaged=yes", "averaged of A-FMI is given twice"),
        ("a-fmi:averaged=maybe", "averaged of A-FMI as true or false, got 'maybe'"),
        ("a-fmi:averaged=1", "averaged of A-FMI as true or false, got '1'"),
        ("rise:masks=1.5", "masks of RISE as a whole number, got '1.5'"),
        ("rise:masks=true", "masks of RISE as a whole number, got 'true'"),
        ("rise:masks=none", "masks of RISE as a whole number, got 'none'"),
        ("rise:batch_size=x", "batch_size of RISE as none or a whole number, got 'x'"),
        ("lrp:epsilon=inf", "epsilon of LRP as a number, got 'inf'"),
        ("lrp:epsilon=1e999", "epsilon of LRP as a number, got '1e999'"),
        ("xrai:scales=", "scales of XRAI as numbers joined by '+', got ''"),
        ("xrai:scales=50++100", "scales of XRAI as numbers joined by '+', got '50++100'"),
        ("xrai:scales=[50", "scales of XRAI as numbers joined by '+', got '[50'"),
        ("lime:segmentation=slice", "no segmentation is called 'slice'; did you mean"),
        ("lime:segmentation=<halves>", "only Python can pass segmentation of LIME; a text can"),
        ("grad-cam:layer=<Conv2d>", "only Python can pass layer of Grad-CAM"),
        ("a-fmi:reference=withe", "did you mean 'white'?"),
        ('a-fmi:reference="x.png', 'expected a text in double quotes, got "x.png; close them'),
        ('grad-cam:layer="features', 'expected a text in double quotes, got "features'),
        ("insertion:fractions=1+0.5", "expected two or more fractions that rise"),
        ("insertion:canvas=grey", "expected a reference out of black"),
    ],
)
def test_refusals_are_one_line(text: str, words: str) -> None:
    with pytest.raises(UsageError, match=re.escape(words)) as caught:
        one(text)
    assert "\n" not in str(caught.value)


def test_unknown_metric() -> None:
    with pytest.raises(UsageError, match="no metric is called 'insertoin'; did you mean"):
        chosen_metrics("insertoin")


def test_every_field_can_be_read_or_is_left_to_python() -> None:
    """A new kind of field must not be taken for a text, nor crash."""
    for cls in (*CATALOGUE.values(), *METRICS.values()):
        for field in dataclasses.fields(cls):
            if field.name == "model":
                continue
            for value_text in ("none", "1", "true", "black", "0.5+1"):
                try:
                    spec = f"{cls.__name__}:{field.name}={value_text}"
                    value = getattr(one(spec), field.name)
                except UsageError as error:
                    if "only Python" in str(error):
                        raise
                    continue
                wanted = {"none": type(None), "true": bool}.get(value_text)
                word = field.name in ("layer", "weights", "digest")  # any text may name one
                assert word or wanted is None or isinstance(value, wanted)


def test_all_and_spellings() -> None:
    assert list(chosen_methods(MODEL, "ALL")) == [cls.name for cls in CATALOGUE.values()]
    assert list(chosen_methods(MODEL, "gradcam, Grad-CAM++,inputxgradient")) == [
        "Grad-CAM",
        "Grad-CAM++",
        "Input×Gradient",
    ]
    assert list(chosen_metrics(None)) == ["insertion", "completeness", "cost"]


def test_one_method_with_several_parameters() -> None:
    chosen = chosen_methods(
        MODEL, [AFMI, "a-fmi:averaged=no", AFMI(MODEL, reference=White()), AFMI]
    )
    assert list(chosen) == ["A-FMI", "A-FMI (averaged=false)", "A-FMI (reference=white)"]
    assert list(chosen_metrics([Insertion, "insertion:canvas=mean", Insertion((0.5, 1))])) == [
        "insertion",
        "insertion(canvas=mean)",
        "insertion(fractions=0.5+1)",
    ]


def test_what_is_neither_name_nor_method() -> None:
    wrong: Any
    for wrong, words in (
        (AFMI(MODEL), r"in a list, got AFMI; write \[…\] around it"),
        ([3], "a class or an instance of one, got 3"),
        ([Insertion], "a class or an instance of one, got <class 'afmi.metrics.insertion"),
        ([int], "a class or an instance of one, got <class 'int'>"),
        ([Gradient(nn.Identity())], "the Gradient given explains another model"),
    ):
        with pytest.raises(UsageError, match=words):
            chosen_methods(MODEL, wrong)


def test_labels_tell_what_is_not_default() -> None:
    def halves(image: np.ndarray) -> np.ndarray:
        return (np.arange(image.size // 3).reshape(image.shape[:2]) % 2).astype(int)

    for made, label in (
        (AFMI(MODEL), "A-FMI"),
        (AFMI(MODEL, reference=Black()), "A-FMI"),
        (AFMI(MODEL, reference=Random(seed=3)), "A-FMI (reference=random(seed=3))"),
        (AFMI(MODEL, reference=Blurred(2.0)), "A-FMI (reference=blurred(sigma=2))"),
        (AFMI(MODEL, reference=Several([Black(), Mean()])), "A-FMI (reference=black+mean)"),
        (GradCAM(MODEL, layer=MODEL.second), "Grad-CAM (layer=second)"),
        (SmoothGrad(MODEL, base=RISE(MODEL, masks=4)), "SmoothGrad (base=rise(masks=4))"),
        (LIME(MODEL, segmentation=Slic(9)), "LIME (segmentation=slic(segments=9))"),
        (LIME(MODEL, segmentation=halves), "LIME (segmentation=<test_labels_tell_what_is_not_d"),
        (Insertion(list(Insertion().fractions)), "Insertion"),
        (Insertion(np.array([0.5, 1])), "Insertion (fractions=0.5+1)"),  # type: ignore[arg-type]
    ):
        assert label_of(made).startswith(label) and ("(" in label or label_of(made) == label)
        assert " at 0x" not in label_of(made)  # an address differs from run to run
        json.dumps(parameters(made), allow_nan=False)


def test_pictures_as_references_are_told_apart() -> None:
    one, other = torch.rand(2, 3, 64, 64)
    first, second = AFMI(MODEL, reference=Image(one)), AFMI(MODEL, reference=Image(other))
    assert len(chosen_methods(MODEL, [first, second])) == 2
    assert parameters(first) != parameters(second)
    same = AFMI(MODEL, reference=Image(one.clone()))
    assert parameters(first) == parameters(same) and label_of(first) == label_of(same)
    both = Several([Black(), Image(one)])
    assert parameters(AFMI(MODEL, reference=both)) != parameters(
        AFMI(MODEL, reference=Several([Black(), Image(other)]))
    )


def test_two_that_differ_never_share_a_label_in_silence() -> None:
    def made(value: int) -> LIME:
        return LIME(MODEL, segmentation=lambda image: np.full(image.shape[:2], value))

    with pytest.raises(UsageError, match="two that differ are both called 'LIME"):
        chosen_methods(MODEL, [made(0), made(1)])


def test_numbers_that_json_has_no_word_for() -> None:
    record = parameters(SmoothGrad(MODEL, noise=float("inf")))
    assert json.loads(json.dumps(record, allow_nan=False))["noise"] == "inf"


def test_keys_are_readable_file_names() -> None:
    assert key_of("A-FMI") == "a-fmi"
    assert key_of("Grad-CAM++") == "grad-cam-plus-plus"
    assert key_of("Input×Gradient") == "input-gradient"
    assert key_of("A-FMI (averaged=false)") == "a-fmi-averaged=false"
    assert key_of("RISE (masks=40, batch_size=2)") == "rise-masks=40-batch-size=2"
    keys = [key_of(cls.name) for cls in CATALOGUE.values()]
    assert len(set(keys)) == len(keys)


def test_labels_that_differ_have_keys_that_differ() -> None:
    texts = [
        *("Conv.1", "conv.1", "conv_1", "conv-1", "conv+1", "conv 1", "conv", "conv,", "1", "-1"),
        *("1e-05", "1e+05", "1e05", "(0.1, 0.2)", "(0.1)", "(0.1, -0.2)", "0.1", "0.1, 0.2"),
        *("image 猫.png", "image 犬.png", "image", "image ../a.png", "image /a.png", "\udce9", "é"),
        *("x" * 300, "x" * 301, "True", "true", "none", "None", "", ".", "..", "1."),
    ]
    labels = [f"Grad-CAM (layer={text})" for text in texts]
    labels += [f"Grad-CAM (layer={a}, b={b})" for a, b in itertools.permutations(texts[:8], 2)]
    labels += ["Grad-CAM", "Grad-CAM++", "猫", "犬", "+"]
    keys = [key_of(label) for label in labels]
    folded = {key.casefold() for key in keys}
    assert len(folded) == len(labels)
    assert all(re.fullmatch(r"[a-z0-9=.-]{1,100}", key) for key in keys)
    assert not any(key.startswith((".", "-")) or key.endswith(".") for key in keys)
    assert keys == [key_of(label) for label in labels]


def test_labels_of_every_method_with_every_parameter_have_their_own_keys() -> None:
    labels = []
    for cls in CATALOGUE.values():
        for field in dataclasses.fields(cls):
            values = ("1", "2", "1.5", "-2", "1e-7", "black", "white", "yes", "no", "0.1+0.2")
            for value in values:
                try:
                    labels.append(label_of(one(f"{cls.__name__}:{field.name}={value}")))
                except UsageError:
                    continue
    labels = list(dict.fromkeys(labels))
    assert len(labels) > 100
    assert len({key_of(label) for label in labels}) == len(labels)


# Objects of every kind, whose values are drawn by the types of their fields.

counts = st.integers(1, 10**6)
numbers = st.floats(1e-12, 1e12)
alone = st.one_of(
    st.builds(Black),
    st.builds(White),
    st.builds(Random, samples=counts, seed=st.integers(-5, 5)),
    st.builds(Mean, color=st.tuples(numbers, numbers, numbers)),
)
references = st.one_of(
    alone,
    st.builds(Blurred, sigma=st.none() | numbers),
    st.lists(alone, min_size=2, max_size=4).map(Several),
)
segmentations = st.one_of(
    st.builds(Quickshift, kernel_size=counts, ratio=numbers),
    st.builds(Slic, segments=counts, sigma=numbers),
    st.builds(Grid, cells=counts),
)
layers = st.none() | st.text(st.characters(codec="utf-8"), min_size=1).filter(
    lambda name: not name.startswith("<")
)
BY_FIELD: dict[str, st.SearchStrategy[Any]] = {
    "layer": layers,
    "base": st.none() | st.builds(RISE, st.just(MODEL), masks=counts),
    "segmentation": segmentations,
    "fractions": st.just((0.25, 0.5)) | st.just((0.1, 0.2, 1.0)),
    "areas": st.lists(st.floats(0.01, 0.99), min_size=1, max_size=3, unique=True).map(
        lambda areas: tuple(sorted(areas))
    ),
    "canvas": alone,
    "references": st.lists(alone, min_size=2, max_size=3, unique=True).map(tuple),
}
BY_TYPE: dict[str, st.SearchStrategy[Any]] = {
    "Reference": references,
    "Reference | None": st.none() | references,
    "bool": st.booleans(),
    "int": counts,
    "int | None": st.none() | counts,
    "float": st.floats(0.001, 0.999),
}


@st.composite
def objects(draw: st.DrawFn, cls: type) -> Any:
    given = {"model": MODEL} if issubclass(cls, Method) else {}
    for field in dataclasses.fields(cls):
        strategy = BY_FIELD.get(field.name, BY_TYPE.get(str(field.type)))
        if field.name != "model" and strategy is not None and draw(st.booleans()):
            given[field.name] = draw(strategy)
    try:
        return cls(**given)
    except UsageError:  # values that do not go together: the defaults will do
        return cls(MODEL) if issubclass(cls, Method) else cls()


EVERY = [*CATALOGUE.values(), *METRICS.values()]


@pytest.mark.parametrize("cls", EVERY, ids=lambda cls: cls.__name__)
@settings(max_examples=15, deadline=None)
@given(data=st.data())
def test_every_text_and_record_means_the_object_that_it_is_of(cls: type, data: Any) -> None:
    made = data.draw(objects(cls))
    base: Any = Method if issubclass(cls, Method) else Metric
    assert parse(text(made), base, model=MODEL) == made
    stored = json.loads(json.dumps(to_json(made), allow_nan=False))
    assert from_json(stored, base, model=MODEL) == made
    assert to_json(from_json(stored, base, model=MODEL)) == stored


@settings(max_examples=200, deadline=None)
@given(made=references)
def test_references_in_text_and_records(made: Reference) -> None:
    assert parse(text(made), Reference) == made
    assert from_json(json.loads(json.dumps(to_json(made))), Reference) == made
    assert str(made) == text(made)


@settings(max_examples=50, deadline=None)
@given(made=segmentations)
def test_segmentations_in_text_and_records(made: Segmentation) -> None:
    assert parse(text(made), Segmentation) == made
    assert from_json(to_json(made), Segmentation) == made


def test_a_file_as_reference(tmp_path: Any) -> None:
    path = str(tmp_path / 'a+b, "c":(d).png')
    open(path, "wb").close()
    read = parse(text(AFMI(MODEL, reference=Image(path))), Method, model=MODEL)
    assert isinstance(read, AFMI) and isinstance(read.reference, Image)
    assert read.reference.source == path
    (plain := tmp_path / "plain.png").touch()
    by_path = parse(str(plain), Reference)
    assert isinstance(by_path, Image) and by_path.source == str(plain)


def test_a_tensor_never_pretends_to_be_text() -> None:
    held = AFMI(MODEL, reference=Image(torch.rand(3, 8, 8)))
    with pytest.raises(UsageError, match="only Python can pass source of Image"):
        parse(text(held), Method, model=MODEL)
    with pytest.raises(UsageError, match="only Python can pass source of Image"):
        from_json(to_json(held), Method, model=MODEL)


@pytest.mark.parametrize(
    ("alias", "name"),
    [
        *(("ig", "IntegratedGradients"), ("gradcam", "GradCAM"), ("gradcam++", "GradCAMPlusPlus")),
        *(("gbp", "GuidedBackprop"), ("ixg", "InputXGradient"), ("pda", "PredictionDifference")),
    ],
)
def test_short_names(alias: str, name: str) -> None:
    assert type(one(alias)).__name__ == name


def test_short_names_are_no_others_name() -> None:
    names = [n for cls in EVERY for n in {cls.name, *getattr(cls, "aliases", ())}]
    folded = [n.casefold() for n in names]
    assert len(set(folded)) == len(folded)
