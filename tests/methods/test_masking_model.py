"""The masking model: its decoder by hand, classes, files, refusals, and the embedded masks."""

from __future__ import annotations

import copy
import dataclasses
import json
import os
from pathlib import Path

import pytest
import safetensors.torch
import torch
import torch.nn.functional as F
from networks import build, images
from torch import Tensor, nn

import afmi
from afmi import specs
from afmi.errors import LayerError, ModelError, TargetError, UsageError
from afmi.methods import MaskingModel, Method
from afmi.methods.masking_network import (
    MaskingNetwork,
    embedded_masks,
    load_masks,
    masks_as_bytes,
    untrained,
)
from afmi.models import photos
from afmi.network.fingerprint import fingerprint_of
from afmi.network.scales import find_scales, read_scales
from afmi.targets import Difference


@pytest.fixture
def model() -> nn.Module:
    return build("vgg")


@pytest.fixture
def masks(model: nn.Module) -> MaskingNetwork:
    return untrained(model, images(), width=4, finest=1)


def test_one_scale_by_hand() -> None:
    """X_ij σ(X_ij · C_c), two channels, |a| / (|a| + |b|): 2 × 1 places of two channels."""
    network = MaskingNetwork(["0"], [2], classes=2).eval()
    with torch.no_grad():
        network.selector.weight.copy_(torch.tensor([[0.0, 0.0], [1.0, -1.0]]))
        network.mask.weight.copy_(torch.tensor([[1.0, 0.0], [0.0, -2.0]])[:, :, None, None])
        network.mask.bias.copy_(torch.tensor([0.0, 1.0]))
    maps = torch.tensor(
        [[[[3.0], [1.0]], [[1.0], [2.0]]]]
    )  # at one place (3, 1), at the other (1, 2)
    # Class 0 halves everything: a = 1.5, b = 1 − 1 = 0; then a = .5, b = 1 − 2 = −1.
    expected = torch.tensor([1.5 / 1.5, 0.5 / 1.5])
    torch.testing.assert_close(
        network([maps], torch.tensor([0])).flatten(), expected, rtol=0, atol=1e-5
    )
    # Class 1 scales the places by σ(2) and σ(−1).
    high, low = torch.tensor([2.0, -1.0]).sigmoid().tolist()
    a = torch.tensor([3 * high, 1 * low])
    b = torch.tensor([1 - 2 * high, 1 - 4 * low]).abs()
    torch.testing.assert_close(
        network([maps], torch.tensor([1])).flatten(), a / (a + b), rtol=0, atol=1e-5
    )
    # The mean of X_ij · C_c: (2 − 1) / 2.
    torch.testing.assert_close(network.presence(maps), torch.tensor([[0.0, 0.5]]))


