"""Grey, many bands and deep data reach the network as what they are, or are refused."""

from __future__ import annotations

import io
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
import torch
from PIL import Image

from afmi.errors import ImageError
from afmi.explanation import shown_image
from afmi.pictures import images
from afmi.pictures.images import read_by, read_channels, read_image, read_pixels
from afmi.pictures.transforms import resize_and_crop, to_tensor

DEEP = np.arange(65536, dtype=np.uint16).reshape(256, 256)
"""Every level of 16 bits once."""


def colours(height: int, width: int, bands: int = 3) -> np.ndarray:
    """Return smooth shapes with grain, uint8 (H, W, C), each band another."""
    y, x = np.mgrid[:height, :width]
    waves = [127 + 90 * np.sin(x / (9 + 4 * k) + y / (17 - 3 * k)) for k in range(bands)]
    grain = np.random.default_rng(1).normal(0, 12, (height, width, bands))
    return (np.stack(waves, 2) + grain).clip(0, 255).astype(np.uint8)


def encode(image: Image.Image, kind: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def npy(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


def tiff(array: np.ndarray, **options: Any) -> bytes:
    buffer = io.BytesIO()
    tifffile.imwrite(buffer, array, **options)
    return buffer.getvalue()


def refusal(source: Any, channels: int | None = None) -> str:
    with pytest.raises(ImageError) as caught:
        read_pixels(source, channels)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# --- grey --------------------------------------------------------------------------------------


def test_colours_become_grey_as_by_pillow_and_grey_stays() -> None:
    picture = Image.fromarray(colours(9, 7))
    grey = np.asarray(picture.convert("L"))
    for source in (picture, np.asarray(picture), encode(picture, "PNG"), npy(np.array(picture))):
        assert np.array_equal(read_pixels(source, 1)[..., 0], grey)
    for source in (
        picture.convert("L"),
        grey,
        grey[..., None],
        encode(picture.convert("L"), "PNG"),
    ):
        assert np.array_equal(read_pixels(source, 1)[..., 0], grey)
        assert np.array_equal(read_pixels(source, 3), np.dstack([grey] * 3))
        assert read_pixels(source).shape == (9, 7, 1)
    deep = np.asarray(picture) / 255
    assert np.abs(read_pixels(deep, 1)[..., 0] - grey / 255).max() <= 0.51 / 255


def test_what_is_transparent_is_white_in_grey_too() -> None:
    half = Image.new("LA", (1, 1), (0, 51))
    assert read_pixels(half, 1)[0, 0].tolist() == [204]
    assert read_pixels(np.array([[[0, 0, 255, 0]]], np.uint8), 1)[0, 0].tolist() == [255]
    assert read_pixels(np.array([[[0, 0, 1, 0.5]]]), 3)[0, 0].tolist() == [0.5, 0.5, 1]
    key = encode(Image.fromarray(np.array([[300, 0]], np.uint16)), "PNG", transparency=300)
    assert read_pixels(key, 1)[0, :, 0].tolist() == [1, 0]


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "PPM", "array", "npy", "pillow"])
def test_all_levels_of_16_bits_reach_the_tensor(kind: str) -> None:
    source: Any = {"array": DEEP, "npy": npy(DEEP), "pillow": Image.fromarray(DEEP)}.get(kind)
    source = encode(Image.fromarray(DEEP), kind) if source is None else source
    for channels in (1, 3):
        tensor = to_tensor(read_channels(source, channels))
        assert tensor.dtype == torch.float32
        assert tensor[0].unique().numel() == 65536
        assert (tensor[0] * 65535 - torch.from_numpy(DEEP.astype(np.float32))).abs().max() < 0.01


def test_16_bit_grey_of_either_polarity_and_turned() -> None:
    white_is_zero = tiff(DEEP, photometric="miniswhite")
    assert np.allclose(read_pixels(white_is_zero, 1)[..., 0], 1 - DEEP / 65535, atol=1e-6)
    exif = Image.Exif()
    exif[0x0112] = 6
    turned = encode(Image.fromarray(DEEP), "PNG", exif=exif)
    assert np.allclose(read_pixels(turned, 1)[..., 0], np.rot90(DEEP, -1) / 65535)


