"""Explanations that say for which class their feature map importance is usual."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import afmi
from afmi import AFMI, Classifier, Explanation, Unexplained
from afmi.errors import UsageError
from afmi.explanation import PrototypeMatch
from afmi.metrics import FMIAgreement, FMIPrototypes
from afmi.metrics.base import Case
from afmi.targets import Difference

LABELS = ["cat", "dog", "newt", "owl"]
IMAGES = torch.rand(12, 3, 12, 12, generator=torch.Generator().manual_seed(0))
CLASSES = torch.arange(12) % 3  # there is no owl


@pytest.fixture(scope="module")
def model() -> Classifier:
    torch.manual_seed(1)
    network = nn.Sequential(
        *(nn.Conv2d(3, 6, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten()),
        *(nn.Linear(24, 8), nn.ReLU(), nn.Linear(8, 4)),
    )
    return Classifier(network, labels=LABELS, name="tiny").eval()


@pytest.fixture(scope="module")
def file(model: Classifier, tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.set_num_threads(1)
    out = tmp_path_factory.mktemp("prototypes")
    afmi.fmi_prototypes(model, list(zip(IMAGES, CLASSES.tolist(), strict=True)), out)
    return out / "prototypes.safetensors"


def test_it_is_the_metric_of_the_same_image(model: Classifier, file: Path) -> None:
    method = AFMI(model)
    attribution = method.attribution(IMAGES, CLASSES)
    assert attribution.logits is not None
    case = Case(method, IMAGES, CLASSES, attribution, attribution.logits)
    measured = FMIAgreement(str(file)).measure(case)
    prototypes = FMIPrototypes.load(file)
    cosines = prototypes.cosines(method.feature_map_importance(IMAGES, CLASSES))
    explained = list(afmi.explain_many(model, IMAGES, CLASSES.tolist(), prototypes=file))
    agree = []
    for n, one in enumerate(explained):
        assert isinstance(one, Explanation) and one.prototypes is not None
        match = one.prototypes
        assert match.cosine == pytest.approx(float(measured["cosine"][n]), abs=1e-5)
        assert match.nearest_cosine == pytest.approx(float(cosines[n].max()), abs=1e-5)
        assert match.nearest == int(cosines[n].argmax())
        assert match.nearest_label == LABELS[int(cosines[n].argmax())]
        agree.append(float(match.nearest == one.class_index))
    assert agree == measured["agreement"].tolist()


def test_every_call_takes_them_and_says_so(model: Classifier, file: Path) -> None:
    known = FMIPrototypes.load(file)
    one = afmi.explain(model, IMAGES[0], "dog", prototypes=str(file))
    (many,) = afmi.explain_many(model, IMAGES[:1], "dog", prototypes=known)
    both = afmi.explain_classes(model, IMAGES[0], ["dog", "owl"], prototypes=known)
    assert isinstance(many, Explanation) and one.prototypes is not None
    assert one.prototypes == many.prototypes
    assert both[0].prototypes is not None and both[1].prototypes is not None
    assert both[0].prototypes.cosine == pytest.approx(one.prototypes.cosine)
    assert both[1].prototypes.cosine is None  # an owl was never seen
    assert str(both[1].usual).startswith("no prototype of 'owl'; the nearest is that of '")
    record = json.loads(json.dumps(one.to_dict()))
    assert PrototypeMatch(**record["prototypes"]) == one.prototypes
    assert one.usual is not None and one.usual in str(one)
    plain = afmi.explain(model, IMAGES[0], "dog")
    assert plain.prototypes is None and plain.usual is None
    assert plain.to_dict()["prototypes"] is None


@pytest.mark.parametrize(
    ("match", "words"),
    [
        ((0.934, 1, "dog", 0.934), "its feature maps are as important as is usual for 'dog' (c"),
        ((0.93, 0, "cat", 0.95), "for 'cat' (cosine 0.95), rather than for 'dog' (0.93)"),
        ((None, 0, "cat", 0.95), "no prototype of 'dog'; the nearest is that of 'cat' (cosine 0"),
        ((0.0, None, None, None), "its feature map importance is zero, as is usual for no class"),
    ],
)
def test_words(match: Any, words: str) -> None:
    assert words in PrototypeMatch(*match).words(1, "dog")


def test_what_does_not_compare_is_refused(model: Classifier, file: Path, tmp_path: Path) -> None:
    options: dict[str, Any] = {"prototypes": file}
    with pytest.raises(UsageError, match=r"expected the method A-FMI .* got Grad-CAM; leave"):
        afmi.explain(model, IMAGES[0], method="grad-cam", **options)
    with pytest.raises(
        UsageError, match=r"expected a class .* got difference:of=1:versus=0; leave"
    ):
        afmi.explain(model, IMAGES[0], Difference("dog", "cat"), **options)
    with pytest.raises(UsageError, match="FMI of the reference that the prototypes were made"):
        afmi.explain(model, IMAGES[0], reference="white", **options)
    with pytest.raises(UsageError, match="FMI of the layer that the prototypes were made"):
        afmi.explain(model, IMAGES[0], layer="0", **options)
    with pytest.raises(UsageError, match="got no file that can be read"):
        afmi.explain(model, IMAGES[0], prototypes=tmp_path / "none")
    known = replace(FMIPrototypes.load(file), origin=None)
    with pytest.raises(UsageError, match="expected prototypes with an origin"):
        afmi.explain(model, IMAGES[0], prototypes=known)
    results = list(
        afmi.explain_many(model, IMAGES[:2], ["dog", Difference("dog", "cat")], **options)
    )
    assert isinstance(results[0], Explanation) and isinstance(results[1], Unexplained)
    assert "expected a class where prototypes are given" in results[1].reason
