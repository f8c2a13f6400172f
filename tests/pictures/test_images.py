"""Reading images of every kind, refusing other files, and resizing as torchvision does."""

from __future__ import annotations

import io
import os
import socket
import struct
import threading
import time
import warnings
import zlib
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageCms, ImageFile, TiffImagePlugin, features
from torchvision.transforms import InterpolationMode
from torchvision.transforms import functional as tvf

from afmi.errors import ImageError, ShapeError, UsageError
from afmi.pictures import images
from afmi.pictures.finding import IMAGE_SUFFIXES, find_images, read_images
from afmi.pictures.images import read_content, read_image
from afmi.pictures.transforms import resize_and_crop, to_image, to_tensor

RED, GREEN, BLUE, WHITE, BLACK = (
    (255, 0, 0),
    (0, 255, 0),
    (0, 0, 255),
    (255, 255, 255),
    (0, 0, 0),
)


@pytest.fixture(autouse=True)
def _pillow_is_left_alone():
    """Check that no test changes what the whole program shares."""

    def settings():
        return (
            Image.MAX_IMAGE_PIXELS,
            ImageFile.LOAD_TRUNCATED_IMAGES,
            Image.WARN_POSSIBLE_FORMATS,
            list(warnings.filters),
        )

    before = settings()
    yield
    assert settings() == before


def same(first: Any, second: Any) -> bool:
    return np.array_equal(np.asarray(first), np.asarray(second))


def pixels(image: Image.Image) -> list[list[tuple[int, ...]]]:
    assert image.mode == "RGB"
    return [[tuple(map(int, pixel)) for pixel in row] for row in np.asarray(image)]


def encode(image: Image.Image, kind: str, **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def noise(width: int, height: int, seed: int = 0) -> Image.Image:
    values = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(values)


def photograph(width: int, height: int) -> Image.Image:
    """Smooth shapes with fine grain and sharp edges."""
    y, x = np.mgrid[:height, :width]
    base = 127 + 80 * np.sin(x / 37 + y / 91) + 40 * ((x // 50 + y // 30) % 2)
    grain = np.random.default_rng(1).normal(0, 12, (height, width, 3))
    tint = np.array([1.0, 0.8, 0.6])
    return Image.fromarray((base[..., None] * tint + grain).clip(0, 255).astype(np.uint8))


def refusal(source) -> str:
    with pytest.raises(ImageError) as caught:
        read_image(source)
    message = str(caught.value)
    assert "\n" not in message
    assert len(message) < 1000
    return message


def png(width: int, height: int, depth: int, colour: int, rows: bytes, *chunks) -> bytes:
    def chunk(kind: bytes, content: bytes) -> bytes:
        body = kind + content
        return struct.pack(">I", len(content)) + body + struct.pack(">I", zlib.crc32(body))

    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    parts = [chunk(b"IHDR", header), *(chunk(*c) for c in chunks)]
    parts += [chunk(b"IDAT", zlib.compress(rows)), chunk(b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def tiff(width: int, height: int, data: bytes, tags: dict[int, tuple[int, int]], mark: str = "<"):
    """Build an uncompressed TIFF of one strip; tags: number -> (type, value)."""
    entries = {
        256: (4, width),
        257: (4, height),
        259: (3, 1),
        262: (3, 1),
        273: (4, 8),
        277: (3, 1),
        278: (4, height),
        279: (4, len(data)),
        **tags,
    }
    data += b"\0" * (len(data) % 2)
    directory = struct.pack(mark + "H", len(entries))
    for tag, (kind, value) in sorted(entries.items()):
        packed = struct.pack(mark + {1: "B", 3: "H", 4: "I"}[kind], value).ljust(4, b"\0")
        directory += struct.pack(mark + "HHI", tag, kind, 1) + packed
    start = b"II*\0" if mark == "<" else b"MM\0*"
    return start + struct.pack(mark + "I", 8 + len(data)) + data + directory + b"\0" * 4


# --- formats -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("suffix", "options"),
    [
        (".png", {}),
        (".webp", {"lossless": True}),
        (".tif", {}),
        (".tiff", {"compression": "tiff_lzw"}),
        (".bmp", {}),
        (".ppm", {}),
    ],
)
def test_lossless_formats_are_read_exactly(tmp_path, suffix, options):
    picture = noise(13, 7)
    path = tmp_path / f"picture{suffix}"
    picture.save(path, **options)
    for source in (path, str(path), path.read_bytes()):
        result = read_image(source)
        assert type(result) is Image.Image
        assert result.mode == "RGB"
        assert same(result, picture)
    assert suffix in IMAGE_SUFFIXES


def test_jpeg_is_read_as_pillow_decodes_it(tmp_path):
    path = tmp_path / "picture.jpg"
    photograph(40, 30).save(path, quality=90)
    with Image.open(path) as expected:
        assert same(read_image(path), expected)
    path.with_suffix(".png").write_bytes(path.read_bytes())  # the content counts, not the name
    assert same(read_image(path.with_suffix(".png")), read_image(path))


def test_progressive_and_grey_jpeg():
    progressive = encode(Image.new("RGB", (32, 32), (10, 200, 90)), "JPEG", progressive=True)
    assert np.abs(np.asarray(read_image(progressive), int)[5, 5] - (10, 200, 90)).max() <= 2
    grey = encode(Image.new("L", (16, 16), 77), "JPEG")
    assert pixels(read_image(grey))[3][3] == (77, 77, 77)


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "TIFF", "PNG"])
def test_of_several_frames_one_has_to_be_chosen(kind, tmp_path):
    colours = (RED, GREEN, BLUE)
    frames = [Image.new("RGB", (4, 3), colour) for colour in colours]
    options = {"lossless": True} if kind == "WEBP" else {}
    content = encode(frames[0], kind, save_all=True, append_images=frames[1:], **options)
    assert getattr(Image.open(io.BytesIO(content)), "n_frames", 1) == 3
    noun = "pages" if kind == "TIFF" else "frames"
    message = refusal(content)
    assert f"has 3 {noun}; expected one picture" in message and "page=0" in message
    for page, colour in enumerate(colours):
        assert pixels(read_image(content, page=page)) == [[colour] * 4] * 3
    with pytest.raises(ImageError, match=r"page=3 is none of them; expected 0 to 2"):
        read_image(content, page=3)
    with pytest.raises(UsageError, match="whole number from 0 as page"):
        read_image(content, page=-1)
    opened = Image.open(io.BytesIO(content))  # which is at one of them
    opened.seek(1)
    assert pixels(read_image(opened)) == [[GREEN] * 4] * 3


def test_a_single_picture_is_page_0():
    for kind in ("PNG", "TIFF", "GIF", "JPEG", "BMP"):
        content = encode(Image.new("RGB", (8, 8), WHITE), kind)
        assert same(read_image(content, page=0), read_image(content))
        with pytest.raises(ImageError, match="expected 0 to 0"):
            read_image(content, page=1)


def test_smaller_copies_and_masks_in_a_tiff_are_no_pages():
    buffer = io.BytesIO()
    with TiffImagePlugin.AppendingTiffWriter(buffer) as writer:
        for kind, size in ((0, 8), (1, 4), (4, 8)):
            tags = TiffImagePlugin.ImageFileDirectory_v2()
            tags[254] = kind
            Image.new("L", (size, size), 255).save(writer, "TIFF", tiffinfo=tags)
            writer.newFrame()
    content = buffer.getvalue()
    assert getattr(Image.open(io.BytesIO(content)), "n_frames", 1) == 3
    assert read_image(content).size == (8, 8)


def test_mpo_is_read_as_its_first_jpeg():
    frames = [Image.new("RGB", (16, 16), colour) for colour in (WHITE, BLACK)]
    content = encode(frames[0], "MPO", save_all=True, append_images=frames[1:])
    assert pixels(read_image(content))[0][0] == WHITE


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "GIF", "TIFF", "BMP"])
def test_one_pixel(kind):
    content = encode(Image.new("RGB", (1, 1), WHITE), kind)
    assert pixels(read_image(content)) == [[WHITE]]
    assert to_tensor(read_image(content)).shape == (3, 1, 1)


