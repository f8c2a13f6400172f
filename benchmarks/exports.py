"""What the map costs in an exported file: time and size against the plain network's own file.

    python -m benchmarks.exports [--networks photos,imagenet,…] [--batches 1,8] [--rounds 15]
    python -m benchmarks.exports --networks photos --profile

Both files are run in ONNX Runtime on one thread, in turns; times are the processor's, medians in
milliseconds, and the ratio is the median of the turns' own. Networks of torchvision's have random
weights, which take the same time. ``--profile`` shows by ONNX Runtime's own profiler which
operators the difference goes to, for one image.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import onnxruntime
import torch
from torch import Tensor, nn
from torch.export import Dim

import afmi
from afmi.exporting.onnx_file import onnx_bytes
from afmi.network.classifier import Classifier

NETWORKS = "photos,imagenet,squeezenet1_1,resnet18,resnet50,vgg11"
OWN = ("photos", "imagenet")


def _plain(model: Classifier, images: Tensor) -> bytes:
    """Return the file of the network alone, made as the one with the map is."""
    batch = images.expand(2, *images.shape[1:]).contiguous()

    class Outputs(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, x: Tensor) -> Any:
            return self.model(x)

    with torch.no_grad():
        program = torch.export.export(
            Outputs().eval(), (batch,), dynamic_shapes=({0: Dim("batch", min=1)},)
        )
    return onnx_bytes(program, ["images"], ["outputs"], {})


def _session(content: bytes, profile: str = "") -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.enable_profiling = bool(profile)
    options.profile_file_prefix = profile
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])


def _milliseconds(session: onnxruntime.InferenceSession, inputs: dict[str, Any]) -> float:
    start = time.process_time()
    session.run(None, inputs)
    return 1000 * (time.process_time() - start)


def _files(name: str) -> tuple[int, float, bytes, bytes]:
    """Return the side of a network's images, the map's difference, and both files."""
    torch.manual_seed(0)
    weights = "default" if name in OWN else None
    model = afmi.load_model(name, weights=weights, output="logits", device="cpu").eval()
    side = model.crop
    assert isinstance(side, int)
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        file = afmi.export(model, Path(folder) / "net.onnx", classes="predicted")
        explained = file.path.read_bytes()
    return side, file.difference, _plain(model, torch.rand(1, 3, side, side)), explained


def _measured(name: str, batches: list[int], rounds: int) -> Iterator[str]:
    side, difference, plain, explained = _files(name)
    sessions = _session(plain), _session(explained)
    for batch in batches:
        inputs = {"images": torch.rand(batch, 3, side, side).numpy()}
        times: tuple[list[float], list[float]] = ([], [])
        for turn in range(rounds + 2):
            for session, taken in zip(sessions, times, strict=True):
                milliseconds = _milliseconds(session, inputs)
                if turn >= 2:  # the first warm up
                    taken.append(milliseconds)
        alone, both = map(statistics.median, times)
        ratio = statistics.median(b / a for a, b in zip(*times, strict=True))
        yield (
            f"| {name} | {batch} | {difference:.0e} | {alone:.1f} | {both:.1f} | {ratio:.2f} "
            f"| {len(explained) / len(plain):.3f} |"
        )


def _by_operator(content: bytes, images: Any, rounds: int) -> Counter[str]:
    """Return the microseconds of each kind of operator for an image, and under '' their number."""
    with tempfile.TemporaryDirectory() as folder:
        session = _session(content, str(Path(folder) / "profile"))
        for _ in range(rounds):
            session.run(None, {"images": images})
        events = json.loads(Path(session.end_profiling()).read_text(encoding="utf-8"))
    times: dict[tuple[str, str], list[float]] = {}
    for event in events:
        if event["cat"] == "Node" and event["name"].endswith("kernel_time"):
            times.setdefault((event["args"]["op_name"], event["name"]), []).append(event["dur"])
    total: Counter[str] = Counter()
    for (operator, _), taken in times.items():
        total[operator] += statistics.median(taken)
        total[""] += 1
    return total


def _profiled(name: str, rounds: int) -> Iterator[str]:
    """Give a line for each kind of operator that takes longer with the map."""
    side, _, plain, explained = _files(name)
    images = torch.rand(1, 3, side, side).numpy()
    alone, both = (_by_operator(content, images, rounds) for content in (plain, explained))
    steps = both.pop(""), alone.pop("")
    whole = sum(alone.values())
    yield f"| {name} | {steps[1]} to {steps[0]} steps | {sum(both.values()) / whole - 1:+.1%} |"
    for operator, taken in sorted(both.items(), key=lambda one: alone[one[0]] - one[1]):
        if (more := (taken - alone[operator]) / whole) > 0.003:
            yield f"| {name} | {operator} | {more:+.1%} |"


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--networks", default=NETWORKS, help="names, joined by commas")
    parser.add_argument("--batches", default="1,8", help="images at a time, joined by commas")
    parser.add_argument("--rounds", type=int, default=15, help="runs of each file")
    parser.add_argument("--profile", action="store_true", help="show what takes the time")
    given = parser.parse_args()
    torch.set_num_threads(1)
    if given.profile:
        print("| network | operator | of the plain network's time |\n|---|---|---|")
        for name in given.networks.split(","):
            print("\n".join(_profiled(name, 4 * given.rounds)), flush=True)
        return
    print("| network | batch | map against ours | plain, ms | with map, ms | × | size × |")
    print("|---|---|---|---|---|---|---|")
    for name in given.networks.split(","):
        for line in _measured(name, [int(n) for n in given.batches.split(",")], given.rounds):
            print(line, flush=True)


if __name__ == "__main__":
    main()