@pytest.mark.parametrize("make", [npy, tiff, Image.fromarray, np.array])
def test_floats_are_taken_as_they_are_or_refused(make: Callable[[np.ndarray], Any]) -> None:
    levels = np.linspace(0, 1, 5000, dtype=np.float32).reshape(50, 100)
    assert np.array_equal(read_pixels(make(levels), 1)[..., 0], levels)
    for values in (levels * 255, levels - 0.5, np.where(levels > 0.5, np.nan, levels)):
        assert "in [0, 1]: divide it by" in refusal(make(values.astype(np.float32)), 1)


# --- many bands --------------------------------------------------------------------------------

LAYOUTS: dict[str, dict[str, Any]] = {
    "rgb and one more": {"photometric": "rgb", "extrasamples": ["unspecified"]},
    "bands": {"photometric": "minisblack", "planarconfig": "contig"},
    "deflated": {
        "photometric": "minisblack",
        "planarconfig": "contig",
        "compression": "zlib",
        "predictor": True,
    },
    "tiles": {"photometric": "minisblack", "planarconfig": "contig", "tile": (16, 16)},
    "big": {"photometric": "minisblack", "planarconfig": "contig", "bigtiff": True},
    "other bytes": {"photometric": "minisblack", "planarconfig": "contig", "byteorder": ">"},
}


