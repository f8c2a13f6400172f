"""Networks of timm and transformers with random weights: one of each family."""

from __future__ import annotations

import warnings
from typing import Any

import timm
import torch
from completeness import classifier

from afmi.network.classifier import Classifier

# timm's families, each by a small member: what it is called there, the name of a network.
TIMM = {
    "beit": "beit_base_patch16_224",
    "byoanet": "eca_botnext26ts_256",
    "byobnet": "mobileone_s1",
    "cait": "cait_xxs24_224",
    "coat": "coat_lite_tiny",
    "convit": "convit_tiny",
    "convmixer": "convmixer_768_32",
    "convnext": "convnext_zepto_rms",
    "cpubone": "cpubone_nano",
    "crossvit": "crossvit_tiny_240",
    "csatv2": "csatv2",
    "cspnet": "cs3darknet_focus_s",
    "cspnext": "cspnext_tiny",
    "davit": "davit_tiny",
    "deit": "deit_tiny_distilled_patch16_224",
    "densenet": "densenet121",
    "dla": "dla46x_c",
    "dpn": "dpn48b",
    "edgenext": "edgenext_xx_small",
    "efficientformer": "efficientformer_l1",
    "efficientformer_v2": "efficientformerv2_s0",
    "efficientnet": "mobilenetv2_035",
    "efficientvim": "efficientvim_m1",
    "efficientvit_mit": "efficientvit_b0",
    "efficientvit_msra": "efficientvit_m0",
    "eva": "eva02_tiny_patch14_224",
    "fasternet": "fasternet_t0",
    "fastvit": "fastvit_t8",
    "focalnet": "focalnet_tiny_srf",
    "gcvit": "gcvit_xxtiny",
    "ghostnet": "ghostnet_050",
    "hardcorenas": "hardcorenas_b",
    "hgnet": "hgnetv2_b0",
    "hiera": "hiera_tiny_224",
    "hieradet_sam2": "hieradet_small",
    "hrnet": "hrnet_w18_small",
    "iformer": "iformer_t",
    "inception_next": "inception_next_atto",
    "inception_resnet_v2": "inception_resnet_v2",
    "inception_v3": "inception_v3",
    "inception_v4": "inception_v4",
    "lcnetv2": "lcnetv2_small",
    "levit": "levit_128s",
    "lowformer": "lowformer_b0",
    "mambaout": "mambaout_femto",
    "maxxvit": "maxvit_pico_rw_256",
    "metaformer": "poolformerv2_s12",
    "mlp_mixer": "gmlp_ti16_224",
    "mobilenetv3": "mobilenetv3_small_050",
    "mobilenetv5": "mobilenetv5_base",
    "mobilevit": "mobilevit_xxs",
    "mvitv2": "mvitv2_tiny",
    "naflexvit": "naflexvit_base_patch16_gap",
    "nasnet": "nasnetalarge",
    "nest": "nest_tiny",
    "nextvit": "nextvit_small",
    "nfnet": "nf_regnet_b0",
    "pit": "pit_ti_224",
    "pnasnet": "pnasnet5large",
    "pvt_v2": "pvt_v2_b0",
    "qwen3_vit": "qwen3_vit_88m",
    "rdnet": "rdnet_tiny",
    "regnet": "regnetx_002",
    "repghost": "repghostnet_050",
    "repvit": "repvit_m0_9",
    "res2net": "res2next50",
    "resnest": "resnest14d",
    "resnet": "resnet10t",
    "resnetv2": "resnetv2_18",
    "rexnet": "rexnet_100",
    "selecsls": "selecsls42",
    "senet": "legacy_seresnet18",
    "sequencer": "sequencer2d_s",
    "shvit": "shvit_s1",
    "sknet": "skresnet18",
    "starnet": "starnet_s050",
    "swiftformer": "swiftformer_xs",
    "swin_transformer": "swin_tiny_patch4_window7_224",
    "swin_transformer_v2": "swinv2_tiny_window8_256",
    "swin_transformer_v2_cr": "swinv2_cr_tiny_224",
    "tiny_vit": "tiny_vit_5m_224",
    "tnt": "tnt_s_patch16_224",
    "tresnet": "tresnet_m",
    "twins": "twins_svt_small",
    "vgg": "vgg11",
    "visformer": "visformer_tiny",
    "vision_transformer": "vit_tiny_patch16_224",
    "vision_transformer_hybrid": "vit_tiny_r_s16_p8_224",
    "vision_transformer_relpos": "vit_srelpos_small_patch16_224",
    "vision_transformer_sam": "samvit_base_patch16_224",
    "vitamin": "vitamin_small_224",
    "volo": "volo_d1_224",
    "vovnet": "ese_vovnet19b_slim_dw",
    "xception": "legacy_xception",
    "xception_aligned": "xception41p",
    "xcit": "xcit_nano_12_p16_224",
}