# --- EXIF orientation --------------------------------------------------------------------------

# Where the corners of [[red, green], [blue, white]] lie once the picture is upright.
UPRIGHT = {
    1: [[RED, GREEN], [BLUE, WHITE]],
    2: [[GREEN, RED], [WHITE, BLUE]],
    3: [[WHITE, BLUE], [GREEN, RED]],
    4: [[BLUE, WHITE], [RED, GREEN]],
    5: [[RED, BLUE], [GREEN, WHITE]],
    6: [[BLUE, RED], [WHITE, GREEN]],
    7: [[WHITE, GREEN], [BLUE, RED]],
    8: [[GREEN, WHITE], [RED, BLUE]],
}


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "WEBP"])
@pytest.mark.parametrize("orientation", UPRIGHT)
def test_exif_orientation_is_applied_once(kind, orientation):
    corners = Image.fromarray(np.array(UPRIGHT[1], dtype=np.uint8))
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"lossless": True, "exact": True} if kind == "WEBP" else {}
    result = read_image(encode(corners, kind, exif=exif, **options))
    assert pixels(result) == UPRIGHT[orientation]
    assert pixels(read_image(result)) == UPRIGHT[orientation]


def test_exif_orientation_of_jpeg_and_of_an_open_pil_image():
    exif = Image.Exif()
    exif[0x0112] = 6
    content = encode(Image.new("RGB", (32, 16), RED), "JPEG", exif=exif)
    assert read_image(content).size == (16, 32)
    opened = Image.open(io.BytesIO(content))
    assert read_image(opened).size == (16, 32)
    assert opened.size == (32, 16)  # the caller's image stays as it is
    assert opened.getexif()[0x0112] == 6


@pytest.mark.parametrize("junk", [b"Exif\0\0junk", b"Exif\0\0II*\0\xff\xff\xff\x7f", b"Exif\0\0"])
def test_damaged_exif_does_not_lose_the_picture(junk):
    content = encode(Image.new("RGB", (16, 8), WHITE), "JPEG", exif=junk)
    assert pixels(read_image(content)) == [[WHITE] * 16] * 8


def test_16_bit_grey_is_turned_upright():
    exif = Image.Exif()
    exif[0x0112] = 6
    grey = Image.fromarray(np.array([[0, 65535]], dtype=np.uint16))
    assert pixels(read_image(encode(grey, "PNG", exif=exif))) == [[BLACK], [WHITE]]


# --- modes -------------------------------------------------------------------------------------


def test_palette_with_and_without_transparency():
    image = Image.new("P", (3, 1))
    image.putpalette([*RED, *GREEN, *BLUE])
    image.putdata([0, 1, 2])
    assert pixels(read_image(encode(image, "PNG"))) == [[RED, GREEN, BLUE]]
    assert pixels(read_image(image)) == [[RED, GREEN, BLUE]]
    for kind in ("PNG", "GIF"):
        one = encode(image, kind, transparency=1)
        assert pixels(read_image(one)) == [[RED, WHITE, BLUE]]
    several = encode(image, "PNG", transparency=bytes([0, 255, 51]))
    assert pixels(read_image(several)) == [[WHITE, GREEN, (204, 204, 255)]]


