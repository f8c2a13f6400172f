"""References: values, shapes, dtypes, and clear refusals."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from networks import images
from PIL import Image as Picture
from settings import STRANGE_DEFAULTS, defaults

from afmi.errors import ImageError, ShapeError, UsageError
from afmi.pictures.references import (
    REFERENCES,
    Black,
    Blurred,
    Image,
    Mean,
    Random,
    Reference,
    Several,
    White,
    reference_of,
)
from afmi.specs import parse


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", sorted(REFERENCES.keys() - {"Image"}))
def test_shape_dtype_and_range(name: str, dtype: torch.dtype) -> None:
    x = images(3, 10).to(dtype)[..., :8]
    made = REFERENCES[name]()(x)
    assert made.shape == (3 if REFERENCES[name].per_image else 1, 3, 10, 8)
    assert made.dtype == dtype
    assert 0 <= made.min() <= made.max() <= 1


def test_colours() -> None:
    x = images(2, 4)
    assert Black()(x).unique().tolist() == [0]
    assert White()(x).unique().tolist() == [1]
    assert Mean((0.25, 0.5, 0.75))(x)[0, :, 1, 2].tolist() == [0.25, 0.5, 0.75]
    assert Mean((0.5, 0.5, 0.5))(images(1, 4, channels=1)).unique().tolist() == [0.5]
    grey = 0.299 * 0.485 + 0.587 * 0.456 + 0.114 * 0.406  # as Pillow turns that colour to grey
    assert Mean()(images(1, 4, channels=1)).unique().tolist() == pytest.approx([grey])
    assert Mean((0.1, 0.2, 0.3, 0.4))(images(1, 4, channels=4))[0, :, 0, 0].tolist() == (
        pytest.approx([0.1, 0.2, 0.3, 0.4])
    )
    with pytest.raises(ShapeError, match="4 numbers, one for each channel, got 3; pass the means"):
        Mean()(images(1, 4, channels=4))


def test_random_is_seeded_and_the_same_in_every_dtype() -> None:
    x, state = images(1), torch.get_rng_state()
    first = Random(samples=2)(x)
    assert first.shape == (2, 3, 20, 20)
    assert torch.equal(Random(samples=2)(x), first)
    torch.testing.assert_close(Random(samples=2)(x.double()), first.double())
    assert not torch.equal(Random(seed=1)(x)[0], first[0])
    assert torch.equal(torch.get_rng_state(), state)
    with pytest.raises(UsageError, match="samples=0"):
        Random(samples=0)


@pytest.mark.parametrize("strange", STRANGE_DEFAULTS, ids=str)
@pytest.mark.parametrize("name", sorted(REFERENCES.keys() - {"Image"}))
def test_default_dtype_and_device_change_nothing(name: str, strange: dict[str, Any]) -> None:
    x = images(2)
    expected = REFERENCES[name]()(x)
    with defaults(**strange):
        assert torch.equal(REFERENCES[name]()(x), expected)


def test_blurred_keeps_flat_pictures_and_removes_detail() -> None:
    x = images(2, 30).double()
    blurred = Blurred()(x)
    assert blurred.std((2, 3)).max() < 0.2 * x.std((2, 3)).min()
    flat = torch.full((1, 3, 30, 20), 0.3, dtype=torch.float64)
    torch.testing.assert_close(Blurred(5)(flat), flat)
    torch.testing.assert_close(Blurred()(x[1:]), blurred[1:], rtol=1e-14, atol=0)
    with pytest.raises(UsageError, match="got 0"):
        Blurred(0)


def test_blur_of_a_point_is_a_gaussian() -> None:
    x = torch.zeros(1, 1, 41, 41, dtype=torch.float64)
    x[0, 0, 20, 20] = 1
    blurred = Blurred(2)(x)[0, 0]
    ratio = blurred[20, 23] / blurred[20, 20]
    assert float(ratio) == pytest.approx(np.exp(-9 / 8), rel=1e-6)


def test_image_from_a_tensor_is_a_copy() -> None:
    given = images(1)[0]
    reference = Image(given)
    expected = given.clone()
    given.zero_()
    assert torch.equal(reference(images(2))[0], expected)
    assert Image(images(4))(images(2)).shape == (4, 3, 20, 20)
    with pytest.raises(ShapeError, match=r"\(3, 20, 20\)"):
        Image(images(1, 8))(images(2))
    with pytest.raises(ShapeError, match=r"\(20, 20\)"):
        Image(given[0])(images(2))


@pytest.mark.parametrize("size", [(30, 50), (50, 30), (20, 20), (5, 7), (400, 3)])
def test_image_from_a_file_fits(size: tuple[int, int], tmp_path: Path) -> None:
    path = tmp_path / "grey.png"
    Picture.new("RGB", size, (51, 102, 153)).save(path)
    made = Image(path)(images(2)[..., :12])
    assert made.shape == (1, 3, 20, 12)
    assert made[0, :, 3, 4].tolist() == pytest.approx([0.2, 0.4, 0.6])


def test_image_that_is_missing(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match=r"none\.png"):
        Image(tmp_path / "none.png")(images(1))


def test_several() -> None:
    made = Several([Black(), Random(samples=2), White()])(images(2))
    assert made.shape == (4, 3, 20, 20)
    for wrong in ([], [Black(), Blurred()]):
        with pytest.raises(UsageError, match="one or more references"):
            Several(wrong)


GREEN = Picture.new("RGB", (30, 20), (51, 204, 102))


@pytest.mark.parametrize(
    ("given", "pixel"),
    [
        (White(), [1, 1, 1]),
        (White, [1, 1, 1]),
        ("white", [1, 1, 1]),
        (0.5, [0.5, 0.5, 0.5]),
        (1, [1, 1, 1]),
        (np.float32(0.5), [0.5, 0.5, 0.5]),
        (torch.tensor(0.5), [0.5, 0.5, 0.5]),
        ((0.2, 0.4, 0.6), [0.2, 0.4, 0.6]),
        ([0, 0.5, 1], [0, 0.5, 1]),
        (torch.full((3, 20, 20), 0.25), [0.25, 0.25, 0.25]),
        (GREEN, [0.2, 0.8, 0.4]),
        (np.array(GREEN), [0.2, 0.8, 0.4]),
    ],
    ids=lambda value: "a picture" if isinstance(value, Picture.Image) else str(value),
)
def test_what_stands_for_a_reference(given: Any, pixel: list[float]) -> None:
    made = reference_of(given)(images(2))
    assert made.shape == (1, 3, 20, 20)
    assert made.dtype == torch.float32
    assert made[0, :, 3, 4].tolist() == pytest.approx(pixel)


def test_files_and_several_stand_for_references(tmp_path: Path) -> None:
    path = tmp_path / "green.png"
    GREEN.save(path)
    for given in (path, str(path)):
        assert reference_of(given)(images(1))[0, :, 1, 1].tolist() == pytest.approx([0.2, 0.8, 0.4])
    made = reference_of(["white", 0.5, torch.rand(2, 3, 20, 20), path])(images(1))
    assert made[:, 0, 0, 0].tolist()[:2] == [1, 0.5]
    assert made.shape == (5, 3, 20, 20)


def test_pictures_as_references_are_copies_and_told_apart() -> None:
    picture = GREEN.copy()
    reference = reference_of(picture)
    picture.paste((0, 0, 0), (0, 0, 30, 20))
    assert reference(images(1))[0, 1].min() == pytest.approx(0.8)
    assert str(reference) == str(reference_of(GREEN)) != str(reference_of(picture))


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        (None, UsageError, "expected a reference such as .* got None"),
        (True, UsageError, "got True"),
        (5j, UsageError, "got 5j"),
        ({}, UsageError, r"got \{\}"),
        ([], UsageError, r"got \[\]"),
        (torch.zeros(8), UsageError, r"got a tensor \(8,\)"),
        (float("nan"), UsageError, r"finite number .* color=\(nan,\)"),
        (torch.full((3, 20, 20), torch.nan), UsageError, "expected finite pixels"),
        (torch.zeros(3, 20, 20, dtype=torch.uint8), ShapeError, "uint8; divide bytes by 255"),
        (["white", Blurred()], UsageError, "a blurred reference stands alone"),
        ("blak", UsageError, "did you mean 'black'"),
    ],
    ids=str,
)
def test_what_stands_for_no_reference(given: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        reference_of(given)


def test_equal_references_are_equal_keys() -> None:
    assert Black() == Black()
    assert hash(Random(2, 3)) == hash(Random(2, 3))
    assert Several([Black(), White()]) == Several([Black(), White()])
    assert Random(seed=1) != Random()


def test_names(tmp_path: Path) -> None:
    assert parse("black", Reference) == Black()
    assert parse("black+white", Reference) == Several([Black(), White()])
    path = tmp_path / "a.png"
    Picture.new("RGB", (4, 4)).save(path)
    assert isinstance(parse(str(path), Reference), Image)
    with pytest.raises(UsageError, match="did you mean 'blurred'"):
        parse("blured", Reference)
    for reference in (
        Black(),
        White(),
        Random(3),
        Blurred(),
        Blurred(2),
        Mean(),
        Several([Black()]),
    ):
        assert isinstance(reference, Reference)
        assert str(reference)


def test_each_image_has_its_references() -> None:
    some = images(3)
    assert Black().for_each(some).shape == (3, 1, 3, 20, 20)
    assert Random(samples=2).for_each(some).shape == (3, 2, 3, 20, 20)
    blurred = Blurred().for_each(some)
    torch.testing.assert_close(blurred[1, 0], Blurred()(some[1:2])[0])
    assert [r.count(some) for r in (Black(), Random(samples=2), Blurred())] == [1, 2, 1]
