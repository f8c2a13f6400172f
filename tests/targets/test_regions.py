"""Region: the score of a class where a network segments the image."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from completeness import photographs, settle_batch_norms
from hypothesis import given
from hypothesis import strategies as st
from settings import UNTRAINED, method
from torch import Tensor, nn

from afmi import AFMI, Classifier, explain, find_layer, specs
from afmi.errors import (
    LayerError,
    ModelError,
    OutputsWarning,
    ShapeError,
    TargetError,
    UsageError,
)
from afmi.methods import DeepLIFT, GradCAM, Gradient
from afmi.network.layers import resolve_layer
from afmi.network.scored import Scored
from afmi.pictures.references import Random, White
from afmi.targets import Class, Difference, Region, Target

LABELS = ["background", "cat", "dog", "owl"]


class Segmenter(nn.Module):
    """A body at half the image's size, a bent stage, a head of class maps, and a resize if asked.

    Args:
        classes: maps of the head.
        resized: whether the maps are brought to the image's size and returned as ``out``.
        end: what the maps go through at last.
    """

    def __init__(self, classes: int = 4, *, resized: bool = True, end: nn.Module | None = None):
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(3, 6, 3, stride=2, padding=1), nn.BatchNorm2d(6), nn.ReLU(inplace=True)
        )
        self.stage = nn.Sequential(nn.Conv2d(6, 8, 3, padding=1), nn.ReLU(), nn.Dropout())
        self.head = nn.Conv2d(8, classes, 1)
        self.end = end
        self.resized = resized

    def forward(self, x: Tensor) -> object:
        maps = self.head(self.stage(self.body(x)))
        if self.resized:
            maps = F.interpolate(maps, size=x.shape[-2:], mode="bilinear", align_corners=False)
        maps = maps if self.end is None else self.end(maps)
        return {"out": maps, "aux": maps.flatten(2)} if self.resized else maps


def build(**options: object) -> Segmenter:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        return Segmenter(**options).eval()  # type: ignore[arg-type]


@pytest.fixture
def images() -> Tensor:
    return torch.rand(3, 3, 12, 10, generator=torch.Generator().manual_seed(0))


def out(network: nn.Module, images: Tensor) -> Tensor:
    with torch.no_grad():
        maps = network(images)
    return maps["out"] if isinstance(maps, dict) else maps


HALF = torch.zeros(12, 10, dtype=torch.bool)
HALF[2:9, 3:] = True
SMALL = torch.zeros(6, 5, dtype=torch.bool)
SMALL[1:3, 2:] = True
REGIONS: dict[str, Target] = {
    "predicted": Region(),
    "pixel": Region(2, (5, 9)),
    "mask": Region(1, HALF),
    "largest class in a mask": Region(None, HALF.numpy()),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("reference", [White(), Random(samples=2)], ids=str)
@pytest.mark.parametrize("resized", [True, False])
@pytest.mark.parametrize("target", REGIONS.values(), ids=REGIONS)
def test_maps_sum_to_the_change_of_the_score(images, target, resized, reference, dtype):
    network, images = build(resized=resized).to(dtype), images.to(dtype)
    bound = 1e-5 if dtype == torch.float32 else 1e-10
    for make in (AFMI(network, averaged=False, reference=reference), DeepLIFT(network)):
        attribution = make.attribution(images, target)
        assert attribution.residual is not None
        assert attribution.targets is not None
        for row, fixed in enumerate(attribution.targets):
            image = images[row : row + 1]
            starts = make.reference.for_each(image)[0]
            with torch.no_grad():
                change = float((fixed.score(network, image) - fixed.score(network, starts)).mean())
            scale = max(abs(change), float(attribution.scores.abs().max()))
            assert abs(float(attribution.residual[row])) * abs(change) < bound * scale
            if isinstance(make, DeepLIFT):
                assert float(attribution.maps[row].sum()) == pytest.approx(change, abs=bound)


def test_scores_are_means_over_the_region(images):
    network = build()
    maps = out(network, images)
    expected = {
        Region(1, HALF): maps[:, 1, HALF].mean(1),
        Region(2, (5, 9)): maps[:, 2, 5, 9],
        Region(3, SMALL): None,
    }
    for target, scores in expected.items():
        if scores is not None:
            torch.testing.assert_close(target.score(network, images), scores)
    small = build(resized=False)
    maps = out(small, images)
    torch.testing.assert_close(
        Region(3, SMALL).score(small, images).detach(), maps[:, 3, SMALL].mean(1)
    )
    enlarged = F.interpolate(maps, (12, 10), mode="bilinear")
    torch.testing.assert_close(
        Region(3, HALF).score(small, images).detach(), enlarged[:, 3, HALF].mean(1)
    )
    torch.testing.assert_close(
        Region(0, (11, 0)).score(small, images).detach(), enlarged[:, 0, 11, 0]
    )


def test_the_predicted_region_is_fixed_once(images):
    model = Classifier(build(), labels=LABELS)
    fixed = Region().fixed(model, images)
    predicted = out(model, images).argmax(1)
    for row, target in enumerate(fixed):
        counts = predicted[row].flatten().bincount(minlength=4)
        assert int(counts[1:].argmax()) + 1 == target.of  # the background is none, unless alone
        region = predicted[row] == target.of
        assert torch.equal(target.area((12, 10)), region)
        score = target.score(model, images[:1] * 0.5)
        torch.testing.assert_close(
            score.detach()[0], out(model, images[:1] * 0.5)[0, target.of][region].mean()
        )
        assert target.label(model) == f"{LABELS[target.of]} in the predicted region"
        assert target.unit == "logit"
        assert specs.text(target) == f"region:of={target.of}"


def test_a_class_that_is_nowhere_is_refused_with_those_that_are_there(images):
    network = build()
    with torch.no_grad():
        network.head.bias[3] -= 100
    model = Classifier(network, labels=LABELS)
    with pytest.raises(TargetError, match=r"predicts owl nowhere.*it predicts .*(cat|dog|backgr)"):
        DeepLIFT(model).attribute(images[:1], Region("owl"))
    assert DeepLIFT(model).attribution(images[:1], Region("owl", HALF)).targets is not None


def test_background_is_explained_where_it_is_everywhere(images):
    network = build()
    with torch.no_grad():
        network.head.bias[0] += 100
    (target,) = Region().fixed(Classifier(network, labels=LABELS), images[:1])
    assert target.of == 0


@pytest.mark.filterwarnings("ignore::afmi.errors.OutputsWarning")
@pytest.mark.parametrize("end", [nn.Softmax(1), nn.Softmax2d(), nn.Sigmoid(), nn.LogSoftmax(1)])
def test_what_goes_into_the_last_activation_is_explained(images, end):
    bare, network = build(), build(end=end)
    attribution = DeepLIFT(network).attribution(images, Region(2, HALF))
    expected = DeepLIFT(bare).attribution(images, Region(2, HALF))
    torch.testing.assert_close(attribution.maps, expected.maps)
    torch.testing.assert_close(attribution.scores, expected.scores)
    assert attribution.targets[0].unit == "logit"


def test_a_softmax_that_is_undone_is_told(images):
    with pytest.warns(OutputsWarning, match="ends in softmax"):
        Region(2, HALF).fixed(build(end=nn.Softmax(1)), images)
    with pytest.warns(OutputsWarning, match="sum to 1"):
        hidden = Region(2, HALF).fixed(build(end=_Hidden()), images)
    assert hidden.unit == "probability"


class _Hidden(nn.Module):
    """A softmax that is none of PyTorch's."""

    def forward(self, maps: Tensor) -> Tensor:
        powers = maps.exp()
        return powers / powers.sum(1, keepdim=True)


