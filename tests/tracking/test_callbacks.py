"""Trainings are what they are without the callbacks, and the explanations are there."""

from __future__ import annotations

import copy
import pickle
import sys
import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import afmi
from afmi.errors import AfmiError, MissingPackageError, ModelError, UsageError

pytestmark = pytest.mark.usefixtures("small_figures")

IMAGES = torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(5))


class _Writer:
    """Keeps what a SummaryWriter is given."""

    def __init__(self) -> None:
        self.scores: list[tuple[str, int, float]] = []

    def add_image(self, tag: str, pixels: np.ndarray, step: int, dataformats: str) -> None:
        pass

    def add_scalar(self, tag: str, value: float, step: int) -> None:
        if tag.endswith("score"):
            self.scores.append((tag, step, value))

    def add_text(self, tag: str, text: str, step: int) -> None:
        pass


class _BrokenWriter(_Writer):
    """Fails from the first step on."""

    def add_scalar(self, tag: str, value: float, step: int) -> None:
        if step:
            raise OSError("disk full")


def _network() -> nn.Sequential:
    """With all that an explanation could disturb: dropout, batch norm, random numbers."""
    torch.manual_seed(0)
    return nn.Sequential(
        *(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(0.5)),
        *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3)),
    )


def _data() -> TensorDataset:
    generator = torch.Generator().manual_seed(1)
    images = torch.rand(12, 3, 8, 8, generator=generator)
    return TensorDataset(images, torch.arange(12) % 3)


@pytest.fixture(params=["lightning.pytorch", "pytorch_lightning"])
def package(request: pytest.FixtureRequest) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what they import
        return pytest.importorskip(request.param)


