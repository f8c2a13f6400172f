"""The evaluation runner: pieces, resuming, other runs' folders, full disks, bad pictures."""

from __future__ import annotations

import gc
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from settings import STRANGE_DEFAULTS, defaults, method
from torch import nn

import afmi.evaluation.plan as plan_module
import afmi.files
from afmi import Classifier
from afmi.errors import AfmiError, OperationError, UsageError
from afmi.evaluation import (
    MemoryWarning,
    MetricWarning,
    Results,
    Shard,
    evaluate,
    evaluate_shard,
    open_images,
)
from afmi.methods import AFMI, CATALOGUE, Gradient, Random
from afmi.methods.work import Work
from afmi.metrics import CATALOGUE as METRICS
from afmi.metrics import Insertion, chosen_metrics
from afmi.report.summary import summarise


def results_key(name: str) -> str:
    """Return the prefix of the names of a metric's values."""
    return next(iter(chosen_metrics(name)))


CHEAP = "a-fmi,gradient,random"


def network() -> Classifier:
    torch.manual_seed(3)
    body = nn.Sequential(
        nn.Conv2d(3, 6, 3, 2), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 4)
    )
    return Classifier(
        body, labels=["cat", "dog", "newt", "owl"], resize=16, crop=16, name="tiny"
    ).eval()


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Five pictures of each of four classes."""
    drawn = np.random.default_rng(0)
    for label in ("cat", "dog", "newt", "owl"):
        folder = tmp_path / "photos" / label
        folder.mkdir(parents=True)
        for i in range(5):
            pixels = drawn.integers(0, 256, (20, 24, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / f"{i}.png")
    return tmp_path / "photos"


@pytest.fixture
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plan_module, "_LARGEST_PIECE", 4)


def numbers(folder: Path) -> dict[str, dict[str, list[float]]]:
    """Every value of every method but the cost, NaN as text."""
    results = Results.open(folder)
    return {
        label: {
            name: [str(v) for v in values]
            for name, values in sorted(results.read(label).values.items())
            if not name.startswith("cost/")
        }
        for label in results.methods
    }


def test_default_dtype_and_device_change_nothing(photos: Path, tmp_path: Path) -> None:
    model, methods = network(), f"{CHEAP},smoothgrad:samples=2"
    options: dict[str, Any] = {"methods": methods, "metrics": "all", "limit": 4, "examples": 1}
    evaluate(model, photos, tmp_path / "expected", **options)
    for n, strange in enumerate(STRANGE_DEFAULTS):
        with defaults(**strange):
            evaluate(model, photos, tmp_path / str(n), **options)
        assert numbers(tmp_path / str(n)) == numbers(tmp_path / "expected"), strange


def test_rows_are_what_the_metrics_say(photos: Path, tmp_path: Path) -> None:
    model = network()
    results = evaluate(model, photos, tmp_path / "out", methods="a-fmi,gradient", batch_size=4)
    images = open_images(photos, model)
    inputs = torch.cat([images.read(i) for i in range(20)])
    targets = torch.tensor([int(label) for label in images.labels])
    assert results.methods == ("A-FMI", "Gradient")
    assert tuple(results.images.keys) == images.keys
    for label, kind in (("A-FMI", AFMI), ("Gradient", Gradient)):
        curves = Insertion().curves(model, inputs, targets, kind(model).attribute(inputs, targets))
        measurements = results.read(label).values
        for name, expected in curves.values().items():
            np.testing.assert_allclose(
                measurements[f"insertion/{name}"], expected.numpy(), atol=1e-6
            )
        assert (measurements["cost/seconds"] > 0).all()
    residual = results.read("A-FMI").values["completeness/residual"]
    assert residual.max() < 1e-4 and "completeness/residual" not in measurements


def test_goes_on_where_it_stopped(photos: Path, tmp_path: Path, small_pieces: None) -> None:
    model = network()
    whole = tmp_path / "whole"
    evaluate(model, photos, whole, methods=CHEAP)
    begun: list[Any] = []

    def stop_after(count: int) -> Callable[..., None]:
        def tell(piece: Any, done: float, total: float) -> None:
            if len(begun) == count:
                raise KeyboardInterrupt
            begun.append(piece)

        return tell

    broken = tmp_path / "broken"
    for count in (2, 3, 9):
        with pytest.raises(KeyboardInterrupt):
            evaluate(model, photos, broken, methods=CHEAP, on_begin=stop_after(count))
    # 5 pieces for each method; none is done twice.
    evaluate(model, photos, broken, methods=CHEAP, on_begin=stop_after(99))
    assert len(begun) == len(set(begun)) == 15
    assert numbers(broken) == numbers(whole)
    before = {p: p.stat().st_mtime_ns for p in broken.rglob("*.parquet")}
    evaluate(model, photos, broken, methods=CHEAP)
    assert before == {p: p.stat().st_mtime_ns for p in broken.rglob("*.parquet")}


def test_methods_can_be_added(photos: Path, tmp_path: Path) -> None:
    model, out = network(), tmp_path / "out"
    evaluate(model, photos, out, methods="gradient")
    results = evaluate(model, photos, out, methods="random:seed=4,a-fmi:reference=white")
    assert results.methods == ("Gradient", "Random (seed=4)", "A-FMI (reference=white)")
    assert all(results.complete(label) == 1 for label in results.methods)


def test_folder_of_another_run(photos: Path, tmp_path: Path) -> None:
    model, out = network(), tmp_path / "out"
    evaluate(model, photos, out, methods="gradient", limit=6)
    other = network()
    with torch.no_grad():
        other.network[0].weight[0, 0, 0, 0] += 1e-3  # type: ignore[index]
    before = (out / "manifest.json").read_bytes()
    for changed, words in (
        (
            lambda: evaluate(other, photos, out, methods="gradient", limit=6),
            r"\(model: weights has changed\)",
        ),
        (lambda: evaluate(model, photos, out, methods="gradient", limit=7), "data: "),
        (
            lambda: evaluate(model, photos, out, methods="gradient", limit=6, metrics="insertion"),
            "metrics: completeness",
        ),
        (
            lambda: evaluate(model, photos, out, methods="gradient", limit=6, batch_size=3),
            "batch_size was 8, now 3",
        ),
    ):
        with pytest.raises(UsageError, match=words) as caught:
            changed()
        assert "\n" not in str(caught.value) and "--out" in str(caught.value)
    assert (out / "manifest.json").read_bytes() == before


def test_another_preparation_is_another_run(photos: Path, tmp_path: Path) -> None:
    model, out = network(), tmp_path / "out"
    evaluate(model, photos, out, methods="gradient", limit=4)
    model.crop = 14
    with pytest.raises(UsageError, match="model: preparation"):
        evaluate(model, photos, out, methods="gradient", limit=4)


def test_moved_data_are_the_same_data(photos: Path, tmp_path: Path) -> None:
    model, out = network(), tmp_path / "out"
    evaluate(model, photos, out, methods="gradient")
    moved = photos.rename(tmp_path / "moved")
    assert evaluate(model, moved, out, methods="random").methods == ("Gradient", "Random")


@dataclass(frozen=True)
class Corner(Random):
    """A method of one's own."""

    def _attribute(self, inputs: torch.Tensor, target: Any) -> Any:
        return super()._attribute(inputs, target)