def test_one_map_has_two_classes_where_it_is_a_logit(images):
    network = build(classes=1)
    model = Classifier(network, output="sigmoid")
    maps = out(network, images)[:, 0]
    for target in Region(1).fixed(model, images[:1]):
        assert torch.equal(target.area((12, 10)), maps[0] > 0)
    score = Region(0, HALF).fixed(model, images).score(model, images)
    torch.testing.assert_close(score.detach(), -maps[:, HALF].mean(1))
    assert find_layer(Scored(model, Region(0, HALF)), images).name == "stage.1"


def test_one_map_is_a_value_elsewhere(images):
    network = build(classes=1, resized=False)
    fixed = Region(0, SMALL).fixed(network, images)
    assert (fixed.unit, fixed.label(network)) == ("value", "output 0 in the mask")
    with pytest.raises(TargetError, match="predicts no class"):
        Region(0).fixed(network, images)
    with pytest.raises(TargetError, match=r"from 0 to 0, got 1.*output='sigmoid'"):
        Region(1, SMALL).fixed(network, images)


class SqueezeLike(nn.Sequential):
    """A convolution computes the class scores, behind which they are bent and averaged."""

    def __init__(self, classes: int) -> None:
        super().__init__(
            nn.Sequential(nn.Conv2d(3, 6, 3), nn.ReLU()),
            nn.Sequential(nn.Conv2d(6, 7, 3), nn.ReLU()),
            nn.Conv2d(7, classes, 1),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
        )


