"""Targets: any score of the outputs is explained as a class is, and maps sum to its change."""

from __future__ import annotations

import json

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from networks import TinyResNet, TinyVGG
from settings import UNTRAINED, method
from torch import Tensor, nn

from afmi import AFMI, Classifier, explain, explain_classes, explain_many, specs
from afmi.errors import ModelError, TargetError, UsageError
from afmi.methods import DeepLIFT, KernelSHAP
from afmi.pictures.references import Blurred, Random, White
from afmi.targets import Class, Difference, Output, Scalar, Similarity, Target, response

LABELS = ["cat", "dog", "newt", "owl", "emu"]


@pytest.fixture
def images() -> Tensor:
    return torch.rand(3, 3, 16, 16, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def network() -> nn.Module:
    torch.manual_seed(3)
    return TinyVGG().eval()


def entropy(outputs: Tensor) -> Tensor:
    return torch.special.entr(outputs.softmax(1)).sum(1)


TARGETS: dict[str, Target] = {
    "class": Class(2),
    "difference": Difference(1, 3),
    "class against the rest": Difference(1),
    "output": Output(4),
    "product": Scalar(lambda y: y[:, 0] * y[:, 1].tanh() + y.square().sum(1)),
    "probability": Scalar(lambda y: y.softmax(1)[:, 2], "probability"),
    "similarity": Similarity(torch.linspace(-1, 1, 5)),
}


class Score(nn.Module):
    """A network of the target's score alone, written out."""

    def __init__(self, network: nn.Module, target: Target) -> None:
        super().__init__()
        self.network, self.target = network, target

    def forward(self, images: Tensor) -> Tensor:
        return self.target.score(self.network, images)[:, None]


@pytest.mark.parametrize("reference", [White(), Random(samples=2), Blurred()], ids=str)
@pytest.mark.parametrize("target", TARGETS.values(), ids=TARGETS)
def test_maps_sum_to_the_change_of_the_score(network, images, target, reference):
    network, images = network.double(), images.double()
    for make in (AFMI(network, averaged=False, reference=reference), DeepLIFT(network)):
        attribution = make.attribution(images, target)
        starts = make.reference.for_each(images).transpose(0, 1)
        before = torch.stack([target.score(network, start) for start in starts]).mean(0)
        change = target.score(network, images) - before
        assert attribution.residual.abs().max() < 1e-9
        if isinstance(make, DeepLIFT):
            torch.testing.assert_close(attribution.maps.sum((1, 2, 3)), change)


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 2**16), st.sampled_from([TinyVGG, TinyResNet]), st.sampled_from([*TARGETS]))
def test_deeplift_sums_for_any_network(seed, kind, name):
    torch.manual_seed(seed)
    network, target = kind().eval().double(), TARGETS[name]
    images = torch.rand(2, 3, 16, 16, dtype=torch.float64)
    change = target.score(network, images) - target.score(network, torch.zeros_like(images))
    maps = DeepLIFT(network).attribute(images, target)
    torch.testing.assert_close(maps.sum((1, 2, 3)), change, rtol=1e-8, atol=1e-10)


@pytest.mark.filterwarnings(
    "ignore:the network returns one number",
    "ignore:Integrated Gradients",
    "ignore:Score-CAM gave a map that is the same everywhere",  # no score of maps is above 0
)
@pytest.mark.parametrize("name", [name for name in UNTRAINED if name not in ("CAM", "XRAI")])
def test_every_method_explains_the_network_of_the_score(network, images, name):
    target = Difference(1, 3)
    layer = "features.5"
    expected = method(name, Score(network, target), layer=f"network.{layer}").attribute(images)
    attribution = method(name, network, layer=layer).attribution(images, target)
    torch.testing.assert_close(attribution.maps, expected)
    torch.testing.assert_close(attribution.scores, target.score(network, images))
    assert attribution.target is None and attribution.targets == (target,) * 3


