"""A Ray cluster of two nodes that share nothing but a cable: network namespaces of this machine."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from PIL import Image

ROOT = hasattr(os, "geteuid") and os.geteuid() == 0
pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(600),
    pytest.mark.skipif(
        not (ROOT and shutil.which("ip") and shutil.which("unshare")),
        reason="needs root, ip and unshare, to make network namespaces",
    ),
]
HEAD, OTHER = "10.77.0.1", "10.77.0.2"

_DRIVER = """
import sys, time
sys.path[:0] = {paths!r}
import torch
torch.set_num_threads(1)
from jobs import Where
from test_engines import OPTIONS, network
import afmi.evaluation.plan as plan_module
from afmi import engines
from afmi.errors import SourceError
from afmi.evaluation import evaluate
class Slow(torch.nn.Module):
    def forward(self, images):
        time.sleep(0.5)  # so that there is work left when the other node's worker starts
        return images
engine = engines.Ray(workers=2, address="{head}:6379")
drawn = torch.Generator().manual_seed(0)
pairs = [(torch.rand(3, 16, 16, generator=drawn), n % 2) for n in range(300)]
options = OPTIONS | {{"methods": "a-fmi,random"}}
evaluate(network(), pairs, {out!r} + "/one", **options)
evaluate(network(), pairs, {out!r} + "/two", **options, engine=engine)
plan_module._LARGEST_PIECE = 2
options = OPTIONS | {{"methods": "random"}}
try:
    evaluate(network(Slow()), {out!r} + "/photos", {out!r} + "/three", **options, engine=engine)
except SourceError as error:
    print("refused", error, flush=True)
with engine.pool(Where()) as pool:
    for number in range(40):
        pool.submit(number)
    pool.work(lambda task, place: print("task", task, place, flush=True))
"""


def _in(space: str, *command: str) -> list[str]:
    return ["ip", "netns", "exec", space, *command]


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[dict[str, str]]:
    pytest.importorskip("ray", reason="needs the extra ray")
    paths = os.pathsep.join([str(Path(__file__).parents[1]), *sys.path])
    environment = {
        **os.environ,
        "PYTHONPATH": paths,
        "RAY_AUTH_MODE": "disabled",
        "RAY_USAGE_STATS_ENABLED": "0",
    }
    ray = str(Path(sys.executable).with_name("ray"))
    spaces = {"afmi-a": ("afmi-va", HEAD), "afmi-b": ("afmi-vb", OTHER)}
    commands = [["ip", "netns", "add", space] for space in spaces]
    link = "ip link add afmi-va netns afmi-a type veth peer name afmi-vb netns afmi-b"
    commands.append(link.split())
    for space, (device, address) in spaces.items():
        commands.append(["ip", "-n", space, "addr", "add", f"{address}/24", "dev", device])
        commands += [["ip", "-n", space, "link", "set", one, "up"] for one in ("lo", device)]
    start = [ray, "start", "--num-cpus=1", "--block"]
    head = ["--head", f"--node-ip-address={HEAD}", "--include-dashboard=false"]
    folder = tempfile.mkdtemp(prefix="afmi")  # short, since sockets lie in it
    head += [f"--temp-dir={folder}"]
    other = [f"--address={HEAD}:6379", f"--node-ip-address={OTHER}"]
    # The other node sees another /tmp.
    private = "mount -t tmpfs none /tmp && exec " + " ".join([*start, *other])
    nodes = []
    try:
        for command in commands:
            subprocess.run(command, check=True)
        for command in (
            _in("afmi-a", *start, *head),
            _in("afmi-b", "unshare", "-m", "sh", "-c", private),
        ):
            with (tmp_path / f"node{len(nodes)}.log").open("w") as log:
                nodes.append(subprocess.Popen(command, env=environment, stdout=log, stderr=log))
            time.sleep(8)
        yield environment
    finally:
        for space in spaces:
            found = subprocess.run(
                ["ip", "netns", "pids", space], capture_output=True, text=True, check=False
            )
            for pid in found.stdout.split():
                subprocess.run(["kill", "-9", pid], check=False)
            subprocess.run(["ip", "netns", "del", space], check=False)
        for node in nodes:
            node.wait()
        shutil.rmtree(folder, ignore_errors=True)


def test_two_nodes_give_the_same_bytes_and_the_loss_of_one_loses_nothing(
    cluster: dict[str, str], tmp_path: Path
) -> None:
    tests = Path(__file__).parents[1]
    for number in range(40):  # which the other node lacks
        path = tmp_path / "photos" / ["cat", "dog"][number % 2] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (16, 16), (number, 0, 0)).save(path)
    code = _DRIVER.format(
        paths=[str(tests), str(tests / "evaluation")], head=HEAD, out=str(tmp_path)
    )
    driver = subprocess.Popen(
        _in("afmi-a", sys.executable, "-c", code),
        env=cluster,
        text=True,
        stdout=subprocess.PIPE,
    )
    places: dict[int, str] = {}
    refused = ""
    with driver:
        for line in driver.stdout or ():
            refused += line if line.startswith("refused ") else ""
            if not line.startswith("task "):  # Ray says that a node is lost
                continue
            _, task, place = line.rstrip().split(maxsplit=2)
            places[int(task)] = place
            if len(places) == 10:
                assert {*places.values()} == {HEAD, OTHER}
                cut = ["ip", "-n", "afmi-b", "link", "set", "afmi-vb", "down"]
                subprocess.run(cut, check=True)
    assert driver.returncode == 0
    assert "cannot read" in refused and "photos/cat/0.png" in refused
    pieces = [*(tmp_path / "three").rglob("pieces/*/*.parquet")]
    notes = [note for piece in pieces for note in pq.read_table(piece)["note"].to_pylist()]
    assert not any(notes), notes
    assert sorted(places) == list(range(40))
    assert {*places.values()} == {HEAD, OTHER}
    folders = [tmp_path / name for name in ("one", "two")]
    one, two = (
        {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*.parquet")}
        for folder in folders
    )
    assert one == two and len(one) > 10
