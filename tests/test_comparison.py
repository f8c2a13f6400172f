"""Comparing methods: probabilities by hand, refusals, and the estimated time."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from networks import build, images

from afmi import Classifier
from afmi.comparison import compare, estimate
from afmi.errors import AfmiError, UsageError
from afmi.methods import CATALOGUE, GradCAM, Random
from afmi.pictures.maps import rank_pixels


@pytest.fixture
def model() -> Classifier:
    return Classifier(build("vgg"), labels=["a", "b", "c", "d", "e"], mean=(0.5,) * 3)


def test_probabilities_are_those_of_the_pixels_that_are_kept(model: Classifier) -> None:
    image = images(1)[0]
    comparison = compare(model, image, "c", methods=[Random, GradCAM(model)], fractions=(0.1, 0.5))
    assert [e.method for e in comparison.explanations] == ["Random", "Grad-CAM"]
    assert {e.label for e in comparison.explanations} == {"c"}
    for explanation, probabilities in zip(
        comparison.explanations, comparison.responses, strict=True
    ):
        for fraction, probability in zip((0.1, 0.5), probabilities, strict=True):
            kept = torch.zeros(400)
            order = rank_pixels(explanation.map[None, None])[0]
            kept[order[: round(400 * fraction)]] = 1
            with torch.no_grad():
                expected = model((image * kept.view(20, 20))[None]).softmax(1)[0, 2]
            assert probability == pytest.approx(float(expected), rel=1e-5)
    assert set(comparison.seconds) == {"Random", "Grad-CAM"}


def test_the_figure_has_a_column_for_each_method_and_a_row_for_each_fraction(
    model: Classifier,
) -> None:
    comparison = compare(model, images(1)[0], methods="random,gradient", fractions=(0.1, 0.2, 0.3))
    figure = comparison.figure()
    # The picture, two maps, and three insertions for each.
    assert len(figure.axes) == 1 + 2 * 4
    texts = [text.get_text() for text in figure.texts]
    assert {"Random", "Gradient", "10%", "20%", "30%"} <= set(texts)


def test_methods_that_the_network_cannot_have_do_not_stop_the_others(model: Classifier) -> None:
    heard = []
    comparison = compare(
        model, images(1)[0], methods="cam,afmi", on_result=lambda e, s: heard.append((e.method, s))
    )
    assert list(comparison.refused) == ["CAM"]
    assert [name for name, _ in heard] == ["A-FMI"]
    assert "CAM" in " ".join(t.get_text() for t in comparison.figure().texts)
    with pytest.raises(AfmiError, match="CAM needs global average pooling"):
        compare(model, images(1)[0], methods="cam")
    with pytest.raises(UsageError, match="one method or more"):
        compare(model, images(1)[0], methods=[])


def test_networks_without_gradients_are_compared_by_what_needs_none() -> None:
    class Detached(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = build("vgg")

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.inner(x).detach()

    model, image = Detached().eval(), images(1)[0]
    comparison = compare(model, image, 1, methods=["rise:masks=4", "gradient", "deeplift"])
    assert [explanation.method for explanation in comparison.explanations] == ["RISE (masks=4)"]
    assert "do not depend" in comparison.refused["Gradient"]
    assert "detach" in comparison.refused["DeepLIFT"]
    assert estimate(model, image, "rise:masks=4").total > 0


def test_the_time_is_estimated_by_the_passes(model: Classifier) -> None:
    estimated = estimate(model, images(1)[0], "all")
    assert set(estimated.seconds) == {cls.name for cls in CATALOGUE.values()}
    ratio = estimated.seconds["XRAI"] / estimated.seconds["Gradient"]
    assert ratio == pytest.approx(200, rel=0.05)
    assert estimated.total == pytest.approx(sum(estimated.seconds.values()))


def test_comparisons_are_saved_under_names_of_their_own(model: Classifier, tmp_path: Path) -> None:
    one, other = (compare(model, image, methods="random", fractions=(0.5,)) for image in images(2))
    files = one.save(tmp_path, "pic")
    assert {kind: path.name for kind, path in files.items()} == {
        "figure": "pic-comparison.png",
        "record": "pic-comparison.json",
    }
    assert other.save(tmp_path, "pic")["figure"].name == "pic-comparison-2.png"
    assert one.save(tmp_path, "pic") == files
    assert len(list(tmp_path.iterdir())) == 4
    record = json.loads(files["record"].read_text(encoding="utf-8"))
    inserted = record["methods"][0]["inserted_responses"]
    assert inserted == pytest.approx(one.responses[0])


def test_a_network_that_gives_nan_for_what_is_left_has_no_probability(model: Classifier) -> None:
    image = images(1)[0]
    mean = float(image.mean())

    class Standardised(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            dark = x.mean((1, 2, 3)) < 0.5 * mean
            return torch.where(dark[:, None], torch.nan, model(x))

    result = compare(Standardised(), image, methods="random", fractions=(0.1, 1.0))
    (probabilities,) = result.responses
    assert math.isnan(probabilities[0]) and probabilities[1] > 0
    texts = " ".join(text.get_text() for axes in result.figure().axes for text in axes.texts)
    assert "nan" not in texts
