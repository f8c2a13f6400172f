"""Transformers' tokens are feature maps: chosen, permuted, explained, without the class token."""

from __future__ import annotations

import pytest
import torch
from completeness import errors, photographs
from torch import Tensor, nn
from torchvision.models import MaxVit
from torchvision.models.convnext import CNBlockConfig, ConvNeXt
from torchvision.models.swin_transformer import (
    PatchMergingV2,
    SwinTransformer,
    SwinTransformerBlockV2,
)
from torchvision.models.vision_transformer import VisionTransformer

from afmi.errors import LayerError
from afmi.gradients import modified_gradient
from afmi.methods import AFMI, GradCAM
from afmi.network.layers import Layer, find_layer, resolve_layer
from afmi.network.tokens import TokenLayout
from afmi.pictures.references import Black, Blurred, Random, Reference, Several


class Tokens(nn.Module):
    """PyTorch's encoder on patches, with class and register tokens or with pooling."""

    def __init__(self, prefix: int, *, norm_first: bool = True) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 8, 4, 4)
        self.prefix = nn.Parameter(torch.randn(1, prefix, 8)) if prefix else None
        block = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, norm_first=norm_first)
        self.encoder = nn.TransformerEncoder(block, 3, nn.LayerNorm(8), enable_nested_tensor=False)
        self.head = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x).flatten(2).mT
        if self.prefix is None:
            return self.head(self.encoder(x).mean(1))
        return self.head(self.encoder(torch.cat([self.prefix.expand(len(x), -1, -1), x], 1))[:, 0])


class Block(nn.Module):
    """Attention and a gated sum, giving the tokens and their weights as a pair."""

    def __init__(self, *, batch_first: bool) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(8)
        self.attention = nn.MultiheadAttention(8, 2, batch_first=batch_first)
        self.mlp = nn.Sequential(nn.LayerNorm(8), nn.Linear(8, 16), nn.GELU(), nn.Linear(16, 8))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        y = self.norm(x)
        mixed, weights = self.attention(y, y, y)
        x = x + mixed
        return x + self.mlp(x), weights


