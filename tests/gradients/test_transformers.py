"""transformers' image classifiers: their last stage is chosen, and sums to delta as the input does.

Small configurations with random weights, as for timm's families.
"""

from __future__ import annotations

import pytest
from completeness import errors, photographs
from zoo import TRANSFORMERS, transformers_classifier

from afmi.gradients import modified_gradient
from afmi.methods import AFMI
from afmi.network.layers import resolve_layer
from afmi.pictures.references import Black

# The layer that is chosen and its maps.
STAGES = {
    "beit": ("beit.layers.2", (32, 8, 8)),
    "convnextv2": ("convnextv2.encoder.stages.3", (32, 2, 2)),
    "deit": ("deit.layers.1", (32, 8, 8)),
    "dinov2_with_registers": ("dinov2_with_registers.layernorm", (32, 8, 8)),
    "donut-swin": ("donut.encoder.layers.1", (32, 8, 8)),
    "efficientnet": ("efficientnet.encoder.top_activation", (448, 2, 2)),
    "focalnet": ("focalnet.layernorm", (64, 4, 4)),
    "hiera": ("hiera.encoder.stages.2", (64, 4, 4)),
    "levit": ("levit.encoder.stages.2", (384, 2, 2)),
    "mobilenet_v1": ("mobilenet_v1.layer.25", (256, 2, 2)),
    "mobilevit": ("mobilevit.conv_1x1_exp", (64, 2, 2)),
    "pvt": ("pvt.encoder.patch_embeddings.3.layer_norm", (32, 2, 2)),
    "resnet": ("resnet.encoder.stages.3", (32, 2, 2)),
    "segformer": ("segformer.stages.3", (32, 2, 2)),
    "siglip": ("vision_model.post_layernorm", (32, 8, 8)),
    "swin": ("swin.layernorm", (32, 8, 8)),
    "swinv2": ("swinv2.layernorm", (32, 8, 8)),
    "vit": ("vit.layers.1", (32, 8, 8)),
}


def check(name: str) -> None:
    model, side = transformers_classifier(name)
    pictures = photographs(side, 1)
    place = resolve_layer(model, None, pictures)
    gradient = modified_gradient(model, pictures, layer=place, reference=Black())
    if name in STAGES:
        assert (str(place[1]), gradient.run.features.shape[1:]) == STAGES[name]
    assert AFMI(model).attribute(pictures).shape == (1, 1, side, side)
    wide = pictures.double()
    model.double()
    for layer in ("inputs", None):
        assert errors(model, wide, Black(), layer).of_logits <= 1e-10


@pytest.mark.parametrize("name", STAGES)
def test_small_networks(name: str) -> None:
    check(name)


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(set(TRANSFORMERS) - set(STAGES)))
def test_other_networks(name: str) -> None:
    check(name)
