"""Networks that take more than an image: what else they take goes along with every image."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from networks import images
from settings import UNTRAINED
from torch import Tensor, nn
from torch.testing import assert_close

import afmi
from afmi.errors import ModelError, ShapeError, UsageError
from afmi.methods import (
    AFMI,
    CATALOGUE,
    LIME,
    RISE,
    DeepLIFT,
    GradCAM,
    Gradient,
    IntegratedGradients,
    KernelSHAP,
    Method,
    SmoothGrad,
)
from afmi.network.arguments import Bound, rows_of
from afmi.network.classifier import Classifier, classify, with_arguments
from afmi.network.layers import layer_names


class Film(nn.Module):
    """A patient's record scales and shifts the maps, joins the head's input, and may be doubled."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 6, 3, padding=1)
        self.conv2 = nn.Conv2d(6, 8, 3, padding=1)
        self.embed = nn.Linear(4, 16)
        self.head = nn.Linear(24, 5)

    def forward(
        self, image: Tensor, record: Tensor, mask: Tensor | None = None, *, double: bool = False
    ) -> Tensor:
        embedded = torch.relu(self.embed(record * (2 if double else 1)))
        scale, shift = embedded.chunk(2, 1)
        x = self.conv2(F.max_pool2d(torch.relu(self.conv1(image)), 2))
        x = torch.relu(x * (1 + scale[:, :, None, None]) + shift[:, :, None, None])
        if mask is not None:
            x = x * mask
        return self.head(torch.cat([x.mean((2, 3)), embedded], 1))


class Fixed(nn.Module):
    """The same by hand: a module that holds the rest, as buffers."""

    def __init__(self, network: nn.Module, record: Tensor, mask: Tensor | None = None) -> None:
        super().__init__()
        self.network = network
        self.register_buffer("record", record)
        self.register_buffer("mask", mask)

    def forward(self, x: Tensor) -> Tensor:
        record = self.record.expand(len(x), -1)
        if self.mask is None:
            return self.network(x, record)
        return self.network(x, record, self.mask.expand(len(x), -1, -1, -1))


def film(dtype: torch.dtype = torch.float64) -> Film:
    torch.manual_seed(3)
    return Film().eval().to(dtype)


def record(seed: int = 1, rows: int = 1) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(rows, 4, generator=generator, dtype=torch.float64)


def few(method: type[Method]) -> dict[str, Any]:
    """Fewer passes than usual."""
    return {
        name: value
        for name, value in {
            "samples": 8, "masks": 8, "steps": 60, "iterations": 3, "window": 8, "stride": 8,
            "patch": 8,
        }.items()
        if name in method.__dataclass_fields__
    } | ({"samples": 200} if method is KernelSHAP else {})  # fmt: skip


@pytest.mark.filterwarnings("ignore:.*the same everywhere")  # after so few steps
@pytest.mark.parametrize("name", [name for name in UNTRAINED if name not in ("CAM", "XRAI")])
def test_every_method_explains_as_with_the_arguments_written_into_a_module(name: str) -> None:
    method, x = CATALOGUE[name], images(2, size=16).double()
    options = few(method)
    if "tolerance" in method.__dataclass_fields__:
        options["tolerance"] = None
    mask = (torch.rand(1, 1, 8, 8, generator=torch.Generator().manual_seed(0)) > 0.3).double()
    model = Classifier(film(), forward_arguments=(record(), mask))
    expected = method(Fixed(film(), record(), mask), **options).attribute(x, 1)
    assert_close(method(model, **options).attribute(x, 1), expected)
    bare = method(film(), **options).attribute(x, 1, forward_arguments=(record(), mask))
    assert_close(bare, expected)


@pytest.mark.parametrize("method", [AFMI, DeepLIFT])
def test_maps_sum_to_the_change_of_the_score(method: type[Method]) -> None:
    options = {"averaged": False} if method is AFMI else {}
    model = Classifier(film(), forward_arguments={"record": record(), "double": True})
    attribution = method(model, **options).attribution(images(3, size=16).double())
    assert attribution.residual is not None
    assert attribution.residual.abs().max() < 1e-9


