"""Cost: what was measured, for each image."""

from __future__ import annotations

import math

import torch
from cases import case_of
from networks import build, images

from afmi.methods import Random
from afmi.metrics import Case, Cost


def test_each_image_has_the_batch_s_numbers() -> None:
    case = case_of(Random(build("resnet")), images(3), seconds=0.125, peak_bytes=5 * 2**19)
    values = Cost().measure(case)
    assert {name: v.tolist() for name, v in values.items()} == {
        "seconds": [0.125] * 3,
        "peak_mib": [2.5] * 3,
    }
    assert all(v.dtype == torch.float64 for v in values.values())


def test_what_was_not_measured_is_nan() -> None:
    case = case_of(Random(build("resnet")), images(2))
    bare = Case(case.method, case.inputs, case.targets, case.attribution, case.logits)
    assert all(math.isnan(v) for value in Cost().measure(bare).values() for v in value.tolist())
