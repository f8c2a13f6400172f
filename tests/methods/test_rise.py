"""RISE: expectation on a linear network, the formula re-implemented, masks, counts."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from networks import MNISTNet, build, images
from torch import Tensor, nn

from afmi.errors import UsageError
from afmi.gradients.passes import BatchRunner
from afmi.methods.regions.rise import RISE, _Masks
from afmi.network.classifier import Classifier
from afmi.pictures.references import Black, Random


def _slow(model: nn.Module, image: Tensor, target: int, method: RISE) -> Tensor:
    """Eq. 6 mask by mask, with masks interpolated by F.interpolate and cropped."""
    height, width = image.shape[1:]
    generator = torch.Generator().manual_seed(method.seed)
    s, n = method.cells, method.masks
    grids = (torch.rand(n, s, s, generator=generator) < method.probability).double()
    cell = [-(-side // s) for side in (height, width)]
    offsets = [torch.randint(0, c, (n,), generator=generator) for c in cell]
    total = torch.zeros(height, width, dtype=torch.float64)
    for i in range(n):
        big = [(s + 1) * c for c in cell]
        mask = F.interpolate(grids[i][None, None], big, mode="bilinear", align_corners=False)
        y, x = int(offsets[0][i]), int(offsets[1][i])
        mask = mask[0, 0, y : y + height, x : x + width]
        with torch.no_grad():
            total += model((image * mask)[None]).softmax(1)[0, target] * mask
    return total / (n * method.probability)


@pytest.mark.parametrize(("height", "width"), [(20, 20), (13, 24)])
def test_is_equation_6(height: int, width: int) -> None:
    model = build("vgg", torch.float64)
    image = torch.rand(1, 3, height, width, dtype=torch.float64)
    method = RISE(model, masks=23, batch_size=5)
    expected = _slow(model, image[0], 2, method)
    torch.testing.assert_close(method.attribute(image, 2)[0, 0], expected)


def test_hides_with_the_colour_that_the_normalisation_makes_zero() -> None:
    """As the authors' program does, which multiplies the normalised image by the mask."""
    network = build("vgg", torch.float64)
    mean, std = [0.5, 0.2, 0.4], [0.25, 0.5, 0.2]
    image = torch.rand(1, 3, 20, 20, dtype=torch.float64)
    normalised = (image - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)
    model = Classifier(network, mean=mean, std=std)
    expected = RISE(network, masks=12).attribute(normalised, 2)
    torch.testing.assert_close(RISE(model, masks=12).attribute(image, 2), expected)
    black = RISE(model, masks=12, reference=Black()).attribute(image, 2)
    torch.testing.assert_close(black[0, 0], _slow(model, image[0], 2, RISE(model, masks=12)))


def test_shows_the_reference_where_the_image_is_hidden() -> None:
    class Seen(nn.Module):
        """Its probability of class 0 is the first pixel."""

        def forward(self, x: Tensor) -> Tensor:
            p = x[:, 0, 0, 0].clamp(0.01, 0.99)
            return torch.stack([p, 1 - p], 1).log()

    image, reference = torch.zeros(2, 1, 6, 6, dtype=torch.float64), Random(samples=3, seed=5)
    image[1] = 0.5
    method = RISE(Seen(), masks=40, cells=2, reference=reference, weighted_mean=True)
    masks = _Masks(method, (6, 6), image)(0, 40)[:, 0]
    other = reference(image).mean(0)[0, 0, 0]
    for n in range(2):
        score = (masks[:, 0, 0] * image[n, 0, 0, 0] + (1 - masks[:, 0, 0]) * other).clamp(0.01)
        expected = (score[:, None, None] * masks).sum(0) / masks.sum(0)
        torch.testing.assert_close(method.attribute(image, 0)[n, 0], expected)


