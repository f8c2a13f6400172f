"""Pictures of maps: colours, kept pixels, and grids whose texts do not overlap."""

from __future__ import annotations

import itertools
import threading

import matplotlib
import numpy as np
import pytest
import torch
from PIL import Image

from afmi.errors import AfmiError, ShapeError, UsageError
from afmi.pictures import plots
from afmi.pictures.figures import Panel, enlarge, grid, save_png
from afmi.pictures.maps import Scale
from afmi.pictures.plots import colorbar, heatmap, insertion, overlay

MIDDLE = tuple(round(255 * v) for v in matplotlib.colormaps["RdBu_r"](0.5)[:3])


def test_zero_has_the_middle_colour_of_a_signed_map():
    signed = torch.tensor([[-3.0, 0.0, 3.0]])
    blue, middle, red = (heatmap(signed).getpixel((x, 0)) for x in range(3))
    assert max(abs(a - b) for a, b in zip(middle, MIDDLE, strict=True)) <= 1
    assert max(middle) - min(middle) <= 1  # no hue
    assert blue[2] > blue[0]
    assert red[0] > red[2]


def test_zero_stays_in_the_middle_of_a_lopsided_map():
    lopsided = torch.linspace(-0.1, 5, 256).view(16, 16)
    lopsided[3, 4] = 0
    neutral = heatmap(torch.tensor([[-1.0, 0.0, 1.0]])).getpixel((1, 0))
    assert heatmap(lopsided).getpixel((4, 3)) == neutral
    assert colorbar(Scale(-2.0, 2.0, True), 101, 1).getpixel((50, 0)) == neutral


def test_an_unsigned_map_gets_rising_brightness_from_black():
    picture = heatmap(torch.linspace(0, 1, 64).view(1, 64), signed=False).convert("L")
    brightness = np.asarray(picture)[0].astype(int)
    assert brightness[0] <= 2
    assert (np.diff(brightness) >= 0).all()
    assert brightness[-1] > 200


@pytest.mark.parametrize("signed", [True, False])
@pytest.mark.parametrize("value", [0.0, 1.0, -1.0])
def test_a_blank_map_is_drawn(value, signed):
    flat = torch.full((4, 5), value)
    assert heatmap(flat, signed=signed).size == (5, 4)
    assert overlay(torch.rand(3, 4, 5), flat, signed=signed).size == (5, 4)


@pytest.mark.parametrize("signed", [True, False])
def test_a_stray_value_changes_no_other_colour(signed):
    image, clean = torch.rand(3, 8, 8), torch.linspace(0, 0.62, 64).view(8, 8)
    stray = clean.clone()
    stray[0, 0] = -2e-5
    for draw in (lambda m: heatmap(m, signed=signed), lambda m: overlay(image, m, signed=signed)):
        before, after = (np.asarray(draw(map_)).astype(int) for map_ in (clean, stray))
        assert np.abs(before - after)[1:].max() <= 2  # of 255


def test_an_unsigned_map_has_no_colours_against():
    map_ = torch.linspace(-1, 1, 64).view(8, 8)
    picture = np.asarray(overlay(torch.full((3, 8, 8), 0.5), map_, signed=False)).astype(int)
    assert (picture[..., 0] >= picture[..., 2]).all()  # grey or warm


def test_overlay_shows_the_grey_photograph_where_the_map_is_zero_and_hue_by_sign():
    image = torch.full((3, 1, 3), 0.5)
    against, neither, support = (
        overlay(image, torch.tensor([[-1.0, 0.0, 1.0]])).getpixel((x, 0)) for x in range(3)
    )
    assert len(set(neither)) == 1
    assert against[2] > against[0]
    assert support[0] > support[2]


def test_insertion_keeps_exactly_the_highest_pixels():
    image = torch.rand(3, 2, 4).clamp(min=0.1)
    ranks = torch.tensor([[7.0, -1.0, 3.0, 3.0], [0.0, 6.0, 2.0, 5.0]])
    kept = np.asarray(insertion(image, ranks, 0.5)).any(axis=2)
    # Highest four: 7, 6, 5 and the first of the equal 3s.
    assert kept.tolist() == [[True, False, True, False], [False, True, False, True]]
    picture = np.asarray(insertion(image, ranks, 0.5))
    assert np.array_equal(picture[0, 0], (image[:, 0, 0] * 255).round().byte().numpy())
    assert not np.asarray(insertion(image, ranks, 0)).any()
    assert np.asarray(insertion(image, ranks, 1)).any(axis=2).all()


def test_wrong_shapes_and_values_are_refused():
    with pytest.raises(ShapeError, match=r"maps\[0, 0\]"):
        heatmap(torch.rand(1, 1, 4, 4))
    with pytest.raises(ShapeError, match="of the map's size"):
        overlay(torch.rand(3, 5, 5), torch.rand(4, 4))
    with pytest.raises(UsageError, match="NaN"):
        heatmap(torch.tensor([[float("nan")]]))
    with pytest.raises(UsageError, match="fraction"):
        insertion(torch.rand(3, 2, 2), torch.rand(2, 2), 1.5)
    with pytest.raises(UsageError, match="low below high"):
        colorbar(Scale(1.0, 1.0, False), 5, 5)


@pytest.mark.parametrize(("size", "fitted"), [((128, 64), (400, 200)), ((50, 100), (200, 400))])
def test_enlarge_keeps_the_shape(size, fitted):
    assert enlarge(Image.new("RGB", size), 400, 400).size == fitted


LONG = "Old English sheepdog, bobtail, of the long-haired kind that herds sheep in the hills"


def _boxes(figure):
    renderer = figure.canvas.get_renderer()
    words = [text.get_window_extent(renderer) for text in figure.texts]
    pictures = [axes.get_window_extent(renderer) for axes in figure.axes]
    return words, pictures


