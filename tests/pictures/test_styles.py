"""Colours, opacity and sign of pictures; overlays on whole photographs; where evidence lies."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib
import networks
import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from PIL import Image
from torch import nn

import afmi
from afmi.errors import ImageError, UsageError
from afmi.pictures import images, plots
from afmi.pictures.maps import Scale, display_range
from afmi.pictures.places import place_in_words
from afmi.pictures.plots import Style, colorbar, full_overlay, heatmap, overlay
from afmi.pictures.transforms import crop_box, resize_and_crop


def test_overlay_and_map_have_the_colours_of_the_bar() -> None:
    ramp = torch.cat([torch.full((9,), -1.0), torch.linspace(-1, 1, 101), torch.ones(9)])[None]
    for signed in (True, False):
        bar = np.asarray(colorbar(display_range(ramp, signed=signed), 101, 1)).astype(int)
        drawn = heatmap(ramp, signed=signed)
        assert np.abs(np.asarray(drawn)[:, 9:-9] - bar).max() <= 3  # a level of the colours
        drawn = overlay(torch.zeros(3, *ramp.shape), ramp, signed=signed, style=Style(alpha=1))
        strongest = np.asarray(drawn)[0, [9, -10]] - bar[0, [0, -1]]
        assert np.abs(strongest[0 if signed else 1 :]).max() <= 3


def test_the_strongest_evidence_is_as_opaque_as_asked() -> None:
    image, map_ = torch.full((3, 1, 2), 0.5), torch.tensor([[0.0, 1.0]])
    grey = overlay(image, map_).getpixel((0, 0))
    assert overlay(image, map_, style=Style(alpha=0)).getpixel((1, 0)) == grey
    full = overlay(image, map_, style=Style(alpha=1)).getpixel((1, 0))
    assert full == heatmap(map_).getpixel((1, 0))


@pytest.mark.parametrize("cmap", ["PiYG", matplotlib.colormaps["PiYG"]])
def test_any_colour_map_of_matplotlib_can_be_asked_for(cmap: Any) -> None:
    picture = heatmap(torch.tensor([[-1.0, 1.0]]), style=Style(cmap))
    expected = [
        tuple(round(255 * v) for v in matplotlib.colormaps["PiYG"](end)[:3]) for end in (0.0, 1.0)
    ]
    assert [picture.getpixel((x, 0)) for x in (0, 1)] == expected


def test_one_sign_alone_keeps_its_colours() -> None:
    map_ = torch.tensor([[-2.0, -1.0, 0.0, 1.0, 2.0]])
    both = np.asarray(heatmap(map_))
    zero = both[0, 2]
    positive = np.asarray(heatmap(map_, style=Style(sign="positive")))[0]
    negative = np.asarray(heatmap(map_, style=Style(sign="negative")))[0]
    assert np.array_equal(positive, [zero, zero, zero, *both[0, 3:]])
    assert np.array_equal(negative, [*both[0, :2], zero, zero, zero])
    bar = np.asarray(colorbar(Scale(-2, 2, True), 5, 1, Style(sign="positive")))[0]
    assert np.abs(bar.astype(int) - positive).max() <= 3  # a level of the colours


@pytest.mark.parametrize(
    ("style", "says"),
    [
        ({"sign": "plus"}, "expected sign as 'both' or 'positive' or 'negative', got 'plus'"),
        ({"alpha": 1.5}, "expected alpha from 0 to 1, got 1.5"),
        ({"alpha": True}, "expected alpha from 0 to 1, got True"),
        ({"cmap": "virdis"}, "got 'virdis'; did you mean 'viridis'"),
        ({"cmap": 3}, "expected a colour map of matplotlib's, got 3"),
    ],
)
def test_impossible_styles_are_refused(style: dict[str, Any], says: str) -> None:
    with pytest.raises(UsageError, match=says):
        Style(**style)


def test_a_map_without_evidence_against_has_none_to_draw() -> None:
    map_ = torch.rand(4, 4)
    with pytest.raises(UsageError, match="expected a signed map for sign='negative'"):
        heatmap(map_, signed=False, style=Style(sign="negative"))
    positive = heatmap(map_, signed=False, style=Style(sign="positive"))
    assert positive.tobytes() == heatmap(map_, signed=False).tobytes()


@pytest.mark.parametrize("size", [(37, 50), (50, 37), (20, 20), (3, 200)])
@pytest.mark.parametrize(
    ("resize", "crop"), [(24, 20), (None, 16), ((10, 30), None), (None, None), (12, 40)]
)
def test_the_crop_lies_where_its_pixels_come_from(
    size: tuple[int, int], resize: Any, crop: Any
) -> None:
    height, width = size
    ramp = np.zeros((height, width, 2), np.float32)
    ramp[..., 0] = (np.arange(width) + 0.5) / width
    ramp[..., 1] = (np.arange(height)[:, None] + 0.5) / height
    cropped = resize_and_crop(ramp, resize, crop)
    left, top, right, bottom = crop_box(size, resize, crop)
    rows, columns = cropped.shape[:2]
    x = (left + (np.arange(columns) + 0.5) * (right - left) / columns) / width
    y = (top + (np.arange(rows) + 0.5) * (bottom - top) / rows) / height
    inner_x, inner_y = (x > 0.15) & (x < 0.85), (y > 0.15) & (y < 0.85)  # edges are blurred
    seen = cropped[inner_y][:, inner_x]
    if seen.size:
        assert np.abs(seen[..., 0] - x[inner_x]).max() < 0.03
        assert np.abs(seen[..., 1] - y[inner_y, None]).max() < 0.03
    assert np.abs(cropped[:, (x < -0.15) | (x > 1.15)]).max(initial=0) == 0  # padded


def test_a_full_overlay_is_the_overlay_where_the_map_is() -> None:
    rng = np.random.default_rng(0)
    photograph = rng.integers(0, 256, (12, 16, 3), dtype=np.uint8)
    map_ = torch.randn(6, 8)
    whole = full_overlay(photograph, map_, (0, 0, 16, 12))
    image = torch.from_numpy(photograph).permute(2, 0, 1).float() / 255
    larger = afmi.maps.upsample(map_[None, None], (12, 16))[0, 0].double()
    grey = plots._greyed(photograph / 255)
    expected = plots._laid_over(grey, larger.numpy(), display_range(map_), Style())
    assert np.abs(np.asarray(whole) - 255 * expected).max() <= 1
    same = overlay(image[:, :6, :8], map_)
    part = np.asarray(full_overlay(photograph, map_, (0, 0, 8, 6)))
    assert np.array_equal(part[1:5, 1:7], np.asarray(same)[1:5, 1:7])  # inside of the frame
    beyond = part[8:, 10:].astype(float)
    assert np.abs(beyond - 255 * grey[8:, 10:]).max() <= 0.5


def test_a_large_photograph_is_drawn_in_strips(monkeypatch: pytest.MonkeyPatch) -> None:
    photograph = np.random.default_rng(0).integers(0, 256, (40, 30, 3), dtype=np.uint8)
    map_, box = torch.randn(7, 7), (-3.0, 5.0, 28.0, 36.0)
    once = full_overlay(photograph, map_, box, signed=False)
    monkeypatch.setattr(plots, "_STRIP", 70)
    assert full_overlay(photograph, map_, box, signed=False).tobytes() == once.tobytes()


def test_the_outline_of_an_area_lies_where_the_map_has_it() -> None:
    photograph = np.full((60, 80, 3), 128, np.uint8)
    area = torch.zeros(6, 6, dtype=torch.bool)
    area[1:3, 2:5] = True
    box = (10.0, 0.0, 70.0, 60.0)  # ten pixels a number
    plain = np.asarray(full_overlay(photograph, torch.zeros(6, 6), box))
    drawn = np.asarray(full_overlay(photograph, torch.zeros(6, 6), box, area=area))
    changed = np.argwhere((drawn != plain).any(2))
    assert changed.min(0).tolist() == [9, 29]  # a black line outside of rows 10–29, columns 30–59
    assert changed.max(0).tolist() == [30, 60]
    assert not (drawn != plain)[12:28, 32:58].any()


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    pixels = np.random.default_rng(0).integers(0, 256, (60, 90, 3), dtype=np.uint8)
    path = tmp_path / "photo.png"
    Image.fromarray(pixels).resize((900, 600)).save(path)
    return path


@pytest.fixture
def model() -> afmi.Classifier:
    return afmi.Classifier(networks.build("vgg"), resize=24, crop=20)


def test_the_whole_photograph_is_drawn_at_its_own_size(
    photo: Path, model: afmi.Classifier, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = afmi.explain(model, photo, 1)
    picture = one.full_overlay()
    assert picture.size == (900, 600)
    assert one.full_overlay(Image.open(photo)).tobytes() == picture.tobytes()
    inner = np.asarray(picture.crop((206, 56, 694, 544)).resize((20, 20), Image.Resampling.BOX))
    small = np.asarray(one.overlay()).astype(int)
    assert np.corrcoef(inner.ravel(), small.ravel())[0, 1] > 0.95
    other = Image.open(photo).rotate(180)
    with pytest.raises(UsageError, match="expected the photograph that was explained, got one of"):
        one.full_overlay(other)
    monkeypatch.setattr(images, "MAX_PIXELS", 1000)
    with pytest.raises(ImageError, match="pixels"):
        one.full_overlay()


def test_only_photographs_can_be_drawn_whole(model: afmi.Classifier) -> None:
    one = afmi.explain(model, torch.rand(3, 20, 20), 1, method="gradient")
    with pytest.raises(UsageError, match="got an explanation from memory; pass it"):
        one.full_overlay()
    network = nn.Sequential(nn.Conv1d(1, 2, 3), nn.AdaptiveAvgPool1d(1), nn.Flatten())
    signal = afmi.explain(network, torch.rand(1, 9), 1, method="gradient")
    with pytest.raises(UsageError, match="got no photograph"):
        signal.full_overlay("x.png")


def test_a_figure_of_the_users_own_takes_the_overlay(model: afmi.Classifier) -> None:
    one = afmi.explain(model, torch.rand(3, 20, 20), 1)
    figure = Figure()
    axes = figure.add_subplot()
    assert one.figure(ax=axes, sign="positive", cmap="PiYG") is figure
    assert axes.get_title() == one._title()
    (drawn,) = axes.get_images()
    assert np.array_equal(drawn.get_array(), one.overlay(sign="positive", cmap="PiYG"))
    bar = figure.axes[1]
    assert bar.get_ylim() == pytest.approx(one.scale[:2])


def test_figures_have_a_bar_for_overlay_and_map(model: afmi.Classifier) -> None:
    one = afmi.explain(model, torch.rand(3, 20, 20), 1)
    assert len(one.figure().axes) == 4 + 2
    red = [t.get_text() for t in one.figure(sign="positive").texts]
    assert "For (red)" in red
    assert "The map" in [t.get_text() for t in one.figure(cmap="PiYG").texts]


def test_other_styles_reach_signals_and_volumes() -> None:
    for conv, pool, shape in (
        (nn.Conv1d, nn.AdaptiveAvgPool1d, (2, 12)),
        (nn.Conv3d, nn.AdaptiveAvgPool3d, (2, 4, 6, 6)),
    ):
        network = nn.Sequential(conv(2, 3, 3), nn.Tanh(), pool(1), nn.Flatten())
        one = afmi.explain(network, torch.rand(shape), 1, method="deeplift")
        plain = one.overlay()
        for style in ({"cmap": "PiYG"}, {"alpha": 0.1}, {"sign": "negative"}):
            assert one.overlay(**style).tobytes() != plain.tobytes()
        assert one.heatmap(cmap="PiYG").tobytes() != one.heatmap().tobytes()


@pytest.mark.parametrize(
    ("rows", "columns", "where"),
    [
        ((0, 2), (0, 3), "in the upper left, on 6%"),
        ((8, 10), (8, 10), "in the lower right, on 4%"),
        ((4, 6), (4, 6), "in the middle, on 4%"),
        ((4, 6), (0, 2), "in the left part, on 4%"),
        ((0, 2), (0, 10), "in the upper part, on 20%"),
        ((0, 10), (8, 10), "in the right part, on 20%"),
        ((0, 10), (0, 10), "all over it, on 100%"),
    ],
)
def test_where_evidence_lies(rows: Any, columns: Any, where: str) -> None:
    map_ = torch.full((10, 10), -1.0)
    map_[slice(*rows), slice(*columns)] = 2.0
    text = place_in_words(map_, signed=True)
    assert text == f"most of the evidence lies {where} of the image"
    if map_.min() < 0:
        assert place_in_words(map_ + 7, signed=False) == text


def test_most_of_the_evidence_is_more_than_half() -> None:
    map_ = torch.zeros(10, 10)
    map_[0, 0], map_[9, 9], map_[9, 8] = 5.0, 4.0, 2.0  # 5 of 11 are less than half
    text = place_in_words(map_, signed=True)
    assert text == "most of the evidence lies all over it, on 2% of the image"


def test_where_evidence_lies_of_signals_volumes_and_nothing() -> None:
    signal = torch.zeros(300)
    signal[3:5] = 1
    assert "lies near its beginning, on less than 1% of the signal" in place_in_words(
        signal, signed=True
    )
    volume = torch.zeros(9, 6, 6)
    volume[7, :2, 4:] = 1
    text = place_in_words(volume, signed=True)
    assert "around slice 8 of 9, in the upper right, on 1% of the volume" in text
    assert place_in_words(-volume, signed=True) == "no evidence for it lies anywhere"
    assert place_in_words(torch.ones(3, 3), signed=False) == "no evidence lies anywhere"