def test_alpha_is_laid_over_white():
    rgba = Image.fromarray(
        np.array([[[0, 0, 0, 0], [255, 0, 0, 255], [0, 0, 255, 51]]], dtype=np.uint8)
    )
    expected = [[WHITE, RED, (204, 204, 255)]]
    assert pixels(read_image(rgba)) == expected
    for kind, options in (("PNG", {}), ("TIFF", {}), ("WEBP", {"lossless": True})):
        assert pixels(read_image(encode(rgba, kind, **options))) == expected
    grey = Image.merge("LA", [Image.new("L", (1, 1), 0), Image.new("L", (1, 1), 51)])
    assert pixels(read_image(grey)) == [[(204, 204, 204)]]
    assert pixels(read_image(encode(grey, "PNG"))) == [[(204, 204, 204)]]
    assert pixels(read_image(rgba.convert("RGBa")))[0][:2] == [WHITE, RED]


def test_transparent_colour_of_png_without_alpha_channel():
    rgb = Image.fromarray(np.array([[RED, GREEN]], dtype=np.uint8))
    assert pixels(read_image(encode(rgb, "PNG", transparency=RED))) == [[WHITE, GREEN]]
    grey = Image.fromarray(np.array([[0, 9]], dtype=np.uint8))
    assert pixels(read_image(encode(grey, "PNG", transparency=0))) == [[WHITE, (9, 9, 9)]]
    bits = Image.fromarray(np.array([[False, True]]))
    assert pixels(read_image(encode(bits, "PNG", transparency=0))) == [[WHITE, WHITE]]
    deep = Image.fromarray(np.array([[300, 0]], dtype=np.uint16))
    assert pixels(read_image(encode(deep, "PNG", transparency=300))) == [[WHITE, BLACK]]


def test_transparent_colour_of_png_of_other_depths():
    two = png(4, 1, 2, 0, b"\0\x1b", (b"tRNS", struct.pack(">H", 1)))
    assert pixels(read_image(two)) == [[BLACK, WHITE, (170, 170, 170), WHITE]]
    four = png(2, 1, 4, 0, b"\0\x5a", (b"tRNS", struct.pack(">H", 5)))
    assert pixels(read_image(four)) == [[WHITE, (170, 170, 170)]]
    row = b"\0" + struct.pack(">6H", 0x1200, 0, 0, 0, 65535, 0)
    sixteen = png(2, 1, 16, 2, row, (b"tRNS", struct.pack(">3H", 0x1200, 0, 0)))
    assert pixels(read_image(sixteen)) == [[WHITE, GREEN]]


def test_one_bit():
    bits = Image.fromarray(np.array([[False, True, True]]))
    for kind in ("PNG", "TIFF", "BMP", "GIF"):
        assert pixels(read_image(encode(bits, kind))) == [[BLACK, WHITE, WHITE]]
    white_is_zero = tiff(8, 1, b"\x0f", {258: (3, 1), 262: (3, 0)})
    assert pixels(read_image(white_is_zero)) == [[WHITE] * 4 + [BLACK] * 4]


def test_cmyk():
    inks = np.array([[[0, 0, 0, 0], [0, 255, 255, 0], [0, 0, 0, 255]]], dtype=np.uint8)
    cmyk = Image.frombytes("CMYK", (3, 1), inks.tobytes())
    assert pixels(read_image(cmyk)) == [[WHITE, RED, BLACK]]
    assert pixels(read_image(encode(cmyk, "TIFF"))) == [[WHITE, RED, BLACK]]


def test_cmyk_jpeg_of_adobe_is_not_inverted():
    content = encode(Image.new("CMYK", (16, 16), (0, 255, 255, 0)), "JPEG", quality=95)
    assert b"Adobe" in content  # the mark that the inks are stored inverted
    assert np.abs(np.asarray(read_image(content), int)[8, 8] - RED).max() <= 3


def test_ycbcr_lab_and_hsv():
    rgb = Image.new("RGB", (2, 2), (200, 30, 60))
    for mode in ("YCbCr", "HSV"):
        assert np.abs(np.asarray(read_image(rgb.convert(mode)), int) - (200, 30, 60)).max() <= 3
    profiles = ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB")
    lab = ImageCms.applyTransform(rgb, ImageCms.buildTransform(*profiles, "RGB", "LAB"))
    assert lab is not None and lab.mode == "LAB"
    assert np.abs(np.asarray(read_image(lab), int) - (200, 30, 60)).max() <= 3
    assert np.abs(np.asarray(read_image(encode(lab, "TIFF")), int) - (200, 30, 60)).max() <= 3


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "PPM"])
def test_16_bit_grey_is_scaled_not_clipped(kind):
    values = np.array([[0, 128, 129, 257, 32768, 65535]], dtype=np.uint16)
    content = encode(Image.fromarray(values), kind)
    assert [pixel[0] for pixel in pixels(read_image(content))[0]] == [0, 0, 1, 1, 128, 255]


def test_a_dark_16_bit_file_stays_dark():
    values = np.array([[0, 200]], dtype=np.uint16)
    for kind in ("PNG", "TIFF", "PPM"):
        content = encode(Image.fromarray(values), kind)
        assert pixels(read_image(content)) == [[BLACK, (1, 1, 1)]]


def test_16_bit_colour_png():
    row = b"\0" + struct.pack(">6H", 65535, 0, 257 * 7, 0, 65535, 0)
    assert pixels(read_image(png(2, 1, 16, 2, row))) == [[(255, 0, 7), GREEN]]
    row = b"\0" + struct.pack(">8H", 65535, 0, 0, 0, 0, 0, 65535, 65535)
    assert pixels(read_image(png(2, 1, 16, 6, row))) == [[WHITE, BLUE]]


def test_16_and_12_bit_tiff_of_either_byte_order_and_polarity():
    for mark in "<>":
        data = struct.pack(mark + "3H", 0, 257 * 9, 65535)
        content = tiff(3, 1, data, {258: (3, 16)}, mark)
        assert pixels(read_image(content)) == [[BLACK, (9, 9, 9), WHITE]]
    data = struct.pack("<2H", 0, 65535)
    assert pixels(read_image(tiff(2, 1, data, {258: (3, 16), 262: (3, 0)}))) == [[WHITE, BLACK]]
    twelve = tiff(2, 1, bytes([0xFF, 0xF0, 0x00]), {258: (3, 12)})
    assert pixels(read_image(twelve)) == [[WHITE, BLACK]]


