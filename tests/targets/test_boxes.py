"""Box: the score of a class in a box of the image, where a network detects objects."""

from __future__ import annotations

import copy
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from settings import UNTRAINED, method
from torch import Tensor, nn
from torchvision.models import detection
from torchvision.models.detection.anchor_utils import AnchorGenerator, DefaultBoxGenerator
from torchvision.models.detection.ssd import SSD
from torchvision.ops import MultiScaleRoIAlign

from afmi import AFMI, Classifier, explain, specs
from afmi.errors import LayerError, ModelError, TargetError, UsageError
from afmi.methods import RISE, DeepLIFT, Gradient
from afmi.targets import Box, Target
from afmi.targets.boxes import _decoded, _features, _level_logits

LABELS = ["background", "cat", "dog", "owl"]


def backbone() -> nn.Module:
    network = nn.Sequential(
        nn.Sequential(nn.Conv2d(3, 6, 3, stride=2, padding=1), nn.ReLU(inplace=True)),
        nn.Sequential(nn.Conv2d(6, 32, 3, stride=2, padding=1), nn.SiLU()),
    )
    network.out_channels = 32  # type: ignore[assignment]
    return network


class Levels(nn.Module):
    """A backbone that gives maps of two sizes."""

    def __init__(self) -> None:
        super().__init__()
        self.body = backbone()
        self.down = nn.Conv2d(32, 32, 3, stride=2, padding=1)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        maps = self.body(images)
        return {"0": maps, "1": self.down(maps.relu())}


def retinanet() -> nn.Module:
    anchors = AnchorGenerator(((8.0, 16.0),), ((0.5, 1.0),))
    return detection.RetinaNet(
        backbone(), 4, min_size=40, max_size=64, anchor_generator=anchors, score_thresh=0.0
    )


def fcos() -> nn.Module:
    anchors = AnchorGenerator(((8.0,),), ((1.0,),))
    return detection.FCOS(
        backbone(), 4, min_size=40, max_size=64, anchor_generator=anchors, score_thresh=0.0
    )


def ssd() -> nn.Module:
    anchors = DefaultBoxGenerator([[2], [2, 3]], scales=[0.2, 0.5, 0.9])
    levels = Levels()
    levels.out_channels = [32, 32]  # type: ignore[assignment]
    return SSD(levels, anchors, (48, 40), 4, score_thresh=0.0)


ONE_STAGE: dict[str, Callable[[], nn.Module]] = {"retinanet": retinanet, "fcos": fcos, "ssd": ssd}


def build(make: Callable[[], nn.Module]) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = make().eval()
        for name, parameter in network.named_parameters():  # which these leave at nearly zero
            if parameter.dim() > 1 and "regression" not in name:
                nn.init.kaiming_normal_(parameter)
            elif name.endswith("regression_head.bbox_reg.bias"):
                nn.init.ones_(parameter)
    return network


class Brightness(nn.Module):
    """Detect a cat in the left half and a dog in the right, each as certain as it is bright."""

    def forward(self, images: Tensor) -> list[dict[str, Tensor]]:
        found = []
        for image in images:
            half = image.shape[2] // 2
            boxes = [[0, 0, half, image.shape[1]], [half, 0, image.shape[2], image.shape[1]]]
            scores = torch.stack([image[..., :half].mean(), image[..., half:].mean()])
            kept = scores > 0.05
            boxes = torch.tensor(boxes, dtype=image.dtype, device=image.device)
            labels = torch.tensor([1, 2], device=image.device)
            found.append({"boxes": boxes[kept], "labels": labels[kept], "scores": scores[kept]})
        return found


@pytest.fixture
def images() -> Tensor:
    return torch.rand(2, 3, 33, 30, generator=torch.Generator().manual_seed(0))