def test_keywords_flags_and_nested_values_reach_the_network_as_they_are() -> None:
    seen: list[Any] = []

    class Taking(nn.Module):
        def forward(self, *args: Any, **keywords: Any) -> Tensor:
            seen.append((args, keywords))
            return torch.zeros(2, 3)

    scalar, row = torch.tensor(2.0), torch.arange(3.0)[None]
    arguments = {"flag": True, "pair": (row, [scalar, None]), "by_name": {"row": row}}
    Classifier(Taking(), forward_arguments=arguments)(torch.zeros(2, 3, 4, 4))
    (args, keywords), = seen  # fmt: skip
    assert len(args) == 1 and args[0].shape == (2, 3, 4, 4)
    assert keywords["flag"] is True
    assert_close(keywords["pair"][0], row.expand(2, 3))
    assert isinstance(keywords["pair"], tuple) and keywords["pair"][1] == [scalar, None]
    assert_close(keywords["by_name"]["row"], row.expand(2, 3))


def test_any_argument_can_be_the_one_that_is_explained() -> None:
    class Both(nn.Module):
        def forward(self, colour: Tensor, depth: Tensor) -> Tensor:
            return torch.stack(
                [colour.sum((1, 2, 3)), (depth.flatten(1) * torch.arange(16.0)).sum(1)], 1
            )

    colour, depth = torch.rand(1, 3, 4, 4), torch.rand(1, 1, 4, 4)
    by_place = Classifier(Both(), mean=[0.0], std=[1.0], forward_arguments=(colour,), input=1)
    by_name = Classifier(
        Both(), mean=[0.0], std=[1.0], forward_arguments={"colour": colour}, input="depth"
    )
    for model in (by_place, by_name):
        assert_close(
            Gradient(model).attribute(depth, 1)[0, 0],
            torch.arange(16.0).view(4, 4),
        )
        assert_close(model(depth)[0, 0], colour.sum())
    only = Classifier(Named(), input="pixel_values")
    assert only(torch.zeros(2, 3, 4, 4)).shape == (2, 3)


class Named(nn.Module):
    """Takes images by keyword only, as some of Hugging Face's do."""

    def forward(self, *, pixel_values: Tensor) -> Tensor:
        return pixel_values.mean((2, 3))


def test_images_with_rows_of_their_own_are_explained_each_with_its_own() -> None:
    x, rows = images(3, size=16).double(), record(rows=3)
    method = AFMI(film())
    maps = method.attribute(x, torch.tensor([0, 1, 2]), forward_arguments=(rows,))
    for n in range(3):
        alone = AFMI(Fixed(film(), rows[n : n + 1])).attribute(x[n : n + 1], n)
        assert_close(maps[n : n + 1], alone)
    assert_close(method.attribute(x, [0, 1, 2], forward_arguments={"record": rows}), maps)
    explanations = list(
        afmi.explain_many(film(), x, [0, 1, 2], method="AFMI", forward_arguments=(rows,))
    )
    for n, explanation in enumerate(explanations):
        assert isinstance(explanation, afmi.Explanation)
        assert_close(explanation.map.double(), maps[n, 0])
    # Images one by one, of an unknown number.
    streamed = afmi.explain_many(
        film(), (image for image in x), [0, 1, 2], forward_arguments=(rows,)
    )
    assert all(
        torch.equal(a.map, b.map)
        for a, b in zip(streamed, explanations, strict=True)  # type: ignore[union-attr]
    )


def test_predictions_follow_each_row() -> None:
    x, rows = images(1, size=16).double().expand(2, -1, -1, -1), record(rows=2)
    rows[1] *= -20
    attribution = Gradient(film()).attribution(x, forward_arguments=(rows,))
    with torch.no_grad():
        assert torch.equal(attribution.target, film()(x, rows).argmax(1))