def test_grey_of_32_bits_has_no_fixed_white():
    floats = Image.fromarray(np.array([[0, 0.2, 0.5, 1]], np.float32))
    for source in (floats, encode(floats, "TIFF")):
        assert [p[0] for p in pixels(read_image(source))[0]] == [0, 51, 128, 255]
    for values in ([0, 7.4, 255], [-1, 1], [0, float("nan")], [0, float("inf")]):
        message = refusal(Image.fromarray(np.array([values], np.float32)))
        assert "in [0, 1]: divide it by the number that stands for white" in message
    message = refusal(Image.fromarray(np.array([[0, 257, 65535]], np.int32)))
    assert (
        "grey values 0 to 65535 of 32 bits" in message and "divide them by their white" in message
    )


def test_extra_modes_in_memory():
    assert pixels(read_image(Image.new("RGBX", (1, 1), (1, 2, 3, 4)))) == [[(1, 2, 3)]]
    assert pixels(read_image(Image.new("I;16", (1, 1), 65535))) == [[WHITE]]


# --- arrays, bytes, open files, PIL images -----------------------------------------------------


def test_arrays():
    colours = np.array([[RED, GREEN], [BLUE, WHITE]], dtype=np.uint8)
    expected = UPRIGHT[1]
    assert pixels(read_image(colours)) == expected
    assert pixels(read_image(colours.astype(np.uint16) * 257)) == expected
    assert pixels(read_image(colours > 0)) == expected
    assert pixels(read_image(colours / 255)) == expected
    assert pixels(read_image((colours / 255).astype(np.float16))) == expected
    assert pixels(read_image(np.asfortranarray(colours)[::-1])) == expected[::-1]
    for grey in (np.array([[0, 51]], np.uint8), np.array([[0, 0.2]])):
        assert pixels(read_image(grey)) == [[BLACK, (51, 51, 51)]]
        assert pixels(read_image(grey[..., None])) == [[BLACK, (51, 51, 51)]]
    assert pixels(read_image(np.array([[[0, 0, 255, 51]]], np.uint8))) == [[(204, 204, 255)]]


@pytest.mark.parametrize(
    ("array", "words"),
    [
        (np.zeros((3, 8, 8), np.uint8), "transpose"),
        (np.zeros((8, 8, 2), np.uint8), "(8, 8, 2)"),
        (np.zeros(5, np.uint8), "(5,)"),
        (np.zeros((0, 5), np.uint8), "(0, 5)"),
        (np.zeros((1, 2, 2, 3), np.uint8), "(1, 2, 2, 3)"),
        (np.zeros((4, 4), np.int64), "int64"),
        (np.zeros((4, 4), complex), "complex128"),
        (np.full((4, 4), "x"), "<U1"),
        (np.full((4, 4), 255.0), "255"),
        (np.full((4, 4), -0.5), "-0.5"),
        (np.full((4, 4), np.nan), "nan"),
    ],
)
def test_other_arrays_are_refused(array, words):
    message = refusal(array)
    assert words in message and "expected" in message


def test_the_result_is_independent_of_the_source():
    for source in (Image.new("RGB", (2, 2), RED), np.full((2, 2, 3), 9, np.uint8)):
        before = np.array(source)
        read_image(source).paste(BLUE, (0, 0, 2, 2))
        assert same(source, before)


def test_open_files_are_read_from_where_they_are_and_left_open(tmp_path):
    path = tmp_path / "a.png"
    noise(4, 4).save(path)
    with path.open("rb") as file:
        assert same(read_image(file), noise(4, 4))
        assert not file.closed
        assert "rewind" in refusal(file)
    with io.BytesIO(b"junk" + path.read_bytes()) as buffer:
        buffer.seek(4)
        assert same(read_image(buffer), noise(4, 4))
    with path.open("r", encoding="latin-1") as file:
        assert "'rb'" in refusal(file)
    assert "cannot be read" in refusal(file)  # closed by now
    for view in (bytearray(path.read_bytes()), memoryview(path.read_bytes())):
        assert same(read_image(view), noise(4, 4))


def test_pil_images_that_are_lazy_truncated_or_closed(tmp_path):
    path = tmp_path / "a.png"
    noise(64, 64).save(path)
    with Image.open(path) as lazy:
        assert same(read_image(lazy), noise(64, 64))
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    with Image.open(path) as lazy:
        message = refusal(lazy)
    assert "a.png" in message and "cut short" in message


def test_other_types_are_refused():
    for source in (None, 3, torch.zeros(3, 2, 2)):
        assert f"got {type(source).__name__}" in refusal(source)


