"""Insertion and deletion: hand-worked curves, a slow re-implementation, and their forwards."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest
import torch
from cases import case_of
from torch import Tensor, nn

from afmi import Classifier, load_model
from afmi.errors import AfmiError, ShapeError, TargetError, UsageError
from afmi.gradients.passes import BatchRunner
from afmi.methods import Random
from afmi.metrics import Deletion, Insertion
from afmi.metrics.masking import FRACTIONS
from afmi.pictures.references import Black, Blurred, Mean, Several, White


class Weighing(nn.Module):
    """Two classes: logit 0 weighs the four pixels of a 2×2 image, logit 1 is constant."""

    def __init__(self, weights: list[float], threshold: float) -> None:
        super().__init__()
        self.weights = nn.Parameter(torch.tensor(weights, dtype=torch.float64))
        self.threshold = threshold
        self.seen: list[Tensor] = []

    def forward(self, images: Tensor) -> Tensor:
        self.seen.extend(images.detach().clone())
        score = (images.flatten(1) * self.weights).sum(1)
        return torch.stack([score, torch.full_like(score, self.threshold)], 1)


def two_by_two() -> tuple[Weighing, Tensor, Tensor, Tensor]:
    """Pixels worth 4, 3, 2, 1; the class needs more than 6.5. Map: first, third, second, last."""
    model = Weighing([4, 3, 2, 1], 6.5)
    images = torch.ones(1, 1, 2, 2, dtype=torch.float64)
    maps = torch.tensor([[[[0.9, 0.5], [0.7, 0.1]]]], dtype=torch.float64)
    return model, images, torch.tensor([0]), maps


def sigmoid(x: float) -> float:
    return float(torch.tensor(x, dtype=torch.float64).sigmoid())


QUARTERS = (0.25, 0.5, 0.75, 1.0)


def test_what_stands_for_a_reference_is_a_canvas() -> None:
    assert Insertion(canvas=0.5).canvas == Mean((0.5,))  # type: ignore[arg-type]
    assert Insertion(canvas="white").canvas == White()  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="expected a reference"):
        Insertion(canvas={})  # type: ignore[arg-type]


def test_insertion_worked_by_hand() -> None:
    model, images, targets, maps = two_by_two()
    curves = Insertion(fractions=QUARTERS).curves(model, images, targets, maps)
    # Scores of the pixels kept: 4, 4 + 2, 4 + 2 + 3, all: 10.
    scores = [4, 6, 9, 10]
    assert curves.accuracy.tolist() == [0, 0, 1, 1]
    wanted = [sigmoid(s - 6.5) / sigmoid(10 - 6.5) for s in scores]
    assert curves.softmax_ratio.tolist() == pytest.approx(wanted, abs=1e-12)
    assert curves.accuracy_auc == pytest.approx(0.25 * (0 + 0.5 + 1))
    area = 0.25 * sum((a + b) / 2 for a, b in itertools.pairwise(wanted))
    assert curves.softmax_auc == pytest.approx(area, abs=1e-12)


def test_deletion_worked_by_hand() -> None:
    model, images, targets, maps = two_by_two()
    curves = Deletion(fractions=QUARTERS).curves(model, images, targets, maps)
    # Scores of what is left: 3 + 2 + 1, 3 + 1, 1, nothing.
    assert curves.accuracy.tolist() == [0, 0, 0, 0]
    wanted = [sigmoid(s - 6.5) / sigmoid(10 - 6.5) for s in (6, 4, 1, 0)]
    assert curves.softmax_ratio.tolist() == pytest.approx(wanted, abs=1e-12)


def test_equal_pixels_rank_in_reading_order() -> None:
    model, images, targets, _ = two_by_two()
    curves = Insertion(fractions=QUARTERS).curves(
        model, images, targets, torch.zeros(1, 1, 2, 2, dtype=torch.float64)
    )
    assert curves.accuracy.tolist() == [0, 1, 1, 1]  # 4, 4 + 3, …


def test_canvas_stands_where_no_pixel_is_kept() -> None:
    model, images, targets, maps = two_by_two()
    curves = Insertion(fractions=QUARTERS, canvas=White()).curves(model, images / 2, targets, maps)
    # 4/2 + 3 + 2 + 1, 4/2 + 2/2 + 3 + 1, 4/2 + 2/2 + 3/2 + 1, 5.
    ratios = [sigmoid(s - 6.5) / sigmoid(5 - 6.5) for s in (8, 7, 5.5, 5)]
    assert curves.softmax_ratio.tolist() == pytest.approx(ratios, abs=1e-12)


def test_means_medians_and_a_chosen_part() -> None:
    model, images, targets, maps = two_by_two()
    many = torch.cat([images, images * 0.1, images * 0.9])
    curves = Insertion(fractions=(0.5, 1)).curves(
        model, many, targets.expand(3), maps.expand(3, -1, -1, -1)
    )
    full = [sigmoid(s - 6.5) for s in (10, 1, 9)]
    half = [sigmoid(s - 6.5) for s in (6, 0.6, 5.4)]
    ratios = [h / f for h, f in zip(half, full, strict=True)]
    assert float(curves.softmax_ratio[0]) == pytest.approx(sum(ratios) / 3)
    assert float(curves.softmax_ratio_median[0]) == pytest.approx(sorted(ratios)[1])
    assert float(curves.ratio_of_means[0]) == pytest.approx(sum(half) / sum(full))
    assert curves.original_correct.tolist() == [True, False, True]
    chosen = curves.among(curves.original_correct)
    assert chosen.accuracy.tolist() == [0, 1]
    assert float(chosen.softmax_ratio[0]) == pytest.approx((ratios[0] + ratios[2]) / 2)


def test_same_masked_pictures_are_classified_once() -> None:
    model, images, targets, maps = two_by_two()
    images[0, 0, 0, 0] = 0  # the map's first pixel is black itself
    BatchRunner(model, images).logits(images)  # finds out how to run it, once
    model.seen.clear()
    insertion = Insertion(fractions=(0.1, *QUARTERS))
    curves = insertion.curves(
        model, images.repeat(2, 1, 1, 1), targets.expand(2), maps.expand(2, -1, -1, -1)
    )
    classified = [tuple(image.flatten().tolist()) for image in model.seen]
    # Both whole pictures in the first pass; black for 10 % and 25 % of both once; then two
    # shares of each.
    assert len(classified) == 2 + 1 + 2 * 2
    assert classified.count((0, 0, 0, 0)) == 1
    assert curves.correct.shape == (2, 5)
    assert torch.equal(curves.probability[:, 0], curves.probability[:, 1])


def slow_curves(
    model: nn.Module, image: Tensor, target: int, map_: Tensor, keep: bool
) -> list[tuple[bool, float]]:
    """Appendix A.3, a picture and a share at a time."""
    _, height, width = image.shape
    order = sorted(range(height * width), key=lambda i: (-float(map_.flatten()[i]), i))
    recorded = []
    for percent in range(5, 101, 5):
        count = int(percent * height * width / 100 + 0.5)
        mask = torch.zeros(height * width, dtype=torch.bool)
        mask[order[:count]] = True
        mask = mask.view(height, width)
        masked = torch.zeros_like(image)
        for channel in range(image.shape[0]):
            chosen = mask if keep else ~mask
            masked[channel][chosen] = image[channel][chosen]
        with torch.no_grad():
            probabilities = model(masked[None])[0].softmax(0)
        recorded.append((int(probabilities.argmax()) == target, float(probabilities[target])))
    return recorded


@pytest.mark.parametrize("metric", [Insertion, Deletion])
def test_equals_a_slow_reimplementation(metric: type) -> None:
    network = nn.Sequential(
        nn.Conv2d(3, 6, 3, 2), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(24, 4)
    ).double()
    for parameter in network.parameters():
        parameter.data.mul_(4)
    model = Classifier(network, mean=(0.5, 0.4, 0.3), std=(0.2, 0.2, 0.2)).double().eval()
    images = torch.rand(5, 3, 11, 9, dtype=torch.float64)
    maps = torch.rand(5, 1, 11, 9, dtype=torch.float64).mul(6).round()  # with ties
    targets = torch.tensor([0, 1, 2, 3, 0])
    curves = metric(batch_size=7).curves(model, images, targets, maps)
    for n in range(5):
        slow = slow_curves(model, images[n], int(targets[n]), maps[n, 0], metric is Insertion)
        assert curves.correct[n].tolist() == [correct for correct, _ in slow]
        assert curves.probability[n].tolist() == pytest.approx([p for _, p in slow], abs=1e-12)
    if metric is Insertion:
        assert curves.among(curves.original_correct).accuracy[-1] == 1
        assert torch.equal(curves.ratios[:, -1], torch.ones(5, dtype=torch.float64))


def test_embedded_network_counts_its_forwards() -> None:
    model = load_model("photos").eval()
    counted = 0

    def count(_: nn.Module, args: tuple[Tensor, ...]) -> None:
        nonlocal counted
        counted += len(args[0])

    images = torch.rand(2, 3, 64, 64)
    handle = model.register_forward_pre_hook(count)
    BatchRunner(model, images).logits(images)  # tries the network, once
    counted = 0
    insertion = Insertion()
    insertion.curves(model, images, torch.tensor([0, 1]), torch.rand(2, 1, 64, 64))
    handle.remove()
    assert counted == 2 * 20 == 2 * (insertion.work(None, images).forwards + 1)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("changes", "error", "words"),
    [
        ({"maps": torch.zeros(1, 2, 2)}, ShapeError, "map of one channel"),
        ({"maps": torch.full((1, 1, 2, 2), torch.nan)}, UsageError, "finite maps"),
        ({"targets": torch.tensor([0, 1])}, ShapeError, "one class for each of 1"),
        ({"targets": torch.tensor([2])}, TargetError, "from 0 to 1"),
        ({"images": torch.zeros(1, 2, 2)}, ShapeError, "images"),
    ],
)
def test_bad_input(changes: dict[str, Tensor], error: type[Exception], words: str) -> None:
    model, images, targets, maps = two_by_two()
    given = {"images": images, "targets": targets, "maps": maps, **changes}
    with pytest.raises(error, match=words):
        Insertion().curves(model, **given)


@pytest.mark.parametrize("fractions", [(), (0.5,), (0.5, 0.4), (0.5, 0.5), (0.1, 1.1), (-0.1, 1)])
def test_bad_fractions(fractions: tuple[float, ...]) -> None:
    with pytest.raises(UsageError, match="fractions"):
        Insertion(fractions=fractions)


def test_canvas_of_several_pictures_is_refused() -> None:
    model, images, targets, maps = two_by_two()
    with pytest.raises(UsageError, match="canvas of one picture"):
        Insertion(canvas=Several([Black(), White()])).curves(model, images, targets, maps)


def test_per_image_canvas() -> None:
    model = Weighing([1, 1, 1, 1], 0.5)
    images = torch.rand(3, 1, 2, 2, dtype=torch.float64)
    maps = torch.rand(3, 1, 2, 2, dtype=torch.float64)
    curves = Insertion(fractions=(0.0, 1.0), canvas=Blurred(1.0)).curves(
        model, images, torch.zeros(3, dtype=torch.int64), maps
    )
    blurred = Blurred(1.0)(images).flatten(1).sum(1)
    assert torch.allclose(curves.probability[:, 0], (blurred - 0.5).sigmoid())


def test_mean_canvas_and_standard_fractions() -> None:
    assert len(FRACTIONS) == 20 and FRACTIONS[0] == 0.05 and FRACTIONS[-1] == 1
    assert Insertion(canvas=Mean()) != Insertion()


@pytest.mark.parametrize("metric", [Insertion, Deletion])
@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_nan_of_a_masked_image_is_no_class(metric: type, bad: float) -> None:
    class Fails(torch.nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.mean((2, 3)).where((x != 0).flatten(1).any(1)[:, None], torch.tensor(bad))

    image, map_ = torch.rand(1, 3, 4, 4) + 0.1, torch.rand(1, 1, 4, 4)
    black = 0.0 if metric is Insertion else 1.0
    words = "with 0 % of the pixels kept" if metric is Insertion else "with 100 % .* removed"
    with pytest.raises(AfmiError, match=f"{words} the network gives (NaN|infinity) instead of"):
        metric(fractions=sorted((black, 0.5))).curves(Fails(), image, torch.tensor([0]), map_)
    fine = metric(fractions=(0.4, 0.5)).curves(Fails(), image, torch.tensor([0]), map_)
    assert fine.probability.isfinite().all()


def test_logits_of_minus_infinity_are_fine_unless_all_are() -> None:
    logits = torch.tensor([[1.0, -torch.inf], [0.0, 2.0]])
    image, maps = torch.rand(2, 3, 4, 4), torch.rand(2, 1, 4, 4)
    network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(48, 2))
    curves = Insertion().curves(network, image, torch.tensor([0, 1]), maps, logits=logits)
    assert curves.original_correct.all() and curves.original_probability[0] == 1
    logits[1] = -torch.inf
    with pytest.raises(AfmiError, match="instead of logits for 1 of 2 images"):
        Insertion().curves(network, image, torch.tensor([0, 1]), maps, logits=logits)
    with pytest.raises(AfmiError, match="the network gives NaN instead of logits for 2 of 2"):
        replace(case_of(Random(network), image), logits=logits * torch.nan)