def upsampled(block: nn.Module, x: Tensor, passed: Tensor) -> Tensor:
    """Compute a block's output with functions alone, in float64."""

    def normalised(x: Tensor, convolution: nn.Module, norm: nn.Module) -> Tensor:
        x = F.conv2d(x, convolution.weight, padding=convolution.padding[0])
        mean, scale = norm.running_mean, norm.weight / (norm.running_var + norm.eps).sqrt()
        return (x - mean[:, None, None]) * scale[:, None, None] + norm.bias[:, None, None]

    wide = normalised(x, block.up[0], block.up[1]).clamp_min(0)
    count, channels, height, width = wide.shape
    shuffled = wide.view(count, channels // 4, 2, 2, height, width)
    shuffled = shuffled.permute(0, 1, 4, 2, 5, 3).reshape(
        count, channels // 4, 2 * height, 2 * width
    )
    joined = torch.cat([shuffled, passed], 1)
    narrow = normalised(joined, block.mix[0][0], block.mix[0][1]).clamp_min(0)
    narrow = normalised(narrow, block.mix[1][0], block.mix[1][1]).clamp_min(0)
    around = F.conv2d(joined, block.around.weight, block.around.bias)
    return (normalised(narrow, block.mix[2], block.mix[3]) + around).clamp_min(0)


def test_the_method_is_its_formula_in_float64() -> None:
    model = build("vgg", torch.float64)
    masks = untrained(model, images().double(), width=4, finest=1).double()
    generator = torch.Generator().manual_seed(1)
    for buffer in masks.buffers():
        if buffer.is_floating_point():
            buffer.copy_(torch.rand(buffer.shape, generator=generator) + 0.5)
    x, classes = images().double(), torch.tensor([0, 4, 2])
    with torch.no_grad():
        fine = F.relu(model.features[:2](x))
        coarse = model.features[:6](x.clone())
        chosen = masks.selector.weight[classes]
        gate = (coarse * chosen[:, :, None, None]).sum(1, keepdim=True).sigmoid()
        two = F.conv2d(
            upsampled(masks.blocks[0], coarse * gate, fine), masks.mask.weight, masks.mask.bias
        )
        expected = two[:, :1].abs() / (two.abs().sum(1, keepdim=True) + 1e-6)
    assert masks.layers == ("features.5", "features.2")
    maps = MaskingModel(model, weights=masks).attribute(x, classes)
    torch.testing.assert_close(maps, expected, rtol=1e-9, atol=1e-12)
    assert expected.std() > 0.001


def test_another_class_has_another_mask(model: nn.Module, masks: MaskingNetwork) -> None:
    with torch.no_grad():
        masks.selector.weight[0] = 20
        masks.selector.weight[1] = -20
    method = MaskingModel(model, weights=masks)
    first, second = method.attribute_classes(images(), [0, 1])
    assert (first - second).abs().amax() > 0.01
    assert torch.equal(method.attribute(images(), 1), second)
    assert float(first.min()) >= 0 and float(first.max()) <= 1


def test_sides_that_do_not_double() -> None:
    network = MaskingNetwork(["1", "0"], [3, 2], classes=2, width=4).eval()
    mask = network([torch.rand(1, 3, 6, 7), torch.rand(1, 2, 13, 15)], torch.tensor([1]))
    assert mask.shape == (1, 1, 13, 15)


def test_scales_of_a_network_with_functional_activations() -> None:
    """What an operation makes of a module's output is read, too."""
    model = build("functional")
    layers = find_scales(model, images())
    assert layers == ("conv2+hardswish",)
    (maps,), logits = read_scales(model, images(), layers)
    seen: list[Tensor] = []
    handle = model.conv2.register_forward_hook(lambda _m, _a, output: seen.append(output.clone()))
    torch.testing.assert_close(logits, model(images()))
    handle.remove()
    torch.testing.assert_close(maps, F.hardswish(seen[0]))


def test_scales_of_an_operation_that_takes_its_input_by_keyword() -> None:
    class Keywords(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 3)
            self.head = nn.Linear(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            maps = F.hardswish(input=self.conv(x))
            return self.head(maps.mean((2, 3)))

    model, x = Keywords().eval(), images()
    (maps,), _ = read_scales(model, x, find_scales(model, x))
    assert find_scales(model, x) == ("conv+hardswish",)
    torch.testing.assert_close(maps, F.hardswish(model.conv(x)))


def test_scales_must_be_run_once(model: nn.Module) -> None:
    with pytest.raises(LayerError, match=r"no layer 'features\.9'"):
        read_scales(model, images(), ["features.9"])
    resnet = build("resnet")
    with pytest.raises(LayerError, match=r"layer layer1\.0\.relu must run once .* ran 2 times"):
        read_scales(resnet, images(), ["layer1.0.relu"])


# Files.


@pytest.fixture
def file(masks: MaskingNetwork, tmp_path: Path) -> Path:
    path = tmp_path / "masks.safetensors"
    path.write_bytes(masks_as_bytes(masks, {"epochs": 2}))
    return path


def test_a_file_holds_the_masks(model: nn.Module, masks: MaskingNetwork, file: Path) -> None:
    loaded, training = load_masks(file)
    assert training == {"epochs": 2}
    assert loaded.layers == masks.layers and loaded.fingerprint == fingerprint_of(model)
    for name, tensor in masks.state_dict().items():
        torch.testing.assert_close(loaded.state_dict()[name], tensor.half().to(tensor.dtype))
    spec = f"masking-model:weights={file}"
    method = specs.parse(spec, Method, model=model)
    assert specs.text(method) == spec
    expected = MaskingModel(model, weights=loaded).attribute(images(), 1)
    assert torch.equal(method.attribute(images(), 1), expected)
    torch.testing.assert_close(
        MaskingModel(model, weights=masks).attribute(images(), 1), expected, rtol=0.02, atol=0.01
    )


def test_files_that_hold_no_masks(model: nn.Module, file: Path, tmp_path: Path) -> None:
    def refused(content: bytes, message: str) -> None:
        path = tmp_path / "other.safetensors"
        path.write_bytes(content)
        with pytest.raises(ModelError, match=message) as caught:
            MaskingModel(model, weights=path).attribute(images(), 1)
        assert "\n" not in str(caught.value)

    whole = file.read_bytes()
    refused(whole[: len(whole) // 2], "cut short or damaged")
    refused(b"no weights", "is no file of weights")
    state = safetensors.torch.load(whole)
    refused(safetensors.torch.save(state), "holds no masking network")
    size = int.from_bytes(whole[:8], "little")
    record = json.loads(json.loads(whole[8 : 8 + size])["__metadata__"]["afmi"])

    def saved(**changes: object) -> bytes:
        return safetensors.torch.save(state, {"afmi": json.dumps({**record, **changes})})

    refused(saved(version=99), "of version 99")
    refused(saved(format="other"), "holds no masking network")
    refused(saved(layers=3), "holds no masking network")
    refused(safetensors.torch.save(state, {"afmi": "{"}), "holds no masking network")
    refused(saved(channels=[1_000_000_000, 6]), "does not fit")
    refused(saved(classes=-1), "holds no masking network")
    refused(saved(layers=record["layers"][:1]), "holds no masking network")
    without = {key: value for key, value in record.items() if key != "training"}
    refused(safetensors.torch.save(state, {"afmi": json.dumps(without)}), "holds no masking netw")
    broken = {**state, "mask.bias": torch.tensor([0.0, torch.nan])}
    refused(safetensors.torch.save(broken, {"afmi": json.dumps(record)}), "mask.bias holds infini")
    with pytest.raises(ModelError, match="cannot be read"):
        MaskingModel(model, weights=tmp_path / "missing").attribute(images(), 1)
    with pytest.raises(UsageError, match="expected a file of masks or a MaskingNetwork, got int"):
        MaskingModel(model, weights=3)  # type: ignore[arg-type]


def test_large_numbers_survive_a_file(masks: MaskingNetwork, tmp_path: Path) -> None:
    """Of float16 the largest is 65504, and the smallest is about 6e-8."""
    norm = masks.blocks[0].up[1]
    with torch.no_grad():
        norm.running_var[:2] = torch.tensor([1e6, 1e-9])
        masks.mask.bias[0] = 1e5
    path = tmp_path / "masks.safetensors"
    path.write_bytes(masks_as_bytes(masks, {}))
    loaded = load_masks(path)[0]
    assert torch.equal(loaded.blocks[0].up[1].running_var, norm.running_var)
    assert torch.equal(loaded.mask.bias, masks.mask.bias)
    assert safetensors.torch.load_file(path)["mask.weight"].dtype == torch.float16
    with torch.no_grad():
        masks.mask.bias[0] = torch.inf
    with pytest.raises(ModelError, match=r"expected finite weights .* mask\.bias has others"):
        masks_as_bytes(masks, {})


def test_a_file_of_other_masks_is_read_again(
    model: nn.Module, masks: MaskingNetwork, file: Path
) -> None:
    method = MaskingModel(model, weights=file)
    before = method.attribute(images(), 1)
    assert method.masks() is method.masks()
    other = untrained(model, images(), width=4, finest=1, seed=1)
    file.write_bytes(masks_as_bytes(other, {"epochs": 2}))
    written = file.stat().st_mtime_ns
    os.utime(file, ns=(written, written + 1_000_000_000))
    expected = MaskingModel(model, weights=file).attribute(images(), 1)
    assert (before - expected).abs().amax() > 0
    assert torch.equal(method.attribute(images(), 1), expected)


# Whose masks they are.


def test_masks_of_another_network_are_refused(model: nn.Module, file: Path) -> None:
    x = images()
    other = build("vgg", seed=1)
    method = MaskingModel(other, weights=str(file))
    with pytest.raises(
        ModelError, match=r"masks in '.*' were trained for another network than TinyVGG"
    ):
        method.attribute(x, 1)
    unchecked = dataclasses.replace(method, check=False)
    assert (
        unchecked.attribute(x, 1) - MaskingModel(model, weights=file).attribute(x, 1)
    ).abs().amax() > 0
    with pytest.raises(LayerError, match=r"no layer 'features\.5'"):
        MaskingModel(build("resnet"), weights=file, check=False).attribute(x, 1)
    normalised = afmi.Classifier(model, mean=[0.5] * 3, std=[0.25] * 3)
    with pytest.raises(ModelError, match="with these weights and this normalisation"):
        MaskingModel(normalised, weights=file).attribute(x, 1)


def test_a_changed_weight_is_another_network(model: nn.Module, file: Path) -> None:
    method = MaskingModel(model, weights=file)
    expected = method.attribute(images(), 1)
    with torch.no_grad():
        model.features[0].weight[0, 0, 0, 0] += 0.1
    with pytest.raises(ModelError, match="another network"):
        method.attribute(images(), 1)
    with torch.no_grad():
        model.load_state_dict(build("vgg").state_dict())
    assert torch.equal(method.attribute(images(), 1), expected)


def test_the_fingerprint_is_that_of_the_numbers(model: nn.Module) -> None:
    expected = fingerprint_of(model)
    assert fingerprint_of(copy.deepcopy(model)) == expected
    assert fingerprint_of(copy.deepcopy(model).double()) == expected
    assert fingerprint_of(nn.DataParallel(model)) == expected
    assert fingerprint_of(build("vgg", seed=1)) != expected
    assert fingerprint_of(afmi.Classifier(model)) != expected


def test_the_fingerprint_sees_what_pytorch_does_not_count(model: nn.Module) -> None:
    expected, first = fingerprint_of(model), model.features[0].weight
    first.data.mul_(2)
    assert fingerprint_of(model) != expected
    first.data.mul_(0.5)
    assert fingerprint_of(model) == expected
    first.detach().numpy()[0] *= 2
    assert fingerprint_of(model) != expected
    with torch.inference_mode():
        assert fingerprint_of(build("vgg")) == expected


def test_a_network_without_masks_is_told_the_command(model: nn.Module) -> None:
    with pytest.raises(
        ModelError, match=r"embedded network only, and TinyVGG .*`afmi train masking-mo"
    ):
        MaskingModel(model).attribute(images(), 1)


def test_only_classes_are_explained(model: nn.Module, masks: MaskingNetwork) -> None:
    with pytest.raises(TargetError, match="explains classes only"):
        MaskingModel(model, weights=masks).attribute(images(), Difference(0, 1))


def test_tokens_are_refused() -> None:
    torchvision = pytest.importorskip("torchvision")
    vit = torchvision.models.VisionTransformer(32, 8, 2, 2, 16, 16, num_classes=3).eval()
    with pytest.raises(LayerError, match="gives tokens"):
        untrained(vit, images(1, size=32))


# The embedded network's.


def test_the_embedded_masks_are_small_and_of_the_embedded_network() -> None:
    masks, model = embedded_masks(), afmi.load_model("photos")
    assert masks is not None
    assert masks.fingerprint == fingerprint_of(model)
    file = Path(afmi.__file__).parent / "models" / photos.MASKS
    assert file.stat().st_size < 3_000_000
