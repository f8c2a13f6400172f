"""A case of a method and images, as in an evaluation."""

from __future__ import annotations

import torch
from torch import Tensor

from afmi.methods import Method
from afmi.metrics import Case
from afmi.network.classifier import classify


def case_of(
    method: Method,
    inputs: Tensor,
    targets: Tensor | None = None,
    *,
    companions: Tensor | None = None,
    seconds: float = 0.5,
    peak_bytes: float = 2.0**20,
) -> Case:
    """Explain the images and return the case; None: the predicted classes."""
    attribution = method.attribution(inputs, targets)
    logits = classify(method.model, inputs)
    return Case(
        method,
        inputs,
        attribution.target,
        attribution,
        logits,
        seconds,
        peak_bytes,
        companions=companions,
    )


def part(case: Case, index: int) -> Case:
    """Return the case of one of the images alone, explained alone."""
    row = slice(index, index + 1)
    companions = None if case.companions is None else case.companions[row]
    return case_of(case.method, case.inputs[row], case.targets[row], companions=companions)


def companions_for(inputs: Tensor, count: int = 3, seed: int = 9) -> Tensor:
    """Return other images for each, (N, count, C, H, W)."""
    generator = torch.Generator().manual_seed(seed)
    size = (inputs.shape[0], count, *inputs.shape[1:])
    return torch.rand(size, generator=generator).to(inputs)
