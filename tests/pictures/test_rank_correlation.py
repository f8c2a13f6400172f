"""Spearman's rank correlation of maps, against SciPy's and by hand."""

from __future__ import annotations

import time

import pytest
import torch
from scipy.stats import spearmanr

from afmi.errors import ShapeError
from afmi.pictures.maps import rank_correlation


def _map(*values: float) -> torch.Tensor:
    return torch.tensor(values).reshape(1, 1, 2, 2)


def test_by_hand() -> None:
    # Ranks 1 2 3 4 and 2 1 4 3: ρ = 1 − 6·4/(4·15) = 0.6.
    assert rank_correlation(_map(1, 2, 3, 4), _map(5, 0, 9, 7)).item() == pytest.approx(0.6)
    # Ranks 1.5 1.5 3 4 and 1 2 3 4: 4.5 / √(4.5·5).
    expected = 4.5 / (4.5 * 5) ** 0.5
    assert rank_correlation(_map(0, 0, 1, 2), _map(1, 2, 3, 4)).item() == pytest.approx(expected)


@pytest.mark.parametrize("levels", [2, 5, 1000])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_against_scipy_with_ties(levels: int, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(levels)
    first = torch.randint(levels, (4, 1, 9, 13), generator=generator).to(dtype)
    second = (first + torch.randint(levels, first.shape, generator=generator)).to(dtype)
    correlation = rank_correlation(first, second)
    assert correlation.dtype == torch.float64
    for value, one, other in zip(correlation.tolist(), first, second, strict=True):
        expected = spearmanr(one.double().flatten(), other.double().flatten())[0]
        assert value == pytest.approx(expected, abs=1e-12)


def test_order_alone_counts() -> None:
    maps = torch.rand(3, 1, 6, 6, generator=torch.Generator().manual_seed(0))
    assert rank_correlation(maps, 5 * maps**3 - 2).tolist() == pytest.approx([1.0] * 3)
    assert rank_correlation(maps, -maps).tolist() == pytest.approx([-1.0] * 3)


def test_a_blank_map_has_no_ranks() -> None:
    maps = torch.rand(2, 1, 3, 3)
    blank = maps.clone()
    blank[0] = 0.3
    correlation = rank_correlation(maps, blank)
    assert torch.isnan(correlation).tolist() == [True, False]
    assert torch.isnan(rank_correlation(blank, blank)).tolist() == [True, False]


def test_photograph_sized_maps_are_fast() -> None:
    first, second = torch.rand(2, 1, 1, 224, 224, generator=torch.Generator().manual_seed(1))
    times = []
    for _ in range(5):
        start = time.perf_counter()
        rank_correlation(first, second)
        times.append(time.perf_counter() - start)
    assert min(times) < 0.1  # 5 ms on an idle core


@pytest.mark.parametrize("shape", [(1, 1, 2, 3), (2, 1, 2, 2), (1, 2, 2)])
def test_maps_that_do_not_fit(shape: tuple[int, ...]) -> None:
    with pytest.raises(ShapeError, match=r"one shape.*\(1, 1, 2, 2\)"):
        rank_correlation(_map(1, 2, 3, 4), torch.zeros(shape))
