"""The last convolutional stage is chosen in every architecture that the package names."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import torchvision
from networks import MNISTNet, build, images
from torch import Tensor, nn

from afmi.errors import LayerError, OperationError, ShapeError
from afmi.methods import AFMI
from afmi.network.classifier import Classifier
from afmi.network.layers import Layer, find_layer, layer_names, resolve_layer

LAST_STAGE = {
    "alexnet": "features.11",
    "convnext_tiny": "features",
    "densenet121": "features+relu",
    "efficientnet_b0": "features",
    "efficientnet_v2_s": "features",
    "googlenet": "inception5b",
    "inception_v3": "Mixed_7c",
    "maxvit_t": "blocks.3",
    "mnasnet0_5": "layers",
    "mnasnet1_0": "layers",
    "mobilenet_v2": "features",
    "mobilenet_v3_large": "features",
    "resnet152": "layer4",
    "resnet18": "layer4",
    "resnet50": "layer4",
    "resnext101_32x8d": "layer4",
    "shufflenet_v2_x1_0": "conv5",
    "squeezenet1_0": "features",
    "squeezenet1_1": "features",
    "swin_t": "permute",
    "swin_v2_t": "permute",
    "vgg16": "features.29",
    "vgg19": "features.35",
    "vgg19_bn": "features.51",
    "vit_b_16": "encoder.layers.encoder_layer_10",
    "vit_l_32": "encoder.layers.encoder_layer_22",
    "wide_resnet50_2": "layer4",
}
# Their constructors compute with the sizes of blocks, which needs tensors with values.
LAST_STAGE_CPU = {"regnet_x_400mf": "trunk_output", "regnet_y_400mf": "trunk_output"}


def shape_only(name: str) -> nn.Module:
    """Return a torchvision network without memory for its weights: built and run in no time."""
    options: dict[str, Any] = {}
    if name in ("googlenet", "inception_v3"):
        options = {"init_weights": False, "aux_logits": False}
    with torch.device("meta"):
        return torchvision.models.get_model(name, weights=None, **options).eval()


# Built as another one is, but deeper, wider or shallower.
RELATIVES = {
    *("efficientnet_v2_s", "mnasnet0_5", "resnet152", "resnet50", "resnext101_32x8d"),
    *("squeezenet1_1", "vgg16", "vgg19_bn", "vit_l_32", "wide_resnet50_2"),
}


@pytest.mark.parametrize(
    "name",
    [pytest.param(n, marks=pytest.mark.slow if n in RELATIVES else ()) for n in LAST_STAGE],
)
def test_last_stage_of_torchvision_networks(name: str) -> None:
    network = shape_only(name)
    size = torchvision.models.get_model_weights(name).DEFAULT.transforms().crop_size[0]
    assert (
        str(find_layer(network, torch.empty(1, 3, size, size, device="meta"))) == (LAST_STAGE[name])
    )


@pytest.mark.parametrize("name", LAST_STAGE_CPU)
def test_last_stage_of_regnets(name: str) -> None:
    network = torchvision.models.get_model(name, weights=None).eval()
    assert str(find_layer(network, images(1, 64))) == LAST_STAGE_CPU[name]


@pytest.mark.parametrize(
    ("name", "expected"),
    [("vgg", "features.5"), ("resnet", "layer1"), ("functional", "conv2+hardswish")],
)
def test_last_stage_of_tiny_networks(name: str, expected: str) -> None:
    network = build(name)
    layer = find_layer(network, images())
    assert str(layer) == expected
    assert find_layer(Classifier(build(name)), images()) == layer
    module, again = resolve_layer(network, None, images())
    assert again == layer
    assert module is network.get_submodule(layer.name)


def test_a_function_that_pools_after_the_activation() -> None:
    assert str(find_layer(MNISTNet().eval(), images(1, 28, channels=1))) == "conv2+relu"


def test_an_operation_on_a_mask_is_no_layer_behind_the_maps() -> None:
    """`torch.where(x > 0, x, y)` is applied to the mask, so it is not what follows the module."""

    class Leaky(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.maps = nn.Conv2d(3, 4, 3)

        def forward(self, x: Tensor) -> Tensor:
            x = self.maps(x)
            return torch.where(x > 0, x, 0.1 * x).mean((2, 3))

    network = Leaky().eval()
    assert find_layer(network, images(1)) == Layer("maps")
    with pytest.raises(OperationError, match="'where' brings the feature maps together with val"):
        AFMI(network).attribute(images(1))


def conv(before: int, after: int, **options: Any) -> nn.Conv2d:
    return nn.Conv2d(before, after, 3, padding=1, **options)


POOLED = (nn.AdaptiveAvgPool2d(1), nn.Flatten())


class PooledFirst(nn.Module):
    """ReLU after pooling, both functions: PyTorch's oldest MNIST example."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2, self.drop = conv(3, 4), conv(4, 6), nn.Dropout2d()
        self.fc = nn.Linear(6 * 16, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(F.max_pool2d(self.conv1(x), 2))
        x = F.relu(F.max_pool2d(self.drop(self.conv2(x)), 2))
        return F.log_softmax(self.fc(x.flatten(1)), 1)


class OwnHead(nn.Module):
    """A head of another name, an identity behind the stage, an activation that is a method."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.Sequential(conv(3, 4), nn.ReLU(), conv(4, 4), nn.BatchNorm2d(4))
        self.norm = nn.Identity()
        self.scores = nn.Parameter(torch.ones(4, 4))

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return {"logits": self.norm(self.backbone(x)).relu().mean((2, 3)) @ self.scores}


class UNet(nn.Module):
    """An encoder and a decoder with a skip, then a mean over places."""

    def __init__(self) -> None:
        super().__init__()
        self.down1, self.down2 = conv(3, 4), conv(4, 4, stride=2)
        self.up = nn.ConvTranspose2d(4, 4, 2, stride=2)
        self.merge, self.fc = conv(8, 4), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        fine = F.relu(self.down1(x))
        coarse = F.relu(self.down2(fine))
        x = F.relu_(self.merge(torch.cat([fine, self.up(coarse)], 1)))
        return self.fc(x.mean(dim=(2, 3)))


class InPlace(nn.Module):
    """An in-place function on the output of an in-place module."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.act, self.fc = conv(3, 4), nn.ReLU(inplace=True), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(F.hardtanh_(self.act(self.conv(x))).amax((2, 3)))


USERS = {
    "plain convolutions": (
        nn.Sequential(conv(3, 4), conv(4, 4), nn.Flatten(), nn.Linear(4 * 256, 5)),
        "1",
    ),
    "scores by a 1x1 convolution": (
        nn.Sequential(conv(3, 4), nn.ReLU(), nn.Conv2d(4, 5, 1), *POOLED),
        "1",
    ),
    "scores by an unpadded convolution": (
        nn.Sequential(conv(3, 4), nn.ReLU(), nn.Conv2d(4, 5, 3), nn.ReLU(), *POOLED),
        "1",
    ),
    "an only convolution": (nn.Sequential(conv(3, 5), *POOLED), "0"),
    "group norm and SiLU": (
        nn.Sequential(
            nn.Sequential(conv(3, 4), nn.GroupNorm(2, 4), nn.SiLU()),
            nn.Sequential(conv(4, 4), nn.GroupNorm(2, 4), nn.SiLU()),
            *(*POOLED, nn.Linear(4, 4)),
        ),
        "1",
    ),
    "strides down to one place": (
        nn.Sequential(*(m for _ in range(5) for m in (conv(3, 3, stride=2), nn.ReLU())), *POOLED),
        "5",
    ),
    "a fully connected layer as a convolution": (
        nn.Sequential(conv(3, 4), nn.ReLU(), nn.Conv2d(4, 6, 16), nn.ReLU(), nn.Conv2d(6, 5, 1),
                      nn.Flatten()),
        "1",
    ),
    "pooled first": (PooledFirst(), "drop"),
    "own head": (OwnHead(), "backbone+relu"),
    "U-Net": (UNet(), "merge+relu"),
    "in place": (InPlace(), "act+hardtanh"),
}  # fmt: skip


@pytest.mark.parametrize("name", USERS)
def test_last_stage_of_users_networks(name: str) -> None:
    network, expected = USERS[name]
    assert str(find_layer(network, images(2, 16))) == expected


def test_a_stage_that_no_module_gives_is_refused_with_a_proposal() -> None:
    class Gated(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.gate, self.fc = conv(3, 4), nn.Conv2d(4, 4, 1), nn.Linear(4, 3)

        def forward(self, x: Tensor) -> Tensor:
            x = F.relu(self.conv(x))
            return self.fc((x * self.gate(x).sigmoid()).mean((2, 3)))

    with pytest.raises(LayerError, match=r"returned by no module.* such as 'gate'"):
        find_layer(Gated(), images())


class Passing(nn.Module):
    """Two convolutions, and between them what brings the maps through another dtype."""

    def __init__(self, between: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.between = between
        self.first = nn.Conv2d(3, 4, 3, padding=1)
        self.stage = nn.Sequential(nn.Conv2d(4, 4, 3), nn.ReLU())
        self.fc = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.stage(self.between(self.first(x))).mean((2, 3)))


def _scaled_spectrum(x: Tensor) -> Tensor:
    scale = torch.linspace(1, 2, x.shape[-1] // 2 + 1).to(torch.complex64)
    return torch.fft.irfft2(torch.fft.rfft2(x) * scale, s=x.shape[-2:])


@pytest.mark.parametrize(
    "between",
    [
        lambda x: torch.fft.irfft2(torch.fft.rfft2(x), s=x.shape[-2:]),
        _scaled_spectrum,
        lambda x: torch.fft.fft2(x).real,
        lambda x: torch.view_as_real(torch.fft.fft2(x))[..., 0],
        lambda x: torch.fft.fft2(x).abs(),
        lambda x: F.relu(x.half()).float(),
        lambda x: F.relu(x.bfloat16()).float(),
        lambda x: F.relu(x.double()).float(),
        lambda x: (x * 100).int().float() / 100,
        lambda x: x.view(torch.int32).view(torch.float32),
        lambda x: (x > 0).to(x),
    ],
    ids=["fft", "filter", "real", "pairs", "abs", "half", "bf16", "double", "int", "bits", "bool"],
)
def test_the_stage_is_found_behind_any_dtype(between: Callable[[Tensor], Tensor]) -> None:
    network = Passing(between).eval()
    assert str(find_layer(network, images())) == "stage"
    residual = AFMI(network, averaged=False).attribution(images(2), 1).residual
    assert residual is not None
    assert residual.abs().max() < 1e-4


def test_indices_beside_the_maps_are_no_way_to_the_logits() -> None:
    class Routed(Passing):
        def forward(self, x: Tensor) -> Tensor:
            index = x[:, :1, 1:-1, 1:-1].expand(-1, 4, -1, -1).argsort(2)
            maps = self.stage(self.first(x))
            return self.fc(maps.gather(2, index).mean((2, 3)))

    assert str(find_layer(Routed(nn.Identity()).eval(), images())) == "stage+gather"


def test_complex_numbers_are_no_feature_maps() -> None:
    class Spectrum(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.fft.fft2(x)

    class Head(Passing):
        def __init__(self) -> None:
            super().__init__(nn.Identity())
            self.spectrum = Spectrum()

        def forward(self, x: Tensor) -> Tensor:
            return self.fc(self.spectrum(self.stage(self.first(x))).abs().mean((2, 3)))

    network = Head().eval()
    assert str(find_layer(network, images())) == "spectrum+abs"
    with pytest.raises(LayerError, match=r"layer spectrum .* \(1, 4, 18, 18\) torch.complex64"):
        AFMI(network, layer="spectrum").attribute(images(), 1)


@pytest.mark.parametrize("name", ["sequence", "perceptron"])
def test_networks_without_a_convolutional_stage_are_refused(name: str) -> None:
    network = nn.Sequential(nn.Flatten(), nn.Linear(3 * 400, 5))
    if name == "sequence":  # tokens that no convolution cut out of the image
        block = nn.TransformerEncoderLayer(20, 2, 8, batch_first=True)
        network = nn.Sequential(nn.Flatten(1, 2), block, nn.Flatten(), *network[1:])
    with pytest.raises(LayerError, match="no last convolutional stage"):
        find_layer(network.eval(), images())


def test_finding_a_layer_leaves_the_model_as_it_was() -> None:
    network = build("resnet").train()
    network.layer1.eval()
    modes = {name: module.training for name, module in network.named_modules()}
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    x = images().requires_grad_()
    find_layer(network, x)
    assert modes == {name: module.training for name, module in network.named_modules()}
    assert all(torch.equal(before[k], v) for k, v in network.state_dict().items())
    assert all(not m._forward_hooks and not m._forward_pre_hooks for m in network.modules())
    assert all(p.requires_grad and p.grad is None for p in network.parameters())
    assert x.grad is None


@pytest.mark.parametrize("wrong", [None, images(1)[0], images(1).numpy(), images(1).byte()])
def test_a_stage_is_found_on_images(wrong: Any) -> None:
    with pytest.raises(ShapeError, match=r"images \(N, C, H, W\)"):
        find_layer(build("vgg"), wrong)


def test_a_model_that_raises_is_left_as_it_was() -> None:
    network = build("vgg").train()
    with pytest.raises(ShapeError, match=r"images of 3 channels.*got 4"):
        find_layer(network, images(channels=4))
    assert all(module.training for module in network.modules())
    assert str(find_layer(network, images())) == "features.5"


@pytest.mark.parametrize("layer", ["layer1.0", Layer("layer1.0"), " layer1.0 "])
def test_layers_are_looked_up_by_name(layer: str | Layer) -> None:
    network = build("resnet")
    module, name = resolve_layer(network, layer, images())
    assert module is network.layer1[0]
    assert name == Layer("layer1.0")


def test_layers_are_looked_up_by_module_and_inside_a_classifier() -> None:
    model = Classifier(build("resnet"), layer="bn1+relu")
    assert resolve_layer(model, None, images())[1] == Layer("bn1", "relu")
    assert resolve_layer(model, model.network.layer1, images())[1] == Layer("layer1")
    assert layer_names(model)[:2] == ["conv1", "bn1"]


def test_only_a_classifiers_own_layer_is_taken_for_one() -> None:
    network = build("resnet")
    network.layer = "of another kind"  # a setting of the network's own
    assert resolve_layer(network, None, images())[1] == Layer("layer1")


@pytest.mark.parametrize("layer", [["layer1", "layer2"], 5, ("layer1",)])
def test_what_names_no_layer_is_refused(layer: Any) -> None:
    with pytest.raises(LayerError, match=r"expected one layer, as a dotted name .* got [\[(5]"):
        resolve_layer(build("resnet"), layer, images())
    model = Classifier(build("resnet"), layer=layer)
    with pytest.raises(LayerError, match="expected one layer"):
        resolve_layer(model, None, images())


@pytest.mark.parametrize(
    ("layer", "message"),
    [
        ("layer_1", "did you mean 'layer1'"),
        ("LAYER1", "did you mean 'layer1'"),
        ("zzz", "the network has conv1, bn1, relu"),
        ("", "no layer is called ''"),
        (nn.ReLU(), "not part of this network"),
    ],
)
def test_unknown_layers_are_refused(layer: str | nn.Module, message: str) -> None:
    with pytest.raises(LayerError, match=message):
        resolve_layer(build("resnet"), layer, images())
