"""What the authors' programs do by default, and why we do otherwise where we do.

Read in their source; ours is read from the methods' fields when the table is printed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import nn

from afmi import specs
from afmi.methods import CATALOGUE
from afmi.pictures.references import Reference

__all__ = ["PROGRAMS", "Program", "defaults_table"]


@dataclass(frozen=True)
class Program:
    """The program that stands for a method's authors.

    Attributes:
        source: where it is, ``owner/name`` on GitHub; empty: there is none to compare with.
        defaults: the program's value for each of our fields that it has.
        differs: what else differs, and why.
        none: what None stands for, for those of our fields where it is the default.
    """

    source: str
    defaults: Mapping[str, str] = field(default_factory=dict)
    differs: str = "nothing"
    none: Mapping[str, str] = field(default_factory=dict)


PROGRAMS = {
    "DeconvNet": Program(
        "facebookresearch/TorchRay",
        differs="nothing on networks of ReLUs, the only activation that the program knows",
    ),
    "DeepLIFT": Program(
        "kundajelab/deeplift",
        {"reference": "none: must be given"},
        "the program has RevealCancel behind dense layers; we have rescale everywhere, as in "
        "comparisons of image networks, and rules that keep the sum for max pooling and products",
    ),
    "Gradient": Program("facebookresearch/TorchRay"),
    "GradientSHAP": Program(
        "shap/shap",
        {"samples": "200", "reference": "none: training images must be given"},
        "no training images are at hand; black and white are the ends of every pixel's range",
    ),
    "GuidedBackprop": Program(
        "facebookresearch/TorchRay",
        differs="nothing on networks of ReLUs, the only activation that the program knows",
    ),
    "IntegratedGradients": Program(
        "PAIR-code/saliency",
        {"steps": "25", "reference": "zeros of what the program is given"},
        "midpoints of the steps, which err less than their ends",
    ),
    "KernelSHAP": Program(
        "shap/shap",
        {"samples": "2 d + 2048", "reference": "none: must be given"},
        "no selection of superpixels by an l1 penalty",
        {"samples": "2 d + 2048"},
    ),
    "LRP": Program(
        "chr5tphr/zennit",
        {"epsilon": "1e-06, absolute"},
        "ε is a share of the layer's outputs: an absolute one means something else in each layer",
    ),
    "SmoothGrad": Program(
        "PAIR-code/saliency",
        {"samples": "25", "noise": "0.15"},
        "the program averages squared gradients by default, the paper gradients",
    ),
    "ExtremalPerturbation": Program(
        "facebookresearch/TorchRay",
        {
            "areas": "0.1 (0.025+0.05+0.1+0.2 in its benchmark on VOC)",
            "iterations": "800",
            "learning_rate": "0.01",
            "momentum": "0.9",
            "weight": "300",
            "growth": "1.0035",
            "sigma": "21",
            "step": "7",
            "temperature": "0.05",
            "blur": "20",
            "levels": "8",
            "smoothing": "0 (0.09 in its benchmark)",
            "mirror": "true",
        },
        "a mirrored digit or letter is another one; m and its area are computed on the lattice, "
        "which costs less",
    ),
    "LIME": Program(
        "marcotcr/lime",
        {
            "samples": "1000",
            "segmentation": "quickshift(kernel_size=4, max_distance=200, ratio=0.2)",
            "kernel_width": "0.25",
            "ridge": "1",
            "reference": "the superpixel's mean colour",
        },
        none={"reference": "the superpixel's mean colour"},
    ),
    "MaskingModel": Program(
        "PiotrDabkowski/pytorch-saliency",
        differs="the loss is the paper's: the program has margins between logits, the area to the "
        "power of 0.3, a penalty at the border, replacements of their own for what is kept and "
        "what is deleted, a deletion term for classes that are not there, and noise in what is "
        "kept; the learning rates are higher, for fewer steps; the decoder is half as wide (32 / "
        "64), and nothing is subtracted from the class selector, where the program's demo "
        "subtracts 6",
    ),
    "MeaningfulPerturbation": Program(
        "ruthcfong/perturb_explanations",
        {
            "iterations": "300",
            "learning_rate": "0.1",
            "area": "0.0001 (0.001 for localisation)",
            "relative": "false",
            "smoothness": "0.01",
            "power": "3 (2 for localisation)",
            "cell": "8",
            "blur": "5",
            "jitter": "4",
            "reference": "blur of 10 pixels",
        },
        "the program upsamples by nearest neighbours, rounds the mask to 8 bits, passes gradients "
        "around its blur and sums ‖∇m‖₂^β; we differentiate what is computed, and sum ‖∇m‖_β^β "
        "as the paper",
        {"reference": "blur of 10 pixels"},
    ),
    "PredictionDifference": Program(
        "lmzintgraf/DeepVis-PredDiff",
        {
            "window": "10",
            "stride": "1",
            "padding": "2",
            "samples": "10",
            "images": "100000",
            "patches": "20,000 patches of the images in its folder",
        },
        "no other images are at hand; half a window as stride costs a 25th",
        {"stride": "5", "patches": "those of the image itself"},
    ),
    "RISE": Program(
        "eclique/RISE",
        {
            "masks": "6000",
            "cells": "8",
            "probability": "0.1",
            "reference": "mean colour",
            "weighted_mean": "false",
        },
        "the paper's 4,000 masks of 7 × 7 cells and p = 0.5; at the grid's edge the program "
        "mirrors, we repeat",
        {"reference": "mean colour"},
    ),
    "XRAI": Program(
        "PAIR-code/saliency",
        {
            "reference": "the image's smallest and largest number",
            "steps": "100",
            "scales": "50+100+150+250+500+1200",
            "smallest": "150",
            "dilation": "5",
            "least_gain": "50",
        },
        "black and white do not depend on the image",
    ),
    "GradCAM": Program("facebookresearch/TorchRay"),
    "GradCAMPlusPlus": Program(
        "adityac94/Grad_CAM_plus_plus",
        differs="the program divides α by its sum over positive gradients, which is not in the "
        "paper's equations",
    ),
    "FullGrad": Program(
        "idiap/fullgrad-saliency",
        differs="the program knows biases of convolutions, linear layers and batch norms alone, "
        "adds 1e-6 to each layer's range and aligns corners; we know the bias of every operation",
    ),
    "HiResCAM": Program("rachellea/hirescam"),
    "LayerCAM": Program("PengtaoJiang/LayerCAM-jittor"),
    "ScoreCAM": Program("haofanwang/Score-CAM", {"weights": "probability"}),
    "XGradCAM": Program(
        "Fu0511/XGrad-CAM",
        differs="the program adds 1e-6 to each map's sum, which shrinks the weights of faint maps",
    ),
}
"""By the method's name in the catalogue. Those left out were compared with no program."""


def _text(value: object) -> str:
    """Write a field's value as one would type it."""
    if value is None:
        return "none"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, tuple):
        return "+".join(map(_text, value))
    if isinstance(value, float):
        return f"{value:.10g}"
    return specs.text(value) if isinstance(value, Reference) else str(value)


def defaults_table() -> list[str]:
    """Return the lines of a Markdown table: each default, ours and theirs."""
    lines = [
        "| method | program | defaults: ours / theirs | what else differs, and why |",
        "|---|---|---|---|",
    ]
    for name, program in PROGRAMS.items():
        method = CATALOGUE[name](nn.Identity())
        pairs = [
            f"{key}: {program.none.get(key) or _text(getattr(method, key))} / {theirs}"
            for key, theirs in program.defaults.items()
        ]
        link = f"[{program.source}](https://github.com/{program.source})"
        lines.append(
            f"| {method.name} | {link} | {'; '.join(pairs) or 'none'} | {program.differs} |"
        )
    return lines
