"""What every method of the catalogue must keep; a new method is tested without being named."""

from __future__ import annotations

import copy
import dataclasses
import re
from typing import Any

import numpy as np
import pytest
import torch
from networks import TINY, build, images
from settings import STRANGE_DEFAULTS, crossed, defaults, masks_for, method
from torch import Tensor, nn

from afmi.errors import (
    AfmiError,
    LayerError,
    ModelError,
    OperationError,
    ShapeError,
    TargetError,
    UsageError,
)
from afmi.methods import CATALOGUE, Method
from afmi.methods.per_map import PerMapMethod
from afmi.methods.work import Work
from afmi.pictures.references import Blurred, Mean, Random, White
from afmi.pictures.superpixels import Grid

pytestmark = pytest.mark.filterwarnings(
    "ignore::afmi.methods.BlankMapWarning", "ignore::afmi.errors.CompletenessWarning"
)

LAYERS = {"vgg": "features.5", "resnet": "layer1", "functional": "conv2"}
EVERY = crossed(CATALOGUE, TINY)


def attribute(of: Method, inputs: Tensor, target: Any = None) -> Tensor:
    """Return maps; skip where the method does not support this network."""
    try:
        return of.attribute(inputs, target)
    except (LayerError, ModelError, OperationError) as error:
        pytest.skip(f"refuses this network: {error}")


def made(name: str, network: str, dtype: torch.dtype = torch.float32, **options: Any) -> Method:
    return method(name, build(network, dtype), layer=LAYERS[network], **options)


@pytest.mark.parametrize(("name", "network"), EVERY)
def test_maps(name: str, network: str) -> None:
    x = images()[:, :, :, :16]
    maps = attribute(made(name, network), x)
    assert maps.shape == (3, 1, 20, 16)
    assert maps.dtype == torch.float32
    assert not maps.requires_grad
    assert not maps.is_inference()
    assert torch.isfinite(maps).all()