def test_another_code_of_a_method_is_refused(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, out = network(), tmp_path / "out"
    evaluate(model, photos, out, methods=[Corner(model)], metrics="cost", limit=4)
    evaluate(model, photos, out, methods=[Corner(model)], metrics="cost", limit=4)
    monkeypatch.setattr(Corner, "_attribute", lambda *_: None)
    with pytest.raises(UsageError, match=r"other settings \(code: .*Corner\._attribute"):
        evaluate(model, photos, out, methods=[Corner(model)], metrics="cost", limit=4)


def test_folder_with_other_files(photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "thesis.tex").write_text("mine")
    with pytest.raises(UsageError, match="it holds other files"):
        evaluate(network(), photos, out, methods="gradient")
    assert [p.name for p in out.iterdir()] == ["thesis.tex"]


def test_unreadable_picture_does_not_stop_the_run(photos: Path, tmp_path: Path) -> None:
    (photos / "dog" / "3.png").write_bytes(b"not a picture")
    results = evaluate(network(), photos, tmp_path / "out", methods="gradient")
    measurements = results.read("Gradient")
    ((index, reason),) = measurements.errors.items()
    assert results.images.keys[index] == "dog/3.png" and "3.png" in reason
    areas = measurements.values["insertion/accuracy_auc"]
    assert np.isnan(areas[index]) and np.isfinite(np.delete(areas, index)).all()
    assert measurements.done.all()


def test_a_failing_picture_does_not_cost_its_neighbours(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = network()
    bad = open_images(photos, model).read(2)

    def attribute(self: Gradient, inputs: torch.Tensor, target: Any) -> Any:
        if any(torch.equal(image, bad[0]) for image in inputs):
            raise AfmiError("this one overflows")
        return original(self, inputs, target)

    original = Gradient._attribute
    monkeypatch.setattr(Gradient, "_attribute", attribute)
    measurements = evaluate(model, photos, tmp_path / "out", methods="gradient").read("Gradient")
    assert measurements.errors == {2: "this one overflows"}
    assert np.isnan(measurements.values["insertion/accuracy_auc"]).sum() == 1


def failing_on(
    monkeypatch: pytest.MonkeyPatch, kind: type, bad: list[torch.Tensor], error: BaseException
) -> list[int]:
    """Let a method raise when one of these images is in the batch; return the batches' sizes."""
    original = kind._attribute
    sizes: list[int] = []

    def attribute(self: Any, inputs: torch.Tensor, target: Any) -> Any:
        sizes.append(len(inputs))
        if any(torch.equal(image, one[0]) for image in inputs for one in bad):
            raise error
        return original(self, inputs, target)

    monkeypatch.setattr(kind, "_attribute", attribute)
    return sizes


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (RuntimeError("mat1 and mat2\n shapes"), "RuntimeError: mat1 and mat2 shapes"),
        (ValueError("7"), "ValueError: 7"),
        (KeyError("maps"), "KeyError: 'maps'"),
        (OperationError("aten.magic has no rule"), "aten.magic has no rule"),
    ],
)
def test_any_error_of_an_image_is_a_row_of_it(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception, reason: str
) -> None:
    model, out = network(), tmp_path / "out"
    whole = evaluate(model, photos, tmp_path / "whole", methods="gradient").read("Gradient")
    bad = [open_images(photos, model).read(13)]
    sizes = failing_on(monkeypatch, Gradient, bad, error)
    results = evaluate(model, photos, out, methods="gradient,random")
    measured = results.read("Gradient")
    assert measured.errors == {13: reason} and measured.done.all()
    assert not results.errors("Random") and not results.refused
    for name in ("insertion/accuracy_auc", "blank"):
        kept = np.delete(np.arange(20), 13)
        np.testing.assert_allclose(measured.values[name][kept], whole.values[name][kept])
        assert np.isnan(measured.values[name][13])
    assert sizes == [8, 8, *[1] * 8, 4]  # the batch of the image is taken apart
    evaluate(model, photos, out, methods="gradient,random")  # and nothing is done again
    assert len(sizes) == 11


