"""FMI prototypes over a data set: the same file with each engine, resumed, with bad pictures."""

from __future__ import annotations

import functools
import os
import signal
from pathlib import Path
from typing import Any

import fsspec
import pytest
import torch
from networks import build
from torch import Tensor, nn

import afmi.evaluation.parts
import afmi.evaluation.prototypes
from afmi import fmi_prototypes, specs
from afmi.engines import Engine, Local, Ray
from afmi.engines.workers import WorkerWarning
from afmi.errors import UsageError
from afmi.evaluation import MemoryWarning, open_images
from afmi.evaluation.parts import Part
from afmi.files import location
from afmi.methods import AFMI
from afmi.metrics import FMIAgreement, FMIPrototypes, Metric
from afmi.metrics.base import Case
from afmi.metrics.fmi_prototypes import PrototypesOrigin
from afmi.specs import parse

COUNT, CLASSES = 45, 5

pytestmark = pytest.mark.usefixtures("quick_workers")


class Pictures:
    """Random pictures; one may be bad, or end the process that reads it, but for the test's."""

    def __init__(self, bad: int = -1, deadly: int = -1, once: Path | None = None) -> None:
        self.targets = [number * 7 % CLASSES for number in range(COUNT)]
        self.bad, self.deadly, self.once = bad, deadly, once
        self.main = os.getpid()

    def __len__(self) -> int:
        return COUNT

    def __getitem__(self, number: int) -> tuple[Tensor, int]:
        if number == self.bad:
            raise ValueError("cut off")
        if number == self.deadly and os.getpid() != self.main:
            if self.once is None:
                os.kill(os.getpid(), signal.SIGKILL)
            elif not self.once.exists():
                self.once.touch()
                os.kill(os.getpid(), signal.SIGKILL)
        generator = torch.Generator().manual_seed(number)
        return torch.rand(3, 20, 20, generator=generator), self.targets[number]


@pytest.fixture(autouse=True)
def _small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(afmi.evaluation.parts, "PART", 16)
    monkeypatch.setattr(afmi.evaluation.prototypes, "PART", 16)


def method(**options: Any) -> AFMI:
    torch.manual_seed(0)
    return AFMI(build("vgg"), layer="features.5", **options)


def made(out: Path, data: Any = None, engine: Engine | None = None) -> bytes:
    """Return the bytes of the file, whose numbers are those of what is returned."""
    result = fmi_prototypes(method(), data or Pictures(), out, batch_size=4, engine=engine)
    file = out / "prototypes.safetensors"
    loaded = FMIPrototypes.load(file)
    assert torch.equal(loaded.sums, result.sums) and torch.equal(loaded.counts, result.counts)
    assert loaded.origin == result.origin
    return file.read_bytes()


@functools.cache
def vectors() -> Tensor:
    pictures = [Pictures()[number] for number in range(COUNT)]
    return torch.cat([method().feature_map_importance(x[None], y) for x, y in pictures])


def test_sums_are_those_of_single_pictures(tmp_path: Path) -> None:
    made(tmp_path)
    prototypes = FMIPrototypes.load(tmp_path / "prototypes.safetensors")
    expected = FMIPrototypes.of(vectors(), torch.tensor(Pictures().targets), CLASSES)
    torch.testing.assert_close(prototypes.sums, expected.sums, rtol=1e-5, atol=1e-6)
    assert torch.equal(prototypes.counts, expected.counts)
    origin = prototypes.origin
    assert origin is not None and origin.layer == "features.5" and origin.unread == 0
    assert origin.reference == "black"
    assert len(list((tmp_path / "parts").iterdir())) == 3


def test_workers_and_an_interruption_give_the_same_bytes(tmp_path: Path) -> None:
    expected = made(tmp_path / "here")
    assert made(tmp_path / "workers", engine=Local(workers=2)) == expected
    parts = sorted((tmp_path / "here" / "parts").iterdir())
    (tmp_path / "here" / "prototypes.safetensors").unlink()
    kept = parts[0].stat().st_mtime_ns
    parts[1].unlink()
    whole = parts[2].read_bytes()
    parts[2].write_bytes(whole[:-40])  # as a crash of the machine may leave it
    assert made(tmp_path / "here") == expected
    assert parts[0].stat().st_mtime_ns == kept and parts[2].read_bytes() == whole