@pytest.mark.parametrize("classes", [1, 2, 5])
def test_the_stage_is_the_same_for_all_that_is_made_of_classes(images, classes):
    output = "sigmoid" if classes == 1 else "logits"
    model = Classifier(SqueezeLike(classes).eval(), output=output)
    assert find_layer(model, images).name == "1"
    for target in (Class(1), Difference(0, 1), Difference(1)):
        assert find_layer(Scored(model, target), images).name == "1"
        assert AFMI(model).attribution(images, target).layer.name == "1"


@pytest.mark.parametrize("resized", [True, False])
def test_the_stage_of_a_segmentation_is_before_its_head(images, resized):
    network = build(resized=resized)
    for target in (Region(1, HALF), Region(2, (3, 3)), *Region().fixed(network, images)):
        assert find_layer(Scored(network, target), images).name == "stage.1"
    model = Classifier(network, layer="body")
    assert resolve_layer(Scored(model, Region(1, HALF)), None, images)[1].name == "body"


@pytest.mark.filterwarnings(
    "ignore::afmi.methods.BlankMapWarning",
    "ignore::afmi.errors.CompletenessWarning",
    "ignore::afmi.errors.ImageIndependenceWarning",
)
@pytest.mark.parametrize("name", UNTRAINED)
def test_every_method_explains_a_region(name):
    network = build().double()
    images = torch.rand(2, 3, 24, 20, generator=torch.Generator().manual_seed(2)).double()
    mask = torch.zeros(24, 20, dtype=torch.bool)
    mask[4:16, 5:18] = True
    before = copy.deepcopy(network.state_dict())
    of = method(name, network)
    for target in (Region(1, mask), Region()):
        if name == "CAM" and target == Region(1, mask):  # whose places do not count alike
            with pytest.raises(LayerError, match="tell places apart"):
                of.attribution(images, target)
            continue
        attribution = of.attribution(images, target)
        assert attribution.maps.shape == (2, 1, 24, 20)
        assert attribution.maps.isfinite().all()
        singles = torch.cat([of.attribute(images[i : i + 1], target) for i in range(2)])
        torch.testing.assert_close(attribution.maps, singles, rtol=1e-6, atol=1e-9)
        for row, fixed in enumerate(attribution.targets):
            score = fixed.score(network, images[row : row + 1])
            torch.testing.assert_close(attribution.scores[row], score.detach()[0])
    assert not any(module.training for module in network.modules())
    assert all(torch.equal(before[key], value) for key, value in network.state_dict().items())


def test_a_network_is_tried_once_for_all_regions(images):
    network, seen = build(), []
    network.register_forward_pre_hook(lambda _module, args: seen.append(len(args[0])))
    of = Gradient(network)
    counts = []
    for row in range(3):
        seen.clear()
        of.attribute(images, Region(1, (row, 2)))
        counts.append(sum(seen))
    # Once to see that the region fits, once to explain; each mask alone would be tried again.
    assert counts[0] > counts[1] == counts[2] == 2 * len(images)


def test_methods_see_the_region_and_not_the_whole(images):
    network = build().double()
    there = torch.zeros(12, 10, dtype=torch.bool)
    there[:4, :4] = True
    maps = DeepLIFT(network).attribute(images.double(), Region(1, there))
    assert maps[:, :, 9:].abs().max() == 0  # beyond the field of view of the region
    assert maps[:, :, :4, :4].abs().min() > 0


MASKS = [
    ("people", UsageError, "'predicted'"),
    ((-1, 3), UsageError, r"\(row, column\)"),
    ("predictde", UsageError, "predicted"),
    (torch.zeros(4, 4), UsageError, "bool"),
    (torch.zeros(4, 4, dtype=torch.bool), UsageError, "empty"),
    (np.ones((1, 2, 3, 4), bool), UsageError, "bool"),
    (3.5, UsageError, "pixel"),
]


@pytest.mark.parametrize(("mask", "error", "said"), MASKS)
def test_masks_that_are_none(mask, error, said):
    with pytest.raises(error, match=said):
        Region(1, mask)


def test_masks_and_classes_that_do_not_fit(images):
    network = build(resized=False)
    with pytest.raises(ShapeError, match=r"size \(12, 10\) or the outputs' size \(6, 5\), got \(4"):
        Region(1, np.ones((4, 4), bool)).fixed(network, images)
    with pytest.raises(ShapeError, match=r"inside of an image of \(12, 10\)"):
        Region(1, (12, 0)).fixed(network, images)
    with pytest.raises(TargetError, match="from 0 to 3, got 4"):
        Region(4, HALF).fixed(network, images)
    with pytest.raises(TargetError, match="from 0 to 3, got 4"):
        Region(4).fixed(network, images)
    with pytest.raises(TargetError, match="not known before"):
        Region(1).score(network, images)
    with pytest.raises(ModelError, match=r"at each place.*target of a network that is no seg"):
        Region(1).fixed(nn.Sequential(nn.Flatten(), nn.Linear(360, 4)), images)


