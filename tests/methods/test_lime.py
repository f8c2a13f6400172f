"""LIME: exact weights of additive scores, ridge against scikit-learn, parity with Captum."""

from __future__ import annotations

import pytest
import torch
from networks import MNISTNet, build, images
from torch import Tensor, nn

from afmi.errors import UsageError
from afmi.methods.regions.lime import LIME, mean_colors, weighted_ridge
from afmi.pictures.references import Black
from afmi.pictures.superpixels import Grid, superpixels


class _Additive(nn.Module):
    """p_0 = 1/2 + Σ_j a_j [cell j is visible] exactly, for white images on a black reference."""

    def __init__(self, weights: Tensor, side: int) -> None:
        super().__init__()
        self.weights, self.side = weights, side

    def forward(self, x: Tensor) -> Tensor:
        cells = nn.functional.avg_pool2d(x.mean(1, keepdim=True), self.side).flatten(1)
        p = 0.5 + cells @ self.weights
        return torch.stack([p, 1 - p], 1).log()


def test_recovers_the_weights_of_an_additive_network() -> None:
    weights = torch.tensor([0.1, -0.2, 0.05, 0.0, 0.15, -0.1, 0.02, 0.07, -0.03]).double()
    model = _Additive(weights, 4)
    method = LIME(model, samples=60, segmentation=Grid(3), ridge=0, reference=Black())
    maps = method.attribute(torch.ones(1, 3, 12, 12, dtype=torch.float64), 0)
    expected = weights.view(3, 3).repeat_interleave(4, 0).repeat_interleave(4, 1)
    torch.testing.assert_close(maps[0, 0], expected)


def test_ridge_is_scikit_learns() -> None:
    ridge = pytest.importorskip("sklearn.linear_model").Ridge
    design = torch.randint(0, 2, (50, 7)).double()
    values, weight = torch.rand(50, 2).double(), torch.rand(50).double()
    model = ridge(alpha=1.0, fit_intercept=True)
    model.fit(design.numpy(), values.numpy(), sample_weight=weight.numpy())
    coefficients = weighted_ridge(design, values, weight, 1.0)
    torch.testing.assert_close(coefficients, torch.from_numpy(model.coef_.T))


def test_agrees_with_captum_on_the_same_superpixels() -> None:
    attr = pytest.importorskip("captum.attr")
    linear = pytest.importorskip("captum._utils.models.linear_model")
    model, some = build("vgg", torch.float64), images(1, 24).double()
    labels = superpixels(Grid(3), some[0])
    mine = LIME(model, samples=3000, segmentation=Grid(3), reference=Black())
    maps = mine.attribute(some, 1)[0, 0]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        theirs = attr.Lime(
            lambda x: model(x).softmax(1),
            interpretable_model=linear.SkLearnRidge(alpha=1.0),
            similarity_func=attr._core.lime.get_exp_kernel_similarity_function(
                "cosine", kernel_width=0.25
            ),
        )
        # Captum's own similarity compares pixels; the package's compares superpixels.
        theirs.similarity_func = lambda _x, _y, z, **_: torch.exp(
            -((1 - (z.double().sum() / z.numel()).sqrt()) ** 2) / (2 * 0.25**2)
        )
        expected = theirs.attribute(
            some,
            target=1,
            feature_mask=labels[None, None],
            n_samples=3000,
            perturbations_per_eval=50,
        )[0, 0]
    both = torch.stack([maps.flatten(), expected.flatten()])
    assert torch.corrcoef(both)[0, 1] > 0.99
    assert (maps - expected).norm() < 0.1 * expected.norm()


def test_hidden_superpixels_take_their_mean_colour() -> None:
    image = images(1, 6)[0].double()
    labels = superpixels(Grid(2), image)
    colors = mean_colors(image, labels, 4)
    for label in range(4):
        place = labels == label
        expected = image[:, place].mean(1, keepdim=True).expand(-1, int(place.sum()))
        torch.testing.assert_close(colors[:, place], expected)


def test_is_its_formula() -> None:
    model, image = build("functional", torch.float64), images(1, 24).double()
    method = LIME(model, samples=40, segmentation=Grid(2), seed=5, batch_size=7)
    maps = method.attribute(image, 3)[0, 0]
    # The samples are recovered from what the network was shown.
    shown: list[Tensor] = []
    handle = model.register_forward_pre_hook(lambda _, args: shown.append(args[0].clone()))
    method.attribute(image, 3)
    handle.remove()
    samples = torch.cat(shown)[-40:]
    corners = [(0, 0), (0, 12), (12, 0), (12, 12)]
    z = torch.stack([(samples[:, :, y, x] == image[0, :, y, x]).all(1) for y, x in corners], 1)
    z = z.double()
    assert z[0].tolist() == [1, 1, 1, 1]
    p = model(samples).detach().softmax(1)[:, 3]
    root = torch.exp(-((1 - (z.sum(1) / 4).sqrt()) ** 2) / (2 * 0.25**2)).sqrt()[:, None]
    design = torch.cat([z, torch.ones(40, 1, dtype=torch.float64)], 1)
    ridge = torch.diag(torch.tensor([1.0, 1, 1, 1, 0], dtype=torch.float64))
    normal = (root * design).T @ (root * design) + ridge
    w = torch.linalg.solve(normal, (root * design).T @ (root[:, 0] * p))
    torch.testing.assert_close(torch.stack([maps[y, x] for y, x in corners]), w[:4])


def test_batch_equals_singles_and_seeds_count() -> None:
    model, some = build("resnet", torch.float64), images(3, 24).double()
    method = LIME(model, samples=30)
    batch = method.attribute(some, torch.tensor([0, 1, 2]))
    singles = [method.attribute(some[i : i + 1], i) for i in range(3)]
    torch.testing.assert_close(batch, torch.cat(singles))
    torch.testing.assert_close(method.attribute_classes(some, [4, 1])[1, 1], batch[1])
    again = LIME(model, samples=30, seed=1).attribute(some, torch.tensor([0, 1, 2]))
    assert not torch.equal(batch, again)


def test_takes_digits() -> None:
    assert LIME(MNISTNet(), samples=10).attribute(images(1, 28, 1)).shape == (1, 1, 28, 28)


def test_bad_settings_are_named() -> None:
    with pytest.raises(UsageError, match="samples=1"):
        LIME(nn.Identity(), samples=1)