def test_a_store_holds_the_same_bytes_and_resumes(tmp_path: Path) -> None:
    expected, store = made(tmp_path / "here"), fsspec.filesystem("memory")
    url, folder = "memory://fmi/prototypes", "/fmi/prototypes"
    result = fmi_prototypes(method(), Pictures(), url, batch_size=4)
    assert store.cat(f"{folder}/prototypes.safetensors") == expected
    parts = [f"{folder}/parts/{start:08d}.safetensors" for start in (0, 16, 32)]
    for part in parts:
        assert store.cat(part) == (tmp_path / "here" / "parts" / Path(part).name).read_bytes()
    kept = store.info(parts[0])["created"]
    store.rm_file(parts[1])
    fmi_prototypes(method(), Pictures(), url, batch_size=4)
    assert store.info(parts[0])["created"] == kept
    loaded = FMIPrototypes.load(f"{url}/prototypes.safetensors")
    assert torch.equal(loaded.sums, result.sums) and loaded.origin == result.origin
    metric = parse(f'fmi-agreement:prototypes="{url}/prototypes.safetensors"', Metric)
    assert metric.measure(case(method()))["cosine"].isfinite().all()
    with pytest.raises(UsageError, match="no file that can be read"):
        FMIPrototypes.load(f"{url}/else.safetensors")
    with pytest.raises(UsageError, match="another run"):
        fmi_prototypes(method(), Pictures(), url, batch_size=5)


@pytest.mark.slow
def test_ray_gives_the_same_bytes(tmp_path: Path) -> None:
    pytest.importorskip("ray")
    assert made(tmp_path / "ray", engine=Ray(workers=2)) == made(tmp_path / "here")


def test_a_worker_that_is_killed_costs_nothing(tmp_path: Path) -> None:
    data = Pictures(deadly=21, once=tmp_path / "killed")
    with pytest.warns(WorkerWarning, match="SIGKILL"):
        killed = made(tmp_path / "killed-once", data, Local(workers=2))
    assert killed == made(tmp_path / "here")


def test_a_picture_that_kills_each_worker_is_left_out_alone(tmp_path: Path) -> None:
    with pytest.warns(WorkerWarning):
        made(tmp_path, Pictures(deadly=21), Local(workers=2, retries=0))
    prototypes = FMIPrototypes.load(tmp_path / "prototypes.safetensors")
    assert prototypes.origin is not None and prototypes.origin.unread == 1
    keep = torch.arange(COUNT) != 21
    expected = FMIPrototypes.of(vectors()[keep], torch.tensor(Pictures().targets)[keep], CLASSES)
    torch.testing.assert_close(prototypes.sums, expected.sums, rtol=1e-5, atol=1e-6)
    assert torch.equal(prototypes.counts, expected.counts)
    part = Part.from_bytes((tmp_path / "parts" / "00000016.safetensors").read_bytes())
    assert part.failures == {21: "its worker died, once"}


def test_a_bad_picture_is_counted_and_named(tmp_path: Path) -> None:
    here = made(tmp_path / "here", Pictures(bad=3))
    assert made(tmp_path / "workers", Pictures(bad=3), Local(workers=2)) == here
    prototypes = FMIPrototypes.load(tmp_path / "here" / "prototypes.safetensors")
    assert prototypes.origin is not None and prototypes.origin.unread == 1
    assert prototypes.counts.sum() == COUNT - 1
    part = Part.from_bytes((tmp_path / "here" / "parts" / "00000000.safetensors").read_bytes())
    assert list(part.failures) == [3] and "cut off" in part.failures[3]


def test_too_little_memory_halves_the_batch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    importance = AFMI.feature_map_importance

    def limited(self: AFMI, inputs: Tensor, target: Any = None) -> Tensor:
        if len(inputs) > 1:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory")
        return importance(self, inputs, target)

    monkeypatch.setattr(AFMI, "feature_map_importance", limited)
    with pytest.warns(MemoryWarning, match="memory with [42] images at once"):
        made(tmp_path)
    prototypes = FMIPrototypes.load(tmp_path / "prototypes.safetensors")
    expected = FMIPrototypes.of(vectors(), torch.tensor(Pictures().targets), CLASSES)
    torch.testing.assert_close(prototypes.sums, expected.sums, rtol=1e-12, atol=1e-12)


