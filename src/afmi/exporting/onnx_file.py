"""ONNX: a program as the bytes of a file, and such bytes run in ONNX Runtime."""

from __future__ import annotations

import contextlib
import importlib
import logging
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.export import ExportedProgram

from afmi.errors import ExportError, first_line
from afmi.packages import imported

__all__ = ["check_packages", "onnx_bytes", "run_onnx"]

OPSET = 20
"""The version of the operators: the first with all that is needed in 16 bits."""

_MOST_BYTES = 2**31 - 2**26
"""Of weights that one file of ONNX's can hold, beside what is computed with them."""

_FOLDED = 2**16
"""Numbers that a constant may have and be computed when the file is written. What is made of the
weights is left to the runtime, which does it once: so the file has them once."""


def check_packages() -> None:
    """Raise a `MissingPackageError` unless the packages of the extra are installed."""
    for name in ("onnx", "onnxscript", "onnxruntime"):
        imported(name, "an ONNX file", "afmi[export]")


def onnx_bytes(
    program: ExportedProgram,
    inputs: Sequence[str],
    outputs: Sequence[str],
    metadata: Mapping[str, str],
) -> bytes:
    """Return the bytes of a file.

    Args:
        program: what it computes.
        inputs: their names.
        outputs: their names.
        metadata: what it holds besides.

    Raises:
        ExportError: an operation has no translation, or the weights are too large for a file.
    """
    with _quietly():
        try:
            written = torch.onnx.export(
                program,
                dynamo=True,
                optimize=False,
                opset_version=OPSET,
                input_names=list(inputs),
                output_names=list(outputs),
                verbose=False,
            )
        except torch.onnx.OnnxExporterError as error:
            raise _untranslated(error) from error
        assert written is not None
        model = written.model
        _tidied(model)
    model.metadata_props.update(metadata)
    model.producer_name = "afmi"
    _check_size(model)
    ir = importlib.import_module("onnx_ir")
    return ir.to_proto(model).SerializeToString()


def _check_size(model: Any) -> None:
    """Raise unless one file holds the weights: protobuf can neither count nor write more."""
    constants = (value.const_value for value in model.graph.initializers.values())
    size = sum(constant.nbytes for constant in constants if constant is not None)
    if size >= _MOST_BYTES:
        raise ExportError(
            f"the weights have {size / 1e9:.2g} GB, and one ONNX file holds at most "
            f"{_MOST_BYTES / 1e9:.2g} GB; write a .pt2 file, export the network in 16 bits, "
            "model.half(), or choose a smaller one"
        )


def _tidied(model: Any) -> None:
    """Compute what depends on no input, and leave out what nothing needs.

    The optimizer of onnxscript is not used: it takes x + c for x where c is below 1e-8, and the
    slopes of chords are NaN without such numbers.
    """
    ir = importlib.import_module("onnx_ir")
    optimizer = importlib.import_module("onnxscript.optimizer")
    passes = importlib.import_module("onnx_ir.passes.common")
    passes.InlinePass()(model)
    optimizer.fold_constants(model, input_size_limit=_FOLDED, output_size_limit=_FOLDED)
    passes.CommonSubexpressionEliminationPass()(model)
    _with_constant_shapes(model.graph, ir)
    passes.RemoveUnusedNodesPass()(model)
    passes.RemoveUnusedOpsetsPass()(model)
    passes.ClearMetadataAndDocStringPass()(model)  # else the paths of source files go along


def _with_constant_shapes(graph: Any, ir: Any) -> None:
    """Let Reshape find the number of images itself, instead of having its shape put together.

    A shape of constants above 0 and one number that depends on the images is the same with −1
    there. On small networks the steps that make shapes take a tenth of the time.
    """
    for node in list(graph):
        shape = node.inputs[1].producer() if node.op_type == "Reshape" else None
        if shape is None or shape.op_type != "Concat":
            continue
        parts = [ir.convenience.get_const_tensor(part) for part in shape.inputs]
        sizes = [[-1] if part is None else part.numpy().ravel().tolist() for part in parts]
        known = [side for size in sizes for side in size if side != -1]
        rank = node.outputs[0].shape
        if (
            sum(part is None for part in parts) != 1
            or rank is None
            or len(rank) != len(known) + 1
            or 0 in known
        ):
            continue
        numbers = np.array([side for size in sizes for side in size], np.int64)
        name = f"{node.outputs[0].name}_shape"
        value = ir.Value(name=name, const_value=ir.tensor(numbers, name=name))
        graph.register_initializer(value)
        node.replace_input_with(1, value)


def _untranslated(error: Exception) -> ExportError:
    """Return the error that names the operation for which there is no translation."""
    text = str(error)
    cause: BaseException | None = error
    while cause is not None:
        text += f" {cause}"
        cause = cause.__cause__
    found = re.search(r"No ONNX function found for <OpOverload\(op='([\w.]+)', overload", text)
    if found is None:
        return ExportError(f"the network cannot be written as ONNX: {first_line(error)}")
    return ExportError(
        f"the operation {found[1]!r}, of the network or of its backward pass, has no form in ONNX; "
        "write that part otherwise, or choose a layer behind it"
    )


@contextlib.contextmanager
def _quietly() -> Iterator[None]:
    """Keep PyTorch's and onnxscript's notes on their own progress away from the user."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "onnx_ir")]
    before = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, before, strict=True):
            logger.setLevel(level)


def run_onnx(content: bytes, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return what a file gives in ONNX Runtime, on the CPU, by the names of its outputs.

    Args:
        content: of the file.
        inputs: by their names.

    Raises:
        ExportError: ONNX Runtime does not take the file, or fails at it.
    """
    runtime = importlib.import_module("onnxruntime")
    options = runtime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = torch.get_num_threads()
    try:
        session = runtime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
        names = [output.name for output in session.get_outputs()]
        given = {name: np.asarray(x.cpu()) for name, x in inputs.items()}
        results = session.run(names, given)
    except Exception as error:  # of classes that the package does not name
        raise ExportError(f"ONNX Runtime does not run the file: {first_line(error)}") from error
    return {name: torch.from_numpy(x) for name, x in zip(names, results, strict=True)}
