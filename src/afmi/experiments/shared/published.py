"""What the paper published: the figures that stand beside ours, and the settings behind them.

Paper: *A-FMI: Learning Attributions from Deep Networks via Feature Map Importance*, ICLR 2021
submission, under review.
"""

from __future__ import annotations

__all__ = [
    "ACCURACY_AUC",
    "AGREEMENT",
    "ARCHITECTURES",
    "IMAGES",
    "METHODS",
    "SECONDS",
    "WEIGHTS",
]

METHODS = (
    "Gradient",
    "DeepLIFT",
    "Integrated Gradients",
    "LRP",
    "XRAI",
    "Extremal perturbation",
    "RISE",
    "Grad-CAM",
    "A-FMI",
)
"""The methods compared (Section 4), by the names that they have here, in the paper's order."""

ARCHITECTURES = ("vgg16", "vgg19", "resnet50", "resnet152", "resnext101_32x8d")
"""The ImageNet networks (Appendix A.1), by torchvision's names."""

WEIGHTS = "IMAGENET1K_V1"
"""torchvision's weights of the paper's time; newer ones of the same networks answer otherwise."""

IMAGES = 5000
"""How many ImageNet images Table 1 and the curves are over (Section 4.4)."""

ACCURACY_AUC: dict[str, dict[str, float]] = {
    "vgg19": {
        "Random": 0.0854,
        "Gradient": 0.1657,
        "DeepLIFT": 0.1673,
        "Integrated Gradients": 0.2177,
        "LRP": 0.3460,
        "XRAI": 0.3269,
        "Extremal perturbation": 0.1775,
        "RISE": 0.2596,
        "Grad-CAM": 0.5343,
        "A-FMI": 0.5908,
    },
    "resnet50": {
        "Random": 0.0854,
        "Gradient": 0.2236,
        "DeepLIFT": 0.1812,
        "Integrated Gradients": 0.2857,
        "Extremal perturbation": 0.2613,
        "RISE": 0.2970,
        "Grad-CAM": 0.6380,
        "A-FMI": 0.6513,
    },
}
"""Table 1: Accuracy-AUC by network and method; the paper has no LRP and XRAI on ResNet-50."""

SECONDS: dict[str, float] = {
    "Gradient": 0.0354,
    "DeepLIFT": 0.0669,
    "Integrated Gradients": 1.5908,
    "LRP": 0.9719,
    "XRAI": 14.6469,
    "Extremal perturbation": 14.1818,
    "RISE": 10.8123,
    "Grad-CAM": 0.0291,
    "A-FMI": 0.1392,
}
"""Table 1: seconds per image on one NVIDIA Tesla V100; the paper does not say on which network."""

AGREEMENT: dict[str, float] = {"mnist": 0.869, "imagenet": 0.884}
"""Section 4.1 (RQ1): share of the images whose FMI is nearest to their own class's prototype."""
