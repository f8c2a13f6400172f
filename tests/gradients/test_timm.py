"""timm's families: the last stage is chosen, and modified gradients sum to delta there and before.

Random weights, what the initialisation left dead drawn anew, batch-norm statistics from real
photographs; errors are relative to the larger of |Δy_c| and the largest |logit|.
"""

from __future__ import annotations

import pytest
import timm
from completeness import errors, errors_of, photographs
from zoo import TIMM, timm_classifier

from afmi.errors import LayerError
from afmi.gradients import ModifiedGradient, modified_gradient
from afmi.methods import AFMI
from afmi.network.classifier import Classifier
from afmi.network.layers import resolve_layer
from afmi.pictures.references import Black

# Quick ones: the pictures' side, the layer that is chosen and its maps.
SMALL = {
    "byoanet": (64, "stages", (2048, 2, 2)),
    "coat": (64, "serial_blocks4.0", (320, 2, 2)),
    "convit": (64, "blocks.10", (192, 4, 4)),
    "convnext": (64, "stages", (256, 2, 2)),
    "cpubone": (64, "head.in_conv", (1536, 2, 2)),
    "cspnet": (64, "stages", (512, 2, 2)),
    "cspnext": (64, "stages", (384, 2, 2)),
    "deit": (64, "blocks.10", (192, 4, 4)),
    "dla": (64, "level5", (256, 2, 2)),
    "dpn": (64, "features", (832, 2, 2)),
    "edgenext": (64, "stages", (168, 2, 2)),
    "efficientnet": (64, "bn2", (1280, 2, 2)),
    "efficientvit_mit": (64, "head.in_conv", (1024, 2, 2)),
    "eva": (64, "blocks.11", (192, 4, 4)),
    "fasternet": (64, "stages", (320, 2, 2)),
    "gcvit": (64, "stages", (512, 2, 2)),
    "ghostnet": (64, "blocks", (480, 2, 2)),
    "hardcorenas": (64, "blocks", (960, 2, 2)),
    "hgnet": (64, "stages", (1024, 2, 2)),
    "iformer": (64, "stages", (256, 2, 2)),
    "inception_next": (64, "stages", (320, 2, 2)),
    "lcnetv2": (64, "stages", (768, 2, 2)),
    "levit": (96, "stages", (384, 2, 2)),
    "lowformer": (64, "in_conv", (1536, 2, 2)),
    "mambaout": (64, "stages", (288, 2, 2)),
    "maxxvit": (64, "norm", (256, 2, 2)),
    "mobilenetv3": (64, "blocks", (288, 2, 2)),
    "mobilevit": (64, "final_conv", (320, 2, 2)),
    "nest": (64, "norm", (384, 4, 4)),
    "nfnet": (64, "final_act", (960, 2, 2)),
    "pit": (64, "transformers.2.blocks.2", (256, 2, 2)),
    "pvt_v2": (64, "stages", (256, 2, 2)),
    "regnet": (64, "s4", (368, 2, 2)),
    "repghost": (64, "blocks", (480, 2, 2)),
    "repvit": (64, "stages", (384, 2, 2)),
    "resnest": (64, "layer4", (2048, 2, 2)),
    "resnet": (64, "layer4", (512, 2, 2)),
    "resnetv2": (64, "norm", (512, 2, 2)),
    "rexnet": (64, "features", (1280, 2, 2)),
    "senet": (64, "layer4", (512, 2, 2)),
    "sknet": (64, "layer4", (512, 2, 2)),
    "starnet": (64, "norm", (128, 2, 2)),
    "swiftformer": (64, "norm", (220, 2, 2)),
    "swin_transformer": (64, "norm", (768, 2, 2)),
    "swin_transformer_v2": (64, "norm", (768, 2, 2)),
    "visformer": (64, "norm", (384, 2, 2)),
    "vision_transformer": (64, "blocks.10", (192, 4, 4)),
    "vision_transformer_hybrid": (64, "blocks.10", (192, 2, 2)),
    "vovnet": (64, "stages", (512, 2, 2)),
    "xcit": (64, "cls_attn_blocks.0", (128, 4, 4)),
}
# Their streams of tokens or maps meet in the logits only, so no single layer dominates them, or no
# module gives it: a named limitation.
WITHOUT_LAYER = {
    "crossvit": "dominate its logits",
    "efficientvim": "returned by no module",
    "tnt": "returned by no module",
}
# With random weights so deep or so steep that float32 leaves few digits of the logits themselves:
# in float64 they sum to delta as the others do.
STEEP = {"levit", "metaformer", "mvitv2", "focalnet", "csatv2", "pvt_v2"}
STEEP_AT_ITS_OWN_SIZE = STEEP | {"gcvit"}


def check(model: Classifier, size: int, at_layer: ModifiedGradient, *, steep: bool) -> None:
    pictures = photographs(size, 1)
    assert errors_of(at_layer).of_logits <= 1e-5
    if steep:
        assert errors(model.double(), pictures.double(), Black()).of_logits <= 1e-10
    else:
        assert errors(model, pictures, Black()).of_logits <= 1e-5


# Made of operations that other families have.
RELATIVES = {
    *("cpubone", "cspnext", "dla", "efficientnet", "hardcorenas", "iformer", "inception_next"),
    *("lcnetv2", "lowformer", "mobilenetv3", "repghost", "resnet", "senet", "starnet"),
    *("swin_transformer", "vision_transformer_hybrid"),
}


@pytest.mark.parametrize(
    "family",
    [pytest.param(f, marks=pytest.mark.slow if f in RELATIVES else ()) for f in SMALL],
)
def test_small_networks(family: str) -> None:
    side, layer, maps = SMALL[family]
    model, _ = timm_classifier(TIMM[family], side)
    place = resolve_layer(model, None, photographs(side, 1))
    assert str(place[1]) == layer
    gradient = modified_gradient(model, photographs(side, 1), layer=place, reference=Black())
    assert gradient.run.features.shape[1:] == maps
    check(model, side, gradient, steep=family in STEEP)


@pytest.mark.parametrize("family", WITHOUT_LAYER)
def test_networks_without_one_last_stage_are_refused(family: str) -> None:
    model, side = timm_classifier(TIMM[family], 64 if family == "efficientvim" else None)
    with pytest.raises(LayerError, match=WITHOUT_LAYER[family]):
        AFMI(model).attribute(photographs(side, 1))


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("family", sorted(set(TIMM) - set(WITHOUT_LAYER)))
def test_every_family_at_its_own_size(family: str) -> None:
    size = 256 if family == "qwen3_vit" else None  # at its own it takes minutes
    model, side = timm_classifier(TIMM[family], size)
    place = resolve_layer(model, None, photographs(side, 1))
    gradient = modified_gradient(model, photographs(side, 1), layer=place, reference=Black())
    assert min(gradient.run.features.shape[-2:]) >= 4
    check(model, side, gradient, steep=family in STEEP_AT_ITS_OWN_SIZE)


# Too large to be built for a test, or made for other input than pictures.
LEFT_OUT = {"deepseek_vit", "gemma4_vit"}


def test_every_family_is_here() -> None:
    """A family is what one of timm's files defines."""
    modules = {timm.models.model_entrypoint(name).__module__ for name in timm.list_models()}
    families = {module.rpartition(".")[2] for module in modules}
    assert families - LEFT_OUT <= set(TIMM)
    assert len(SMALL) >= 44
