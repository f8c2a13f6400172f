"""RQ1: training that resumes, prototypes measured in parts, and the whole command on toy digits."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

import afmi.evaluation.parts
import afmi.evaluation.prototypes
from afmi import load_model
from afmi.engines import Local
from afmi.errors import ImageError, UsageError
from afmi.evaluation import open_images
from afmi.experiments import Request, experiment_named
from afmi.experiments.shared import mnist as mnist_module
from afmi.experiments.shared.mnist import build, digits, train
from afmi.experiments.shared.prototypes import measure_agreement
from afmi.methods import AFMI


def silent(_: str) -> None:
    pass


def test_network_is_the_examples(mnist: Path) -> None:
    model = build()
    # PyTorch's example: 320 + 18,496 + 1,179,776 + 1,290 parameters.
    assert sum(p.numel() for p in model.parameters()) == 1_199_882
    images, labels = digits(mnist, training=False)
    assert images.shape == (60, 1, 28, 28) and images.min() >= 0 and images.max() <= 1
    assert labels[:3].tolist() == [0, 1, 2]
    assert model.eval()(images[:2]).shape == (2, 10)


def test_training_resumes_with_the_same_numbers(
    mnist: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    state = torch.random.get_rng_state()
    whole = train(mnist, tmp_path / "whole.safetensors", limit=128, report=silent)
    epoch = mnist_module._epoch

    def stop(parts: Any, images: Any, labels: Any, seed: int, number: int) -> None:
        if number == 1:
            raise KeyboardInterrupt
        epoch(parts, images, labels, seed, number)

    broken = tmp_path / "broken.safetensors"
    with monkeypatch.context() as patch:
        patch.setattr(mnist_module, "_epoch", stop)
        with pytest.raises(KeyboardInterrupt):
            train(mnist, broken, limit=128, report=silent)
    assert not broken.exists()
    resumed = train(mnist, broken, limit=128, report=silent)
    loaded = train(mnist, broken, limit=128, report=silent)
    for name, tensor in whole.state_dict().items():
        assert torch.equal(tensor, resumed.state_dict()[name])
        assert torch.equal(tensor, loaded.state_dict()[name])
    assert torch.equal(state, torch.random.get_rng_state())
    assert [p.name for p in sorted(tmp_path.iterdir())] == [
        "broken.safetensors",
        "whole.safetensors",
    ]
    with pytest.raises(UsageError, match="another training"):
        train(mnist, broken, limit=129, report=silent)


def test_missing_mnist(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match=r"MNIST.raw.*download=True"):
        digits(tmp_path, training=True)


def test_agreement_is_the_papers(
    mnist: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Against means and cosines picture by picture; and in parts, interrupted and resumed."""
    monkeypatch.setattr(afmi.evaluation.parts, "PART", 32)
    monkeypatch.setattr(afmi.evaluation.prototypes, "PART", 32)
    options = {"batch": 16, "engine": Local()}
    model = train(mnist, tmp_path / "net.safetensors", epochs=4, report=silent)
    method = AFMI(model)
    training = open_images(f"mnist-train:{mnist}", model)
    validation = open_images(f"mnist:{mnist}", model)
    row = measure_agreement(method, training, validation, tmp_path / "fmi", **options)

    vectors: dict[int, list[torch.Tensor]] = {c: [] for c in range(10)}
    for image, label in zip(*digits(mnist, training=True), strict=True):
        vectors[int(label)].append(method.feature_map_importance(image[None], int(label))[0])
    means = torch.stack([torch.stack(rows).double().mean(0) for rows in vectors.values()])
    correct = agreeing = 0
    for image, label in zip(*digits(mnist, training=False), strict=True):
        if int(model(image[None]).argmax()) == int(label):
            importance = method.feature_map_importance(image[None], int(label)).double()
            correct += 1
            agreeing += int(F.cosine_similarity(importance, means).argmax()) == int(label)
    assert correct > 10
    assert row["network's accuracy"] == correct / 60 and row["training pictures"] == 160
    assert row["agreement of FMI"] == agreeing / correct
    assert row["control: entries shuffled"] < agreeing / correct
    assert row["control: FMI of another picture"] < agreeing / correct
    assert row["feature maps"] == 64 and row["unreadable pictures"] == 0

    parts = sorted((tmp_path / "fmi" / "training" / "parts").iterdir())
    assert len(parts) == 5
    kept = parts[0].stat().st_mtime_ns
    parts[3].unlink()
    assert measure_agreement(method, training, validation, tmp_path / "fmi", **options) == row
    assert parts[0].stat().st_mtime_ns == kept and parts[3].exists()
    other = AFMI(model, averaged=False)
    with pytest.raises(UsageError, match="another run"):
        measure_agreement(other, training, validation, tmp_path / "fmi", **options)


def test_command_on_toy_digits(mnist: Path, tmp_path: Path) -> None:
    result = experiment_named("rq1-mnist")().run(Request(out=tmp_path, mnist=mnist, report=silent))
    deep, linear = result.rows
    assert deep["paper"] == 0.869 and deep["training pictures"] == 160
    assert 0 <= deep["control: entries shuffled"] <= deep["agreement of FMI"] <= 1
    assert 0 <= deep["control: FMI of another picture"] < 0.5
    # By construction: FMI is a row of the head's weights, whatever the picture.
    assert linear["agreement of FMI"] == 1 and "by construction" in linear["note"]
    assert result.files[0].name == "rq1-mnist.csv" and result.files[0].exists()


def test_photographs_need_train_and_val(tmp_path: Path) -> None:
    experiment = experiment_named("rq1-imagenet")()
    with pytest.raises(UsageError, match=r"needs the folder .*train"):
        experiment.run(Request(out=tmp_path / "out", imagenet=tmp_path, report=silent))


def test_photographs_on_another_network(tmp_path: Path) -> None:
    """Noise, in folders of the classes that the network takes it for."""
    drawn = np.random.default_rng(0)
    model = load_model("photos").eval()
    for part in ("train", "val"):
        for i in range(3):
            picture = Image.fromarray(drawn.integers(0, 256, (70, 70, 3), dtype=np.uint8))
            with torch.no_grad():
                label = model.labels[int(model(model.prepare(picture)).argmax())]
            folder = tmp_path / part / label
            folder.mkdir(parents=True, exist_ok=True)
            picture.save(folder / f"{i}.png")
    request = Request(out=tmp_path / "out", imagenet=tmp_path, models=("photos",), report=silent)
    (row,) = experiment_named("rq1-imagenet")().run(request).rows
    assert row["network"] == "photos" and row["paper"] is None
    assert row["network's accuracy"] == 1 and row["validation pictures"] == 3


def test_experiments_of_this_process_refuse_other_engines(tmp_path: Path, mnist: Path) -> None:
    request = Request(out=tmp_path, mnist=mnist, engine=Local(workers=2), report=silent)
    with pytest.raises(UsageError, match=r"roar-mnist is made in this process.*Local\(workers=2"):
        experiment_named("roar-mnist")().run(request)