def test_what_the_caller_does_with_a_mask_changes_nothing(images):
    mask = HALF.clone()
    target = Region(1, mask)
    mask[:] = True
    assert target == Region(1, HALF)
    assert hash(target) == hash(Region(1, HALF.numpy()))
    assert target != Region(1, mask)
    assert target != Region(2, HALF)


WORDS = st.text("abcdefgh ,-_'\"()+:=", min_size=1, max_size=12).filter(
    lambda text: text.strip() == text and text.casefold() not in ("none", "true", "false", "no")
)
CLASSES = st.none() | st.integers(0, 999) | WORDS
PLACES = st.integers(0, 4000)


@given(CLASSES, st.just("predicted") | st.tuples(PLACES, PLACES))
def test_text_says_it(of, mask):
    target = Region(of, mask)
    assert specs.parse(specs.text(target), Target) == target


def test_text_of_some():
    assert specs.parse("region:of=person:mask=predicted", Target) == Region("person")
    assert specs.parse("region:of=3:mask=120+88", Target) == Region(3, (120, 88))
    assert specs.text(Region(3, (120, 88))) == "region:of=3:mask=120+88"
    with pytest.raises(UsageError, match="only Python"):
        specs.parse(specs.text(Region(3, HALF)), Target)


def test_a_picture_shows_the_region(images, tmp_path):
    model = Classifier(build(), labels=LABELS)
    image = torch.full((3, 48, 40), 0.5)
    image[:, 10:30, 8:30] = torch.tensor([0.9, 0.3, 0.2])[:, None, None]
    mask = torch.zeros(48, 40, dtype=torch.bool)
    mask[12:30, 10:28] = True
    one = explain(model, image, Region("dog", mask), method="deeplift")
    assert one._title().startswith(f"dog in the mask, logit {one.score:.3g}".replace("-", "−"))
    drawn = np.asarray(one.overlay())
    assert (drawn[12, 10:28] == 255).all()  # inside
    assert (drawn[11, 10:28] == 0).all()  # outside
    assert not (drawn[20, 15:24] == 255).all()
    assert one.probability is None
    assert one.predicted is None
    record = one.save(tmp_path)["record"].read_text(encoding="utf-8")
    assert '"unit": "logit"' in record


NETWORKS = {
    "fcn_resnet50": "classifier.2",
    "deeplabv3_mobilenet_v3_large": "classifier.3",
    "deeplabv3_resnet50": "classifier.3",
}


def torchvision_model(name: str, images: Tensor) -> Classifier:
    from torchvision.models import segmentation

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        create = getattr(segmentation, name)
        network = create(weights=None, weights_backbone=None, num_classes=6, aux_loss=None)
    model = Classifier(network.eval(), mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
    settle_batch_norms(model, images)
    return model.double()


@pytest.mark.slow
@pytest.mark.parametrize("name", [*NETWORKS, "lraspp_mobilenet_v3_large"])
def test_torchvisions_networks(name):
    images = photographs(64, 2)
    model, images = torchvision_model(name, images), images.double()
    target = Region()
    deeplift = DeepLIFT(model).attribution(images[:1], target)
    assert deeplift.residual.abs().max() < 1e-8
    if name not in NETWORKS:
        with pytest.raises(LayerError, match=r"such as 'classifier\.cbr'"):
            AFMI(model).attribute(images[:1], target)
        return
    attribution = AFMI(model, averaged=False).attribution(images[:1], target)
    assert attribution.layer.name == NETWORKS[name]
    assert attribution.residual.abs().max() < 1e-8
    assert GradCAM(model).attribute(images[:1], target).isfinite().all()


@pytest.mark.slow
def test_a_transformer_that_segments():
    transformers = pytest.importorskip("transformers")
    config = transformers.SegformerConfig(
        depths=[1, 1, 1, 1], hidden_sizes=[8, 8, 16, 16], decoder_hidden_size=12, num_labels=4
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = transformers.SegformerForSemanticSegmentation(config).eval().double()
    images = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0)).double()
    attribution = DeepLIFT(network).attribution(images, Region())
    assert attribution.residual.abs().max() < 1e-9
    mask = torch.zeros(64, 64, dtype=torch.bool)  # the outputs have 16 × 16
    mask[10:30, 20:50] = True
    assert AFMI(network, averaged=False).attribution(images, Region(2, mask)).residual < 1e-9
