"""Which networks of the documentation's table become a file with their maps, and why not others.

    python -m benchmarks.export_networks [--only 'timm:.*vit'] [--limit 300] [--again REGEX]

Goes through what `benchmarks.networks` goes through, built as there: first the smallest network of
each family, then the others, smaller ones first. Each network is exported in a process of its own,
for ``--limit`` seconds at most, and its row is appended to the table when it is done. Started
again, it goes on after the last row; ``--again`` names rows to make anew.

- **outcome**: exported, or refused (an error of afmi's, which names the reason), or failed: any
  other error, a process that died or that took too long.
- **map against ours**: `afmi.Exported.difference`, found in ONNX Runtime.
- **file / weights**: the size of the file over that of the parameters and buffers.
- **not in WebGPU**: operators of the file that onnxruntime-web 1.30 leaves to the processor there.
"""

from __future__ import annotations

import argparse
import csv
import multiprocessing
import re
import resource
import tempfile
import time
from collections.abc import Callable, Iterable
from multiprocessing.connection import Connection
from pathlib import Path

import torch

from afmi.errors import AfmiError

COLUMNS = ("network", "family", "parameters (M)", "side", "outcome", "map against ours",
           "file / weights", "not in WebGPU", "seconds", "peak (GB)", "reason")  # fmt: skip
RESULTS = Path(__file__).parents[1] / "docs" / "results"
KNOWN = RESULTS / "networks.csv"
TABLE = RESULTS / "exports.csv"

_WEBGPU = """
Abs Acos Acosh Add ArgMax ArgMin Asin Asinh Atan Atanh AveragePool BatchNormalization Cast Ceil
Clip Concat Conv ConvTranspose Cos Cosh CumSum DepthToSpace DequantizeLinear Div Einsum Elu
Equal Erf Exp Expand Flatten Floor Gather GatherElements GatherND Gelu Gemm GlobalAveragePool
GlobalMaxPool Greater GreaterOrEqual GridSample HardSigmoid HardSwish If InstanceNormalization
LayerNormalization LeakyRelu Less LessOrEqual Log MatMul MaxPool Mul Neg Not Pad Pow Range
Reciprocal ReduceL1 ReduceL2 ReduceLogSum ReduceLogSumExp ReduceMax ReduceMean ReduceMin
ReduceProd ReduceSum ReduceSumSquare Relu Reshape Resize ScatterND Shape Sigmoid Sin Sinh Slice
Softmax Split Sqrt Squeeze Sub Tan Tanh ThresholdedRelu Tile Transpose Unsqueeze Where Constant
ConstantOfShape Identity
"""
"""The standard operators of onnxruntime-web 1.30's own list (docs/webgpu-operators.md in its
package), and three that make constants, which are gone when a file runs."""

WEBGPU = frozenset(_WEBGPU.split())


def ordered(rows: Iterable[dict[str, str]]) -> list[str]:
    """Return names, the smallest network of each family first, and smaller ones before larger."""
    by_size = sorted(rows, key=lambda row: float(row["parameters (M)"] or "inf"))
    smallest: dict[str, str] = {}
    for row in by_size:
        smallest.setdefault(row["family"], row["network"])
    return list(dict.fromkeys([*smallest.values(), *(row["network"] for row in by_size)]))


def read(path: Path) -> dict[str, dict[str, str]]:
    """Return the rows of a table by their networks."""
    if not path.exists():
        return {}
    with path.open(encoding="utf-8", newline="") as file:
        return {row["network"]: row for row in csv.DictReader(file)}


def row(name: str) -> dict[str, str]:
    """Return the cells of one network, which is built and exported in this process."""
    import onnx

    import afmi
    from benchmarks.networks import networks

    build = {one: build for one, _, build in networks()}[name]
    try:
        model, side = build()
    except Exception as error:  # whatever another package raises
        return {"outcome": "not built", "reason": _line(error)}
    weights = sum(x.numel() * x.element_size() for x in [*model.parameters(), *model.buffers()])
    cells = {"side": str(side)}
    with tempfile.TemporaryDirectory() as folder:
        try:
            file = afmi.export(model, Path(folder) / "net.onnx", size=side)
        except AfmiError as error:
            return cells | {"outcome": "refused", "reason": _line(error)}
        except Exception as error:  # which it must not raise
            return cells | {"outcome": "failed", "reason": _line(error)}
        operators = {node.op_type for node in onnx.load(file.path).graph.node}
        ratio = file.path.stat().st_size / weights
    return cells | {
        "outcome": "exported",
        "map against ours": f"{file.difference:.0e}",
        "file / weights": f"{ratio:.3f}",
        "not in WebGPU": " ".join(sorted(operators - WEBGPU)),
    }


def _line(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"[:400]


def _work(name: str, answer: Connection) -> None:
    torch.set_num_threads(1)
    start = time.monotonic()
    cells = row(name)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    answer.send(cells | {"seconds": f"{time.monotonic() - start:.0f}", "peak (GB)": f"{peak:.1f}"})


def row_within(
    name: str, limit: float, work: Callable[[str, Connection], None] = _work
) -> dict[str, str]:
    """Return the cells of one network, made in another process, or that it did not end well.

    Args:
        name: of the network.
        limit: seconds that it may take.
        work: what the process does.
    """
    context = multiprocessing.get_context("forkserver")
    here, there = context.Pipe(duplex=False)
    process = context.Process(target=work, args=(name, there))
    process.start()
    there.close()
    try:
        if here.poll(limit):
            cells = here.recv()
            process.join(10)
            return cells
        return {"outcome": "failed", "reason": f"took longer than {limit:g} seconds"}
    except EOFError:
        process.join()
        return {"outcome": "failed", "reason": f"the process ended with {process.exitcode}"}
    finally:
        process.kill()
        process.join()


def main() -> None:
    """Append rows to the table until every network has one."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", default="", help="a regular expression for names to export")
    parser.add_argument("--again", help="a regular expression for rows to make anew")
    parser.add_argument("--limit", type=float, default=300, help="seconds that a network may take")
    parser.add_argument("--out", type=Path, default=TABLE, help="CSV to append to")
    options = parser.parse_args()
    multiprocessing.set_forkserver_preload(
        ["benchmarks.networks", "onnxscript.function_libs.torch_lib.ops"]
    )
    known, done = read(KNOWN), read(options.out)
    if options.again is not None:
        done = {
            name: row
            for name, row in done.items()
            if not (re.search(options.only, name) and re.search(options.again, str(row)))
        }
    with options.out.open("w", encoding="utf-8", newline="") as file:
        table = csv.DictWriter(file, COLUMNS, restval="", lineterminator="\n")
        table.writeheader()
        table.writerows(done.values())
        file.flush()
        for name in ordered(known.values()):
            if name in done or not re.search(options.only, name):
                continue
            of_known = {key: known[name][key] for key in COLUMNS[:3]}
            cells = of_known | row_within(name, options.limit)
            table.writerow(cells)
            file.flush()
            print(" | ".join(cells.get(column, "") for column in COLUMNS), flush=True)


if __name__ == "__main__":
    main()