@pytest.mark.parametrize("side", [240, 480])
@pytest.mark.parametrize("label", ["cat", LONG, "W" * 200, "x\ny  z", "", "$a_b$ ὄ 猫"])
def test_no_words_overlap_or_leave_the_picture(side, label):
    wide, tall = Image.new("RGB", (64, 32), "red"), Image.new("RGB", (30, 60), "blue")
    panels = [
        Panel(wide, label, label, scale=Scale(-123456.0, 123456.0, True)),
        Panel(tall, label, label, scale=Scale(0.0, 1.0, False)),
        Panel(None, label, ""),
    ]
    figure = grid(
        [panels, panels[:2]],
        row_titles=[label, label],
        column_titles=[label] * 3,
        title=label,
        note=label * 5,
        side=side,
    )
    words, pictures = _boxes(figure)
    for first, second in itertools.combinations([b for b in words if b.width], 2):
        assert not first.overlaps(second)
    for word, picture in itertools.product([b for b in words if b.width], pictures):
        assert not word.overlaps(picture)
    width, height = figure.canvas.get_width_height()
    for box in [*words, *pictures]:
        assert box.x0 >= -0.5
        assert box.x1 <= width + 0.5
        assert box.y0 >= -0.5
        assert box.y1 <= height + 0.5


def test_long_labels_end_in_an_ellipsis_and_short_ones_are_kept():
    figure = grid([[Panel(Image.new("RGB", (8, 8)), LONG * 3), Panel(None, "cat")]])
    texts = [text.get_text() for text in figure.texts]
    assert "cat" in texts
    assert sum(text.endswith("…") for text in texts) == 1


def test_pictures_are_drawn_pixel_for_pixel(tmp_path):
    picture = Image.fromarray(
        np.random.default_rng(0).integers(0, 255, (240, 240, 3), dtype=np.uint8)
    )
    path = save_png(grid([[Panel(picture)]], side=240), tmp_path / "g.png")
    with Image.open(path) as opened:
        drawn = np.asarray(opened.convert("RGB"))
    ys, xs = np.nonzero((drawn != 255).any(axis=2))
    assert np.array_equal(drawn[ys.min() : ys.max() + 1, xs.min() : xs.max() + 1], picture)


def test_grid_refuses_nothing_and_wrong_titles():
    with pytest.raises(UsageError, match="at least one panel"):
        grid([])
    with pytest.raises(UsageError, match="240 pixels"):
        grid([[Panel(None)]], side=100)
    with pytest.raises(UsageError, match="2 row titles, got 1"):
        grid([[Panel(None)], [Panel(None)]], row_titles=["a"])


def test_the_users_own_settings_change_nothing():
    def draw():
        figure = grid(
            [[Panel(Image.new("RGB", (8, 8)), "cat $x$", scale=Scale(-1, 1, True))]], side=240
        )
        return np.asarray(figure.canvas.buffer_rgba()) if figure.canvas.draw() is None else None

    before = draw()
    settings = {
        "font.size": 40,
        "axes.grid": True,
        "figure.facecolor": "red",
        "font.family": "serif",
    }
    with matplotlib.rc_context(settings):
        assert np.array_equal(draw(), before)


def test_threads_draw_alike():
    def draw(drawings):
        panel = Panel(Image.new("RGB", (8, 8)), "cat", scale=Scale(-1, 1, True))
        figure = grid([[panel]], side=240)
        figure.canvas.draw()
        drawings.append(np.asarray(figure.canvas.buffer_rgba()).tobytes())

    drawings: list[bytes] = []
    threads = [threading.Thread(target=draw, args=(drawings,)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(drawings) == 4
    assert len(set(drawings)) == 1


def test_pyplot_is_not_touched():
    import subprocess
    import sys

    code = "import afmi.pictures.plots, sys; assert 'matplotlib.pyplot' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_failed_save_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "picture.png"
    save_png(Image.new("RGB", (4, 4), "red"), path)
    before = path.read_bytes()

    class Broken(Image.Image):
        def save(self, file, *_args, **_kwargs):
            file.write(b"half")
            raise OSError(28, "No space left on device")

    with pytest.raises(AfmiError, match="No space left on device"):
        save_png(Broken(), path)
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["picture.png"]


def test_the_legend_of_a_sequential_map_starts_at_black():
    # Also where its lowest value is below zero, as an XRAI map's may be.
    for low in (0.0, -0.5):
        bar = colorbar(Scale(low, 1.0, False), 10, 3)
        map_ = heatmap(torch.tensor([[low, 1.0]]), signed=False)
        assert bar.getpixel((0, 0)) == map_.getpixel((0, 0))
        assert bar.size == (10, 3)


def test_grey_pictures_are_drawn_as_their_colour_twins() -> None:
    grey, map_ = torch.rand(1, 5, 6), torch.rand(5, 6)
    colour = grey.expand(3, -1, -1)
    for draw in (plots.overlay, lambda image, m: plots.insertion(image, m, 0.3)):
        assert draw(grey, map_).tobytes() == draw(colour, map_).tobytes()


def test_reduced_averages_what_falls_together():
    picture = torch.arange(24.0).reshape(2, 3, 4)
    assert plots.reduced(picture, 4) is picture
    torch.testing.assert_close(plots.reduced(picture, 1), picture.mean((1, 2), keepdim=True))
    halved = plots.reduced(picture[:, :2], 2)
    torch.testing.assert_close(halved, torch.nn.functional.avg_pool2d(picture[:, :2], 2))
    assert plots.reduced(picture[0], 2).shape == (2, 2)
    assert plots.reduced(torch.zeros(1, 5000), 100).shape == (1, 100)
