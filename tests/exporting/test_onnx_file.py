"""What is done to a file's steps before it is written leaves what they compute."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from afmi.errors import ExportError
from afmi.exporting.onnx_file import _check_size, _with_constant_shapes

ir = pytest.importorskip("onnx_ir", reason="the extra export is not installed")
onnx = pytest.importorskip("onnx", reason="the extra export is not installed")
runtime = pytest.importorskip("onnxruntime", reason="the extra export is not installed")

CASES = {
    "one number depends on the images": ("float[n, 3, 4] y", "count, three, four", True),
    "it is twice the number of images": ("float[m, 2, 3] y", "twice, two, three", True),
    "a 0 stands for the side that there is": ("float[n, 12] y", "count, zero", False),
    "two numbers depend on the images": ("float[n, n, a] y", "count, count, rest", False),
    "one of several is to be found": ("float[n, 3, 4] y", "count, rest, four", False),
}


@pytest.mark.parametrize("name", CASES)
def test_shapes_become_constants_where_that_says_the_same(name: str) -> None:
    declared, parts, constant = CASES[name]
    text = f"""<ir_version: 9, opset_import: ["": 20]>
    main (float[n, 12] images) => ({declared})
    <int64[1] zero = {{0}}, int64[1] two = {{2}}, int64[1] three = {{3}}, int64[1] four = {{4}},
     int64[1] rest = {{-1}}> {{
        count = Shape<start = 0, end = 1>(images)
        twice = Mul(count, two)
        shape = Concat<axis = 0>({parts})
        y = Reshape(images, shape)
    }}"""
    model = ir.from_proto(onnx.parser.parse_model(text))
    before = ir.to_proto(model).SerializeToString()
    _with_constant_shapes(model.graph, ir)
    after = ir.to_proto(model).SerializeToString()
    shape = next(node for node in model.graph if node.op_type == "Reshape").inputs[1]
    assert (shape.producer() is None) is constant
    for count in (2, 6):
        images = np.arange(12 * count, dtype=np.float32).reshape(count, 12)
        one, other = (
            runtime.InferenceSession(content).run(None, {"images": images})[0]
            for content in (before, after)
        )
        np.testing.assert_array_equal(one, other)


def test_weights_that_no_file_holds_are_refused_before_they_are_written() -> None:
    def model(numbers: int) -> Any:
        weights = SimpleNamespace(const_value=SimpleNamespace(nbytes=4 * numbers))
        initializers = {"weights": weights, "computed": SimpleNamespace(const_value=None)}
        return SimpleNamespace(graph=SimpleNamespace(initializers=initializers))

    _check_size(model(500_000_000))
    with pytest.raises(ExportError, match=r"2\.5 GB, .* at most 2\.1 GB; write a \.pt2 file"):
        _check_size(model(633_500_000))