@pytest.mark.parametrize(("name", "network"), EVERY)
def test_batch_equals_singles(name: str, network: str) -> None:
    x, of = images().double(), made(name, network, torch.float64)
    targets = torch.tensor([0, 3, 1])
    maps = attribute(of, x, targets)
    assert maps.dtype == torch.float64
    singles = [of.attribute(x[i : i + 1], int(targets[i])) for i in range(3)]
    torch.testing.assert_close(maps, torch.cat(singles), rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize(("name", "network"), EVERY)
def test_no_target_means_the_predicted_class(name: str, network: str) -> None:
    x, of = images(), made(name, network)
    with torch.no_grad():
        predicted = of.model(x).argmax(1)
    maps = attribute(of, x)
    assert torch.equal(maps, of.attribute(x, predicted))
    assert torch.equal(of.attribution(x).target, predicted)


@pytest.mark.parametrize("name", CATALOGUE)
def test_same_seed_gives_the_same_bits(name: str) -> None:
    x = images()
    first = attribute(made(name, "resnet"), x, 1)
    torch.rand(7)
    assert torch.equal(attribute(made(name, "resnet"), x, 1), first)
    blank = bool((first == first[:, :, :1, :1]).all())  # so few steps may show nothing
    if "seed" in CATALOGUE[name].__dataclass_fields__ and not blank:
        assert not torch.equal(attribute(made(name, "resnet", seed=1), x, 1), first)


@pytest.mark.filterwarnings("ignore::afmi.errors.ImageIndependenceWarning")
@pytest.mark.parametrize(("name", "strange"), crossed(CATALOGUE, STRANGE_DEFAULTS), ids=str)
def test_default_dtype_and_device_change_nothing(name: str, strange: dict[str, Any]) -> None:
    """The same random numbers and bits, whatever a program has set for tensors of its own."""
    several = {} if name != "MeaningfulPerturbation" else {"area": 0.0}
    x, network = images(2), Pooled().eval()
    expected = method(name, network, **several).attribution(x, 1)
    network = copy.deepcopy(network)  # of which nothing is kept
    with defaults(**strange):
        attribution = method(name, network, **several).attribution(x, 1)
    assert torch.equal(attribution.maps, expected.maps)
    assert expected.maps.std() > 0
    for value in (attribution.logits, attribution.residual):
        assert value is None or (value.dtype, value.device) == (x.dtype, x.device)


@pytest.mark.parametrize("name", CATALOGUE)
def test_ways_to_give_the_target(name: str) -> None:
    x, of = images(2), made(name, "resnet")
    expected = attribute(of, x, 2)
    for target in (torch.tensor(2), torch.tensor([2]), [2, 2], np.int64(2), torch.tensor([2, 2])):
        assert torch.equal(of.attribute(x, target), expected)


@pytest.mark.parametrize("name", CATALOGUE)
def test_several_classes_equal_each_class(name: str) -> None:
    x, of = images(2).double(), made(name, "resnet", torch.float64)
    expected = torch.stack([attribute(of, x, c) for c in (0, 4, 2)])
    maps = of.attribute_classes(x, [0, 4, 2])
    torch.testing.assert_close(maps, expected, rtol=1e-9, atol=1e-12)
    per_image = torch.tensor([[0, 4], [2, 0]])
    torch.testing.assert_close(
        of.attribute_classes(x, per_image)[1, 0], expected[2, 0], rtol=1e-6, atol=1e-9
    )


OF_REFERENCES = [
    (name, one.name)
    for name, kind in CATALOGUE.items()
    for one in dataclasses.fields(kind)
    if "Reference" in str(one.type)
]


@pytest.mark.parametrize(("name", "parameter"), OF_REFERENCES)
def test_what_stands_for_a_reference_is_one(name: str, parameter: str) -> None:
    x = images(1)
    of = made(name, "resnet", **{parameter: 0.5})
    expected = made(name, "resnet", **{parameter: Mean((0.5, 0.5, 0.5))}).attribute(x, 1)
    torch.testing.assert_close(of.attribute(x, 1), expected)
    assert torch.equal(dataclasses.replace(of).attribute(x, 1), of.attribute(x, 1))
    with pytest.raises(UsageError, match="expected a reference"):
        made(name, "resnet", **{parameter: object()})


BAD_TARGETS: list[tuple[Any, str]] = [
    (5, "0 to 4, got 5"),
    (-1, "got -1"),
    ([0, 7], "got 7"),
    ([0, 1, 2], r"\(3,\)"),
    (1.5, "float"),
    (torch.tensor([0.0, 1.0]), "float"),
    (True, "True"),
    ("cat", "cat"),
    (torch.zeros(2, 2, dtype=torch.int64), r"\(2, 2\)"),
    ([], r"\(0,\)|float"),
    (2**70, "got 1180591620717411303424"),
    ({0, 1}, "got {0, 1}"),
    ([[0], [1, 2]], "got"),
    (b"1", "got b'1'"),
    ([True, 1], r"got \[True, 1\]"),
    (torch.tensor(1, device="meta"), "got"),
]


@pytest.mark.parametrize(("name", "wrong"), crossed(CATALOGUE, BAD_TARGETS))
def test_bad_targets(name: str, wrong: tuple[Any, str]) -> None:
    target, got = wrong
    of = made(name, "resnet")
    with pytest.raises(TargetError, match=got):
        of.attribute(images(2), target)


@pytest.mark.parametrize(
    "targets", [1, 1.5, "cat", None, {0, 1}, [[0], [1, 2]], [2**70], [True], [0, True]]
)
def test_bad_rows_of_targets(targets: Any) -> None:
    with pytest.raises(TargetError, match=r"expected|no labels"):
        made("GradCAM", "resnet").attribute_classes(images(2), targets)


# Others are in test_foreign.py.
BAD_INPUTS: list[tuple[Any, type[AfmiError], str]] = [
    ("dog.jpg", ShapeError, "str"),
    (images() / 0, UsageError, "NaN or infinity"),
]


@pytest.mark.parametrize(("inputs", "error", "got"), BAD_INPUTS)
@pytest.mark.parametrize("name", CATALOGUE)
def test_bad_inputs(name: str, inputs: Any, error: type[AfmiError], got: str) -> None:
    with pytest.raises(error, match=got):
        made(name, "resnet").attribute(inputs)


@pytest.mark.parametrize("name", CATALOGUE)
def test_model_that_is_no_module(name: str) -> None:
    with pytest.raises(ModelError, match="function"):
        CATALOGUE[name](lambda x: x).attribute(images())  # type: ignore[arg-type]


class OneClass(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.mean()


@pytest.mark.parametrize("name", CATALOGUE)
def test_model_without_class_logits(name: str) -> None:
    with pytest.raises(AfmiError):
        method(name, OneClass()).attribute(images())


@pytest.mark.parametrize("name", CATALOGUE)
def test_description(name: str) -> None:
    kind = CATALOGUE[name]
    for text in (kind.name, kind.scores, kind.paper, kind.__doc__):
        assert text
    assert kind.__dataclass_params__.frozen  # type: ignore[attr-defined]
    of = made(name, "resnet")
    assert of.work(images(1)).forwards >= 1
    assert "TinyResNet" not in repr(of)
    with pytest.raises(AttributeError):
        of.model = None  # type: ignore[misc]


@pytest.mark.parametrize("name", CATALOGUE)
def test_only_signed_maps_have_values_below_zero(name: str) -> None:
    of = method(name, (Pooled() if name == "CAM" else build("resnet")).double().eval())
    assert isinstance(of.signed, bool)
    lowest = float(of.attribute(images(3).double(), 1).min())
    assert of.signed or lowest >= 0 or name == "XRAI"  # whose regions are ranked by means


def test_a_smoothed_map_is_signed_where_the_method_is() -> None:
    model = build("resnet")
    smoothed = CATALOGUE["SmoothGrad"]
    assert not smoothed(model).signed
    assert smoothed(model, base=CATALOGUE["LRP"](model)).signed
    assert not smoothed(model, base=CATALOGUE["GradCAM"](model)).signed


@pytest.mark.parametrize("name", CATALOGUE)
def test_copies_explain_alike(name: str) -> None:
    of, x = made(name, "resnet"), images(1)
    assert torch.equal(attribute(copy.deepcopy(of), x, 0), attribute(of, x, 0))


SEVERAL = Random(samples=3)
PIXELS = ("FullGrad", "Gradient", "InputXGradient", "DeconvNet", "GuidedBackprop", "LRP")
MAPS = ("GradCAM", "GradCAMPlusPlus", "CAM", "HiResCAM", "LayerCAM", "XGradCAM")
COUNTED: list[tuple[str, dict[str, Any], Work]] = [
    ("Random", {}, Work(1)),
    *((name, {}, Work(1, 1)) for name in PIXELS),
    *((name, {}, Work(1, layer_backwards=1)) for name in MAPS),
    ("EigenCAM", {}, Work(1)),
    ("ScoreCAM", {}, Work(1 + 6)),
    ("AblationCAM", {}, Work(2, layer_forwards=6)),
    ("AblationCAM", {"batch_size": 4}, Work(3, layer_forwards=6)),
    ("AFMI", {}, Work(1, layer_backwards=1)),
    ("AFMI", {"reference": SEVERAL}, Work(1, layer_backwards=3)),
    ("AFMI", {"reference": Blurred()}, Work(2, layer_backwards=1)),
    ("MultiscaleAFMI", {}, Work(1, 1)),
    ("MultiscaleAFMI", {"reference": SEVERAL}, Work(1, 3)),
    ("MultiscaleAFMI", {"reference": Blurred()}, Work(2, 1)),
    ("DeepLIFT", {}, Work(1, 1)),
    ("DeepLIFT", {"reference": SEVERAL}, Work(1, 3)),
    ("DeepLIFT", {"reference": Blurred()}, Work(2, 1)),
    ("IntegratedGradients", {"steps": 10}, Work(12, 10)),
    ("IntegratedGradients", {"steps": 4, "reference": SEVERAL}, Work(16, 12)),
    ("IntegratedGradients", {"steps": 4, "reference": Blurred()}, Work(6, 4)),
    ("GradientSHAP", {"samples": 7}, Work(10, 7)),
    ("GradientSHAP", {"samples": 7, "reference": Blurred()}, Work(9, 7)),
    ("SmoothGrad", {"samples": 6}, Work(7, 6)),
    ("KernelSHAP", {"samples": 20, "segmentation": Grid(4)}, Work(23)),
    ("KernelSHAP", {"samples": 20, "segmentation": Grid(2)}, Work(1 + 2**4)),
    ("KernelSHAP", {"samples": 20, "reference": SEVERAL, "segmentation": Grid(4)}, Work(67)),
    ("KernelSHAP", {"segmentation": Grid(4)}, Work(1 + 2 + 2 * 16 + 2048)),
    ("LIME", {"samples": 9}, Work(10)),
    ("Occlusion", {}, Work(2 + 100)),
    ("Occlusion", {"patch": 8, "stride": 4}, Work(2 + 16)),
    ("RISE", {"masks": 12}, Work(13)),
    ("PredictionDifference", {"window": 5, "stride": 5, "samples": 3}, Work(2 + 3 * 16)),
    ("PredictionDifference", {"window": 5, "stride": 5, "reference": SEVERAL}, Work(2 + 3 * 16)),
    ("PredictionDifference", {"window": 5, "stride": 5, "reference": White()}, Work(2 + 16)),
    ("MeaningfulPerturbation", {"iterations": 4}, Work(26, 4)),
    ("ExtremalPerturbation", {"iterations": 4, "areas": (0.1, 0.2, 0.3)}, Work(13, 12)),
    ("XRAI", {"steps": 5}, Work(13, 10)),
    ("XRAI", {"steps": 5, "reference": Blurred()}, Work(7, 5)),
    ("MaskingModel", {}, Work(1)),
]


def test_the_work_of_every_method_is_counted() -> None:
    assert {name for name, _, _ in COUNTED} == set(CATALOGUE)


@pytest.mark.parametrize(("name", "options", "expected"), COUNTED)
def test_the_work_is_what_is_counted(
    name: str, options: dict[str, Any], expected: Work, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`compare` estimates the time of a method by it, and the catalogue states the cost."""
    model, x = (Pooled() if name == "CAM" else build("resnet")).eval(), images(1)
    if name == "MaskingModel":
        options = {"weights": masks_for(model)}
    of = CATALOGUE[name](model, **options)
    assert of.work(x) == expected
    assert counted(of, x, monkeypatch) == expected


def test_the_work_with_a_base_method_is_what_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    model, x = build("resnet"), images(1)
    of = CATALOGUE["SmoothGrad"](model, base=CATALOGUE["AFMI"](model), samples=5)
    assert counted(of, x, monkeypatch) == of.work(x) == Work(6, layer_backwards=5)


class Pooled(nn.Sequential):
    def __init__(self) -> None:
        pool = nn.AdaptiveAvgPool2d(1)
        super().__init__(nn.Conv2d(3, 5, 3), nn.ReLU(), pool, nn.Flatten(), nn.Linear(5, 5))


def counted(of: Method, x: Tensor, monkeypatch: pytest.MonkeyPatch) -> Work:
    """Return the passes made for one image, without those that are made once and kept."""
    forwards, backwards, layer_backwards, behind = 0, 0, 0, 0
    gradient = torch.autograd.grad

    def count_forwards(_module: nn.Module, args: tuple[Tensor, ...]) -> None:
        nonlocal forwards
        forwards += len(args[0])

    def count_behind(_module: nn.Module, args: tuple[Tensor, ...]) -> None:
        nonlocal behind
        behind += len(args[0])

    def count_backwards(
        outputs: Tensor, inputs: Tensor | list[Tensor], *args: Any, **kwargs: Any
    ) -> Any:
        nonlocal backwards, layer_backwards
        leaf = inputs[0] if isinstance(inputs, list) else inputs  # what a run begins with
        logits = outputs.dim() == 2 and len(outputs) == len(leaf)
        if logits and leaf.shape[1:] == x.shape[1:]:
            backwards += len(outputs)
        elif logits:
            layer_backwards += len(outputs)
        return gradient(outputs, inputs, *args, **kwargs)

    head = of.model[-1] if isinstance(of.model, nn.Sequential) else of.model.fc  # behind the layer
    handles = [
        of.model.register_forward_pre_hook(count_forwards),
        head.register_forward_pre_hook(count_behind),
    ]
    of.attribute(x, 0)  # which tries the network and runs the reference
    forwards = behind = 0
    monkeypatch.setattr(torch.autograd, "grad", count_backwards)
    of.attribute(x, 0)
    for handle in handles:
        handle.remove()
    return Work(forwards, backwards, layer_backwards, behind - forwards)


@pytest.mark.parametrize("name", CATALOGUE)
def test_the_cost_says_the_work(name: str) -> None:
    of = CATALOGUE[name](build("resnet"))
    work = of.work(torch.zeros(1, 3, 224, 224))
    assert of.cost == CATALOGUE[name].default_cost()
    if isinstance(of, PerMapMethod):  # which depends on the layer
        assert of.cost.endswith("for each feature map")
        return
    assert of.cost == str(work)
    numbers = (work.forwards, work.backwards, work.layer_backwards, work.layer_forwards)
    assert re.findall(r"[\d,]+", of.cost) == [f"{number:,}" for number in numbers if number]


def test_the_cost_follows_the_parameters() -> None:
    model = build("resnet")
    assert CATALOGUE["IntegratedGradients"](model, steps=10).cost == "12 forwards + 10 backwards"
    assert CATALOGUE["RISE"](model, masks=5000).cost == "5,001 forwards"
    assert CATALOGUE["GradCAM"](model).cost == "1 forward + 1 backward behind the layer"