@pytest.mark.parametrize("error", [MemoryError(), torch.OutOfMemoryError("CUDA")])
def test_a_batch_that_needs_too_much_memory_is_halved(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    model, sizes = network(), []
    attributions = Gradient.attribution

    def hungry(self: Gradient, inputs: torch.Tensor, *args: Any, **options: Any) -> Any:
        sizes.append(len(inputs))
        if len(inputs) > 2:
            raise error
        return attributions(self, inputs, *args, **options)

    monkeypatch.setattr(Gradient, "attribution", hungry)
    with pytest.warns(MemoryWarning, match="memory with [84] images at once"):
        results = evaluate(model, photos, tmp_path / "out", methods="gradient", limit=8)
    assert sizes == [8, 4, 2, 2, 4, 2, 2] and not results.errors("Gradient")
    assert np.isfinite(results.values("Gradient")["insertion/accuracy_auc"]).all()


def test_memory_that_a_metric_lacks_costs_its_own_values_alone(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, counts = network(), []
    measure = Insertion.measure
    explained = failing_on(monkeypatch, Gradient, [], MemoryError())

    def hungry(self: Insertion, case: Any) -> Any:
        counts.append(len(case.inputs))
        if len(case.inputs) > 1 or len(counts) == 3:
            raise RuntimeError(f"can't allocate memory: you tried {len(counts)} bytes")
        return measure(self, case)

    monkeypatch.setattr(Insertion, "measure", hungry)
    options: dict[str, Any] = {"methods": "gradient", "metrics": "insertion,completeness"}
    with (
        pytest.warns(MemoryWarning, match="Insertion ran out of memory with 4 images at once"),
        pytest.warns(MetricWarning, match="Insertion: there is too little memory to measure it"),
    ):
        results = evaluate(model, photos, tmp_path / "out", **options, limit=4)
    assert explained == [4] and counts == [4, 1, 1, 1, 1]
    assert not results.errors("Gradient") and not results.refused
    values = results.values("Gradient")["insertion/accuracy_auc"]
    assert np.isfinite(values).tolist() == [True, False, True, True]
    table = pq.read_table(*(tmp_path / "out" / "pieces").rglob("*.parquet")).to_pylist()
    (noted,) = (row for row in table if row["note"])
    assert (noted["image"], noted["metric"]) == (1, "insertion/error")
    assert "bytes" not in noted["note"]  # how many changes from run to run


@pytest.mark.parametrize("error", [KeyboardInterrupt(), SystemExit(3)])
def test_what_stops_a_program_is_no_row(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    model = network()
    failing_on(monkeypatch, Gradient, [open_images(photos, model).read(2)], error)
    with pytest.raises(type(error)):
        evaluate(model, photos, tmp_path / "out", methods="gradient")


def test_a_device_that_fails_stops_the_run(
    photos: Path, tmp_path: Path, small_pieces: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a GPU after an assertion of its own: each later call fails, for no fault of an image."""
    model, out = network(), tmp_path / "out"
    zeros = torch.zeros

    def dead(*size: Any, **options: Any) -> torch.Tensor:
        if len(sizes) > 6 and "device" in options:
            raise RuntimeError("device-side assert triggered")
        return zeros(*size, **options)

    with monkeypatch.context() as patch:
        error = RuntimeError("device-side assert triggered")
        sizes = failing_on(patch, Gradient, [open_images(photos, model).read(6)], error)
        patch.setattr(torch, "zeros", dead)
        with pytest.raises(AfmiError, match=r"no longer since Gradient was given dog/1\.png \("):
            evaluate(model, photos, out, methods="gradient", batch_size=1)
    assert not any(numbers(out)["Gradient"]["blank"][n] == "nan" for n in range(4))
    resumed = evaluate(model, photos, out, methods="gradient", batch_size=1)
    assert resumed.read("Gradient").done.all() and not resumed.errors("Gradient")


def test_an_error_of_a_metric_costs_one_image_that_metric(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = network()
    bad = open_images(photos, model).read(6)
    original = Insertion.measure

    def measure(self: Insertion, case: Any) -> Any:
        if any(torch.equal(image, bad[0]) for image in case.inputs):
            raise IndexError("out of range")
        return original(self, case)

    monkeypatch.setattr(Insertion, "measure", measure)
    with pytest.warns(MetricWarning, match="Insertion: IndexError: out of range"):
        results = evaluate(model, photos, tmp_path / "out", methods="gradient")
    measured = results.read("Gradient")
    assert not measured.errors
    assert measured.metric_errors == {"insertion": {6: "IndexError: out of range"}}
    assert np.isnan(measured.values["insertion/accuracy_auc"]).nonzero()[0].tolist() == [6]
    assert np.isfinite(measured.values["cost/seconds"]).all()
    (failure,) = summarise(results).failures
    assert failure.key == "dog/1.png" and failure.reason == "Insertion: IndexError: out of range"


class NaNWhere(nn.Module):
    """Divides by zero where an image's mean lies below a limit."""

    def __init__(self, inner: nn.Module, below: float) -> None:
        super().__init__()
        self.inner, self.below = inner, below

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        low = (x.mean((1, 2, 3)) < self.below)[:, None]
        return torch.where(low, torch.nan, self.inner(x))


@pytest.mark.filterwarnings("ignore::afmi.errors.CompletenessWarning")
@pytest.mark.parametrize("name", CATALOGUE)
def test_nan_is_no_class(tmp_path: Path, name: str) -> None:
    model = Classifier(NaNWhere(network().network, 2.0), labels=["a", "b", "c", "d"]).eval()
    data = [(torch.rand(3, 16, 16, generator=torch.Generator().manual_seed(0)), 0)] * 3
    methods = [method(name, model), Random(model, seed=1)]
    results = evaluate(model, data, tmp_path / "out", methods=methods, metrics="insertion")
    for label in results.methods:
        measured = results.read(label)
        assert list(measured.errors) == [0, 1, 2] and not measured.values
        assert all("NaN" in reason for reason in measured.errors.values()), measured.errors


def test_nan_of_one_image(photos: Path, tmp_path: Path) -> None:
    model = network()
    images = open_images(photos, model)
    means = torch.stack([images.read(i).mean() for i in range(20)])
    lowest, second = means.sort().values[:2].tolist()
    model.network = NaNWhere(model.network, (lowest + second) / 2)
    results = evaluate(model, photos, tmp_path / "out", methods="random", metrics="cost")
    assert list(results.errors("Random")) == [int(means.argmin())]


def test_nan_of_a_masked_image_is_no_class(photos: Path, tmp_path: Path) -> None:
    """Black images are the NaN: with too few pixels kept nothing is counted as class 0."""
    model = network()
    model.network = NaNWhere(model.network, 0.2)
    with pytest.warns(MetricWarning, match="with 5 % of the pixels kept the network gives NaN"):
        results = evaluate(model, photos, tmp_path / "out", methods="random")
    measured = results.read("Random")
    assert not measured.errors and list(measured.metric_errors["insertion"]) == list(range(20))
    assert not any(name.startswith("insertion/") for name in measured.values)


def test_hopeless_method_is_given_up(
    photos: Path, tmp_path: Path, small_pieces: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, out = network(), tmp_path / "out"
    monkeypatch.setattr(plan_module, "_HOPELESS", 10)
    images = open_images(photos, model)
    bad = [images.read(i) for i in range(20)]
    with monkeypatch.context() as patch:
        failing_on(patch, Gradient, bad, RuntimeError("no kernel"))
        results = evaluate(model, photos, out, methods="gradient,random")
    assert results.methods == ("Random",)
    reason = "it fails on each of the first 12 pictures: RuntimeError: no kernel"
    assert results.refused == {"Gradient": reason}
    assert not list(out.glob("pieces/gradient/*"))
    # Once it is mended, all is measured; and what works is not given up for bad images later on.
    failing_on(monkeypatch, Gradient, bad[1:], RuntimeError("no kernel"))
    results = evaluate(model, photos, out, methods="gradient")
    assert list(results.errors("Gradient")) == list(range(1, 20))


def test_full_disk_loses_nothing(
    photos: Path, tmp_path: Path, small_pieces: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, out = network(), tmp_path / "out"
    evaluate(model, photos, tmp_path / "whole", methods=CHEAP)
    written = 0
    replace = os.replace

    def full(source: Any, target: Any) -> None:
        nonlocal written
        written += 1
        if written > 7:
            raise OSError(28, "No space left on device")
        replace(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(afmi.files.os, "replace", full)
        with pytest.raises(AfmiError, match="No space left on device") as caught:
            evaluate(model, photos, out, methods=CHEAP)
    assert "\n" not in str(caught.value)
    assert not list(out.rglob("*.part"))
    evaluate(model, photos, out, methods=CHEAP)
    assert numbers(out) == numbers(tmp_path / "whole")


def test_refused_method_is_noted_and_the_others_go_on(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OperationError("aten.magic has no rule")

    monkeypatch.setattr(Gradient, "_attribute", refuse)
    recorded: list[str] = []
    results = evaluate(
        network(),
        photos,
        tmp_path / "out",
        methods=CHEAP,
        on_refusal=lambda label, reason: recorded.append(f"{label}: {reason}"),
    )
    assert results.methods == ("A-FMI", "Random")
    assert results.refused == {"Gradient": "aten.magic has no rule"}
    assert recorded == ["Gradient: aten.magic has no rule"]


def test_grey_digits(tmp_path: Path) -> None:
    body = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 64, 2))
    model = Classifier(body, mean=[0.1], std=[0.3], labels=["0", "1"]).eval()
    digits = [(torch.rand(1, 10, 10), n % 2) for n in range(4)]
    results = evaluate(model, digits, tmp_path / "out", methods="gradient", examples=2)
    measurements = results.read("Gradient")
    assert (
        not measurements.errors and np.isfinite(measurements.values["insertion/accuracy_auc"]).all()
    )
    assert len(list((tmp_path / "out" / "examples").iterdir())) == 2 * 3


def test_shard_is_a_pure_function(photos: Path) -> None:
    model = network()
    images = open_images(photos, model)
    state = torch.random.get_rng_state()

    def rows(start: int, stop: int) -> list[Any]:
        shard = Shard(Random(model), {"insertion": Insertion()}, images, start, stop)
        return evaluate_shard(shard).rows

    assert rows(3, 9) == rows(3, 9)
    assert torch.equal(state, torch.random.get_rng_state())
    assert {image for image, *_ in rows(3, 9)} == set(range(3, 9))


# The network has neither switches nor gates, and the steps are few.
@pytest.mark.filterwarnings("ignore::afmi.errors.ImageIndependenceWarning")
@pytest.mark.filterwarnings("ignore:.*Integrated Gradients misses the change")
def test_every_method(photos: Path, tmp_path: Path) -> None:
    model = network()
    methods = [method(name, model) for name in CATALOGUE]
    out = tmp_path / "out"
    results = evaluate(model, photos, out, methods=methods, metrics="insertion", limit=4)
    assert len(results.methods) + len(results.refused) == len(CATALOGUE)
    for label in results.methods:
        measurements = results.read(label)
        assert measurements.done.all() and not measurements.errors, (label, measurements.errors)
        assert np.isfinite(measurements.values["insertion/accuracy_auc"]).all()
        json.dumps(results.facts(label), allow_nan=False)


def test_every_metric(photos: Path, tmp_path: Path) -> None:
    model, out = network(), tmp_path / "out"
    results = evaluate(model, photos, out, methods="deeplift,random", metrics="all", limit=4)
    for label in results.methods:
        measurements = results.read(label)
        assert not measurements.errors
        without = {"FMIAgreement"}  # it is A-FMI's, and needs a file
        without |= {"Completeness", "ReferenceReliability"} if label == "Random" else set()
        for name, kind in METRICS.items():
            values = [key for key in measurements.values if key.startswith(f"{results_key(name)}/")]
            assert bool(values) == (name not in without), (label, name)
            assert not values or f"{results_key(name)}/{kind.columns[0].source}" in values


def test_network_that_can_have_none_of_the_methods(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OperationError("aten.magic has no rule")

    model, out = network(), tmp_path / "out"
    recorded: list[str] = []
    with monkeypatch.context() as patch:
        for kind in (Gradient, AFMI):
            patch.setattr(kind, "_attribute", refuse)
        for _ in range(2):  # and once more, on the folder that is there already
            with pytest.raises(UsageError, match="no measurements: Gradient was refused") as caught:
                evaluate(
                    model,
                    photos,
                    out,
                    methods="gradient,a-fmi",
                    on_refusal=lambda label, _: recorded.append(label),
                )
            assert "\n" not in str(caught.value)
    assert recorded == ["Gradient", "A-FMI"] * 2
    # Another method may still be added, and a refused method is tried again when asked for.
    results = evaluate(model, photos, out, methods="random,gradient")
    assert results.methods == ("Gradient", "Random") and list(results.refused) == ["A-FMI"]


@pytest.mark.parametrize("left", [0, 5, -1])
def test_piece_that_a_crash_cut_off_is_done_again(
    photos: Path, tmp_path: Path, small_pieces: None, left: int
) -> None:
    model, out = network(), tmp_path / "out"
    evaluate(model, photos, out, methods="gradient")
    before = numbers(out)
    path = out / "pieces" / "gradient" / "00000008.parquet"
    path.write_bytes(path.read_bytes()[:left])
    with pytest.raises(AfmiError, match=r"00000008\.parquet' is damaged .* delete it"):
        numbers(out)
    begun: list[int] = []
    evaluate(
        model, photos, out, methods="gradient", on_begin=lambda piece, *_: begun.append(piece.start)
    )
    assert begun == [8] and numbers(out) == before


def test_piece_that_is_damaged_within_is_named(photos: Path, tmp_path: Path) -> None:
    """Resuming does not read the pieces; reading the numbers names the damaged file."""
    model, out = network(), tmp_path / "out"
    evaluate(model, photos, out, methods="gradient")
    path = out / "pieces" / "gradient" / "00000000.parquet"
    path.write_bytes(b"PAR1" + bytes(200) + b"PAR1")
    results = evaluate(model, photos, out, methods="gradient,random")
    assert results.read("Random").done.all()
    with pytest.raises(AfmiError, match=r"gradient/00000000\.parquet' is damaged") as caught:
        results.read("Gradient")
    assert "\n" not in str(caught.value)
    path.unlink()
    assert evaluate(model, photos, out, methods="gradient").read("Gradient").done.all()


def test_two_at_once_lose_no_rows(photos: Path, tmp_path: Path, small_pieces: None) -> None:
    """A second evaluation begins, and ends, while the first is between two of its pieces."""
    model, whole, out = network(), tmp_path / "whole", tmp_path / "out"
    methods = "gradient,random,a-fmi"
    evaluate(model, photos, whole, methods=methods)
    begun: list[Any] = []

    def meanwhile(piece: Any, *_: object) -> None:
        begun.append(piece)
        if len(begun) == 3:
            evaluate(model, photos, out, methods="a-fmi,gradient")

    results = evaluate(model, photos, out, methods="random,gradient", on_begin=meanwhile)
    assert set(results.methods) == {"A-FMI", "Gradient", "Random"}
    assert numbers(out) == {label: numbers(whole)[label] for label in results.methods}


def test_method_that_went_missing_from_the_manifest_is_entered_again(
    photos: Path, tmp_path: Path, small_pieces: None
) -> None:
    """Where folders cannot be locked, another process may write back an older manifest."""
    out = tmp_path / "out"
    before: list[bytes] = []

    def overwrite(piece: Any, *_: object) -> None:
        manifest = out / "manifest.json"
        if not before:
            older = json.loads(manifest.read_bytes())
            del older["methods"]["Random"]
            before.append(json.dumps(older).encode())
        if piece.label == "Gradient":
            manifest.write_bytes(before[0])

    results = evaluate(network(), photos, out, methods="gradient,random", on_begin=overwrite)
    assert results.methods == ("Gradient", "Random") and results.read("Random").done.all()


def test_method_that_needs_no_network(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Random, "work", lambda *_: Work(0))
    results = evaluate(network(), photos, tmp_path / "out", methods="random", metrics="cost")
    assert results.read("Random").done.all()


def test_memory_of_a_run_does_not_grow(
    tmp_path: Path, small_pieces: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a run holds at the end of each piece is the same, however many came before."""
    model = network()
    counts: list[int] = []

    def count(*_: object) -> None:
        gc.collect()
        counts.append(sum(type(thing) is torch.Tensor for thing in gc.get_objects()))

    class Many:
        """A data set of pictures that are made when asked for."""

        def __len__(self) -> int:
            return 24

        def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
            generator = torch.Generator().manual_seed(index)
            return torch.rand(3, 8, 8, generator=generator), index % 3

    evaluate(
        model, Many(), tmp_path / "out", methods="gradient", metrics="insertion", on_begin=count
    )
    assert len(counts) == 6 and max(counts[2:]) <= counts[1] + 2


# Forks, because PyTorch takes seconds to import; before the first fork nothing is computed.
_KILLED = """
import os, sys
sys.path[:0] = {tests!r}
import torch
torch.set_num_threads(1)
import afmi.evaluation.plan as plan_module
plan_module._LARGEST_PIECE = 1
from test_run import network
from afmi.evaluation import evaluate
methods = ",".join(["a-fmi,grad-cam,gradient", *(f"random:seed={{i}}" for i in range(9))])
for line in sys.stdin:
    child = os.fork()
    if child == 0:
        code = 1
        try:
            evaluate(network(), {photos!r}, line.strip(), methods=methods)
            code = 0
        finally:
            os._exit(code)
    print(child, flush=True)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_killed_ten_times(photos: Path, tmp_path: Path) -> None:
    """Killed at its beginning and anywhere later, a run resumes and ends with the same numbers.

    The moments are counted in pieces, not in seconds, so they are spread alike on any machine:
    after a random number of new pieces, and then somewhere within the time that two pieces take.
    """
    whole, out = tmp_path / "whole", tmp_path / "out"
    script = tmp_path / "script.py"
    tests = [str(folder) for folder in Path(__file__).parents[:2]]
    script.write_text(_KILLED.format(tests=tests, photos=str(photos)))
    drawn = np.random.default_rng(1)

    def run(server: Any, folder: Path, wanted: int | None) -> tuple[int, int]:
        """Return the exit status and the pieces there; killed at ``wanted`` new ones."""
        before = count(folder)
        server.stdin.write(f"{folder}\n")
        server.stdin.flush()
        child = int(server.stdout.readline())
        began = last = time.perf_counter()
        while wanted is not None:
            written = count(folder) - before
            now = time.perf_counter()
            if written >= wanted:
                each = (now - last) / max(written, 1) if wanted > 1 else 0.05
                time.sleep(float(drawn.uniform(0, 2 * each)))
                os.kill(child, signal.SIGKILL)
                break
            if written == 0:
                last = now  # loading is no part of a piece's time
            assert now - began < 600
            time.sleep(0.001)
        return int(server.stdout.readline()), count(folder)

    def count(folder: Path) -> int:
        return len(list(folder.glob("pieces/*/*.parquet")))

    total = 12 * 20
    # Three times before or while the first new piece is made, and seven times later.
    moments = [0, 0, 1, *drawn.integers(2, 25, 7).tolist()]
    drawn.shuffle(moments)
    assert sum(moments) + 4 * len(moments) < total
    with subprocess.Popen(
        [sys.executable, str(script)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as server:
        ended = [run(server, out, moment) for moment in moments]
        ended += [run(server, folder, None) for folder in (out, whole)]
    assert server.returncode == 0
    *ended, gone_on, unbroken = ended
    assert gone_on == unbroken == (0, total)
    assert [code for code, _ in ended] == [-signal.SIGKILL] * 10
    pieces = [written for _, written in ended]
    assert pieces == sorted(pieces) and len(set(pieces)) >= 7 and pieces[-1] < total
    assert numbers(out) == numbers(whole)
    for path in out.glob("pieces/*/*.parquet"):
        table = pq.read_table(path)
        rows = list(zip(table["image"].to_pylist(), table["metric"].to_pylist(), strict=True))
        assert len(rows) == len(set(rows))


def test_grid_pointing_needs_four_classes(photos: Path, tmp_path: Path) -> None:
    shutil.rmtree(photos / "owl")
    with pytest.raises(UsageError, match="pictures of 4 classes, got 3"):
        evaluate(network(), photos, tmp_path / "out", methods="gradient", metrics="all")
    assert not (tmp_path / "out").exists()
