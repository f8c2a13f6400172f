"""Groups apart: found where they are, and not where they are not."""

from __future__ import annotations

import sys

import numpy as np
import pytest

from afmi.auditing import grouping as module
from afmi.auditing.grouping import ISOLATED, LEAST, Grouping, evidence_of, grouping_of
from afmi.errors import MissingPackageError


def contributions(count: int, maps: int = 24, seed: int = 0) -> np.ndarray:
    """Contributions of images that a network recognises for one reason, to varying degree."""
    generator = np.random.default_rng(seed)
    strength = generator.gamma(4, 1, (count, 1))
    return strength * generator.gamma(2, 1, (count, maps)) * generator.gamma(1, 1, maps) - 0.5


@pytest.mark.parametrize("planted", [80, 20, 10])
def test_a_shortcut_is_a_group_apart(planted):
    values = contributions(200)
    values[:planted, [3, 7]] += 80
    found = grouping_of(evidence_of(values))
    assert [*np.flatnonzero(found.groups == 1)] == [*range(planted)]
    assert len(found.isolation) == len(found.stability) == 1
    assert found.isolation[0] == found.nearest >= ISOLATED
    assert found.stability[0] > 0.95


@pytest.mark.parametrize("seed", range(3))
def test_one_reason_has_no_group_apart(seed):
    found = grouping_of(evidence_of(contributions(200, seed=seed)))
    assert not found.groups.any()
    assert found.isolation == found.stability == ()
    assert -1 <= found.nearest < ISOLATED


@pytest.mark.parametrize("draw", ["normal", "uniform"])
def test_parts_of_one_component_are_no_groups(draw):
    values = getattr(np.random.default_rng(0), draw)(size=(100, 1))
    found = grouping_of(values)
    assert found.nearest > ISOLATED  # as far as silhouettes go
    assert not found.isolation


def test_groups_of_one_component_are_groups():
    generator = np.random.default_rng(0)
    values = np.concatenate([generator.normal(0, 1, (80, 1)), generator.normal(30, 1, (20, 1))])
    assert np.bincount(grouping_of(values).groups).tolist() == [80, 20]


def test_the_threshold_decides():
    evidence = evidence_of(contributions(100))
    found = grouping_of(evidence, isolated=-1)
    assert found.isolation
    assert found.isolation[0] == found.nearest
    assert not grouping_of(evidence, isolated=min(found.nearest + 1e-6, 1)).isolation


def test_groups_do_not_depend_on_the_order_but_for_their_images():
    values = contributions(120)
    values[:30, 5] += 90
    order = np.random.default_rng(1).permutation(120)
    one, other = (grouping_of(evidence_of(each)) for each in (values, values[order]))
    assert np.array_equal(one.groups[order], other.groups)
    again = grouping_of(evidence_of(values))
    assert np.array_equal(one.components, again.components)
    assert one.stability == again.stability


@pytest.mark.parametrize("values", [np.zeros((0, 4)), np.ones((1, 4)), np.ones((50, 4))])
def test_nothing_is_said_of_few_or_equal_images(values):
    found = grouping_of(values)
    assert found.groups.tolist() == [0] * len(values)
    assert np.isnan(found.nearest)
    assert not len(found.outliers)


@pytest.mark.parametrize("kinds", [2, 3])
def test_many_equal_images_are_grouped_without_a_warning(kinds):
    values = np.repeat(np.eye(kinds, 5), [30, 12, 10][:kinds], axis=0)
    found = grouping_of(values)
    assert found.isolation[0] == pytest.approx(1)
    apart = values[found.groups == 1]
    assert len(apart) in (12, 10)
    assert (apart == apart[0]).all()


def test_few_images_are_not_grouped():
    values = contributions(LEAST - 1)
    values[:8, 3] += 500
    assert np.isnan(grouping_of(evidence_of(values)).nearest)


def test_an_image_like_no_other_is_an_outlier():
    values = contributions(100)
    values[17] += np.linspace(0, 400, values.shape[1])
    assert grouping_of(evidence_of(values)).outliers[0] == 17


def test_silhouettes_of_many_images_are_sampled(monkeypatch):
    monkeypatch.setattr(module, "_SAMPLED", 60)
    values = contributions(200)
    values[:80, 3] += 90
    found = grouping_of(evidence_of(values))
    assert np.bincount(found.groups).tolist() == [120, 80]


def test_what_speaks_against_the_class_describes_no_image():
    values = np.array([[4.0, -9.0], [0.0, 1.0]])
    assert evidence_of(values).tolist() == [[2, 0], [0, 1]]


def test_without_scikit_learn_there_is_advice(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn", None)
    with pytest.raises(MissingPackageError, match=r"pip install 'afmi\[audit\]'"):
        module.check_installed()


def test_outliers_are_in_order_of_distance():
    found = Grouping(np.zeros(4, int), (), (), 0, np.zeros((4, 1)), np.array([5.0, 1, 9, 3]))
    assert found.outliers.tolist() == [2, 0]