def _module(package: Any) -> Any:
    class Module(package.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.model = _network()

        def forward(self, images: Tensor) -> Tensor:
            return self.model(images)

        def training_step(self, batch: Any, _: int) -> Tensor:
            return nn.functional.cross_entropy(self(batch[0]), batch[1])

        def configure_optimizers(self) -> Any:
            return torch.optim.SGD(self.parameters(), 0.1, momentum=0.9)

    return Module()


def _fitted(package: Any, *callbacks: Any, **options: Any) -> Any:
    """Train for two epochs of three steps, and return the module."""
    with warnings.catch_warnings():
        # Of workers for data, logging intervals and the like: none of ours is ignored.
        for name in ("lightning", "pytorch_lightning"):
            warnings.filterwarnings("ignore", module=f"{name}\\.")
        warnings.filterwarnings("ignore", message=".*(isinstance\\(treespec|LeafSpec)")
        module = _module(package)
        torch.manual_seed(3)
        options = {"logger": False, "max_epochs": 2, "enable_checkpointing": False, **options}
        trainer = package.Trainer(
            accelerator="cpu",
            enable_progress_bar=False,
            enable_model_summary=False,
            callbacks=list(callbacks),
            **options,
        )
        trainer.fit(module, DataLoader(_data(), 4, shuffle=True))
    return module


def test_lightning_trains_as_without(package: Any) -> None:
    """Bit by bit."""
    plain, writer = _fitted(package), _Writer()
    watched = _fitted(
        package, afmi.callbacks.lightning(IMAGES, 1, network="model", to=writer, method="a-fmi")
    )
    for (name, one), other in zip(
        plain.state_dict().items(), watched.state_dict().values(), strict=True
    ):
        assert torch.equal(one, other), name
    assert watched.training == plain.training
    assert not any(module._forward_hooks for module in watched.modules())
    tags = [f"explanations/{n}-image/score" for n in (0, 1)]
    assert [(tag, step) for tag, step, _ in writer.scores] == [
        (tag, step) for step in (0, 3, 6) for tag in tags
    ]
    # The scores are those of the network in evaluation mode: first and last are known.
    for network, scores in ((_network(), writer.scores[:2]), (watched.model, writer.scores[-2:])):
        with torch.no_grad():
            expected = copy.deepcopy(network).eval()(IMAGES)[:, 1]
        assert [value for *_, value in scores] == pytest.approx(expected.tolist(), abs=1e-5)


def test_lightning_loggers_and_a_folder(package: Any, tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    loggers = [
        package.loggers.TensorBoardLogger(str(tmp_path), name="", version="board"),
        package.loggers.CSVLogger(str(tmp_path), name="", version="numbers"),
    ]
    callback = afmi.callbacks.lightning(
        list(IMAGES), every=2, folder=tmp_path / "maps", key="val", picture="overlay"
    )
    _fitted(package, callback, logger=loggers)
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(tmp_path / "board"))
    events.Reload()
    assert [event.step for event in events.Images("val/1-image")] == [0, 6]
    saved = sorted(path.name for path in (tmp_path / "maps").iterdir())
    assert saved == ["step-00000000", "step-00000006"]
    assert len(afmi.Gallery.load(tmp_path / "maps" / saved[0])) == 2


def test_lightning_without_a_place_for_pictures(package: Any, tmp_path: Path) -> None:
    logger = package.loggers.CSVLogger(str(tmp_path))
    with pytest.raises(UsageError, match="CSVLogger; take TensorBoardLogger"):
        afmi.log(afmi.explain(_network(), IMAGES[0]), 0, to=logger)
    with pytest.raises(UsageError, match="a folder, got neither"):
        _fitted(package, afmi.callbacks.lightning(IMAGES), logger=logger)


def test_what_fails_later_is_said_once(package: Any) -> None:
    """And the training ends."""
    with pytest.warns(UserWarning, match="training goes on.*OSError: disk full") as said:
        _fitted(package, afmi.callbacks.lightning(IMAGES, to=_BrokenWriter()))
    assert len([one for one in said if "disk full" in str(one.message)]) == 1


PREPARED = {"mean": [0.5] * 3, "std": [0.25] * 3}
BAD: list[tuple[type[AfmiError], str, dict[str, Any]]] = [
    (ModelError, "got 'modle'; did you mean 'model'", {"network": "modle"}),
    (AfmiError, "from 0 to 2, got 7", {"targets": 7}),
    (UsageError, "SummaryWriter", {"to": 3}),
    (AfmiError, "missing.png", {"images": ["missing.png"], "classifier": PREPARED}),
    (AfmiError, "samples", {"samples": 3}),
]


@pytest.mark.parametrize(("kind", "words", "options"), BAD)
def test_a_bad_configuration_raises_before_the_first_step(
    kind: type[AfmiError], words: str, options: dict[str, Any]
) -> None:
    package = pytest.importorskip("lightning.pytorch")
    options = {"images": IMAGES, "to": _Writer(), **options}
    steps: list[int] = []

    class Count(package.Callback):
        def on_train_batch_start(self, *_: Any) -> None:
            steps.append(1)

    with pytest.raises(kind, match=words):
        _fitted(package, Count(), afmi.callbacks.lightning(**options))
    assert not steps


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"every": 0}, "from 1, got 0"),
        ({"images": "dog.jpg"}, "list of images, got 'dog.jpg'"),
        ({"images": []}, "list of images"),
        ({"images": (image for image in IMAGES)}, "list of images, got <generator"),
        ({"picture": "map"}, "'figure' or 'overlay'"),
    ],
)
@pytest.mark.parametrize("name", ["lightning", "transformers"])
def test_bad_arguments_raise_at_once(name: str, options: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        getattr(afmi.callbacks, name)(**{"images": IMAGES, **options})


@pytest.mark.parametrize(
    ("name", "words"),
    [("lightning", "pip install lightning"), ("transformers", r"pip install 'afmi\[transf")],
)
def test_a_missing_package_is_named(name: str, words: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(afmi.callbacks, "_is_installed", lambda name: False)
    for module in ("lightning.pytorch", "pytorch_lightning"):
        monkeypatch.delitem(sys.modules, module, raising=False)
    for module in ("lightning", "transformers"):
        monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(MissingPackageError, match=f"needs the package.*{words}"):
        getattr(afmi.callbacks, name)(IMAGES)


def test_a_callback_travels_to_other_processes() -> None:
    pytest.importorskip("lightning.pytorch")
    callback = pickle.loads(pickle.dumps(afmi.callbacks.lightning(IMAGES, every=3)))
    assert callback.watch.every == 3
    assert torch.equal(callback.watch.images, IMAGES)


class _Split:
    """A trainer whose strategy parts the weights."""

    class FSDPStrategy:
        pass

    strategy = FSDPStrategy()


def test_a_network_in_parts_is_refused() -> None:
    pytest.importorskip("lightning.pytorch")
    with pytest.raises(UsageError, match="FSDPStrategy parts"):
        afmi.callbacks.lightning(IMAGES).on_fit_start(_Split(), None)


def test_only_the_first_process_explains() -> None:
    pytest.importorskip("lightning.pytorch")

    class Second:
        strategy = object()
        is_global_zero = False
        global_step = current_epoch = 0

    callback = afmi.callbacks.lightning(IMAGES, folder="nowhere")
    for hook in (callback.on_fit_start, callback.on_train_start, callback.on_train_epoch_end):
        hook(Second(), _network())
    assert not Path("nowhere").exists()


@pytest.fixture
def hugging_face(monkeypatch: pytest.MonkeyPatch) -> Any:
    pytest.importorskip("accelerate")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    return pytest.importorskip("transformers")


def _vit(library: Any) -> Any:
    torch.manual_seed(0)
    config = library.ViTConfig(
        hidden_size=8,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        image_size=8,
        patch_size=2,
        num_labels=3,
        hidden_dropout_prob=0.2,
    )
    return library.ViTForImageClassification(config)


def _trained(library: Any, folder: Path, *callbacks: Any, processor: Any = None) -> Any:
    """Train for two epochs of three steps, and return the network."""
    network = _vit(library)
    rows = [{"pixel_values": image, "labels": label} for image, label in _data()]
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module="torch\\.utils\\.data")  # of pinned memory
        trainer = library.Trainer(
            network,
            library.TrainingArguments(
                output_dir=str(folder),
                num_train_epochs=2,
                per_device_train_batch_size=4,
                report_to=[],
                save_strategy="no",
                logging_strategy="no",
                disable_tqdm=True,
                use_cpu=True,
            ),
            train_dataset=rows,  # type: ignore[arg-type]
            callbacks=list(callbacks),
            processing_class=processor,
        )
        trainer.train()
    return network


def test_transformers_trains_as_without(hugging_face: Any, tmp_path: Path) -> None:
    plain, writer = _trained(hugging_face, tmp_path), _Writer()
    processor = hugging_face.ViTImageProcessor(
        size={"height": 8, "width": 8}, image_mean=[0.5] * 3, image_std=[0.25] * 3
    )
    callback = afmi.callbacks.transformers(IMAGES, 1, to=writer)
    watched = _trained(hugging_face, tmp_path, callback, processor=processor)
    for (name, one), other in zip(
        plain.state_dict().items(), watched.state_dict().values(), strict=True
    ):
        assert torch.equal(one, other), name
    assert [step for _, step, _ in writer.scores] == [0, 0, 3, 3, 6, 6]
    # Images are prepared by the trainer's processor.
    with torch.no_grad():
        expected = watched.eval()((IMAGES - 0.5) / 0.25).logits[:, 1]
    assert [value for *_, value in writer.scores[-2:]] == pytest.approx(expected.tolist(), abs=1e-5)


def test_an_epoch_that_max_steps_cuts_short_counts_as_one(
    hugging_face: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in Lightning."""
    due: list[float] = []
    callback = afmi.callbacks.transformers(IMAGES, every=2, folder="nowhere")
    monkeypatch.setattr(callback, "_show_again", lambda model, step: due.append(step))
    for epoch in (0.3, 1.0, 1.3, 1.9999999, 2.5, 4.0000001):
        state = SimpleNamespace(is_world_process_zero=True, epoch=epoch, global_step=epoch)
        callback.on_epoch_end(None, state, None, model=None)
    assert due == [1.3, 1.9999999, 4.0000001]


def test_transformers_without_a_place_for_pictures(hugging_face: Any, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="pass folder="):
        _trained(hugging_face, tmp_path, afmi.callbacks.transformers(IMAGES))
    callback = afmi.callbacks.transformers(IMAGES, every=2, folder=tmp_path / "maps")
    _trained(hugging_face, tmp_path, callback)
    saved = sorted(path.name for path in (tmp_path / "maps").iterdir())
    assert saved == ["step-00000000", "step-00000006"]