class Unusual(nn.Module):
    """Tokens first, class tokens before and behind, maps as (N, K, T), or a head that attends."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind
        self.patches = nn.Conv2d(3, 8, (4, 8), (4, 8))
        self.own = nn.Parameter(torch.randn(2, 1, 8))
        self.blocks = nn.ModuleList(Block(batch_first=kind != "tokens first") for _ in range(3))
        self.heads = nn.ModuleList(nn.Linear(8, 5) for _ in range(2))
        self.places, self.norm = nn.Conv1d(8, 8, 3, padding=1), nn.BatchNorm1d(8)
        self.projected = nn.Linear(8, 16)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x).flatten(2)
        if self.kind == "channels first":
            return self.heads[0](torch.relu(self.norm(x + self.places(x))).mean(2))
        first, last = self.own[:, None].expand(-1, len(x), -1, -1)
        x = x.mT
        if self.kind == "class token last":
            x = torch.cat([x, last], 1)
        elif self.kind == "distilled":
            x = torch.cat([first, x, last], 1)
        elif self.kind == "tokens first":
            x = torch.cat([first, x], 1).transpose(0, 1)
        for block in self.blocks:
            x = block(x)[0]
        if self.kind == "class token last":
            return self.heads[0](x[:, -1])
        if self.kind == "distilled":
            return (self.heads[0](x[:, 0]) + self.heads[1](x[:, -1])) / 2
        if self.kind == "tokens first":
            return self.heads[0](x[0])
        keys, values = self.projected(x).chunk(2, -1)
        mixed = nn.functional.scaled_dot_product_attention(
            first[:, None], *(y.unflatten(-1, (1, 8)).transpose(1, 2) for y in (keys, values))
        )
        return self.heads[0](mixed[:, 0, 0])


def _swin(version: int) -> nn.Module:
    parts = {"block": SwinTransformerBlockV2, "downsample_layer": PatchMergingV2}
    options = parts if version == 2 else {}
    return SwinTransformer([4, 4], 12, [2, 2], [2, 2], [4, 4], num_classes=5, **options)


NETWORKS = {
    "vit": lambda: VisionTransformer(32, 8, 3, 2, 16, 32, num_classes=5),
    "swin": lambda: _swin(1),
    "swin v2": lambda: _swin(2),
    "convnext": lambda: ConvNeXt(
        [CNBlockConfig(8, 16, 1), CNBlockConfig(16, None, 1)], num_classes=5, layer_scale=0.5
    ),
    "maxvit": lambda: MaxVit((32, 32), 8, 4, [8, 16], [1, 1], 8, 0.0, num_classes=5),
    "class token": lambda: Tokens(1),
    "registers": lambda: Tokens(5, norm_first=False),
    "pooled": lambda: Tokens(0),
    "tokens first": lambda: Unusual("tokens first"),
    "class token last": lambda: Unusual("class token last"),
    "distilled": lambda: Unusual("distilled"),
    "channels first": lambda: Unusual("channels first"),
    "attending head": lambda: Unusual("attending head"),
}
STAGES = {
    "vit": "encoder.layers.encoder_layer_1",
    "swin": "permute",
    "swin v2": "permute",
    "convnext": "features",
    "maxvit": "blocks.1",
    "class token": "encoder.layers.1",
    "registers": "encoder.layers.1",
    "pooled": "encoder",
    "tokens first": "blocks.1",
    "class token last": "blocks.1",
    "distilled": "blocks.1",
    "channels first": "norm+relu",
    "attending head": "blocks.2",
}
WITH_CLASS_TOKEN = (
    *("vit", "class token", "registers"),
    *("tokens first", "class token last", "distilled"),
)
LAYOUTS = {
    "tokens first": TokenLayout((8, 4), 1, 0, "tnk"),
    "class token last": TokenLayout((8, 4), 0, 1),
    "distilled": TokenLayout((8, 4), 1, 1),
    "channels first": TokenLayout((8, 4), 0, 0, "nkt"),
    "attending head": TokenLayout((8, 4)),
}


def build(name: str, dtype: torch.dtype = torch.float64) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = NETWORKS[name]()
        for module in network.modules():
            if isinstance(module, nn.Linear) and not module.weight.any():  # ViT's head
                nn.init.normal_(module.weight, std=0.3)
    return network.to(dtype).eval()


def pictures(dtype: torch.dtype = torch.float64) -> Tensor:
    return photographs(32, 2).to(dtype)


@pytest.mark.parametrize("name", NETWORKS)
def test_sums_to_delta_at_the_input(name: str) -> None:
    double, single = build(name), build(name, torch.float32)
    for reference in (Black(), Random(), Blurred()):
        assert errors(double, pictures(), reference).of_logits <= 1e-12
        assert errors(single, pictures(torch.float32), reference).of_logits <= 5e-5


@pytest.mark.parametrize("name", NETWORKS)
def test_the_last_stage_is_found_and_sums_to_delta(name: str) -> None:
    model, x = build(name), pictures()
    place = resolve_layer(model, None, x)
    assert str(place[1]) == STAGES[name]
    gradient = modified_gradient(model, x, layer=place, reference=Black())
    assert gradient.run.features.dim() == 4
    targets = torch.tensor([[0, 1], [4, 2]])
    gradients, extra = gradient.split(targets)
    explained = (gradients * gradient.change()).flatten(2).sum(2) + extra
    torch.testing.assert_close(explained, gradient.output_change(targets), rtol=1e-11, atol=1e-12)
    assert bool((extra != 0).all()) == (name in WITH_CLASS_TOKEN)


@pytest.mark.filterwarnings("ignore::afmi.methods.BlankMapWarning")  # Grad-CAM's, below 0
@pytest.mark.parametrize("name", NETWORKS)
def test_afmi_and_grad_cam_explain_them(name: str) -> None:
    model, x = build(name), pictures()
    references: tuple[Reference, ...] = (Black(), Several([Black(), Random()]))
    for reference in references:
        attribution = AFMI(model, reference=reference, averaged=False).attribution(x)
        assert attribution.maps.shape == (2, 1, 32, 32)
        assert attribution.residual is not None
        exact = bool((attribution.residual.abs() < 1e-9).all())
        assert exact == (name not in WITH_CLASS_TOKEN)
    assert AFMI(model).attribute_classes(x, [0, 3]).shape == (2, 2, 1, 32, 32)
    assert GradCAM(model).attribute(x).shape == (2, 1, 32, 32)


@pytest.mark.parametrize("name", LAYOUTS)
def test_unusual_token_layouts_are_seen(name: str) -> None:
    assert find_layer(build(name), pictures()).token_layout == LAYOUTS[name]


def test_streams_that_meet_in_the_logits_only_have_no_last_stage() -> None:
    class Streams(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two = Tokens(0), Tokens(1)

        def forward(self, x: Tensor) -> Tensor:
            return self.one(x) + self.two(x)

    with pytest.raises(LayerError, match="dominate its logits"):
        find_layer(Streams().double().eval(), pictures())


def test_tokens_lie_row_by_row_behind_the_class_token() -> None:
    tokens = torch.arange(2 * 8 * 3).reshape(2, 8, 3)
    how = TokenLayout((2, 3), prefix=2)
    maps = how.maps(tokens)
    assert maps.shape == (2, 3, 2, 3)
    for n, k, i, j in (
        (n, k, i, j) for n in (0, 1) for k in range(3) for i in (0, 1) for j in range(3)
    ):
        assert maps[n, k, i, j] == tokens[n, 2 + 3 * i + j, k]
    assert torch.equal(how.extra_tokens(tokens), tokens[:, :2])
    for order, turned in (("tnk", tokens.transpose(0, 1)), ("nkt", tokens.mT)):
        turned_how = TokenLayout((2, 3), 1, 1, order)
        assert turned_how.fits(turned)
        assert torch.equal(turned_how.maps(turned)[:, :, 0, 0], tokens[:, 1])
        assert torch.equal(turned_how.extra_tokens(turned), tokens[:, [0, 7]])
    last = torch.arange(2 * 4 * 5 * 3).reshape(2, 4, 5, 3)
    assert torch.equal(TokenLayout().maps(last), last.permute(0, 3, 1, 2))
    assert TokenLayout().extra_tokens(last).numel() == 0


def test_named_layers_are_turned_too() -> None:
    x = pictures()
    for name, layer, how in (
        ("vit", "encoder.layers.encoder_layer_0", TokenLayout((4, 4), 1)),
        ("swin", "features.1", TokenLayout()),
        ("swin", "features.3", TokenLayout()),
        ("pooled", "encoder.layers.0", TokenLayout((8, 8))),
        ("channels first", "norm+relu", TokenLayout((8, 4), 0, 0, "nkt")),
        ("convnext", "features.1", None),
    ):
        model = build(name)
        module, layer_name = resolve_layer(model, layer, x)
        assert layer_name == Layer(*(*layer.split("+"), None)[:2], how)
        if "+" not in layer:
            assert resolve_layer(model, module, x)[1] == layer_name
        gradient = modified_gradient(model, x, layer=(module, layer_name), reference=Black())
        size = gradient.run.features.shape
        assert size[:2] == (
            2,
            {"vit": 16, "swin": size[1], "pooled": 8, "convnext": 8}.get(name, 8),
        )


@pytest.mark.parametrize("name", ["class token", "pooled"])
def test_modules_inside_a_fused_layer_are_reached(name: str) -> None:
    """In evaluation mode PyTorch's encoder runs none of its modules, unless asked to."""
    model, x = build(name), pictures()
    torch.backends.mha.set_fastpath_enabled(True)
    maps = AFMI(model, layer="encoder.layers.1.norm1", averaged=False)
    with pytest.warns(UserWarning, match="around the layer"):  # the residual path does
        assert maps.attribute(x).isfinite().all()
    assert torch.backends.mha.get_fastpath_enabled()


def test_tokens_that_stand_for_no_places_are_refused() -> None:
    model, x = build("class token"), pictures()
    layer = Layer("encoder.layers.1", None, TokenLayout((7, 7), 1))
    with pytest.raises(LayerError, match=r"must give feature maps .* but gives \(., 65, 8\)"):
        AFMI(model, layer=layer).attribute(x)
    with pytest.raises(LayerError, match=r"but gives \(., 5\)"):
        AFMI(model, layer="head").attribute(x)


def test_finding_leaves_the_network_alone() -> None:
    model = build("vit").train()
    assert str(find_layer(model, pictures())) == STAGES["vit"]
    assert all(module.training for module in model.modules())
