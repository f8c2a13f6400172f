"""FMI prototypes: sums, means and cosines by hand; parts that are added; the shuffled control."""

from __future__ import annotations

import functools
import operator
from typing import Any

import pytest
import torch
from networks import build, images
from torch import nn

from afmi.errors import ShapeError, TargetError, UsageError
from afmi.methods import AFMI
from afmi.metrics import FMIPrototypes
from afmi.metrics.fmi_prototypes import shuffled

X = torch.tensor([[1.0, 0.0, 0.0], [3.0, 2.0, 0.0], [0.0, 0.0, 5.0]])
Y = torch.tensor([0, 0, 2])


def test_by_hand() -> None:
    prototypes = FMIPrototypes.of(X, Y, 4)
    assert prototypes.sums.tolist() == [[4, 2, 0], [0, 0, 0], [0, 0, 5], [0, 0, 0]]
    assert prototypes.counts.tolist() == [2, 0, 1, 0]
    assert prototypes.sums.dtype == torch.float64
    assert prototypes.prototypes[::2].tolist() == [[2, 1, 0], [0, 0, 5]]
    assert torch.isnan(prototypes.prototypes[1::2]).all()
    # cos((1, 1, 1), (2, 1, 0)) = 3/√15 = 0.77, with (0, 0, 5) 1/√3 = 0.58.
    vectors = torch.tensor([[1.0, 1.0, 1.0], [0.0, 1.0, 1.0], [-1.0, 0.0, 0.0], [0.0, 0.0, 0.0]])
    assert prototypes.classify(vectors).tolist() == [0, 2, 2, -1]
    classes = torch.tensor([0, 0, 2, 0])
    assert prototypes.agreement(vectors, classes).tolist() == [True, False, True, False]


def test_parts_add_up() -> None:
    generator = torch.Generator().manual_seed(0)
    vectors = torch.randn(60, 7, generator=generator)
    classes = torch.randint(5, (60,), generator=generator)
    whole = FMIPrototypes.of(vectors, classes, 5)
    parts = [
        FMIPrototypes.of(vectors[i : i + 13], classes[i : i + 13], 5) for i in range(0, 60, 13)
    ]
    parts.append(FMIPrototypes.of(vectors[:0], classes[:0], 5))
    total = functools.reduce(operator.add, parts)
    torch.testing.assert_close(total.sums, whole.sums, rtol=1e-12, atol=1e-12)
    assert torch.equal(total.counts, whole.counts)
    for c in range(5):
        expected = vectors[classes == c].double().mean(0)
        torch.testing.assert_close(total.prototypes[c], expected, rtol=1e-12, atol=1e-12)
    cosine = nn.functional.cosine_similarity(
        vectors.double()[:, None], whole.prototypes[None], dim=-1
    )
    assert torch.equal(total.classify(vectors), cosine.argmax(1))


def test_the_lowest_of_equal_classes_wins_whatever_the_lengths() -> None:
    vectors = torch.randn(1, 301, generator=torch.Generator().manual_seed(1)).double()
    prototypes = torch.cat([-vectors, vectors * 3, vectors, vectors / 7])
    averaged = FMIPrototypes.of(prototypes, torch.arange(4), 4)
    assert averaged.classify(torch.cat([vectors, vectors * 1e-200])).tolist() == [1, 1]


def test_nothing_to_choose_from() -> None:
    empty = FMIPrototypes.of(torch.zeros(0, 3), torch.zeros(0, dtype=torch.int64), 2)
    assert empty.classify(X).tolist() == [-1, -1, -1]
    cancelled = FMIPrototypes.of(torch.stack([X[0], -X[0], -X[1]]), torch.tensor([0, 0, 1]), 2)
    # Class 1 is the only one with a direction, though it is the opposite one.
    assert cancelled.classify(X[1:2]).tolist() == [1]


def test_on_a_linear_head_the_agreement_is_complete_by_construction() -> None:
    model, x = build("resnet"), images(24, size=12)
    with torch.no_grad():
        predicted = model(x).argmax(1)
    importance = AFMI(model, layer="layer1").feature_map_importance(x, predicted)
    prototypes = FMIPrototypes.of(importance, predicted, 5)
    assert prototypes.agreement(importance, predicted).all()
    for c in predicted.unique().tolist():
        of_class = importance[predicted == c]
        torch.testing.assert_close(of_class, of_class[:1].expand_as(of_class))


def test_shuffled_control_falls_to_chance() -> None:
    generator = torch.Generator().manual_seed(0)
    classes = torch.randint(10, (500,), generator=generator)
    centres = torch.randn(10, 64, generator=generator)
    vectors = centres[classes]
    prototypes = FMIPrototypes.of(vectors, classes, 10)
    assert prototypes.agreement(vectors, classes).all()
    control = shuffled(vectors, keys=torch.arange(500))
    assert prototypes.agreement(control, classes).double().mean().item() < 0.2
    # Without keys the equal vectors of a class stay equal, and identify it as well as before.
    alike = shuffled(vectors)
    assert FMIPrototypes.of(alike, classes, 10).agreement(alike, classes).all()


def test_shuffled_permutes_each_vector_by_its_content_or_key() -> None:
    vectors = torch.randn(5, 40, generator=torch.Generator().manual_seed(2))
    before = vectors.clone()
    permuted = shuffled(vectors)
    assert torch.equal(vectors, before)
    assert torch.equal(permuted.sort(1).values, vectors.sort(1).values)
    assert not (permuted == vectors).all(1).any()
    assert torch.equal(shuffled(vectors[3:4]), permuted[3:4])
    assert not torch.equal(shuffled(vectors, seed=1), permuted)
    keyed = shuffled(vectors, keys=torch.tensor([4, 4, 5, 6, 7]))
    order = [vectors[i].tolist().index(keyed[i, 0].item()) for i in range(5)]
    assert order[0] == order[1]
    assert len(set(order)) > 1


BAD: list[tuple[Any, Any, type[Exception], str]] = [
    (X, torch.tensor([0, 1]), ShapeError, r"one integer class for each of 3.*\(2,\)"),
    (X, Y.double(), ShapeError, "float64"),
    (X, torch.tensor([0, 1, 4]), TargetError, "from 0 to 3, got 0 to 4"),
    (X, torch.tensor([0, -1, 2]), TargetError, "got -1 to 2"),
    (X[0], Y, ShapeError, r"\(N, K\)"),
    (X.long(), Y, ShapeError, "int64"),
    (X / 0, Y, UsageError, "NaN or infinity"),
]


@pytest.mark.parametrize(("vectors", "classes", "error", "got"), BAD)
def test_bad_input(vectors: Any, classes: Any, error: type[Exception], got: str) -> None:
    with pytest.raises(error, match=got):
        FMIPrototypes.of(vectors, classes, 4)


def test_parts_and_vectors_that_do_not_fit() -> None:
    prototypes = FMIPrototypes.of(X, Y, 4)
    with pytest.raises(ShapeError, match=r"\(4, 3\) and \(3, 3\)"):
        prototypes + FMIPrototypes.of(X, Y, 3)
    with pytest.raises(TypeError):
        prototypes + 1  # type: ignore[operator]
    with pytest.raises(ShapeError, match="3 feature maps, as the prototypes have, got 2"):
        prototypes.classify(X[:, :2])
    with pytest.raises(ShapeError, match="a key for each of 3"):
        shuffled(X, keys=torch.arange(2))
    with pytest.raises(ShapeError, match=r"\(N, K\)"):
        shuffled(X[0])
