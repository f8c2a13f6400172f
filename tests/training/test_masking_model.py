"""Training of masks: they learn where the class is, and an interruption changes nothing."""

from __future__ import annotations

import copy
import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from PIL import Image
from torch import Tensor, nn

from afmi.data.labelled import open_images
from afmi.errors import ModelError, ShapeError, UsageError
from afmi.methods import MaskingModel
from afmi.methods.masking_network import MaskingNetwork, load_masks, untrained
from afmi.network.classifier import Classifier
from afmi.network.randomness import generator_of
from afmi.training import MaskLosses, Recipe, train_masking_model
from afmi.training.masking_model import _Training

SIDE = 16


class Colors(nn.Module):
    """Two classes, pure red and pure green: a logit is 100 times the mean of what is over 0.65."""

    def __init__(self) -> None:
        super().__init__()
        first, second = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 1)
        self.features = nn.Sequential(
            nn.AvgPool2d(2), first, nn.ReLU(), nn.AvgPool2d(2), second, nn.ReLU()
        )
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.head = nn.Linear(4, 2)
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.zero_()
            first.weight[:3, :, 0, 0] = torch.eye(3)
            first.bias[:3] = -0.65
            second.weight[:, :, 0, 0] = torch.eye(4)
            self.head.weight[:, :2] = 100 * torch.eye(2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.pool(self.features(x)).flatten(1))


@pytest.fixture
def model() -> Classifier:
    return Classifier(Colors(), labels=["red", "green"]).eval()