def test_weighted_mean_is_flat_where_no_mask_changes_the_probability() -> None:
    """The map by N p is how often each place was visible; seeds then agree on nothing."""

    class Certain(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.tensor([[0.0, 50.0]], dtype=x.dtype).expand(len(x), 2) + 0 * x[:, 0, 0, :1]

    image = images(1, 21).double()
    by_expectation = RISE(Certain(), masks=50).attribute(image, 1)
    assert by_expectation.std() > 0.01
    flat = RISE(Certain(), masks=50, weighted_mean=True).attribute(image, 1)
    torch.testing.assert_close(flat, torch.ones_like(flat))


class _Sum(nn.Module):
    """Its softmax probability of class 0 is nearly linear in the sum of one place."""

    def __init__(self, row: int, column: int) -> None:
        super().__init__()
        self.row, self.column = row, column

    def forward(self, x: Tensor) -> Tensor:
        y = 1e-4 * x[:, :, self.row, self.column].sum(1)
        return torch.stack([y, -y], 1)


def test_expectation_on_a_linear_network() -> None:
    # p_0 = 1/2 + y/2 for a small y, so that S = 1/2 E M/p + 1e-4/2 E[M_r M]/p for one channel of
    # ones, where r is the place the network looks at.
    image = torch.ones(1, 1, 21, 21, dtype=torch.float64)
    method = RISE(_Sum(6, 15), masks=3000, cells=3)
    maps = method.attribute(image, 0)[0, 0]
    masks = _Masks(method, (21, 21), image)(0, 3000)[:, 0]
    at = masks[:, 6, 15][:, None, None]
    expected = ((0.5 + 0.5e-4 * at) * masks).mean(0) / 0.5
    torch.testing.assert_close(maps, expected, rtol=0, atol=1e-9)
    # The part above 1/2 E M/p, over E M, is how often the place r is visible together with others.
    together = (maps - masks.mean(0)) / masks.mean(0)
    row, column = divmod(int(together.argmax()), 21)
    assert abs(row - 6) <= 2
    assert abs(column - 15) <= 2


def test_masks_have_the_right_mean_and_range() -> None:
    method = RISE(nn.Identity(), masks=4000, probability=0.3)
    masks = _Masks(method, (28, 28), torch.empty(1, dtype=torch.float64))(0, 4000)
    assert masks.min() >= 0
    assert masks.max() <= 1
    assert abs(float(masks.mean()) - 0.3) < 0.005
    # The random shift leaves no trace of the grid.
    assert float(masks.mean(0).std()) < 0.02


def test_batch_size_classes_and_neighbours_do_not_matter() -> None:
    model, some = build("functional", torch.float64), images(3).double()
    method = RISE(model, masks=20, batch_size=3)
    target = torch.tensor([0, 3, 1])
    batch = method.attribute(some, target)
    singles = [method.attribute(some[i : i + 1], target[i]) for i in range(3)]
    torch.testing.assert_close(batch, torch.cat(singles))
    torch.testing.assert_close(batch, RISE(model, masks=20, batch_size=64).attribute(some, target))
    torch.testing.assert_close(method.attribute_classes(some, [3, 1])[0, 1], batch[1])
    assert not torch.equal(batch, RISE(model, masks=20, seed=1).attribute(some, target))


def test_costs_what_it_says() -> None:
    model, calls = build("vgg"), []
    handle = model.register_forward_pre_hook(lambda _, args: calls.append(len(args[0])))
    BatchRunner(model, images(1)).logits(images(1))  # tries the network, once
    calls.clear()
    RISE(model, masks=17, batch_size=8).attribute_classes(images(1), [0, 1, 2])
    handle.remove()
    assert sum(calls) == 18


def test_takes_digits_and_tiny_pictures() -> None:
    assert RISE(MNISTNet(), masks=4).attribute(images(2, 28, 1)).shape == (2, 1, 28, 28)
    small = nn.Sequential(nn.Flatten(), nn.Linear(64, 3))
    assert RISE(small, masks=20).attribute(images(1, 8, 1)).shape == (1, 1, 8, 8)


def test_bad_settings_are_named() -> None:
    with pytest.raises(UsageError, match="masks=0"):
        RISE(nn.Identity(), masks=0)