def test_a_difference_is_the_difference_of_the_maps(network, images):
    for make in (AFMI(network), AFMI(network, averaged=False), DeepLIFT(network)):
        one, other = (make.attribute(images, index) for index in (1, 3))
        difference = make.attribute(images, Difference(1, 3))
        torch.testing.assert_close(difference, one - other, rtol=1e-4, atol=1e-6)


def test_a_class_is_its_index(network, images):
    model = Classifier(network, labels=LABELS)
    for given_ in (Class(2), Class("newt"), "newt", torch.tensor([2, 2, 2]), [2, "newt", Class(2)]):
        attribution = AFMI(model).attribution(images, given_)
        assert torch.equal(attribution.target, torch.tensor([2, 2, 2]))
        assert torch.equal(attribution.maps, AFMI(model).attribute(images, 2))


def test_each_image_may_have_its_own_target(network, images):
    targets = [Output(1), Class(2), entropy]
    make = AFMI(network)
    together = make.attribution(images, targets)
    for n, target in enumerate(targets):
        alone = make.attribution(images[n : n + 1], target)
        torch.testing.assert_close(together.maps[n], alone.maps[0])
    with pytest.raises(TargetError, match="one target for all images or one for each of 3, got 2"):
        make.attribute(images, targets[:2])


def test_the_predicted_class_is_that_of_the_image(network, images):
    predicted = network(images).argmax(1)
    attribution = AFMI(network).attribution(images, Difference())
    assert attribution.targets == tuple(Difference(int(c), None) for c in predicted)
    second = network(images).topk(2).indices[:, 1]
    rather = AFMI(network).attribution(images[:1], Difference(versus=int(predicted[0])))
    assert rather.targets == (Difference(int(second[0]), int(predicted[0])),)


def test_several_targets_are_explained_at_once(network, images):
    wanted = [Class(1), Difference(1, 3), 2]
    maps = AFMI(network).attribute_classes(images, wanted)
    for row, target in zip(maps, wanted, strict=True):
        torch.testing.assert_close(row, AFMI(network).attribute(images, target))
    explained = explain_classes(network, images[0], wanted)
    assert [one.target for one in explained] == [Class(1), Difference(1, 3), Class(2)]
    torch.testing.assert_close(
        explained[1].map, AFMI(network).attribute(images[:1], wanted[1])[0, 0]
    )


def test_importance_of_feature_maps_is_that_for_the_target(network, images):
    importance = AFMI(network).feature_map_importance
    difference = importance(images, 1) - importance(images, 3)
    torch.testing.assert_close(importance(images, Difference(1, 3)), difference)


def test_the_layer_is_that_of_the_network(images):
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(3, 6, 3), nn.ReLU(), nn.Conv2d(6, 5, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten()
    )
    of_class = AFMI(network).attribution(images, 1).layer
    for target in (Difference(1, 2), Output(1), entropy):
        assert AFMI(network).attribution(images, target).layer == of_class


def test_the_reference_of_a_target_is_kept(network, images):
    runs = []
    network.register_forward_hook(lambda *_: runs.append(1))
    make, target = AFMI(network), Difference(1, 3)
    counts = []
    for _ in range(3):
        before = len(runs)
        make.attribute(images, target)
        counts.append(len(runs) - before)
    assert counts[1:] == [1, 1]


def test_a_record_says_what_was_explained(network, images, tmp_path):
    model = Classifier(network, labels=LABELS)
    one = explain(model, images[0], Difference("dog", "owl"))
    y = network(images[:1])[0].detach()
    assert one.label == "dog rather than owl" and one.unit == "margin"
    assert one.score == pytest.approx(float(y[1] - y[3]), rel=1e-4)
    assert one.probability is None and one.class_index is None
    assert one.predicted_probability == pytest.approx(float(y.softmax(0).max()), rel=1e-4)
    record = json.loads(one.save(tmp_path)["record"].read_text())
    assert specs.parse(record["target"], Target) == Difference(1, 3)
    assert (record["class"], record["unit"]) == (None, "margin")
    results = explain_many(model, images, [Difference("dog"), None, "newt"])
    assert [one.label for one in results][::2] == ["dog rather than any other", "newt"]