# --- refusals ----------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "GIF", "TIFF", "BMP", "PPM"])
def test_truncated_files_are_refused(tmp_path, kind):
    content = encode(noise(64, 48), kind)
    for share in (0.95, 0.5, 0.1):
        path = tmp_path / f"short.{kind.lower()}"
        path.write_bytes(content[: int(len(content) * share)])
        message = refusal(path)
        assert repr(str(path)) in message
        assert f"{kind.lower()} image that is cut short" in message.lower()
        assert "get the file again" in message


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "GIF", "TIFF", "BMP", "PPM"])
def test_files_cut_anywhere_or_damaged_give_an_image_or_an_image_error(kind):
    content = encode(noise(16, 12), kind)
    random = np.random.default_rng(3)
    cases = [content[:n] for n in range(0, len(content), max(1, len(content) // 60))]
    for _ in range(120):
        bad = bytearray(content)
        for place in random.integers(0, min(len(bad), 120), 3):
            bad[place] = random.integers(0, 256)
        cases.append(bytes(bad))
    for case in cases:
        message = ""
        try:
            assert read_image(case).mode == "RGB"
        except ImageError as error:
            message = str(error)
        assert "\n" not in message


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
@pytest.mark.parametrize("sampling", [0, 2])
def test_jpeg_whose_data_end_early_is_refused_in_spite_of_its_end_marker(mode, sampling):
    picture = noise(160, 240).convert(mode)
    content = encode(picture, "JPEG", subsampling=sampling, quality=90)
    data = content.index(b"\xff\xda") + 20
    for share in (0.05, 0.3, 0.6):
        cut = content[: data + int(share * (len(content) - data))]
        assert "before row 168 of 240" in refusal(cut + b"\xff\xd9")
        assert "before row 168 of 240" in refusal(cut + b"\xff\xd9" + bytes(500))


@pytest.mark.parametrize("size", [(160, 240), (1, 73), (90, 72), (33, 105)])
@pytest.mark.parametrize(
    "options", [{}, {"restart_marker_blocks": 1}, {"progressive": True}, {"quality": 1}]
)
def test_whole_jpegs_are_read_to_their_last_row(size, options):
    for mode in ("RGB", "L", "CMYK"):
        content = encode(noise(*size).convert(mode), "JPEG", **options)
        with Image.open(io.BytesIO(content)) as expected:
            for trailing in (b"", b"\xff\xd8 a second picture \xff\xd9"):
                assert same(read_image(content + trailing), expected.convert("RGB"))


def test_what_libtiff_prints_is_told_and_not_printed(capfd):
    picture = noise(64, 64).convert("1")
    content = bytearray(encode(picture, "TIFF", compression="group4"))
    assert same(read_image(bytes(content)), picture.convert("RGB"))
    content[100:150] = bytes(range(100, 150))
    assert "damaged (Fax4Decode: " in refusal(bytes(content))
    # 9,219 samples a pixel, which Pillow logs; without a handler logging prints it.
    assert "TIFF image" in refusal(tiff(2, 2, bytes(4), {277: (3, 9219)}))
    assert capfd.readouterr().err == ""


def test_compressed_tiff_cut_before_its_directory():
    content = encode(photograph(64, 64), "TIFF", compression="tiff_adobe_deflate")
    assert "cut short" in refusal(content[:-40])


def test_empty(tmp_path):
    path = tmp_path / "empty.jpg"
    path.touch()
    message = refusal(path)
    assert repr(str(path)) in message and "is empty" in message and "expected a JPEG" in message
    assert "empty" in refusal(b"")


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("notes.jpg", b"hello, world\n", "text"),
        ("long.jpg", "é".encode() * 600, "text"),
        ("page.jpg", b"<!DOCTYPE html>\n<html><body>404</body></html>", "a web page"),
        ("paper.pdf", b"%PDF-1.7\n%\xe2\xe3\n", "a PDF"),
        ("photo.heic", b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", "brand 'heic'"),
        ("logo.svg", b'<?xml version="1.0"?>\n<svg xmlns="..."/>', "an SVG drawing"),
        ("noise.png", bytes(range(256)) * 4, "unknown data"),
        ("zeros.png", bytes(64), "unknown data"),
        ("byte.png", b"\x89", "unknown data"),
        ("figure.eps", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n", "text"),
    ],
)
def test_files_that_are_no_image_are_named_for_what_they_are(tmp_path, name, content, words):
    path = tmp_path / name
    path.write_bytes(content)
    message = refusal(path)
    assert repr(str(path)) in message and "(it holds " in message and words in message
    assert (
        "expected a JPEG, PNG, WebP, GIF, TIFF, BMP or PPM image, or an .npy array: convert it"
        in message
    )


@pytest.mark.skipif(not features.check("avif"), reason="this Pillow cannot write AVIF")
def test_avif_is_refused_by_name():
    assert "brand 'avif'" in refusal(encode(noise(16, 16), "AVIF"))


def test_camera_raw_is_refused_rather_than_read_as_its_preview(tmp_path):
    preview = encode(noise(8, 8), "TIFF")
    path = tmp_path / "photo.NEF"
    path.write_bytes(preview)
    assert "camera raw" in refusal(path)
    info = TiffImagePlugin.ImageFileDirectory_v2()
    info.tagtype[50706] = 1
    info[50706] = bytes([1, 4, 0, 0])
    assert "camera raw" in refusal(encode(noise(8, 8), "TIFF", tiffinfo=info))


def test_missing_files_name_their_near_matches(tmp_path):
    for name in ("chelsea.png", "rocket.jpg"):
        noise(2, 2).save(tmp_path / name)
    message = refusal(tmp_path / "chelsae.png")
    assert "does not exist; did you mean 'chelsea.png'" in message
    assert repr(str(tmp_path / "chelsae.png")) in message
    assert "check the path" in refusal(tmp_path / "zzzzzzzz.qqq")
    assert "nor does its folder" in refusal(tmp_path / "nowhere" / "a.png")
    assert "folder" in refusal(tmp_path / "rocket.jpg" / "a.png")


def test_odd_paths_give_one_line(tmp_path):
    refusal(tmp_path / "two\nlines.jpg")
    assert "check the path" in refusal("null\0byte.jpg")
    assert "check the path" in refusal(str(tmp_path / ("x" * 300)))
    assert "folder" in refusal("")


def test_folders_links_pipes_and_devices(tmp_path):
    assert "is a folder" in refusal(tmp_path)
    noise(3, 3).save(tmp_path / "a.png")
    (tmp_path / "good.png").symlink_to(tmp_path / "a.png")
    assert same(read_image(tmp_path / "good.png"), noise(3, 3))
    (tmp_path / "bad.png").symlink_to(tmp_path / "gone.png")
    message = refusal(tmp_path / "bad.png")
    assert "link to" in message and "gone.png" in message
    (tmp_path / "loop.png").symlink_to(tmp_path / "loop.png")
    refusal(tmp_path / "loop.png")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs POSIX files")
def test_pipes_sockets_and_devices_are_refused_without_blocking(tmp_path):
    os.mkfifo(tmp_path / "pipe.png")
    messages = []

    def attempt():
        messages.append(refusal(tmp_path / "pipe.png"))

    thread = threading.Thread(target=attempt, daemon=True)
    thread.start()
    thread.join(10)
    assert messages and "is a pipe, socket or device" in messages[0]
    assert "is a pipe, socket or device" in refusal("/dev/zero")
    with socket.socket(socket.AF_UNIX) as server:
        try:
            server.bind(str(tmp_path / "s.png"))
        except OSError:
            pytest.skip("the temporary folder's path is too long for a socket")
        assert "is a pipe, socket or device" in refusal(tmp_path / "s.png")


def test_permission_denied(tmp_path, monkeypatch):
    path = tmp_path / "secret.png"
    noise(2, 2).save(path)

    def deny(*_args, **_options):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", deny)  # chmod would not stop root
    message = refusal(path)
    assert repr(str(path)) in message and "permission denied" in message and "rights" in message


# --- size --------------------------------------------------------------------------------------


def bomb(width: int, height: int) -> bytes:
    return png(width, height, 8, 2, b"\0" * 10)


@pytest.mark.parametrize("size", [(9500, 9500), (13000, 13000), (60000, 60000), (2**31 - 1, 9)])
def test_decompression_bombs_are_refused_before_they_are_decoded(tmp_path, size, monkeypatch):
    def decode(*_args, **_options):
        raise AssertionError("decoded")

    monkeypatch.setattr(ImageFile.ImageFile, "load", decode)
    path = tmp_path / "bomb.png"
    path.write_bytes(bomb(*size))
    message = refusal(path)
    assert repr(str(path)) in message and "pixels" in message
    assert "expected at most 89478485" in message and "scale it down" in message


def test_files_of_too_many_bytes_are_refused_unread(tmp_path, monkeypatch):
    path = tmp_path / "sparse.webp"
    with path.open("wb") as file:
        file.write(b"RIFF\xf0\xff\xff\xffWEBPVP8X")
        file.truncate(2**32)
    assert "has more than 536870912 bytes" in refusal(path)
    content = encode(noise(10, 10), "PNG")
    monkeypatch.setattr(images, "MAX_BYTES", len(content))
    assert read_image(content).size == (10, 10)
    monkeypatch.setattr(images, "MAX_BYTES", len(content) - 1)
    path.write_bytes(content)
    for source in (content, path, io.BytesIO(content)):
        assert f"more than {len(content) - 1} bytes" in refusal(source)


@pytest.mark.parametrize("size", [(1, 89_000_000), (89_000_000, 1), (2, 2**22 + 1)])
@pytest.mark.parametrize("start", [bomb, lambda w, h: b"P5\n%d %d\n255\n" % (w, h)])
def test_long_strips_are_refused_before_they_are_decoded(size, start):
    message = refusal(start(*size))
    assert f"has {size[0]} x {size[1]} pixels; expected at most 4194304 a side" in message


def _jpeg_with(data: bytes) -> bytes:
    content = encode(noise(8, 8), "JPEG")
    return content[:2] + data + content[2:]


@pytest.mark.parametrize(
    "content",
    [
        b"P6\n#" + b"x" * 2_000_000 + b"\n2 2\n255\n" + bytes(12),
        b"P6\n" + b" " * 2_000_000 + b"\n2 2\n255\n" + bytes(12),
        b"P3\n2 2\n255\n" + b"#\n" * 1001 + b"1 2 3 " * 4,
        _jpeg_with(b"\xff" * 200_000),
        _jpeg_with(b"\xff\xe5\x00\x02" * 200_000),
        _jpeg_with((b"\xff\xe5\xff\xff" + bytes(65533)) * 257),
        b"GIF89a\2\0\2\0\x80\0\0" + bytes(6) + b"\x21\xfe\1x\0" * 200_000,
        png(2, 2, 8, 2, bytes(14), *[(b"tESt", b"")] * 100_000),
        png(2, 2, 8, 2, bytes(14))[:-12] + png(2, 2, 8, 2, b"", *[(b"tESt", b"")] * 100_000)[33:],
    ],
    ids=["comment", "spaces", "comments", "fill", "markers", "metadata", "gif", "before", "after"],
)
def test_what_would_be_stepped_through_for_long_is_refused(content):
    start = time.perf_counter()
    assert "save the picture again without them" in refusal(content)
    assert time.perf_counter() - start < 5


def test_the_limit_is_exact_and_can_be_moved(monkeypatch):
    assert images.MAX_PIXELS == Image.MAX_IMAGE_PIXELS
    content = encode(noise(10, 10), "PNG")
    monkeypatch.setattr(images, "MAX_PIXELS", 100)
    assert read_image(content).size == (10, 10)
    monkeypatch.setattr(images, "MAX_PIXELS", 99)
    assert "10 x 10 = 100 pixels; expected at most 99" in refusal(content)
    assert "expected at most 99" in refusal(Image.open(io.BytesIO(content)))


def test_pillows_own_warning_does_not_leak(monkeypatch):
    content = encode(noise(10, 10), "PNG")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 60)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert read_image(content).size == (10, 10)


def test_a_large_photograph_is_read():
    content = encode(Image.new("L", (6000, 4000), 9), "PNG")
    assert read_image(content).getpixel((5999, 3999)) == (9, 9, 9)


# --- tensors -----------------------------------------------------------------------------------


def test_to_tensor_and_back():
    picture = noise(5, 4)
    tensor = to_tensor(picture)
    assert tensor.shape == (3, 4, 5)
    assert tensor.dtype == torch.float32
    assert tensor.is_contiguous()
    assert torch.equal(tensor, tvf.to_tensor(picture))
    assert same(to_image(tensor), picture)
    assert to_image(tensor).mode == "RGB"
    assert torch.equal(to_tensor(Image.new("L", (2, 2), 255)), torch.ones(3, 2, 2))
    every = torch.arange(256).reshape(1, 16, 16) / 255
    grey = to_image(every.requires_grad_())
    assert grey.mode == "L"
    assert same(np.asarray(grey).ravel(), np.arange(256))
    assert to_image(torch.full((1, 1, 1), 1.0005, dtype=torch.float64)).getpixel((0, 0)) == 255
    assert to_image(torch.full((1, 1, 1), 0.5, dtype=torch.bfloat16)).getpixel((0, 0)) == 128


def test_to_image_refuses_other_tensors():
    for shape in ((2, 3), (4, 2, 2), (1, 3, 2, 2), (3, 0, 2)):
        with pytest.raises(ShapeError, match="expected a floating point tensor"):
            to_image(torch.zeros(shape))
    with pytest.raises(ShapeError, match="uint8"):
        to_image(torch.zeros(3, 2, 2, dtype=torch.uint8))
    for value in (-0.1, 1.1, float("nan")):
        with pytest.raises(ImageError, match="expected values in"):
            to_image(torch.full((3, 2, 2), value))


# --- resizing ----------------------------------------------------------------------------------

MODES = {
    "nearest": InterpolationMode.NEAREST,
    "bilinear": InterpolationMode.BILINEAR,
    "bicubic": InterpolationMode.BICUBIC,
    "lanczos": InterpolationMode.LANCZOS,
    "box": InterpolationMode.BOX,
    "hamming": InterpolationMode.HAMMING,
}


def by_torchvision(image, resize, crop, interpolation):
    if resize is not None:
        size = [resize] if isinstance(resize, int) else list(resize)
        image = tvf.resize(image, size, MODES[interpolation])
    return image if crop is None else tvf.center_crop(image, crop)


def every_way() -> Iterator[Any]:
    """Yield each mode with one size, and each size with one mode; the rest as slow tests."""
    sizes = [(640, 427), (333, 500), (224, 224), (100, 75), (1601, 901)]
    crops = [(256, 224), (232, (224, 192)), ((200, 300), 224), (64, 96), (None, 224), (97, None)]
    for size, interpolation, (resize, crop) in product(sizes, MODES, crops):
        few = size == (333, 500) or interpolation == "bilinear"
        marks = () if few else pytest.mark.slow
        yield pytest.param(size, resize, crop, interpolation, marks=marks)


@pytest.mark.parametrize(("size", "resize", "crop", "interpolation"), [*every_way()])
def test_as_torchvision(size, resize, crop, interpolation):
    image = photograph(*size)
    ours = resize_and_crop(image, resize, crop, interpolation)
    theirs = by_torchvision(image, resize, crop, interpolation)
    assert ours.size == theirs.size
    assert same(ours, theirs)


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic", "lanczos", "hamming"])
@pytest.mark.parametrize("size", [(640, 427), (333, 500), (40, 1200)])
def test_as_torchvision_where_only_the_crop_is_resized(size, interpolation, monkeypatch):
    sizes = record_resizing(monkeypatch)
    image = photograph(*size)
    ours = resize_and_crop(image, 900, (48, 64), interpolation)
    assert sizes == [(64, 48)]
    theirs = by_torchvision(image, 900, (48, 64), interpolation)
    assert np.abs(np.asarray(ours, int) - np.asarray(theirs, int)).max() <= 2


def record_resizing(monkeypatch) -> list[tuple[int, int]]:
    sizes = []
    resize = Image.Image.resize

    def record(self, size, *args, **options):
        sizes.append(size)
        return resize(self, size, *args, **options)

    monkeypatch.setattr(Image.Image, "resize", record)
    return sizes


def test_without_resizing_the_crop_is_exact():
    image = noise(9, 7)
    assert same(resize_and_crop(image, None, None), image)
    assert same(resize_and_crop(image, 7, (3, 5)), np.asarray(image)[2:5, 2:7])
    padded = np.zeros((10, 12, 3), np.uint8)
    padded[1:8, 1:10] = np.asarray(image)
    assert same(resize_and_crop(image, None, (10, 12)), padded)
    resize_and_crop(image, None, None).paste(RED, (0, 0, 9, 7))
    assert same(image, noise(9, 7))


@pytest.mark.parametrize("size", [(1, 5000), (5000, 1), (1, 2_000_000), (2_000_000, 1)])
@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic", "lanczos", "nearest"])
def test_extreme_aspect_ratios_stay_small(size, interpolation, monkeypatch):
    length = max(size)
    steps = (np.arange(length) % 251).astype(np.uint8)
    image = read_image(steps.reshape(size[1], size[0]))
    sizes = record_resizing(monkeypatch)
    result = resize_and_crop(image, 256, 224, interpolation)
    assert result.size == (224, 224)
    assert sizes == [(224, 224)]
    # Half an original pixel or so on either side of the middle is all that is kept.
    around = steps[length // 2 - 2 : length // 2 + 2].astype(int)
    values = np.asarray(result, int)
    assert values.min() >= around.min() - 1 and values.max() <= around.max() + 1
    if size == (5000, 1):  # small enough to enlarge whole along one axis, as a check
        whole = image.resize((5000 * 256, 1), Image.Resampling[interpolation.upper()])
        left = round((5000 * 256 - 224) / 2)
        line = np.asarray(whole, int)[0, left : left + 224]
        assert np.abs(values[112] - line).max() <= 1


def test_extreme_aspect_ratio_without_a_crop_is_refused():
    image = Image.new("RGB", (1, 5000))
    with pytest.raises(UsageError, match="give a smaller size, or a crop"):
        resize_and_crop(image, 256, None)
    with pytest.raises(UsageError, match="exceeds the limit"):
        resize_and_crop(image, None, 100_000)


def test_one_pixel_is_enlarged():
    assert pixels(resize_and_crop(Image.new("RGB", (1, 1), RED), 8, 4)) == [[RED] * 4] * 4


def test_other_modes_become_rgb_before_resizing():
    grey = Image.new("I;16", (20, 10), 65535)
    assert pixels(resize_and_crop(grey, 5, 5)) == [[WHITE] * 5] * 5


@pytest.mark.parametrize("bad", [0, -3, (5,), (5, 0), (1, 2, 3), 2.5, (2.0, 3), True])
def test_bad_sizes_are_refused(bad):
    for sizes in ((bad, 4), (4, bad)):
        with pytest.raises(UsageError, match="positive whole number"):
            resize_and_crop(Image.new("RGB", (4, 4)), *sizes)


def test_interpolation_by_name_or_constant():
    image = noise(20, 20)
    by_name = resize_and_crop(image, 10, None, "bicubic")
    assert same(by_name, resize_and_crop(image, 10, None, Image.Resampling.BICUBIC))
    with pytest.raises(UsageError, match="did you mean 'bicubic'"):
        resize_and_crop(image, 10, None, "bicubik")


# --- many files --------------------------------------------------------------------------------


@pytest.fixture
def tree(tmp_path):
    for name in ("b.png", "a.jpg", "sub/c.PNG", "sub/deep/d.webp", ".hidden.png", ".git/e.png"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        noise(3, 3).save(path)
    (tmp_path / "notes.txt").write_text("no image")
    (tmp_path / "folder.png").mkdir()
    (tmp_path / "sub" / "odd.dat").write_bytes((tmp_path / "b.png").read_bytes())
    return tmp_path


def names(paths, root):
    assert all(isinstance(path, Path) for path in paths)
    return [path.relative_to(root).as_posix() for path in paths]


def test_find_in_folders_and_globs(tree):
    everything = ["a.jpg", "b.png", "sub/c.PNG", "sub/deep/d.webp"]
    assert names(find_images([tree]), tree) == everything
    assert names(find_images(str(tree)), tree) == everything
    assert names(find_images([f"{tree}/**/*"]), tree) == everything
    assert names(find_images([f"{tree}/*.png"]), tree) == ["b.png"]
    assert names(find_images([f"{tree}/*"]), tree) == ["a.jpg", "b.png"]
    assert names(find_images([f"{tree}/**/d.*"]), tree) == ["sub/deep/d.webp"]
    assert find_images([]) == []


def test_find_keeps_order_and_drops_duplicates(tree, monkeypatch):
    monkeypatch.chdir(tree)
    paths = find_images(["sub/c.PNG", tree / "b.png", ".", "./sub/../b.png"])
    assert [p.name for p in paths] == ["c.PNG", "b.png", "a.jpg", "d.webp"]
    assert paths[0] == Path("sub/c.PNG")


def test_find_returns_plain_files_whatever_their_name(tree):
    odd, missing = tree / "sub" / "odd.dat", tree / "missing.png"
    bracketed = tree / "x[1].png"
    noise(2, 2).save(bracketed)
    assert find_images([odd, missing, bracketed]) == [odd, missing, bracketed]


def test_find_refuses_what_holds_no_image(tree):
    (tree / "bare").mkdir()
    for pattern, words in (
        (tree / "bare", "no file"),
        (tree / "folder.png", "no file"),
        (f"{tree}/*.tif", "no file"),
        (f"{tree}/*.txt", "none of its 1 files"),
        ("", "empty"),
    ):
        with pytest.raises(ImageError, match=words) as caught:
            find_images([pattern])
        assert "\n" not in str(caught.value)
        assert str(pattern) in str(caught.value)


def test_find_reports_a_folder_that_cannot_be_listed(tree, monkeypatch):
    def walk(top, onerror):
        onerror(PermissionError(13, "Permission denied", f"{top}/sub"))
        return iter(())

    monkeypatch.setattr(os, "walk", walk)
    with pytest.raises(ImageError, match="sub' cannot be listed: Permission denied"):
        find_images([tree])


def test_one_bad_file_does_not_stop_the_rest(tree):
    (tree / "b.png").write_bytes(b"")
    paths = [tree / "a.jpg", tree / "b.png", tree / "gone.png", str(tree / "notes.txt"), tree]
    results = list(read_images([*paths, tree / "sub" / "odd.dat"]))
    assert [path for path, _ in results] == [*map(Path, paths), tree / "sub" / "odd.dat"]
    kinds = [type(result) for _, result in results]
    assert kinds == [Image.Image, *[ImageError] * 4, Image.Image]
    for path, result in results[1:5]:
        assert repr(str(path)) in str(result)
    assert "empty" in str(results[1][1])


def test_reading_is_lazy(tree):
    def paths():
        yield tree / "a.jpg"
        raise AssertionError("read ahead")

    _, first = next(read_images(paths()))
    assert isinstance(first, Image.Image)


def test_threads_leave_the_warning_filters_alone():
    content = encode(noise(50, 50), "PNG")
    before = list(warnings.filters)
    threads = [
        threading.Thread(target=lambda: [read_image(content) for _ in range(20)]) for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert warnings.filters == before


def test_pages_are_counted_before_one_is_read(tmp_path: Path) -> None:
    pages = [Image.new("L", (4, 3), shade) for shade in (0, 128, 255)]
    for name, several in (("a.tif", True), ("b.gif", True), ("c.png", False), ("d.jpg", False)):
        more = {"save_all": True, "append_images": pages[1:]} if several else {}
        pages[0].save(tmp_path / name, **more)
        assert images.count_pages(read_content(tmp_path / name)) == (3 if several else 1)
    np.save(tmp_path / "e.npy", np.zeros((2, 2, 5), np.float32))
    assert images.count_pages(read_content(tmp_path / "e.npy")) == 1
    (tmp_path / "f.png").write_text("words")
    with pytest.raises(ImageError, match="is not an image"):
        images.count_pages(read_content(tmp_path / "f.png"))
