"""Evaluations of targets that are no labelled class: values, margins, functions of a label."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from afmi import Classifier
from afmi.errors import AfmiError, TargetError, UsageError
from afmi.evaluation import Results, evaluate, open_images
from afmi.methods import DeepLIFT
from afmi.network.outputs import Meaning
from afmi.report.evaluation_report import write_report
from afmi.targets import Difference, Output, Scalar, Target

LABELS = ["cat", "dog", "newt", "owl"]
CHEAP = "deeplift,gradient,random"


def network(outputs: int = 4, output: Meaning | None = None) -> Classifier:
    torch.manual_seed(3)
    body = nn.Sequential(
        *(nn.Conv2d(3, 6, 3, 2), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()),
        nn.Linear(6, outputs),
    )
    labels = LABELS if outputs == 4 else ()
    return Classifier(body, labels=labels, resize=16, crop=16, name="tiny", output=output).eval()


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Two pictures of each of four classes."""
    drawn = np.random.default_rng(0)
    for label in LABELS:
        folder = tmp_path / "photos" / label
        folder.mkdir(parents=True)
        for i in range(2):
            pixels = drawn.integers(0, 256, (20, 24, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / f"{i}.png")
    return tmp_path / "photos"


@pytest.fixture
def unsorted(photos: Path) -> Path:
    """The same pictures without folders of classes."""
    folder = photos.parent / "unsorted"
    folder.mkdir()
    for path in photos.glob("*/*.png"):
        path.rename(folder / f"{path.parent.name}-{path.name}")
    return folder


def test_a_value_needs_no_labels(unsorted: Path, tmp_path: Path) -> None:
    model = network(1, "value")
    results = evaluate(model, unsorted, tmp_path / "out", methods=CHEAP, target=Output())
    assert list(results.metrics) == ["value_insertion", "completeness", "cost"]
    assert len(results.images) == 8
    images = open_images(unsorted, model, labelled=False)
    with torch.no_grad():
        scores = [model(images.read(i)).item() for i in range(8)]
    for label in results.methods:
        measured = results.read(label)
        assert not measured.errors and not measured.metric_errors
        np.testing.assert_allclose(
            measured.values["value_insertion/whole_score"], scores, rtol=1e-5
        )
        assert not any(name.startswith("insertion/") for name in measured.values)
    residuals = results.values("DeepLIFT")["completeness/residual"]
    assert residuals.max() < 1e-4


def test_nothing_of_a_random_map_is_the_documented_maximum(photos: Path, tmp_path: Path) -> None:
    results = evaluate(
        network(1, "value"), photos, tmp_path / "out", methods="random", target="output"
    )
    values = results.values("Random")
    assert not any(np.allclose(numbers, 0.95) for numbers in values.values())
    change = values["value_insertion/change"]
    assert np.all(np.abs(values["value_insertion/value_auc"]) < 0.95 * np.abs(change))


def untouched(method: object, *_: object, **__: object) -> object:
    raise AssertionError("work was begun")


@pytest.mark.parametrize(
    ("outputs", "output", "asked", "metrics", "error", "words"),
    [
        (1, "value", None, None, TargetError, "values and no classes, so there is no labelled cla"),
        (1, None, None, None, TargetError, "values and no classes, so there is no labelled class"),
        (1, "value", Output(), "insertion", UsageError, "use value-insertion in its place"),
        (4, None, Difference(0, 1), "deletion,cost", UsageError, "Deletion asks which class the"),
        (4, None, Difference(0, 1), "gridpointing", UsageError, "cat rather than dog, is no class"),
        (4, None, "cow", None, TargetError, "no class is called 'cow'"),
        (4, None, lambda y: y[:, 0], None, TargetError, "is afmi.targets.Scalar(function)"),
        (4, None, lambda _: "cow", None, TargetError, "no class is called 'cow'"),
    ],
)
@pytest.mark.filterwarnings("ignore:the network returns one number")
def test_what_does_not_fit_is_refused_before_any_work(
    photos, tmp_path, monkeypatch, outputs, output, asked, metrics, error, words
) -> None:
    monkeypatch.setattr(DeepLIFT, "attribution", untouched)
    data = photos if outputs == 4 else [(torch.rand(3, 16, 16), 0)] * 2
    with pytest.raises(error, match=re.escape(words)) as caught:
        evaluate(
            *(network(outputs, output), data, tmp_path / "out"),
            methods="deeplift",
            target=asked,
            metrics=metrics,
        )
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


def margins(model: nn.Module, images: list[Tensor], pairs: list[tuple[int, int]]) -> list[float]:
    with torch.no_grad():
        logits = [model(image)[0] for image in images]
    return [float(y[a] - y[b]) for y, (a, b) in zip(logits, pairs, strict=True)]


@pytest.mark.parametrize(
    "asked",
    [Difference(versus="dog"), lambda label: Difference(label, 1) if label != 1 else "cat"],
    ids=["versus", "function"],
)
def test_the_label_may_take_part(photos: Path, tmp_path: Path, asked) -> None:
    model = network()
    results = evaluate(model, photos, tmp_path / "out", methods="deeplift", target=asked)
    values = results.values("DeepLIFT")["value_insertion/whole_score"]
    found = open_images(photos, model)
    images = [found.read(i) for i in range(8)]
    expected = margins(model, images, [(label, 1) for label in found.labels])
    for n, label in enumerate(found.labels):
        if label != 1:
            assert values[n] == pytest.approx(expected[n], rel=1e-5)
        elif not isinstance(asked, Target):
            assert values[n] == pytest.approx(float(model(images[n]).detach()[0, 0]), rel=1e-5)
        else:  # why the most probable other class rather than the one that it is
            others = model(images[n])[0].detach()
            best = max(float(others[k]) for k in (0, 2, 3))
            assert values[n] == pytest.approx(best - float(others[1]), rel=1e-4, abs=1e-6)


def test_a_function_may_choose_classes(photos: Path, tmp_path: Path) -> None:
    model = network()
    options = {"methods": "gradient", "metrics": "insertion,value-insertion,cost"}
    after = evaluate(
        model, photos, tmp_path / "out", target=lambda label: (label + 1) % 4, **options
    )
    probability = after.values("Gradient")["insertion/original_probability"]
    found = open_images(photos, model)
    for n, label in enumerate(found.labels):
        with torch.no_grad():
            expected = model(found.read(n)).softmax(1)[0, (label + 1) % 4]
        assert probability[n] == pytest.approx(float(expected), rel=1e-5)


@pytest.mark.parametrize("other", [None, Output(1), Difference(0), lambda label: Difference(label)])
def test_results_of_another_target_are_not_continued(photos, tmp_path, other) -> None:
    def evaluated(target):
        return evaluate(
            network(), photos, tmp_path / "out", methods="gradient", metrics="cost", target=target
        )

    evaluated(Output(0))
    evaluated(Output(0))
    with pytest.raises(UsageError, match=r"holds results of another run \(.*target"):
        evaluated(other)


def test_the_code_of_a_function_counts(photos: Path, tmp_path: Path) -> None:
    def evaluated(function):
        target = Scalar(function, "total")
        options = {"methods": "gradient", "metrics": "cost", "target": target}
        return evaluate(network(), photos, tmp_path / "out", **options)

    evaluated(lambda y: y.sum(1))
    evaluated(lambda y: y.sum(1))
    with pytest.raises(UsageError, match="holds results of another run"):
        evaluated(lambda y: y.mean(1))


def test_the_report_tells_of_scores_and_no_percentages(photos: Path, tmp_path: Path) -> None:
    results = evaluate(
        network(), photos, tmp_path / "out", methods=CHEAP, target=Difference("cat", "dog")
    )
    page = write_report(results.folder)["page"].read_text()
    text = re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", page.partition("<body")[2]))
    assert "What was explained of each is cat rather than dog." in text
    assert "warm: raises the score; cool: lowers it" in text
    assert re.search(r"margin −?\d\.\d{3}", text)
    assert "probability of the class" not in text
    assert not re.search(r"\d %(?! interval| of| to|\.|,| where| in)", text), text
    assert "Value-AUC" in text and "Curves of value insertion" in text
    table = write_report(results.folder)["table1"].read_text()
    assert "value_auc" in table.splitlines()[0]


def test_all_metrics_are_all_that_fit(photos: Path, tmp_path: Path) -> None:
    options = {"methods": "random", "metrics": "all", "target": Output(0), "limit": 2}
    results = evaluate(network(), photos, tmp_path / "out", **options)
    assert {"value_insertion", "completeness", "cost"} <= set(results.metrics)
    assert not {"insertion", "deletion", "grid_pointing"} & set(results.metrics)


@pytest.mark.parametrize("kind", ["tensor", "items", "dicts", "csv", "glob"])
def test_pictures_without_labels(unsorted: Path, tmp_path: Path, kind: str) -> None:
    model, drawn = network(1, "value"), torch.rand(3, 3, 16, 16)
    data: object = drawn
    if kind == "items":
        data = [(image, "no class") for image in drawn]
    elif kind == "dicts":
        data = [{"image": image, "price": 3.5} for image in drawn]
    elif kind == "csv":
        listed = [path.name for path in sorted(unsorted.iterdir())][:3]
        data = unsorted / "list.csv"
        data.write_text("image,price\n" + "".join(f"{name},2.5\n" for name in listed))
    elif kind == "glob":
        data = str(unsorted / "*-1.png")
    images = open_images(data, model, labelled=False)
    assert len(images) == (4 if kind == "glob" else 3)
    assert images.read(1).shape == (1, 3, 16, 16)
    results = evaluate(model, data, tmp_path / "out", methods="random", target=Output(), limit=2)
    assert len(results.images) == 2 and not results.errors("Random")
    assert Results.open(tmp_path / "out").manifest["run"]["target"]["label"] == "the output"


def test_a_network_in_training_mode_is_left_as_it_is(photos: Path, tmp_path: Path) -> None:
    model = network()
    model.network.insert(2, nn.BatchNorm2d(6))
    model.train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    evaluate(model, photos, tmp_path / "out", methods="random", metrics="cost", limit=2)
    assert model.training and model.network[2].training
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


def test_nothing_to_read_is_said(tmp_path: Path) -> None:
    (tmp_path / "list.csv").write_text("file\nx.png\n")
    for data, words in (
        (tmp_path / "list.csv", "expected the column 'image'"),
        ([], "has no items"),
        (3, "expected a folder, a CSV file or a data set with a length, got int"),
        ([{"pixels": 1}], "expected one of image, img"),
    ):
        with pytest.raises(AfmiError, match=re.escape(words)):
            open_images(data, network(1, "value"), labelled=False).first()