@pytest.fixture(scope="module")
def data() -> list[tuple[Tensor, int]]:
    """Grey images with a red or a green patch in one of four corners."""
    generator = torch.Generator().manual_seed(0)
    pairs = []
    for n in range(16):
        image = 0.4 + 0.02 * torch.rand(3, SIDE, SIDE, generator=generator)
        row, column = (8 * (n // 2 % 2), 8 * (n // 4 % 2))
        image[n % 2, row : row + 8, column : column + 8] = 1.0
        pairs.append((image, n % 2))
    return pairs


RECIPE = Recipe(epochs=1, selector_epochs=1, batch_size=4, width=4, finest=2)


def mean_loss(masks: MaskingNetwork, model: Classifier, data: Any, recipe: Recipe) -> float:
    """Return the masks' loss for the images and draws of the first steps."""
    masks = copy.deepcopy(masks).requires_grad_(True)
    run = _Training(model, open_images(data, model), recipe, masks, "logits")
    losses = []
    for step in range(4):
        batch = run._batch(step, generator_of(step))
        assert batch is not None
        losses.append(run._mask_gradients(*batch, generator_of(step)))
    return sum(losses) / len(losses)


def test_training_finds_the_patch_and_lowers_the_loss(model: Classifier, data: Any) -> None:
    before = copy.deepcopy(model.state_dict())
    steps: dict[str, list[float]] = {"class selector": [], "masks": []}
    recipe = dataclasses.replace(
        RECIPE,
        epochs=20,
        selector_epochs=8,
        batch_size=8,
        learning_rate=0.05,
        selector_rate=1.0,
        losses=MaskLosses(area=2),
    )

    def keep(what: str, _done: int, _total: int, loss: float) -> None:
        steps[what].append(loss)

    masks = train_masking_model(model, data, recipe=recipe, on_step=keep)
    assert [len(losses) for losses in steps.values()] == [16, 40]
    assert steps["class selector"][-1] < 0.7 * steps["class selector"][0]
    x, labels = torch.stack([image for image, _ in data]), torch.tensor([c for _, c in data])
    start = untrained(model, x, width=recipe.width, finest=recipe.finest)
    assert mean_loss(masks, model, data, recipe) < mean_loss(start, model, data, recipe) - 0.2
    method = MaskingModel(model, weights=masks)
    maps = method.attribute(x, labels)
    patch = x.gather(1, labels[:, None, None, None].expand(-1, 1, SIDE, SIDE)) > 0.9
    inside, outside = float(maps[patch].mean()), float(maps[~patch].mean())
    assert inside > 4 * outside, (inside, outside)
    # What is not there has the smaller mask.
    assert method.attribute(x, 1 - labels).mean() < 0.5 * maps.mean()
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
    assert all(p.grad is None and p.requires_grad for p in model.parameters())
    assert not any(module.training for module in model.modules())


def test_an_interrupted_training_ends_with_the_same_masks(
    model: Classifier, data: Any, tmp_path: Path
) -> None:
    whole = tmp_path / "whole.safetensors"
    train_masking_model(model, data, whole, recipe=RECIPE)
    assert [path.name for path in tmp_path.iterdir()] == ["whole.safetensors"]

    out, steps = tmp_path / "parts.safetensors", []
    ends = [("class selector", 2), ("masks", 1)]

    def interrupt(what: str, done: int, _total: int, _loss: float) -> None:
        steps.append((what, done))
        if ends and steps[-1] == ends[0]:
            del ends[0], steps[:]
            raise KeyboardInterrupt

    def train() -> None:
        train_masking_model(
            model, data, out, recipe=RECIPE, on_step=interrupt, checkpoint_seconds=0
        )

    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            train()
        assert not out.exists() and (tmp_path / "parts.safetensors.checkpoint").exists()
        torch.rand(3)
    train()
    assert steps == [("masks", 2), ("masks", 3), ("masks", 4)]
    assert out.read_bytes() == whole.read_bytes()
    assert not (tmp_path / "parts.safetensors.checkpoint").exists()

    # The same training again is done; another one does not take the file's place.
    steps.clear()
    train_masking_model(model, data, out, recipe=RECIPE, on_step=interrupt)
    assert steps == []
    with pytest.raises(UsageError, match="not replaced, is of a training with seed 0, and this on"):
        train_masking_model(model, data, out, recipe=dataclasses.replace(RECIPE, seed=1))
    assert out.read_bytes() == whole.read_bytes()


def test_what_a_file_says_of_its_training(model: Classifier, data: Any, tmp_path: Path) -> None:
    out = tmp_path / "masks.safetensors"
    masks = train_masking_model(model, data, out, recipe=RECIPE)
    loaded, training = load_masks(out)
    assert loaded.layers == ("features", "features.2") == masks.layers
    assert (training["epochs"], training["count"], training["seed"]) == (1, 16, 0)
    assert training["losses"] == dataclasses.asdict(MaskLosses())
    x = data[0][0][None]
    expected = MaskingModel(model, weights=masks).attribute(x, 0)
    assert torch.equal(MaskingModel(model, weights=out).attribute(x, 0), expected)


def test_a_checkpoint_of_another_training(model: Classifier, data: Any, tmp_path: Path) -> None:
    out = tmp_path / "masks.safetensors"

    def stop(*_: Any) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train_masking_model(model, data, out, recipe=RECIPE, on_step=stop, checkpoint_seconds=0)
    other = dataclasses.replace(RECIPE, epochs=2)
    with pytest.raises(UsageError, match="of a training with epochs 1, and this one has 2"):
        train_masking_model(model, data, out, recipe=other)
    checkpoint = tmp_path / "masks.safetensors.checkpoint"
    whole = checkpoint.read_bytes()
    size = int.from_bytes(whole[:8], "little")
    metadata = json.loads(whole[8 : 8 + size])["__metadata__"]
    state = safetensors.torch.load(whole)
    small = {key: tensor.flatten()[:1] for key, tensor in state.items()}
    for tensors, record in (
        (small, metadata),
        ({}, metadata),
        (state, {**metadata, "step": "null"}),
        (state, {key: text for key, text in metadata.items() if key != "step"}),
        ({**state, "optimiser.99.exp_avg": torch.zeros(2)}, metadata),
    ):
        checkpoint.write_bytes(safetensors.torch.save(tensors, record))
        with pytest.raises(UsageError, match=r"holds no whole checkpoint.*delete it to begin") as e:
            train_masking_model(model, data, out, recipe=RECIPE)
        assert "\n" not in str(e.value)
    checkpoint.write_bytes(whole[:100])
    with pytest.raises(UsageError, match=r"cannot be read .*; delete it to begin again"):
        train_masking_model(model, data, out, recipe=RECIPE)


def test_what_cannot_be_trained(model: Classifier, data: Any, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="batch_size from 2"):
        Recipe(batch_size=1)
    with pytest.raises(UsageError, match="learning rates above 0"):
        Recipe(learning_rate=0)
    with pytest.raises(UsageError, match="learning rates above 0"):
        Recipe(selector_rate=float("nan"))
    with pytest.raises(UsageError, match="selector_epochs from 0, got -1"):
        Recipe(selector_epochs=-1)
    with pytest.raises(UsageError, match="seed"):
        Recipe(seed=2**40)
    with pytest.raises(UsageError, match="2 images at least, got 2 and 1"):
        train_masking_model(model, data[:1], recipe=RECIPE)
    values = Classifier(Colors(), output="value").eval()
    with pytest.raises(UsageError, match="gives values"):
        train_masking_model(values, data, recipe=RECIPE)
    mixed = [data[0], (torch.rand(3, 20, 20), 1)]
    with pytest.raises(ShapeError, match="images of one size"):
        train_masking_model(model, mixed, recipe=RECIPE)
    (tmp_path / "notes.txt").write_text("no masks")
    with pytest.raises(UsageError, match="holds no masks, so it is not replaced"):
        train_masking_model(model, data, tmp_path / "notes.txt", recipe=RECIPE)
    with pytest.raises(ModelError):
        train_masking_model(lambda x: x, data)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("setting", "value", "named"),
    [
        ("mean", [0.1] * 3, "mean"),
        ("resize", 20, "resize"),
        ("crop", 12, "crop"),
        ("interpolation", Image.Resampling.BICUBIC, "interpolation"),
        ("output", "sigmoid", "output"),
        ("size", 32, "shape"),
        ("weight", 2.0, "network"),
    ],
)
def test_a_training_for_something_else_is_another(
    data: Any, tmp_path: Path, setting: str, value: Any, named: str
) -> None:
    """Its checkpoint is not resumed: pictures, network or outputs would be others."""
    out = tmp_path / "masks.safetensors"

    def train(side: int = SIDE, weight: float = 1.0, **settings: Any) -> None:
        network = Colors()
        network.head.weight.data.mul_(weight)
        pairs = [(image.repeat(1, side // SIDE, side // SIDE), label) for image, label in data]
        model = Classifier(network, labels=["red", "green"], **settings).eval()
        recipe = dataclasses.replace(RECIPE, batch_size=2)
        train_masking_model(model, pairs, out, recipe=recipe, on_step=stop, checkpoint_seconds=0)

    def stop(*_: Any) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train()
    changes = {"side": value} if setting == "size" else {setting: value}
    with pytest.raises(UsageError, match=f"of a training with {named} "):
        train(**changes)


def test_a_diverged_training_writes_no_masks(model: Classifier, data: Any, tmp_path: Path) -> None:
    out = tmp_path / "masks.safetensors"
    recipe = dataclasses.replace(RECIPE, learning_rate=1e30)
    with pytest.raises(UsageError, match=r"diverged: .*; take a smaller learning_rate \(it is 1e"):
        train_masking_model(model, data, out, recipe=recipe)
    assert not out.exists()
    # What only the weights show, after a step whose loss is a number.
    run = _Training(
        model, open_images(data, model), RECIPE, untrained(model, data[0][0][None]), "logits"
    )
    run.masks.requires_grad_(True)
    run._selector_gradients = lambda *_: 0.5  # type: ignore[method-assign]
    run.masks.mask.bias.data[0] = torch.nan
    with pytest.raises(UsageError, match=r"after step 1 the loss is 0\.5, and"):
        run.go(0, None, lambda step: None)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_training_without_gradients_around_it(model: Classifier, data: Any, mode: Any) -> None:
    recipe = dataclasses.replace(RECIPE, batch_size=8)
    expected = train_masking_model(model, data, recipe=recipe)
    with mode():
        trained = train_masking_model(model, data, recipe=recipe)
        assert not torch.is_grad_enabled()
    for name, tensor in expected.state_dict().items():
        assert torch.equal(trained.state_dict()[name], tensor), name


def test_a_phase_without_images_is_no_training(model: Classifier, tmp_path: Path) -> None:
    """Of three pictures in batches of two, one can be read."""
    folder = tmp_path / "data"
    for name, label in (("a", "red"), ("b", "green"), ("c", "green")):
        (folder / label).mkdir(parents=True, exist_ok=True)
        (folder / label / f"{name}.png").write_bytes(b"no picture")
    Image.new("RGB", (SIDE, SIDE)).save(folder / "red" / "a.png")
    recipe = dataclasses.replace(RECIPE, batch_size=2)
    out = tmp_path / "masks.safetensors"
    with (
        pytest.warns(UserWarning, match="left out"),
        pytest.raises(UsageError, match=r"no step of the class selector had them: [12] of 3"),
    ):
        train_masking_model(model, folder, out, recipe=recipe)
    assert not out.exists()
