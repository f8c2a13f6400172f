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
from torch import nn

from afmi.errors import UsageError
from afmi.methods import AFMI, CATALOGUE, LIME, RISE, GradCAM, Gradient, SmoothGrad
from afmi.metrics import CATALOGUE as METRICS
from afmi.metrics import Insertion
from afmi.pictures.references import Black, Blurred, Image, Mean, Random, Several, White
from afmi.pictures.superpixels import Slic
from afmi.specs import (
    chosen_methods,
    chosen_metrics,
    key_of,
    label_of,
    parameters_of,
)


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
    found = chosen_metrics(text) if name in known else chosen_methods(MODEL, text)
    (made,) = found.values()
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
    found = getattr(one(text), field)
    assert found == expected and type(found) is type(expected)


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
        ("lime:segmentation=slic", "only Python can pass segmentation of LIME, got 'slic'"),
        ("smoothgrad:base=gradient", "only Python can pass base of SmoothGrad; a text can only"),
        ("a-fmi:reference=withe", "did you mean 'white'?"),
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
    python = set()
    for cls in (*CATALOGUE.values(), *METRICS.values()):
        for field in dataclasses.fields(cls):
            if field.name == "model":
                continue
            for text in ("none", "1", "true", "black", "0.5+1"):
                try:
                    value = getattr(one(f"{cls.__name__}:{field.name}={text}"), field.name)
                except UsageError as error:
                    if "only Python" in str(error):
                        python.add(f"{cls.__name__}.{field.name}")
                    continue
                wanted = {"none": type(None), "true": bool}.get(text)
                assert field.name == "layer" or wanted is None or isinstance(value, wanted)
    assert python == {"KernelSHAP.segmentation", "LIME.segmentation", "SmoothGrad.base"}


def test_all_and_spellings() -> None:
    assert list(chosen_methods(MODEL, "ALL")) == [cls.name for cls in CATALOGUE.values()]
    assert list(chosen_methods(MODEL, "gradcam, Grad-CAM++,inputxgradient")) == [
        "Grad-CAM",
        "Grad-CAM++",
        "Input×Gradient",
    ]
    assert list(chosen_metrics(None)) == ["insertion", "completeness", "cost"]


def test_one_method_with_several_parameters() -> None:
    found = chosen_methods(MODEL, [AFMI, "a-fmi:averaged=no", AFMI(MODEL, reference=White()), AFMI])
    assert list(found) == ["A-FMI", "A-FMI (averaged=False)", "A-FMI (reference=white)"]
    assert list(chosen_metrics([Insertion, "insertion:canvas=mean", Insertion((0.5, 1))])) == [
        "insertion",
        "insertion(canvas=mean)",
        "insertion(fractions=(0.5, 1))",
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
        (AFMI(MODEL, reference=Random(seed=3)), "A-FMI (reference=random seed=3)"),
        (AFMI(MODEL, reference=Blurred(2.0)), "A-FMI (reference=blurred sigma=2)"),
        (AFMI(MODEL, reference=Several([Black(), Mean()])), "A-FMI (reference=black+mean)"),
        (GradCAM(MODEL, layer=MODEL.second), "Grad-CAM (layer=second)"),
        (SmoothGrad(MODEL, base=RISE(MODEL, masks=4)), "SmoothGrad (base=RISE (masks=4))"),
        (LIME(MODEL, segmentation=Slic(9)), "LIME (segmentation=Slic(segments=9, "),
        (LIME(MODEL, segmentation=halves), "LIME (segmentation=test_labels_tell_what_is_not_d"),
        (Insertion(list(Insertion().fractions)), "Insertion"),
        (Insertion(np.array([0.5, 1])), "Insertion (fractions=(0.5, 1))"),  # type: ignore[arg-type]
    ):
        assert label_of(made).startswith(label) and ("(" in label or label_of(made) == label)
        assert " at 0x" not in label_of(made)  # an address differs from run to run
        json.dumps(parameters_of(made), allow_nan=False)


def test_pictures_as_references_are_told_apart() -> None:
    one, other = torch.rand(2, 3, 64, 64)
    first, second = AFMI(MODEL, reference=Image(one)), AFMI(MODEL, reference=Image(other))
    assert len(chosen_methods(MODEL, [first, second])) == 2
    assert parameters_of(first) != parameters_of(second)
    same = AFMI(MODEL, reference=Image(one.clone()))
    assert parameters_of(first) == parameters_of(same) and label_of(first) == label_of(same)
    both = Several([Black(), Image(one)])
    assert parameters_of(AFMI(MODEL, reference=both)) != parameters_of(
        AFMI(MODEL, reference=Several([Black(), Image(other)]))
    )


def test_two_that_differ_never_share_a_label_in_silence() -> None:
    def made(value: int) -> LIME:
        return LIME(MODEL, segmentation=lambda image: np.full(image.shape[:2], value))

    with pytest.raises(UsageError, match="two that differ are both called 'LIME"):
        chosen_methods(MODEL, [made(0), made(1)])


def test_numbers_that_json_has_no_word_for() -> None:
    found = parameters_of(SmoothGrad(MODEL, noise=float("inf")))
    assert json.loads(json.dumps(found, allow_nan=False))["noise"] == "inf"


def test_keys_are_readable_file_names() -> None:
    assert key_of("A-FMI") == "a-fmi"
    assert key_of("Grad-CAM++") == "grad-cam-plus-plus"
    assert key_of("Input×Gradient") == "input-gradient"
    assert key_of("A-FMI (averaged=False)") == "a-fmi-averaged=false"
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
            for text in ("1", "2", "1.5", "-2", "1e-7", "black", "white", "yes", "no", "0.1+0.2"):
                try:
                    labels.append(label_of(one(f"{cls.__name__}:{field.name}={text}")))
                except UsageError:
                    continue
    labels = list(dict.fromkeys(labels))
    assert len(labels) > 100
    assert len({key_of(label) for label in labels}) == len(labels)