def test_explain_takes_arguments_by_the_call_and_keeps_what_the_classifier_knows() -> None:
    labels = tuple("abcde")
    model = Classifier(film(), labels=labels, resize=24, crop=16, name="film")
    picture = (images(1, size=30)[0].permute(1, 2, 0).numpy() * 255).astype("uint8")
    explanation = afmi.explain(model, picture, "c", forward_arguments=(record(),))
    bound = Classifier(film(), labels=labels, resize=24, crop=16, forward_arguments=(record(),))
    expected = afmi.explain(bound, picture, "c")
    assert explanation.label == "c" and explanation.model == "film"
    assert explanation.layer == expected.layer == "conv2+mul"
    assert_close(explanation.map, expected.map)
    # Given by the call, they take the place of the model's own.
    other = afmi.explain(bound, picture, "c", forward_arguments=(record(7),))
    assert not torch.allclose(other.map, expected.map)
    assert_close(other.map, afmi.explain(model, picture, "c", forward_arguments=(record(7),)).map)
    assert len(afmi.explain_classes(bound, picture, ["a", "b"])) == 2
    classes = afmi.explain_classes(model, picture, ["a", "c"], forward_arguments=(record(),))
    assert_close(classes[1].map, expected.map)
    assert model.network is not bound.network and not isinstance(model.network, Bound)


def test_what_is_kept_of_a_model_is_not_believed_after_its_arguments_changed() -> None:
    x, arguments = images(1, size=16).double(), record()
    model = Classifier(film(), forward_arguments=(arguments,))
    method = AFMI(model)
    first = method.attribute(x, 1)
    arguments.copy_(record(9))
    second = method.attribute(x, 1)
    assert not torch.allclose(first, second)
    assert_close(second, AFMI(Fixed(film(), record(9))).attribute(x, 1))
    with afmi.unchanged(model):  # a promise about one model is none about another's arguments
        method.attribute(x, 1)
        third = method.attribute(x, 1, forward_arguments=(record(),))
    assert_close(third, first)


def test_layers_have_the_network_s_names_and_arguments_move_with_the_model() -> None:
    model = Classifier(film(), forward_arguments=(record(),))
    assert layer_names(model) == ["conv1", "conv2", "embed", "head"]
    x = images(2, size=16).double()
    assert_close(
        GradCAM(model, layer="conv1").attribute(x, 1),
        GradCAM(Fixed(film(), record()), layer="network.conv1").attribute(x, 1),
    )
    layer = film()
    maps = GradCAM(layer, layer=layer.conv1).attribute(x, 1, forward_arguments=(record(),))
    assert_close(maps, GradCAM(model, layer="conv1").attribute(x, 1))
    assert copy.deepcopy(model).float()(x.float()).dtype == torch.float32
    assert "network.argument_0" not in model.state_dict()


def test_a_base_method_gets_the_arguments_too() -> None:
    model, x = film(), images(1, size=16).double()
    method = SmoothGrad(model, base=Gradient(model), samples=3)
    fixed = Fixed(film(), record())
    expected = SmoothGrad(fixed, base=Gradient(fixed), samples=3).attribute(x, 1)
    assert_close(method.attribute(x, 1, forward_arguments=(record(),)), expected)


def test_a_network_that_writes_into_its_arguments_leaves_the_user_s_alone() -> None:
    class Writing(nn.Module):
        def forward(self, image: Tensor, weights: Tensor) -> Tensor:
            weights.mul_(2)
            return image.mean((2, 3)) * weights

    weights = torch.ones(1, 3)
    model = Classifier(Writing(), forward_arguments=(weights,))
    for count in (1, 2, 1):
        assert_close(model(torch.ones(count, 3, 2, 2)), torch.full((count, 3), 2.0))
    assert_close(weights, torch.ones(1, 3))