BOXES = {
    "the most certain": Box(),
    "the most certain of a class": Box(2),
    "a box": Box(box=(3, 4, 20, 25)),
    "a class in a box": Box(1, (3, 4, 20, 25)),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("target", BOXES.values(), ids=BOXES)
@pytest.mark.parametrize("name", ONE_STAGE)
def test_maps_sum_to_the_change_of_the_logit(name, target, dtype, images):
    network, images = build(ONE_STAGE[name]).to(dtype), images.to(dtype)
    bound = 1e-5 if dtype == torch.float32 else 1e-10
    for make in (AFMI(network, averaged=False), DeepLIFT(network)):
        attribution = make.attribution(images, target)
        for row, fixed in enumerate(attribution.targets):
            assert fixed.unit == "logit"
            image = images[row : row + 1]
            with torch.no_grad():
                black = torch.zeros_like(image)
                change = float(fixed.score(network, image) - fixed.score(network, black))
            scale = max(abs(change), float(attribution.scores.abs().max()))
            assert abs(float(attribution.residual[row])) * abs(change) < bound * scale
            if isinstance(make, DeepLIFT):
                assert float(attribution.maps[row].sum()) == pytest.approx(change, abs=bound * 10)


@torch.no_grad()
@pytest.mark.parametrize("name", ONE_STAGE)
def test_what_is_explained_is_what_the_detector_computes(name, images):
    network = build(ONE_STAGE[name])
    levels, batch, size = _features(network, images)
    transformed, _ = network.transform([*images])
    assert torch.equal(batch, transformed.tensors)
    assert [size] * 2 == [tuple(one) for one in transformed.image_sizes]
    logits = network.head(levels)["cls_logits"]
    each = [_level_logits(network, images, level) for level in range(len(levels))]
    torch.testing.assert_close(torch.cat(each, 1), logits)
    boxes, probabilities, places = _decoded(network, images)
    for row, found in enumerate(network([*images])):
        fixed = Box().fixed(network, images)[row]
        best = int(found["scores"].argmax())
        assert fixed.of == int(found["labels"][best])
        torch.testing.assert_close(torch.tensor(fixed.box), found["boxes"][best])
        level, index = fixed._anchor
        (at,) = (places[row] == torch.tensor([level, index])).all(1).nonzero().flatten().tolist()
        torch.testing.assert_close(boxes[row][at], found["boxes"][best])
        torch.testing.assert_close(probabilities[row, at, fixed.of], found["scores"][best])
        score = fixed.score(network, images[row : row + 1])
        torch.testing.assert_close(score[0], logits[row, at, fixed.of])


@pytest.mark.parametrize("name", ONE_STAGE)
def test_a_classifier_around_a_detector_normalises_and_names(name, images):
    network = build(ONE_STAGE[name])
    model = Classifier(network, mean=(0.2, 0.3, 0.4), std=(2, 2, 2), labels=LABELS)
    target = Box("dog", (3, 4, 20, 25)).fixed(model, images[:1])[0]
    inner = (images[:1] - model.mean) / model.std
    torch.testing.assert_close(target.score(model, images[:1]), target.score(network, inner))
    attribution = DeepLIFT(model).attribution(images[:1], Box("dog", (3, 4, 20, 25)))
    assert attribution.targets[0].label(model) == "dog in the box (3, 4) to (20, 25)"
    assert abs(float(attribution.residual)) < 1e-3


def test_the_stage_is_the_heads_own(images):
    attribution = AFMI(build(retinanet)).attribution(images[:1], Box(1, (3, 4, 20, 25)))
    assert str(attribution.layer) == "head.classification_head.conv"
    attribution = AFMI(build(ssd)).attribution(images[:1], Box(1, (3, 4, 20, 25)))
    assert str(attribution.layer) in ("backbone.body", "backbone.down")


BLIND = ("KernelSHAP", "LIME", "Occlusion", "PredictionDifference", "RISE", "Random")


@pytest.mark.filterwarnings(
    "ignore::afmi.methods.BlankMapWarning",
    "ignore::afmi.errors.CompletenessWarning",
    "ignore::afmi.errors.ImageIndependenceWarning",
)
@pytest.mark.parametrize("name", UNTRAINED)
def test_every_method(name, images):
    network = build(retinanet)
    before = copy.deepcopy(network.state_dict())
    target = Box(1, (3, 4, 20, 25))
    if name == "CAM":
        with pytest.raises(LayerError):
            method(name, network).attribute(images, target)
    else:
        attribution = method(name, network).attribution(images, target)
        assert attribution.maps.shape == (2, 1, 33, 30)
        assert attribution.maps.isfinite().all()
        assert [one.unit for one in attribution.targets] == ["logit"] * 2
    assert not any(module.training for module in network.modules())
    assert all(torch.equal(before[key], value) for key, value in network.state_dict().items())
    detector = method(name, Brightness())
    if name in BLIND:
        assert detector.attribute(images, Box(1)).isfinite().all()
        return
    with pytest.raises(TargetError, match=r"LIME, PredictionDifference or RISE"):
        detector.attribute(images, Box(1))


def test_detections_are_scored_by_overlap_and_certainty(images):
    network = Brightness()
    left, right = images[..., :15].mean((1, 2, 3)), images[..., 15:].mean((1, 2, 3))
    torch.testing.assert_close(Box(1, (0, 0, 15, 33)).score(network, images), left)
    torch.testing.assert_close(Box(2, (15, 0, 30, 33)).score(network, images), right)
    torch.testing.assert_close(Box(1, (0, 0, 30, 33)).score(network, images), left / 2)
    assert torch.equal(Box(1, (15, 0, 30, 33)).score(network, images), torch.zeros(2))
    assert torch.equal(Box(3, (0, 0, 15, 33)).score(network, images), torch.zeros(2))
    dark = torch.zeros_like(images)
    assert torch.equal(Box(1, (0, 0, 15, 33)).score(network, dark), torch.zeros(2))


def test_the_detection_is_fixed_once(images):
    images[0, ..., :15] /= 2
    network = Brightness()
    first, second = Box().fixed(network, images)
    assert (first.of, first.box) == (2, (15.0, 0.0, 30.0, 33.0))
    assert first.unit == "detection score"
    assert Box(1).fixed(network, images)[0].box == (0.0, 0.0, 15.0, 33.0)
    assert Box(box=(0, 0, 16, 33)).fixed(network, images)[1].of == 1
    assert second.box is not None
    attribution = RISE(network, masks=40).attribution(images, Box())
    assert attribution.targets == (first, second)
    torch.testing.assert_close(attribution.scores[0], images[0, ..., 15:].mean())


def test_rise_finds_the_half_that_counts():
    images = torch.full((1, 3, 32, 32), 0.8)
    maps = RISE(Brightness(), masks=200).attribute(images, Box(2))[0, 0]
    assert maps[:, 20:].mean() > maps[:, :12].mean()


def test_what_is_not_there_is_refused_with_what_is(images):
    model = Classifier(Brightness(), labels=LABELS)
    with pytest.raises(TargetError, match=r"no owl in this image; it detects .*cat \(0\.\d"):
        Box("owl").fixed(model, images)
    with pytest.raises(TargetError, match="detects no cat that meets the box"):
        Box("cat", (20, 0, 30, 30)).fixed(model, images)
    with pytest.raises(TargetError, match="detects nothing in this image; it detects nothing"):
        Box().fixed(model, images * 0)
    with pytest.raises(ModelError, match="expected a detector"):
        Box(1, (0, 0, 3, 3)).fixed(nn.Flatten(), images)
    with pytest.raises(TargetError, match="not known before"):
        Box(1).score(model, images)
    with pytest.raises(TargetError, match="no anchor's box meets"):
        Box(1, (500, 500, 510, 510)).fixed(build(retinanet), images)
    with pytest.raises(TargetError, match="from 0 to 3, got 9"):
        Box(9, (3, 4, 20, 25)).fixed(build(retinanet), images)


def test_two_stages_are_told_apart(images):
    def faster_rcnn() -> nn.Module:
        anchors = AnchorGenerator(((8.0, 16.0),), ((0.5, 1.0),))
        sizes = {"min_size": 40, "max_size": 64, "box_score_thresh": 0.0}
        pooled = MultiScaleRoIAlign(["0"], output_size=3, sampling_ratio=2)
        return detection.FasterRCNN(
            backbone(), 4, rpn_anchor_generator=anchors, box_roi_pool=pooled, **sizes
        )

    network = build(faster_rcnn)
    (fixed, _) = Box().fixed(network, images)
    assert fixed.unit == "detection score"
    for make in (Gradient(network), AFMI(network), DeepLIFT(network)):
        with pytest.raises(TargetError, match="proposals or non-maximum suppression"):
            make.attribute(images[:1], fixed)
    attribution = RISE(network, masks=10).attribution(images[:1], fixed)
    found = network([*images[:1]])[0]["scores"].max()
    torch.testing.assert_close(attribution.scores[0], found.detach())


@pytest.mark.parametrize("box", [(1, 2, 3), (5, 2, 3, 9), "cat", (0, -1, 4, 4), 7, (0, 0, 1, "x")])
def test_boxes_that_are_none(box):
    with pytest.raises(UsageError, match=r"\(left, top, right, bottom\)"):
        Box(1, box)


SIDES = st.floats(0, 4000, allow_nan=False)
WORDS = st.text("abcdefgh ,-_'\"()+:=", min_size=1, max_size=12).filter(
    lambda text: text.strip() == text and text.casefold() not in ("none", "true", "false", "no")
)


@given(st.none() | st.integers(0, 99) | WORDS, st.none() | st.tuples(SIDES, SIDES, SIDES, SIDES))
def test_text_says_it(of, sides):
    box = None
    if sides is not None:
        left, top, width, height = sides
        box = (left, top, left + width + 1, top + height + 1)
    target = Box(of, box)
    assert specs.parse(specs.text(target), Target) == target


def test_text_of_one():
    target = Box("person", (10, 20.5, 110, 220))
    assert specs.text(target) == "box:of=person:box=10+20.5+110+220"
    assert specs.parse("box:of=person:box=10+20.5+110+220", Target) == target


def test_a_picture_shows_the_box(images):
    model = Classifier(Brightness(), labels=LABELS)
    one = explain(model, torch.full((3, 40, 48), 0.5), Box("dog"), method="rise", masks=30)
    assert one.answer == "dog in the box (24, 0) to (48, 40), detection score 0.5"
    drawn = np.asarray(one.overlay())
    assert (drawn[5:35, 24] == 255).all()
    assert (drawn[5:35, 23] == 0).all()
    assert not (drawn[20, 30:40] == 255).all()


@pytest.mark.slow
def test_the_smallest_of_torchvision():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = detection.ssdlite320_mobilenet_v3_large(
            weights=None, weights_backbone=None, num_classes=6
        ).eval()
    images = torch.rand(1, 3, 120, 100, generator=torch.Generator().manual_seed(0)).double()
    for make in (AFMI(network.double(), averaged=False), DeepLIFT(network)):
        attribution = make.attribution(images, Box(2, (10, 20, 60, 100)))
        assert abs(float(attribution.residual)) < 1e-8
