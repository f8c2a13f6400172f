"""Maps: upsampling, ranking with ties, top shares, ranges for display."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from afmi.errors import ShapeError, UsageError
from afmi.pictures.maps import (
    Scale,
    channel_maximum,
    display_range,
    is_blank,
    rank_pixels,
    top_mask,
    upsample,
)


def test_upsample_is_bilinear() -> None:
    maps = torch.tensor([[[[0.0, 1.0]]]])
    assert upsample(maps, (1, 4)).flatten().tolist() == [0.0, 0.25, 0.75, 1.0]
    assert upsample(maps, (1, 2)) is maps


def test_channel_maximum() -> None:
    attributions = torch.tensor([[[[1.0, -2.0]], [[-3.0, 0.5]]]])
    assert channel_maximum(attributions).tolist() == [[[[3.0, 2.0]]]]


@given(st.lists(st.integers(-3, 3), min_size=1, max_size=30))
def test_equal_pixels_are_ranked_in_reading_order(values: list[int]) -> None:
    maps = torch.tensor(values, dtype=torch.float32).view(1, 1, 1, -1)
    expected = sorted(range(len(values)), key=lambda i: (-values[i], i))
    assert rank_pixels(maps).tolist() == [expected]


def test_rank_pixels_wants_one_channel() -> None:
    with pytest.raises(ShapeError, match=r"\(1, 3, 2, 2\)"):
        rank_pixels(torch.rand(1, 3, 2, 2))


@pytest.mark.parametrize(
    ("fraction", "kept"), [(0, 0), (0.05, 0), (0.125, 1), (0.25, 1), (0.5, 2), (0.625, 3), (1, 4)]
)
def test_top_mask(fraction: float, kept: int) -> None:
    maps = torch.tensor([[[[1.0, 3.0], [3.0, -1.0]]]])
    order = [(0, 1), (1, 0), (0, 0), (1, 1)]
    mask = top_mask(maps, fraction)
    assert mask.shape == maps.shape
    assert {p for p in order if mask[0, 0][p]} == set(order[:kept])


def test_top_mask_fraction_out_of_range() -> None:
    for fraction in (-0.1, 1.1, float("nan")):
        with pytest.raises(UsageError, match="from 0 to 1"):
            top_mask(torch.rand(1, 1, 2, 2), fraction)


def test_the_range_of_a_signed_map_is_symmetric_whatever_its_values() -> None:
    assert display_range(torch.tensor([-1.0, 3.0])) == pytest.approx((-2.98, 2.98, True))
    for stray in (-2e-5, 0.0, 2e-5):
        values = torch.linspace(0, 0.62, 1001)
        values[0] = stray
        assert display_range(values) == pytest.approx((-0.6169, 0.6169, True), rel=1e-6)
    assert display_range(torch.zeros(4)) == (-1.0, 1.0, True)
    one = torch.zeros(10_000)
    one[5] = -7
    assert display_range(one) == (-7.0, 7.0, True)
    assert display_range(-one) == (-7.0, 7.0, True)


def test_the_range_of_an_unsigned_map_begins_at_its_lowest_value() -> None:
    def spanned(values: torch.Tensor) -> Scale:
        return display_range(values, signed=False)

    assert spanned(torch.linspace(0, 1, 1001)) == (0.0, pytest.approx(0.995), False)
    # Scores that are all far from zero differ by little: the range is theirs.
    assert spanned(3 + torch.linspace(0, 1, 1001)) == (3.0, pytest.approx(3.995), False)
    assert spanned(torch.linspace(0, 1, 1001) - 0.5) == (-0.5, pytest.approx(0.495), False)
    one = torch.zeros(10_000)
    one[5] = 7
    assert spanned(one) == (0.0, 7.0, False)
    # Blank maps.
    assert spanned(torch.zeros(4)) == (0.0, 1.0, False)
    assert spanned(torch.full((4,), 2.0)) == (0.0, 2.0, False)
    assert spanned(torch.full((4,), -2.0)) == (-2.0, 0.0, False)


def test_rounding_is_not_drawn_as_contrast() -> None:
    noise = 1e-8 * torch.rand(4, 4, generator=torch.Generator().manual_seed(0))
    assert display_range(0.25 + noise, signed=False) == pytest.approx((0.0, 0.25, False))
    distinct = display_range(torch.tensor([0.25, 0.2501]), signed=False)
    assert distinct == pytest.approx((0.25, 0.2501, False), abs=1e-6)
    assert is_blank((0.25 + noise)[None, None]).tolist() == [True]
    assert is_blank(noise[None, None]).tolist() == [False]
    assert is_blank(torch.zeros(2, 1, 3, 3)).tolist() == [True, True]