def test_pictures_that_all_fail(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(self: AFMI, inputs: Tensor, target: Any = None) -> Tensor:
        return torch.full((len(inputs), 8), torch.nan)

    monkeypatch.setattr(AFMI, "feature_map_importance", fails)
    with pytest.raises(UsageError, match="got none of the 45"):
        made(tmp_path)


def test_another_run_is_refused(tmp_path: Path) -> None:
    made(tmp_path)
    with pytest.raises(UsageError, match="another run"):
        fmi_prototypes(method(reference="white"), Pictures(), tmp_path, batch_size=4)
    with pytest.raises(UsageError, match="another run"):
        fmi_prototypes(method(), Pictures(), tmp_path, batch_size=5)


def case(of: AFMI) -> Case:
    x = torch.stack([Pictures()[number][0] for number in range(6)])
    targets = torch.tensor(Pictures().targets[:6])
    attribution = of.attribution(x, targets)
    assert attribution.logits is not None
    return Case(of, x, targets, attribution, attribution.logits)


def test_metric_is_nearest_prototype(tmp_path: Path) -> None:
    images = open_images(Pictures(), method().model).limited(8)
    fmi_prototypes(method(), images, tmp_path, batch_size=4)
    file = str(tmp_path / "prototypes.safetensors")
    values = FMIAgreement(file).measure(case(method()))
    prototypes = FMIPrototypes.load(file)
    classes = torch.tensor(Pictures().targets[:6])
    expected = nn.functional.cosine_similarity(
        vectors()[:6].double(), prototypes.prototypes[classes]
    )
    torch.testing.assert_close(values["cosine"], expected, rtol=1e-5, atol=1e-6)
    assert values["agreement"].tolist() == prototypes.agreement(vectors()[:6], classes).tolist()
    assert FMIAgreement(file).work(method(), images.first()).forwards == 1
    assert not FMIAgreement().measure(case(method()))


def test_prototypes_of_another_network_layer_or_reference(tmp_path: Path) -> None:
    made(tmp_path)
    metric = FMIAgreement(str(tmp_path / "prototypes.safetensors"))
    other = method()
    with torch.no_grad():
        other.model.classifier[0].weight[0, 0] += 1
    for wrong, part in (
        (other, "network"),
        (AFMI(method().model, layer="features.2"), "layer"),
        (method(reference="white"), "reference"),
    ):
        with pytest.raises(UsageError, match=f"FMI of the {part} that the prototypes were made"):
            metric.measure(case(wrong))


def test_passwords_in_urls_of_prototypes_are_used_and_not_told(tmp_path: Path) -> None:
    url = f"memory://me:SECRET@{tmp_path.name}/a.safetensors"
    origin = PrototypesOrigin("0", "features", "black", (), "0", 0, {})
    FMIPrototypes(torch.ones(2, 3), torch.ones(2), origin).save(url)
    metric = FMIAgreement(url)
    assert metric._loaded.sums.shape == (2, 3)
    assert "SECRET" not in f"{metric} {specs.to_json(metric)}" and tmp_path.name in str(metric)
    location(f"{url}.none").write_bytes(b"none")
    for wrong in (
        lambda: FMIAgreement(url, digest="abc"),
        lambda: FMIAgreement(f"{url}.none"),
        lambda: FMIAgreement(f"{url}.missing"),
    ):
        with pytest.raises(UsageError, match=r"a\.safetensors") as raised:
            wrong()
        assert "SECRET" not in str(raised.value)


def test_files_that_hold_no_prototypes(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no file that can be read"):
        FMIAgreement(str(tmp_path / "none"))
    file = tmp_path / "x.safetensors"
    file.write_bytes(Part({"sums": torch.zeros(2, 2)}).to_bytes())
    for read in (FMIPrototypes.load, FMIAgreement):
        with pytest.raises(UsageError, match=r"expected FMI prototypes in .*x\.safetensors"):
            read(str(file))
    made(tmp_path / "out")
    name = str(tmp_path / "out" / "prototypes.safetensors")
    digest = FMIAgreement(name).digest
    assert FMIAgreement(name, digest=digest) == FMIAgreement(name)
    with pytest.raises(UsageError, match=f"expected the prototypes abc .* got {digest}"):
        FMIAgreement(name, digest="abc")
    with pytest.raises(UsageError, match="with an origin"):
        FMIPrototypes(torch.zeros(2, 2), torch.zeros(2)).save(file)


def test_runs_over_parts_of_the_data_add_up(tmp_path: Path) -> None:
    whole = fmi_prototypes(method(), Pictures(), tmp_path / "whole", batch_size=4)
    images = open_images(Pictures(bad=3), method().model)
    halves = [images.only(range(20)), images.only(range(20, COUNT))]
    first, second = (
        fmi_prototypes(method(), half, tmp_path / f"{n}", batch_size=4)
        for n, half in enumerate(halves)
    )
    both = first + second
    both.save(tmp_path / "both.safetensors")
    loaded = FMIPrototypes.load(tmp_path / "both.safetensors")
    assert loaded.counts.sum() == whole.counts.sum() - 1
    assert loaded.origin is not None and first.origin is not None and second.origin is not None
    assert loaded.origin.data == f"{first.origin.data}+{second.origin.data}"
    assert loaded.origin.unread == 1
    other = fmi_prototypes(method(reference="white"), halves[1], tmp_path / "white", batch_size=4)
    with pytest.raises(UsageError, match="reference is the same, got black and white"):
        first + other
