"""Remove and retrain: which pixels go, that no label shows in them, resuming, and the commands."""

from __future__ import annotations

import csv
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from networks import build as tiny
from networks import images
from PIL import Image
from safetensors.torch import save
from scipy import ndimage
from torch import nn

import afmi.experiments.roar_mnist as roar_mnist
import afmi.experiments.shared.roar as roar_module
from afmi import Classifier, load_model
from afmi.errors import UsageError
from afmi.evaluation import open_images
from afmi.experiments import Request, experiment_named
from afmi.experiments.roar_photos import ROARPhotos
from afmi.experiments.shared.controls import Sobel, SquaredGradient
from afmi.experiments.shared.roar import (
    SHARES,
    Pictures,
    Recipe,
    Roar,
    accuracy,
    controls,
    remove,
    train,
)
from afmi.methods import Gradient, Random, SmoothGrad
from afmi.pictures.maps import rank_pixels


def silent(_: str) -> None:
    pass


def build() -> Classifier:
    """Return a linear network of digits, which is trained in no time."""
    labels = [str(digit) for digit in range(10)]
    network = nn.Sequential(nn.Flatten(), nn.Linear(784, 10))
    return Classifier(network, mean=[0.13], std=[0.31], labels=labels, name="linear")


def roar_of(mnist: Path, folder: Path, *kinds: Any, **changed: Any) -> Roar:
    torch.manual_seed(0)
    model = build().eval()
    training, test = (
        open_images(f"{kind}:{mnist}", model, limit=20) for kind in ("mnist-train", "mnist")
    )
    methods = {kind.name: kind(model) for kind in kinds}
    made = Roar(model, build, training, test, methods, Recipe(1, runs=2), folder, silent)
    return replace(made, **changed)


def test_removed_pixels_get_the_colour_in_all_channels() -> None:
    image = torch.tensor([[[[0.1, 0.2], [0.3, 0.4]], [[0.5, 0.6], [0.7, 0.8]]]])
    marked = torch.tensor([[[[True, False], [False, True]]]])
    colour = torch.tensor([0.25, 0.75]).view(1, 2, 1, 1)
    expected = torch.tensor([[[[0.25, 0.2], [0.3, 0.25]], [[0.75, 0.6], [0.7, 0.75]]]])
    assert torch.equal(remove(image, marked, colour), expected)