@pytest.mark.parametrize("depth", ["uint8", "uint16", "float32"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_multi_band_tiff_of_every_layout(layout: str, depth: str, tmp_path: Path) -> None:
    options = dict(LAYOUTS[layout])
    if depth == "float32":
        options.pop("predictor", None)
    bands = colours(40, 33, 4)
    white = {"uint8": 1, "uint16": 257, "float32": 1 / 255}[depth]
    path = tmp_path / "bands.tif"
    path.write_bytes(tiff((bands.astype(float) * white).astype(depth), **options))
    for wanted in (4, None):
        read = read_pixels(path, wanted)
        assert read.dtype == (np.uint8 if depth == "uint8" else np.float32)
        assert np.allclose(read / (1 if depth == "uint8" else 1 / 255), bands, atol=1e-3)
    for wanted in (1, 3, 5):
        message = refusal(path, wanted)
        assert f"'{path}' has 4 bands" in message and f"expected {wanted}" in message
    with pytest.raises(ImageError, match="has 4 bands"):
        read_image(path)


def test_bands_by_planes_and_of_other_numbers() -> None:
    for count in (2, 5, 13):
        bands = colours(20, 30, count)
        planes = tiff(np.moveaxis(bands, 2, 0), photometric="minisblack", planarconfig="separate")
        whole = tiff(bands, photometric="minisblack", planarconfig="contig")
        for source in (planes, whole, bands, npy(bands), npy(np.asfortranarray(bands))):
            assert np.array_equal(read_pixels(source, count), bands)
            assert "reader" in refusal(source, 1)


def test_the_bands_of_pictures_with_opacity_are_there_for_networks_of_as_many() -> None:
    bands = colours(6, 5, 4)
    rgba = Image.fromarray(bands)
    for source in (rgba, encode(rgba, "PNG"), encode(rgba, "TIFF"), bands):
        assert np.array_equal(read_pixels(source, 4), bands)
        assert read_pixels(source, 3).shape == (6, 5, 3)
    message = refusal(rgba.convert("RGB"), 4)
    assert "has 3 bands" in message and "give a picture of 4 bands" in message
    assert "expected 4" in refusal(Image.new("CMYK", (4, 4)), 4)


def test_colours_of_16_bits_in_a_tiff_keep_them() -> None:
    deep = np.dstack([DEEP, DEEP[::-1], DEEP.T])
    for options in ({}, {"compression": "zlib"}):
        content = tiff(deep, photometric="rgb", **options)
        assert np.allclose(read_pixels(content, 3) * 65535, deep, atol=0.01)
        assert np.array_equal(np.asarray(read_image(content)), np.rint(deep / 257).astype(np.uint8))


def test_pages_are_chosen_not_guessed() -> None:
    bands = np.moveaxis(colours(8, 6, 4), 2, 0)
    content = tiff(bands, photometric="minisblack")  # a page for each
    for channels in (None, 1, 3, 4):
        assert "has 4 pages; expected one picture" in refusal(content, channels)
    for page in range(4):
        assert np.array_equal(read_pixels(content, page=page)[..., 0], bands[page])
    stack = tiff(np.stack([colours(8, 6, 5)] * 2), photometric="minisblack", planarconfig="contig")
    assert "has 2 pages" in refusal(stack, 5)
    assert np.array_equal(read_pixels(stack, page=1), colours(8, 6, 5))


def test_channels_first_is_named() -> None:
    for source in (np.zeros((4, 9, 9), np.uint8), npy(np.zeros((4, 9, 9), np.uint8))):
        assert "move the channels last, e.g. array.transpose(1, 2, 0)" in refusal(source, 4)


# --- hostile files -----------------------------------------------------------------------------


class Runs:
    """Pickled: it would print when it is read."""

    def __reduce__(self) -> tuple[Any, ...]:
        return (print, ("ran",))


def test_npy_is_never_unpickled(capsys: pytest.CaptureFixture[str]) -> None:
    buffer = io.BytesIO()
    np.save(buffer, np.array([[Runs()]], dtype=object), allow_pickle=True)
    assert "holds pickled objects" in refusal(buffer.getvalue())
    assert capsys.readouterr().out == ""


def test_npy_is_bounded_before_it_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    content = npy(np.zeros((8, 8), np.uint8))
    huge = content.replace(b"(8, 8)", b"(4000000000, 4000000000)")
    for wrong in (content[:-1], content + b"\0", content[:40], huge, content[:6] + b"\x09\x00"):
        assert "npy" in refusal(wrong) or "cut short or damaged" in refusal(wrong)
    monkeypatch.setattr(images, "MAX_PIXELS", 15)
    assert "expected at most 15" in refusal(content)
    wide = npy(np.zeros((3, 5, 5), np.uint8))
    assert "holds 75 numbers; expected at most 60" in refusal(wide)


def test_damaged_multi_band_tiff(monkeypatch: pytest.MonkeyPatch) -> None:
    options = {"photometric": "minisblack", "planarconfig": "contig"}
    bands = colours(64, 64, 5)
    plain = tiff(bands, **options)
    offset = 200 + plain[200:].index(bands[0, 0].tobytes() + bands[0, 1].tobytes())
    assert "cut short or damaged" in refusal(plain[: offset + 1000])
    deflated = tiff(bands, compression="zlib", **options)
    start = deflated.index(b"\x78", 200)
    assert "damaged" in refusal(deflated[: start + 20] + bytes(50) + deflated[start + 70 :])
    for cut in range(4, 260, 9):
        refusal(plain[:cut])
    monkeypatch.setattr(images, "MAX_PIXELS", 64 * 64 - 1)
    assert "expected at most" in refusal(plain)


def test_a_segment_that_would_fill_the_memory_is_refused() -> None:
    bomb = zlib.compress(bytes(2**24), 9)
    bands = np.random.default_rng(0).integers(0, 256, (80, 80, 5), dtype=np.uint8)
    content = tiff(bands, photometric="minisblack", planarconfig="contig", compression="zlib")
    with tifffile.TiffFile(io.BytesIO(content)) as opened:
        page: Any = opened.pages[0]
        (offset,), (count,) = page.dataoffsets, page.databytecounts
    assert count > len(bomb)
    hostile = content[:offset] + bomb.ljust(count, b"\0") + content[offset + count :]
    assert "a part holds more pixels than it may" in refusal(hostile)


def test_what_needs_another_decoder_says_so() -> None:
    bands = colours(32, 32, 5)
    content = bytearray(tiff(bands, photometric="minisblack", planarconfig="contig"))
    place = content.index((259).to_bytes(2, "little") + b"\x03\x00")
    content[place + 8 : place + 10] = (50000).to_bytes(2, "little")  # Zstandard
    assert "compressed by ZSTD" in refusal(bytes(content))


# --- geometry ----------------------------------------------------------------------------------


@pytest.mark.parametrize("interpolation", ["nearest", "box", "bilinear", "bicubic", "lanczos"])
@pytest.mark.parametrize(
    ("size", "resize", "crop"),
    [
        ((640, 480), 256, 224),
        ((333, 517), (100, 150), None),
        ((100, 90), 256, 224),
        ((31, 900), 37, 32),
        ((9, 7), None, 12),
    ],
)
def test_bands_are_resized_like_rgb(
    size: tuple[int, int], resize: Any, crop: int | None, interpolation: str
) -> None:
    bands = colours(*size)
    expected = to_tensor(resize_and_crop(Image.fromarray(bands), resize, crop, interpolation))
    as_bytes = to_tensor(resize_and_crop(bands, resize, crop, interpolation))
    assert torch.equal(as_bytes, expected)
    four = np.dstack([bands, bands[..., :1]])
    assert torch.equal(to_tensor(resize_and_crop(four, resize, crop, interpolation))[:3], expected)
    floats = bands / np.float32(255)
    deep = to_tensor(resize_and_crop(floats, resize, crop, interpolation))
    assert deep.shape == expected.shape and 0 <= deep.min() <= deep.max() <= 1
    # Pillow rounds bytes after each of two passes; where it also cuts overshoots off, by more.
    overshoots = interpolation in ("bicubic", "lanczos")
    assert (deep - expected).abs().max() <= (4.0 if overshoots else 1.001) / 255
    assert (deep - expected).abs().mean() <= 0.5 / 255


# --- readers -----------------------------------------------------------------------------------


def test_a_reader_takes_the_place_of_the_decoder() -> None:
    bands = colours(4, 5, 4)
    read = read_by(lambda path: bands if path == "x.bands" else bands[..., :1], "x.bands", 4)
    assert np.array_equal(np.asarray(read), bands)
    for reader, words in (
        (lambda path: bands[..., :2], "made of 'x.bands' has 2 bands"),
        (lambda path: bands.astype(int), "dtype int64"),
        (lambda path: bands.tolist(), "made list of 'x.bands'"),
        (lambda path: 1 / 0, "ZeroDivisionError: division by zero"),
    ):
        with pytest.raises(ImageError, match=words):
            read_by(reader, "x.bands", 4)


# --- what is shown -----------------------------------------------------------------------------


def test_what_is_shown_of_other_numbers_of_bands() -> None:
    image = torch.rand(5, 6, 7, generator=torch.Generator().manual_seed(0))
    assert torch.equal(shown_image(image), image[:3])
    assert torch.equal(shown_image(image, (4, 0, 2)), image[[4, 0, 2]])
    assert torch.equal(shown_image(image[:3], (2, 1, 0)), image[[2, 1, 0]])
    for count in (1, 2):
        assert torch.equal(shown_image(image[:count]), image[:1].expand(3, -1, -1))


def test_dark_bands_are_shown_brighter_and_grey_and_colours_as_they_are() -> None:
    image = torch.rand(4, 60, 60, generator=torch.Generator().manual_seed(0)) * 0.1
    image[:, 0, 0] = 0.9  # one glint does not decide
    shown = shown_image(image)
    assert 0.45 < shown.mean() < 0.55 and shown.max() == 1
    kept = shown < 1
    ratio = shown[kept] / image[:3][kept]
    assert float(ratio.std() / ratio.mean()) < 1e-5  # colours keep their hue
    assert torch.equal(shown_image(image[:3]), image[:3])
    assert torch.equal(shown_image(image[:1]), image[:1].expand(3, -1, -1))
    assert shown_image(torch.zeros(4, 5, 5)).max() == 0
