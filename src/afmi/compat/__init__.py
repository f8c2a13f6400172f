"""Bridges from other packages: their call shapes, our methods.

``from afmi.compat.captum import IntegratedGradients`` in place of ``from captum.attr import …``,
``from afmi.compat.grad_cam import GradCAM`` in place of ``from pytorch_grad_cam import …``, and
`afmi.compat.quantus.explain_func` for Quantus. None of these packages is needed.
"""

from afmi.compat import captum, grad_cam, quantus

__all__ = ["captum", "grad_cam", "quantus"]