@pytest.mark.parametrize(
    ("arguments", "place", "error", "says"),
    [
        (torch.zeros(1, 4), None, UsageError, r"got Tensor; write \(tensor,\)"),
        (3, None, UsageError, "a tuple of what the network takes"),
        ({1: torch.zeros(1)}, None, UsageError, "name keywords"),
        ((torch.zeros(2, 4),), None, ShapeError, r"one row, \(1, …\).* got \(2, 4\)"),
        (([torch.zeros(2, 4)],), None, ShapeError, "one row"),
        ((), 1, UsageError, "a position up to the 0 positional"),
        ((), -1, UsageError, "a position up to"),
        ((), True, UsageError, "a position up to"),
        ({"image": 1}, "image", UsageError, "leave it out of forward_arguments"),
    ],
)
def test_what_cannot_go_along_is_refused(
    arguments: Any, place: Any, error: type[Exception], says: str
) -> None:
    with pytest.raises(error, match=says):
        Classifier(film(), forward_arguments=arguments, input=place)


def test_rows_that_are_not_the_images_are_refused() -> None:
    x = images(3, size=16).double()
    with pytest.raises(ShapeError, match="one for each of 3 images, got tensors of 2 rows"):
        Gradient(film()).attribute(x, 1, forward_arguments=(record(rows=2),))
    with pytest.raises(ShapeError, match="tensors of 2 and 3 rows"):
        rows_of((record(rows=2), record(rows=3)), None)
    with pytest.raises(ShapeError, match="one row"):
        afmi.explain(film(), x[0], 1, forward_arguments=(record(rows=2),))
    with pytest.raises(Exception, match="rows of forward_arguments"):
        list(afmi.explain_many(film(), iter(x), 1, forward_arguments=(record(rows=2),)))


def test_a_network_called_without_the_rest_says_how_to_give_it() -> None:
    x = images(1, size=16).double()
    for model in (film(), Classifier(film())):
        with pytest.raises(ModelError, match=r"images alone .*'record'.* forward_arguments="):
            Gradient(model).attribute(x, 1)
    wrong: Mapping[str, Any] = {"record": record(), "size": 3}
    with pytest.raises(ModelError, match=r"these arguments .*'size'.*; compare forward_arguments="):
        classify(Classifier(film(), forward_arguments=wrong), x)


def test_targets_are_scored_with_the_arguments() -> None:
    x, rows = images(2, size=16).double(), record(rows=2)
    target = afmi.targets.Difference(1, 2)
    method = AFMI(film(), averaged=False)
    attribution = method.attribution(x, target, forward_arguments=(rows,))
    assert attribution.residual is not None and attribution.residual.abs().max() < 1e-9
    assert attribution.scores is not None
    with torch.no_grad():
        logits = film()(x, rows)
    assert_close(attribution.scores, logits[:, 1] - logits[:, 2])
    alone = AFMI(Fixed(film(), rows[1:]), averaged=False).attribute(x[1:], target)
    assert_close(attribution.maps[1:], alone)


def test_a_model_with_arguments_shares_the_network() -> None:
    model = Classifier(film(), labels=list("abcde"))
    bound = with_arguments(model, (record(),))
    assert isinstance(bound, Classifier) and bound.labels == model.labels
    assert bound.network.network is model.network
    x = images(1, size=16).double()
    before = classify(bound, x)
    with torch.no_grad():
        model.network.head.bias.add_(1)
    assert_close(classify(bound, x), before + 1)


@pytest.mark.parametrize("method", [RISE, LIME, IntegratedGradients])
def test_batches_of_any_size_get_the_row(method: type[Method]) -> None:
    x = images(1, size=16).double()
    model = Classifier(film(), forward_arguments=(record(),))
    options = few(method)
    maps = [method(model, **options, batch_size=size).attribute(x, 1) for size in (1, 3, 8)]
    assert_close(maps[0], maps[1])
    assert_close(maps[0], maps[2])
