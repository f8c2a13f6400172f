"""What is logged can be read again, from each of the places that take it."""

from __future__ import annotations

import io
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import PIL.Image
import pytest
import torch
from matplotlib.figure import Figure
from torch import nn

import afmi
from afmi import Classifier, Explanation, Gallery
from afmi.errors import UsageError

# Their own, about Python and packages around them.
pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning:tensorboard.*"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning:wandb.*"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning:pydantic.*"),
    pytest.mark.filterwarnings("ignore::FutureWarning:mlflow.*"),
]


def _model() -> Classifier:
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2)
    )
    return Classifier(network, labels=["cat", "dog"])


def _explanation(target: str = "dog") -> Explanation:
    return afmi.explain(_model(), torch.rand(3, 8, 8), target)


@pytest.fixture
def quick(small_figures: None) -> None:
    """Draw figures of a few pixels."""


def test_tensorboard(tmp_path: Path) -> None:
    tensorboard = pytest.importorskip("torch.utils.tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    picture = tmp_path / "rex.png"
    pixels = np.random.default_rng(0).integers(0, 256, (8, 8, 3), np.uint8)
    PIL.Image.fromarray(pixels).save(picture)
    with tensorboard.SummaryWriter(str(tmp_path / "runs")) as writer:
        for step in (0, 5):
            one = afmi.explain(_model(), picture, "dog")
            assert afmi.log(one, step, to=writer) == ("explanations/rex",)
    events = EventAccumulator(str(tmp_path / "runs"), size_guidance={"images": 0})
    events.Reload()
    assert [event.step for event in events.Images("explanations/rex")] == [0, 5]
    shown = PIL.Image.open(io.BytesIO(events.Images("explanations/rex")[0].encoded_image_string))
    assert shown.size[0] > 300  # the whole figure
    for name, value in (("score", one.score), ("probability", one.probability)):
        (event, _) = events.Scalars(f"explanations/rex/{name}")
        assert event.value == pytest.approx(value)
    text = events.Tensors("explanations/rex/record/text_summary")[0].tensor_proto.string_val[0]
    caption, _, code = text.decode().partition("\n\n")
    assert caption == str(one)
    assert json.loads(code) == json.loads(json.dumps(one.to_dict()))


@pytest.mark.usefixtures("quick")
def test_weights_and_biases(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wandb = pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_SILENT", "true")
    with pytest.raises(UsageError, match=r"wandb.init\(\)"):
        afmi.log(_explanation(), 0, to=wandb)
    one = _explanation()
    run = wandb.init(mode="offline", dir=str(tmp_path))
    try:
        run.log({"loss": 1.0})
        afmi.log(one, 7, to=run)
        run.log({"loss": 0.5})  # a step of the run's own
        afmi.log(one, 8, to=wandb, key="maps", picture="overlay")
    finally:
        run.finish()
        wandb.teardown()
    (kept,) = tmp_path.glob("wandb/offline-run-*/*.wandb")
    content = kept.read_bytes()
    for word in ("explanations/image/score", "explanations/image/record", "maps/image/score"):
        assert word.encode() in content
    assert content.count(f"{one.score:.6f}".encode()) >= 2  # once in each picture's row
    (overlay,) = tmp_path.glob("wandb/offline-run-*/files/media/images/maps/image_*.png")
    drawn = np.asarray(PIL.Image.open(overlay))
    np.testing.assert_array_equal(drawn, np.asarray(one.overlay()))


class _Run:
    """A run of Weights & Biases that is ahead of the training's step."""

    __module__ = "wandb.sdk.run"

    def __init__(self) -> None:
        self.step = 50
        self.at: list[int] = []

    def define_metric(self, name: str, **_: Any) -> None:
        pass

    def log(self, data: dict[str, Any], step: int) -> None:
        self.at.append(step)
        self.step = max(step, self.step)


_Run.__name__ = "Run"


@pytest.mark.usefixtures("quick")
def test_nothing_is_logged_behind_the_step_of_a_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """Weights & Biases would drop it."""
    import sys

    fake = SimpleNamespace(Image=lambda image, caption: image)
    monkeypatch.setitem(sys.modules, "wandb", fake)  # type: ignore[arg-type]
    run = _Run()
    for step in (3, 60):
        afmi.log(_explanation(), step, to=run)
    assert run.at == [50, 60]


@pytest.mark.usefixtures("quick")
def test_each_step_of_a_training_has_its_row_in_a_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """Such as those of checkpoints that are explained after the training, in any order."""
    import sys

    fake = SimpleNamespace(Image=lambda image, caption: image)
    monkeypatch.setitem(sys.modules, "wandb", fake)  # type: ignore[arg-type]
    run, one = _Run(), _explanation()
    for step in (10, 20, 5):
        afmi.log([one, one], step, to=run)
        afmi.log(one, step, to=run, key="other")
    run.step = 80  # other numbers
    afmi.log(one, 6, to=run)
    assert run.at == [50, 50, 50, 51, 51, 51, 52, 52, 52, 80]


@pytest.mark.usefixtures("quick")
def test_mlflow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mlflow = pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")  # the store without a database
    mlflow.set_tracking_uri((tmp_path / "runs").as_uri())
    with pytest.raises(UsageError, match=r"mlflow.start_run\(\)"):
        afmi.log(_explanation(), 0, to=mlflow)
    one = _explanation()
    with mlflow.start_run() as run:
        afmi.log(one, 4, to=mlflow)
        afmi.log(one, 5, to=run)
    client = mlflow.MlflowClient()
    afmi.log(one, 6, to=(client, run.info.run_id))
    with pytest.raises(UsageError, match=r"\(client, run_id\)"):
        afmi.log(one, 6, to=client)
    history = client.get_metric_history(run.info.run_id, "explanations/image/score")
    assert [(m.step, m.value) for m in history] == [
        (n, pytest.approx(one.score)) for n in (4, 5, 6)
    ]
    pictures = [file.path for file in client.list_artifacts(run.info.run_id, "images")]
    assert sum(path.endswith(".png") for path in pictures) == 3
    place = client.download_artifacts(run.info.run_id, "explanations/image", str(tmp_path))
    record = json.loads((Path(place) / "record-00000006.json").read_text("utf-8"))
    assert record == json.loads(json.dumps(one.to_dict()))


class _Printer:
    """Takes what a SummaryWriter takes."""

    def __init__(self) -> None:
        self.tags: list[str] = []

    def add_image(self, tag: str, pixels: np.ndarray, step: int, dataformats: str) -> None:
        assert pixels.dtype == np.uint8 and pixels.shape[2] == 3 and dataformats == "HWC"
        self.tags.append(tag)

    def add_scalar(self, tag: str, value: float, step: int) -> None:
        self.tags.append(tag)

    def add_text(self, tag: str, text: str, step: int) -> None:
        self.tags.append(tag)


@pytest.mark.usefixtures("quick")
def test_tags_are_the_same_at_every_step() -> None:
    """Whatever class is predicted at the time."""
    for target in ("cat", "dog"):
        several = Gallery([_explanation(target), _explanation("dog")])
        tags = afmi.log(several, 0, to=_Printer(), key="val")
        assert tags == ("val/0-image", "val/1-image")


def test_a_comparison_is_one_picture(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(afmi.Comparison, "figure", lambda self: Figure((1, 1), dpi=20))
    comparison = afmi.compare(
        _model(), torch.rand(3, 8, 8), "dog", methods="a-fmi,gradient", fractions=(0.5,)
    )
    writer = _Printer()
    assert afmi.log(comparison, 0, to=writer) == ("explanations/image",)
    names = [tag.removeprefix("explanations/image") for tag in writer.tags]
    assert names == ["", "/score", "/probability", "/A-FMI/residual", "/record"]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"to": object()}, "SummaryWriter of TensorBoard.*got <object"),
        ({"to": json}, "got the module json"),
        ({"step": -1}, "from 0, got -1"),
        ({"step": 1.5}, "from 0, got 1.5"),
        ({"explanation": []}, "empty list"),
        ({"explanation": [3]}, "explanations only, got 3"),
        ({"explanation": [afmi.Unexplained(0, None, "no image")]}, "failed: no image"),
        ({"explanation": 3}, "a list of them or a comparison, got 3"),
        ({"picture": "map"}, "'figure' or 'overlay'"),
        ({"key": "//"}, "key with letters"),
    ],
)
def test_what_cannot_be_logged_is_refused(options: dict[str, Any], words: str) -> None:
    given = {"explanation": _explanation(), "step": 0, "to": _Printer(), **options}
    with pytest.raises(UsageError, match=words):
        afmi.log(given.pop("explanation"), given.pop("step"), **given)
