"""What travels to workers: small descriptions, weights apart, code that they cannot import."""

from __future__ import annotations

import pickle
import subprocess
import sys
import types
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import afmi
from afmi.engines.parcel import Parcel
from afmi.engines.serving import Settings
from afmi.errors import AfmiError, UsageError
from afmi.methods import AFMI
from afmi.network.fingerprint import fingerprint_of


def test_descriptions_are_small_and_weights_are_sent_once() -> None:
    model = afmi.load_model("imagenet")
    keys = tuple(f"class/{n}.jpg" for n in range(20_000))
    parcel = Parcel.of({"a": AFMI(model), "model": model, "keys": keys})
    assert len(parcel.description) < 100_000
    opened = pickle.loads(pickle.dumps(parcel)).open()
    assert opened["a"].model is opened["model"] and opened["keys"] == keys
    assert fingerprint_of(opened["model"]) == fingerprint_of(model)
    image = torch.rand(1, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(opened["model"](image), model(image))


def test_tensors_keep_ties_strides_types_and_flags() -> None:
    layer = nn.Linear(3, 3)
    last = nn.Conv2d(2, 2, 1).to(memory_format=torch.channels_last).bfloat16()
    frozen = nn.Parameter(torch.arange(4), requires_grad=False)
    parts = {"network": nn.ModuleList([layer, layer, last]), "frozen": frozen, "0": torch.ones(())}
    opened = Parcel.of(parts).open()
    network = opened["network"]
    assert network[0] is network[1] and network[0].weight is network[1].weight
    assert network[2].weight.dtype == torch.bfloat16
    assert network[2].weight.stride() == last.weight.stride()
    assert torch.equal(network[2].weight, last.weight)
    assert isinstance(opened["frozen"], nn.Parameter) and not opened["frozen"].requires_grad
    assert network[0].weight.requires_grad and opened["0"].shape == ()
    with torch.no_grad():
        network[0].weight.zero_()  # a copy, and writable
    assert layer.weight.any()
    arrays = Parcel.of(np.arange(9000)).open()
    np.testing.assert_array_equal(arrays, np.arange(9000))


def test_code_that_no_worker_could_import_travels(tmp_path: Path) -> None:
    file = tmp_path / "nets_elsewhere.py"
    file.write_text(
        "import torch\n"
        "class Net(torch.nn.Module):\n"
        "    def forward(self, x):\n"
        "        return scaled(x)\n"
        "def scaled(x):\n"
        "    return x * 3\n"
    )
    module = types.ModuleType("nets_elsewhere")
    module.__file__ = str(file)
    exec(compile(file.read_text(), str(file), "exec"), module.__dict__)
    sys.modules["nets_elsewhere"] = module
    try:
        (tmp_path / "parcel").write_bytes(pickle.dumps(Parcel.of(module.Net())))
    finally:
        del sys.modules["nets_elsewhere"]
    code = (
        "import pickle, sys, torch; from pathlib import Path\n"
        f"net = pickle.loads(Path({str(tmp_path / 'parcel')!r}).read_bytes()).open()\n"
        "print(net(torch.ones(2)).tolist())"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        cwd=Path(afmi.__file__).parents[1],
    )
    assert done.stdout == "[3.0, 3.0]\n", done.stderr


def test_settings_travel_and_are_not_set_where_they_are_so_already(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    here = Settings.here("cpu")
    other = replace(here, dtype=torch.float64, deterministic=(True, True), autocast=torch.bfloat16)
    try:
        other.apply()
        assert Settings.here("cpu") == other
    finally:
        here.apply()
    assert Settings.here("cpu") == here
    # It imports PyTorch's compiler, which takes longer than all else that a worker imports.
    monkeypatch.delattr(torch, "use_deterministic_algorithms")
    here.apply()


def test_what_cannot_travel_is_refused() -> None:
    with pytest.raises(UsageError, match="cannot be sent to workers"):
        Parcel.of({"open": (n for n in range(3))})
    parcel = Parcel.of(nn.Linear(1, 1))
    other = replace(parcel, versions=(("afmi", "0.0.1"), *parcel.versions[1:]))
    with pytest.raises(AfmiError, match="install the same versions"):
        other.open()