def test_an_embedding_is_compared_with_an_image(network, images):
    network, images = network.double(), images.double()
    target = Similarity(images[1])
    attribution = DeepLIFT(network).attribution(images, target)
    assert attribution.scores[1] == pytest.approx(1)
    assert attribution.residual.abs().max() < 1e-8
    (fixed,) = set(attribution.targets)
    assert float(response(network, fixed, images[1:2])) == pytest.approx(1)


def test_a_network_is_tried_once_for_equal_likenesses(network, images):
    other = images[1].transpose(1, 2)
    assert Similarity(other) == Similarity(other.clone()) != Similarity(images[0])
    assert len({Similarity(other), Similarity(other), Similarity(torch.ones(5))}) == 2
    runs = []
    network.register_forward_hook(lambda *_: runs.append(1))
    counts = []
    for _ in range(2):
        before = len(runs)
        DeepLIFT(network).attribute(images, Similarity(torch.linspace(-1, 1, 5)))
        counts.append(len(runs) - before)
    assert counts[0] - counts[1] >= 3  # the trial's batches


def test_any_function_of_any_output_is_explained(images):
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU())

        def forward(self, x: Tensor) -> dict[str, list[Tensor]]:
            return {"levels": [self.body(x), self.body(x).mean((2, 3))]}

    torch.manual_seed(0)
    network = Two()
    with pytest.raises(ModelError, match="must return a row of outputs"):
        explain(network, images[0])

    def loudest(outputs: dict[str, list[Tensor]]) -> Tensor:
        return outputs["levels"][1].amax(1)

    one = explain(network, images[0], loudest, method="deeplift")
    assert (one.label, one.unit, one.predicted) == ("loudest", "value", None)
    change = loudest(network(images[:1])) - loudest(network(torch.zeros_like(images[:1])))
    assert float(one.map.sum()) == pytest.approx(change.item(), rel=1e-4)


def test_shares_of_a_score_add_up(network, images):
    score = Scalar(entropy)
    maps = KernelSHAP(network, samples=20).attribute(images[:1], score)
    change = score.score(network, images[:1]) - score.score(network, torch.zeros_like(images[:1]))
    assert float(maps.sum()) == pytest.approx(change.item(), rel=1e-4)


WRONG = {
    "a class twice": (Difference(1, 1), "expected two classes, got 'dog' twice"),
    "no such class": (Difference(1, 9), "expected a class from 0 to 4, got 9"),
    "no such label": (Class("yak"), "no class is called 'yak'"),
    "a truth value": (Difference(0, versus=True), "index or label, got the truth value True"),
    "no such output": (Output(7), r"expected an index into outputs of shape \(5,\), got 7"),
    "no output named": (Output(), r"returns \(5,\) numbers for each image; say which one"),
    "one number for all": (Scalar(lambda y: y.sum()), "one floating-point score for each of"),
    "whole numbers": (Scalar(lambda y: y.argmax(1)), "one floating-point score for each of"),
    "an embedding of another size": (Similarity(torch.ones(3)), r"expected outputs \(N, 3\)"),
}


@pytest.mark.parametrize(("target", "message"), WRONG.values(), ids=WRONG)
def test_targets_that_do_not_fit_are_named(network, images, target, message):
    with pytest.raises(TargetError, match=message):
        AFMI(Classifier(network, labels=LABELS)).attribute(images, target)


def test_a_score_that_mixes_images_is_noticed(network, images):
    with pytest.raises(ModelError, match="with the other images of a batch"):
        AFMI(network).attribute(images, lambda y: y[:, 0] - y[:, 0].mean())


def test_a_target_takes_no_nonsense():
    with pytest.raises(UsageError, match="expected a function of the outputs"):
        Scalar(3)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="expected the index of an output, got True"):
        Output(True)


@pytest.mark.parametrize(
    "target", [Class(3), Class("Eskimo dog, husky"), Difference(1, "owl"), Output((1, 2)), Output()]
)
def test_text_stands_for_targets(target):
    assert specs.parse(specs.text(target), Target) == target
    assert specs.from_json(specs.to_json(target), Target) == target