_VIT = {
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "image_size": 64,
    "patch_size": 8,
}
_SWIN = {
    "image_size": 64,
    "patch_size": 4,
    "embed_dim": 16,
    "depths": [2, 2],
    "num_heads": [2, 2],
    "window_size": 4,
}
_STAGES: dict[str, Any] = {"hidden_sizes": [8, 16, 24, 32], "depths": [1, 1, 2, 1]}
_PYRAMID = {**_STAGES, "image_size": 64, "num_attention_heads": [1, 2, 2, 4]}
# Small configurations of transformers' image classifiers, for pictures of 64×64.
TRANSFORMERS: dict[str, dict[str, Any]] = {
    "beit": _VIT,
    "bit": {"embedding_size": 16, "hidden_sizes": [32, 64, 64, 64], "depths": [1, 1, 1, 1],
            "num_groups": 8},
    "clip": {"vision_config": _VIT},
    "convnext": _STAGES,
    "convnextv2": _STAGES,
    "cvt": {},
    "data2vec-vision": _VIT,
    "deit": _VIT,
    "dinov2": {**_VIT, "mlp_ratio": 2},
    "dinov2_with_registers": _VIT,
    "donut-swin": _SWIN,
    "efficientnet": {"width_coefficient": 0.35, "depth_coefficient": 0.3, "hidden_dim": 448},
    "focalnet": {"image_size": 64, "embed_dim": 16, "depths": [1, 1, 2], "focal_levels": [2, 2, 2],
                 "focal_windows": [3, 3, 3], "hidden_sizes": [16, 32, 64]},
    "hgnet_v2": {},
    "hiera": {"image_size": [64, 64], "embed_dim": 16, "depths": [1, 1, 1], "num_heads": [1, 2, 4],
              "num_query_pool": 2, "masked_unit_size": [4, 4]},
    "ijepa": _VIT,
    "levit": {"image_size": 128},
    "metaclip_2": {"vision_config": _VIT},
    "mobilenet_v1": {"depth_multiplier": 0.25, "image_size": 64},
    "mobilenet_v2": {"depth_multiplier": 0.35, "image_size": 64},
    "mobilevit": {"image_size": 64, "hidden_sizes": [16, 24, 32], "num_attention_heads": 2,
                  "neck_hidden_sizes": [8, 8, 16, 16, 24, 32, 64]},
    "mobilevitv2": {"image_size": 64, "width_multiplier": 0.5},
    "poolformer": _STAGES,
    "pvt": {**_PYRAMID, "sequence_reduction_ratios": [4, 2, 1, 1]},
    "pvt_v2": {**_PYRAMID, "sr_ratios": [4, 2, 1, 1]},
    "regnet": {**_STAGES, "embedding_size": 8, "groups_width": 8},
    "resnet": {**_STAGES, "embedding_size": 8},
    "segformer": {**_PYRAMID, "decoder_hidden_size": 32},
    "siglip": {"vision_config": _VIT},
    "swiftformer": {"image_size": 64, "depths": [1, 1, 2, 1], "embed_dims": [16, 24, 32, 48]},
    "swin": _SWIN,
    "swinv2": _SWIN,
    "textnet": {},
    "vit": _VIT,
    "vit_msn": _VIT,
}  # fmt: skip


def timm_classifier(name: str, size: int | None = None) -> tuple[Classifier, int]:
    """Return an unmodified timm network with 100 classes, and the side of its pictures.

    Args:
        name: what timm calls it.
        size: the side of the pictures; None: as the network was trained.
    """
    config = timm.get_pretrained_cfg(name)
    side = size or (config.input_size[-1] if config is not None else 224)
    fixed = config is not None and config.fixed_input_size and size is not None
    options = {"img_size": size} if fixed else {}
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        torch.manual_seed(0)
        warnings.simplefilter("ignore")  # timm's own, while it builds
        network = timm.create_model(name, pretrained=False, num_classes=100, **options)
        return classifier(network, side, name), side


def transformers_classifier(name: str) -> tuple[Classifier, int]:
    """Return a small image classifier of transformers with 10 classes, and its pictures' side.

    Args:
        name: the type of its configuration, such as ``vit``.
    """
    from transformers import AutoConfig, AutoModelForImageClassification
    from transformers.models.auto.modeling_auto import (
        MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES as NAMES,
    )

    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        torch.manual_seed(0)
        warnings.simplefilter("ignore")
        config = AutoConfig.for_model(name, num_labels=10, **TRANSFORMERS[name])
        classes = NAMES[name]
        config.architectures = [classes if isinstance(classes, str) else classes[0]]
        network = AutoModelForImageClassification.from_config(config)
        side = 128 if name == "levit" else 64  # it halves the side six times
        return classifier(network, side, name), side