def test_each_network_learns_from_what_is_left(
    mnist: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    roar = roar_of(mnist, tmp_path / "roar", Gradient)
    learned: list[Pictures] = []
    tested: list[Pictures] = []

    def learn(_: Any, pictures: Pictures, recipe: Recipe, seed: int) -> Any:
        learned.append(pictures)
        return seed

    def test(model: Any, pictures: Pictures) -> float:
        tested.append(pictures)
        return 0.5 + 0.1 * model

    monkeypatch.setattr(roar_module, "train", learn)
    monkeypatch.setattr(roar_module, "accuracy", test)
    (row,) = roar.run()
    # The mean of 0.5 and 0.6, and their standard deviation.
    assert row["method"] == "Gradient" and row["runs"] == 2
    for share in (0, 0.1, 0.3, 0.5, 0.7, 0.9):
        assert row[f"{share:.0%}"] == pytest.approx(0.55)
        assert row[f"{share:.0%} ±"] == pytest.approx(0.5**0.5 / 10)
    assert len(learned) == len(tested) == 2 * 6
    whole, whole_tested = Pictures.read(roar.training), Pictures.read(roar.test)
    colour = whole.images.mean()
    for seen, original in ((learned, whole), (tested, whole_tested)):
        assert torch.equal(seen[0].images, original.images)
        order = rank_pixels(roar.methods["Gradient"].attribute(original.images))
        for place, share in enumerate(SHARES):
            given = seen[2 * (place + 1)]
            assert torch.equal(given.labels, original.labels)
            count = int(share * 784 + 0.5)
            pixels = original.images.flatten(1).clone()
            pixels.scatter_(1, order[:, :count], colour.expand(len(order), count))
            torch.testing.assert_close(given.images.flatten(1), pixels, rtol=0, atol=1e-7)


def test_no_label_shows_in_what_is_removed(
    mnist: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(roar_module, "train", lambda *_: None)
    monkeypatch.setattr(roar_module, "accuracy", lambda *_: 0.5)
    levels = []
    for name in ("true", "wrong"):
        roar = roar_of(mnist, tmp_path / name, Gradient)
        if name == "wrong":
            labels = tuple((label + 3) % 10 for label in roar.test.labels)
            roar = replace(
                roar,
                training=replace(roar.training, labels=labels),
                test=replace(roar.test, labels=labels),
            )
        roar.run()
        paths = sorted((tmp_path / name / "levels").rglob("*.npz"))
        assert len(paths) == 2
        levels.append([np.load(path)["levels"] for path in paths])
    assert all(np.array_equal(a, b) for a, b in zip(*levels, strict=True))
    assert {int(level) for level in np.unique(levels[0][0])} == set(range(6))


def test_what_is_done_is_kept(mnist: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    roar = roar_of(mnist, tmp_path / "roar", Random)
    trained: list[int] = []
    original = roar_module.train

    def counted(*args: Any) -> Any:
        trained.append(args[-1])
        if len(trained) == 7:
            raise KeyboardInterrupt
        return original(*args)

    monkeypatch.setattr(roar_module, "train", counted)
    with pytest.raises(KeyboardInterrupt):
        roar.run()
    rows = roar.run()
    assert len(trained) == 12 + 1
    assert roar.run() == rows and len(trained) == 13
    (tmp_path / "roar" / "cells" / "random" / "50-1.json").unlink()
    assert roar.run() == rows  # trained again, with the same seed
    assert trained[-1] == 1 and len(trained) == 14
    other = replace(roar, recipe=Recipe(2, runs=2))
    with pytest.raises(UsageError, match="another run"):
        other.run()


def test_maps_of_other_pictures_are_not_taken(
    mnist: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(roar_module, "train", lambda *_: None)
    monkeypatch.setattr(roar_module, "accuracy", lambda *_: 0.5)
    roar = roar_of(mnist, tmp_path, Gradient)
    roar.run()
    (path,) = (tmp_path / "levels" / "gradient" / "test").glob("*.npz")
    with np.load(path) as file:
        first, keys = file["levels"], file["keys"].tolist()
    assert keys == list(roar.test.keys)
    explained: list[int] = []
    stays = roar_module._stays

    def counted(method: Any, images: Any) -> Any:
        explained.append(len(images))
        return stays(method, images)

    monkeypatch.setattr(roar_module, "_stays", counted)
    roar.run()
    assert not explained
    read = type(roar.test).read

    def damaged(pictures: Any, index: int) -> Any:
        if pictures is roar.test and index == 3:
            raise UsageError("damaged")
        return read(pictures, index)

    with monkeypatch.context() as broken:
        broken.setattr(type(roar.test), "read", damaged)
        roar.run()
    with np.load(path) as file:
        np.testing.assert_array_equal(file["levels"], np.delete(first, 3, 0))
        assert file["keys"].tolist() == keys[:3] + keys[4:]
    assert explained == [19]
    path.write_bytes(path.read_bytes()[:100])
    roar.run()  # explains all again
    with np.load(path) as file:
        np.testing.assert_array_equal(file["levels"], first)
    assert explained == [19, 20]


def test_time_left_is_that_of_missing_trainings(
    mnist: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(roar_module, "train", lambda *_: None)
    monkeypatch.setattr(roar_module, "accuracy", lambda *_: 0.5)
    monkeypatch.setattr(roar_module, "duration", lambda seconds: f"{seconds:g} s")
    clock = iter(range(1000))
    monkeypatch.setattr(roar_module.time, "perf_counter", lambda: next(clock))
    lines: list[str] = []
    roar = roar_of(mnist, tmp_path, Random, report=lines.append)
    roar.run()
    # Two trainings of a second each for one of six cells.
    assert lines[0] == "nothing removed, 0% removed: 50.0%; about 10 s of training left"
    assert lines[-1] == "Random, 90% removed: 50.0%"
    for cell in ("30-1", "70-0", "70-1"):
        (tmp_path / "cells" / "random" / f"{cell}.json").unlink()
    lines.clear()
    roar.run()
    about = "about 2 s of training left"
    assert [line.partition("%; ")[2] for line in lines] == ["", "", about, about, "", ""]


def test_a_network_of_other_settings_or_damaged_is_trained_again(tmp_path: Path) -> None:
    path, settings = tmp_path / "net.safetensors", {"training": "abc", "version": "1"}
    assert not roar_mnist._is_of(path, settings)
    path.write_bytes(save({"weight": torch.zeros(100)}, settings))
    assert roar_mnist._is_of(path, settings)
    assert not roar_mnist._is_of(path, settings | {"version": "2"})
    for size in (0, 5, 60, 300):
        whole = save({"weight": torch.zeros(100)}, settings)
        path.write_bytes(whole[:size])
        assert not roar_mnist._is_of(path, settings)


def test_training_is_seeded_and_learns(mnist: Path) -> None:
    training, test = (
        Pictures.read(open_images(f"{kind}:{mnist}", build().eval(), limit=160))
        for kind in ("mnist-train", "mnist")
    )
    state = torch.get_rng_state()
    one = train(build, training, Recipe(3), seed=1)
    assert torch.equal(torch.get_rng_state(), state)
    assert not one.training and accuracy(one, test) > 0.9
    few = Pictures(training.images[:33], training.labels[:33], training.keys[:33])
    first, again, other = (train(build, few, Recipe(1), seed=seed) for seed in (1, 1, 2))
    weights = [model.network[1].weight for model in (first, again, other)]
    assert torch.equal(weights[0], weights[1]) and not torch.equal(weights[0], weights[2])


def test_accuracy_counts() -> None:
    model: Any = nn.Flatten()
    images = torch.tensor([[[[0.0, 1.0]]], [[[1.0, 0.0]]]])
    pictures = Pictures(images, torch.tensor([1, 1]), ("a", "b"))
    assert accuracy(model, pictures) == 0.5


def test_pictures_of_several_sizes_are_refused() -> None:
    items = [(torch.rand(3, size, size), 0) for size in (70, 80)]
    pictures = open_images(items, load_model("photos").eval())
    with pytest.raises(UsageError, match=r"of one size .* got \[\(70, 70\), \(80, 80\)\]"):
        Pictures.read(pictures)


def test_sobel_is_scipys() -> None:
    x = images(2).double()
    maps = Sobel(tiny("vgg", torch.float64)).attribute(x)
    for image, map in zip(x.mean(1).numpy(), maps[:, 0].numpy(), strict=True):
        sides = [ndimage.sobel(image, axis=axis, mode="nearest") for axis in (0, 1)]
        np.testing.assert_allclose(map, np.hypot(*sides), atol=1e-12)


def test_squared_gradient_of_a_linear_network() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(8, 2))
    weights = model[1].weight.detach()[1].view(2, 2, 2)
    x = torch.rand(1, 2, 2, 2)
    maps = SquaredGradient(model).attribute(x, 1)
    torch.testing.assert_close(maps[0, 0], weights.square().sum(0))
    smooth = controls(model)["SmoothGrad squared"]  # type: ignore[arg-type]
    assert isinstance(smooth, SmoothGrad) and smooth.samples == 15
    torch.testing.assert_close(smooth.attribute(x, 1), maps)


def test_command_on_toy_digits(
    mnist: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(roar_mnist.ROARMNIST, "recipe", Recipe(1, runs=1))
    monkeypatch.setattr(roar_mnist, "build", build)
    lines: list[str] = []
    request = Request(out=tmp_path, mnist=mnist, methods="gradient", limit=10, report=lines.append)
    result = experiment_named("roar-mnist")().run(request)
    assert [row["method"] for row in result.rows] == [
        *("Random", "Sobel", "SmoothGrad squared", "Gradient")
    ]
    table, picture = result.files
    with table.open() as file:
        assert [row["90%"] for row in csv.DictReader(file)] == [
            str(row["90%"]) for row in result.rows
        ]
    with Image.open(picture) as drawn:
        assert drawn.width > 900
    assert lines[1] == "21 trainings of 1 epoch through 10 pictures, tested on 10"
    assert lines[2].startswith("nothing removed, 0% removed: ") and " left" in lines[2]
    again = experiment_named("roar-mnist")().run(request)
    assert str(again.rows) == str(result.rows)  # NaN is not NaN
    with pytest.raises(UsageError, match="for another use roar-photos"):
        experiment_named("roar-mnist")().run(replace(request, models=("photos",)))


@pytest.mark.slow
def test_command_on_photographs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ROARPhotos, "recipe", Recipe(1, runs=1))
    drawn = np.random.default_rng(0)
    for part in ("train", "val"):
        for label in ("cat", "church"):
            (tmp_path / part / label).mkdir(parents=True)
            for i in range(2):
                pixels = drawn.integers(0, 256, (80, 80, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(tmp_path / part / label / f"{i}.png")
    request = Request(
        out=tmp_path / "out",
        imagenet=tmp_path,
        methods="gradient",
        network={"resize": 72, "crop": 64},
        report=silent,
    )
    result = experiment_named("roar-photos")().run(request)
    assert [row["method"] for row in result.rows][-1] == "Gradient"
    with pytest.raises(UsageError, match="expected one network"):
        experiment_named("roar-photos")().run(replace(request, models=("photos", "vgg11")))
    with pytest.raises(UsageError, match=r"needs the folder .*train"):
        experiment_named("roar-photos")().run(replace(request, imagenet=tmp_path / "train"))
