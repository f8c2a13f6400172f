"""What visitors bring is read by our readers alone, under the name that they gave it."""

from __future__ import annotations

import base64
import io
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from afmi.app.photographs import (
    Photograph,
    examples_of,
    frame_content,
    named_content,
    uploaded_content,
)
from afmi.errors import ImageError
from afmi.network.classifier import Classifier
from afmi.pictures.images import FileContent, count_pages


def test_the_network_sees_what_it_would_see_of_the_file(
    model: Classifier, content: FileContent, tmp_path: Path
) -> None:
    photograph = Photograph.of(model, content)
    (tmp_path / "red.png").write_bytes(content)
    assert torch.equal(photograph.inputs, model.prepare(tmp_path / "red.png"))
    assert photograph.name == "red.png"
    assert photograph.shown is not None and photograph.shown.shape == (20, 32, 3)
    # Resized to 16 in height, of which the central 16 of 25 columns are seen.
    left, top, right, bottom = photograph.box
    assert (top, bottom) == (0, 20)
    assert right - left == pytest.approx(16 * 32 / 25)


def test_a_large_photograph_is_shown_smaller(model: Classifier) -> None:
    grey = np.full((1500, 3000), 128, np.uint8)

    Image.fromarray(grey).save(buffer := io.BytesIO(), "PNG")
    photograph = Photograph.of(model, named_content(buffer.getvalue(), "grey.png"))
    assert photograph.shown is not None and photograph.shown.shape == (640, 1280, 3)
    assert photograph.box == pytest.approx((320, 0, 960, 640), abs=1)


def test_frames_of_an_animation(model: Classifier, animation: FileContent) -> None:
    assert count_pages(animation) == 3
    first = Photograph.of(model, animation)
    last = first.at_page(model, 2)
    assert (first.pages, first.page, last.page) == (3, 0, 2)
    assert last.inputs[0, 2, -1, -1] > 0.9 > first.inputs[0, 2, -1, -1]  # blue
    with pytest.raises(ImageError, match=r"three\.gif.* none of them"):
        first.at_page(model, 3)


def test_a_file_with_one_picture_has_no_other(model: Classifier, content: FileContent) -> None:
    photograph = Photograph.of(model, content)
    assert photograph.content is None
    with pytest.raises(ImageError, match="one picture only"):
        photograph.at_page(model, 1)


def test_a_networks_own_reader_gets_a_file() -> None:
    def reader(path: Path) -> np.ndarray:
        assert path.suffix == ".abc"
        return np.frombuffer(path.read_bytes(), np.uint8).reshape(2, 2, 3)

    model = Classifier(nn.Flatten(), reader=reader)
    photograph = Photograph.of(model, named_content(bytes(range(12)), "scan.abc"))
    assert photograph.shown is None
    assert photograph.inputs.shape == (1, 3, 2, 2)
    assert examples_of(model, None) == []


@pytest.mark.parametrize(
    ("given", "name"),
    [
        ("../../etc/passwd", "passwd"),
        ("C:\\scans\\dog.jpg", "dog.jpg"),
        ("a\x1b[2J\n.png", "a[2J.png"),
        ("..", "photograph"),
        ("", "photograph"),
        (None, "photograph"),
    ],
)
def test_names_are_clean(given: str | None, name: str) -> None:
    assert named_content(b"", given).path == Path(name)


def test_errors_name_the_file_as_the_visitor_does(model: Classifier) -> None:
    with pytest.raises(ImageError, match=r"^'notes\.txt' is not an image"):
        Photograph.of(model, named_content(b"plain words", "notes.txt"))


def test_an_empty_file_is_said_to_be_empty(model: Classifier) -> None:
    with pytest.raises(ImageError, match=r"^'scan\.png' is empty"):
        Photograph.of(model, named_content(b"", "scan.png"))


def test_only_uploads_are_read(tmp_path: Path) -> None:
    uploads, secret = tmp_path / "uploads", tmp_path / "secret.png"
    uploads.mkdir()
    secret.write_bytes(b"secret")
    (uploads / "mine.png").write_bytes(b"mine")
    (uploads / "link.png").symlink_to(secret)
    upload = {"path": str(uploads / "mine.png"), "orig_name": "x/dog.png"}
    content = uploaded_content(upload, uploads)
    assert (content, content.path) == (b"mine", Path("dog.png"))
    for path in (secret, uploads / "link.png", uploads / ".." / "secret.png", "/etc/passwd", None):
        with pytest.raises(ImageError, match="expected an uploaded file"):
            uploaded_content({"path": str(path), "orig_name": "dog.png"}, uploads)


def test_a_frame_of_a_video(content: FileContent) -> None:
    address = "data:image/png;base64," + base64.b64encode(content).decode()
    frame = frame_content(address, "clip.mp4 1.20 s")
    assert (frame, frame.path) == (content, Path("clip.mp4 1.20 s.png"))
    for bad in (None, "file:///etc/passwd", "data:image/png;base64,§"):
        with pytest.raises(ImageError):
            frame_content(bad, "clip.mp4")


def test_examples_of_a_folder(model: Classifier, content: FileContent, tmp_path: Path) -> None:
    (tmp_path / "red_square.png").write_bytes(content)
    (example,) = examples_of(model, tmp_path)
    assert (example.title, example.content) == ("red square", content)
    assert all(one.credit for one in examples_of(model, None))
    (tmp_path / "empty").mkdir()
    with pytest.raises(ImageError, match="no image in the folder"):
        examples_of(model, tmp_path / "empty")
