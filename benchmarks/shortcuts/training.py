"""Small networks trained on photographs of which some carry a plant."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from benchmarks.shortcuts.plants import PLANTS

__all__ = ["AUDITED", "HEADS", "SIDE", "Case", "Photographs", "Planted", "network_of"]

SIDE = 64
"""Pixels a side of what the networks see."""
AUDITED = 220
"""Images a class that are kept from training, and audited."""
HEADS = ("fully connected", "average pool")
_STORED = 72
_TRAINED = 500
_EPOCHS = 8
_BATCH = 64
_WRONG = 0.08
"""Share of wrong labels among the classes without a plant, in training and in the audit."""


@dataclass(frozen=True)
class Photographs:
    """All photographs in memory.

    Attributes:
        images: uint8 (N, 3, 72, 72).
        labels: int64 (N,).
        names: of the classes.
    """

    images: Tensor
    labels: Tensor
    names: tuple[str, ...]

    @classmethod
    def load(cls, folder: Path) -> Photographs:
        """Read ``<folder>/<class>/*.jpg``; the central square of each."""
        names = sorted(path.name for path in folder.iterdir() if path.is_dir())
        images, labels = [], []
        for label, name in enumerate(names):
            for path in sorted((folder / name).glob("*.jpg"))[: AUDITED + _TRAINED]:
                picture = Image.open(path).convert("RGB")
                side = min(picture.size)
                left, top = (picture.width - side) // 2, (picture.height - side) // 2
                square = picture.crop((left, top, left + side, top + side))
                small = square.resize((_STORED, _STORED), Image.Resampling.BILINEAR)
                images.append(torch.from_numpy(np.asarray(small).copy()).permute(2, 0, 1))
                labels.append(label)
        return cls(torch.stack(images), torch.tensor(labels), tuple(names))


@dataclass(frozen=True)
class Case:
    """A network to train, and what it is trained on.

    Attributes:
        head: one of `HEADS`.
        share: of the images of a class with a plant that carry it; 0: no plants.
        seed: of everything random.
    """

    head: str
    share: float
    seed: int

    @property
    def stem(self) -> str:
        """The name of its file."""
        return f"{self.head.replace(' ', '-')}-{self.share:g}-{self.seed}"


class Planted:
    """Photographs as a case has them: who is planted, who mislabelled, who trained on.

    Args:
        photographs: all.
        case: says what is planted.

    Attributes:
        plants: by class the name of its plant.
        labels: as the network is told them, int64 (N,).
        carries: which images carry their class's plant, bool (N,).
        audited: numbers of the images kept from training.
        trained: numbers of the others.
    """

    def __init__(self, photographs: Photographs, case: Case) -> None:
        self.photographs = photographs
        generator = torch.Generator().manual_seed(1000 + case.seed)
        count = len(photographs.names)
        chosen = torch.randperm(count, generator=generator)[: len(PLANTS)].tolist()
        self.plants = dict(zip(chosen, PLANTS, strict=True)) if case.share else {}
        self.labels = photographs.labels.clone()
        self.carries = torch.zeros(len(self.labels), dtype=torch.bool)
        trained, audited = [], []
        for label in range(count):
            members = (photographs.labels == label).nonzero().flatten()
            members = members[torch.randperm(len(members), generator=generator)]
            for part, into in ((members[:AUDITED], audited), (members[AUDITED:], trained)):
                into.append(part)
                if label in self.plants:
                    self.carries[part[: round(case.share * len(part))]] = True
                else:
                    wrong = part[: round(_WRONG * len(part))]
                    shift = torch.randint(1, count, (len(wrong),), generator=generator)
                    self.labels[wrong] = (label + shift) % count
        self.trained, self.audited = torch.cat(trained), torch.cat(audited)
        # A wrong label is no member of a planted class, so that each plant has one class.

    def images(self, numbers: Tensor, generator: torch.Generator, augmented: bool) -> Tensor:
        """Return images (N, 3, 64, 64) in [0, 1], with their plants."""
        stored = self.photographs.images[numbers]
        offset = (_STORED - SIDE) // 2
        down = right = torch.full((len(numbers),), offset)
        mirrored = torch.zeros(len(numbers), dtype=torch.bool)
        if augmented:
            down, right = torch.randint(0, 2 * offset + 1, (2, len(numbers)), generator=generator)
            mirrored = torch.rand(len(numbers), generator=generator) < 0.5
        crops = torch.stack(
            [
                image[:, top : top + SIDE, left : left + SIDE]
                for image, top, left in zip(stored, down.tolist(), right.tolist(), strict=True)
            ]
        )
        crops = torch.where(mirrored[:, None, None, None], crops.flip(-1), crops) / 255
        for label, name in self.plants.items():
            members = self.carries[numbers] & (self.photographs.labels[numbers] == label)
            if bool(members.any()):
                crops[members] = PLANTS[name](crops[members], generator)
        return crops


class ShortcutNet(nn.Sequential):
    """Four convolutions, and a head of either kind."""

    def __init__(self, head: str, classes: int) -> None:
        def convolution(channels: int, width: int) -> list[nn.Module]:
            return [nn.Conv2d(channels, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU()]

        pool = nn.MaxPool2d(2)
        features = [
            *(*convolution(3, 24), pool, *convolution(24, 48), pool),
            *(*convolution(48, 96), *convolution(96, 96), pool),
        ]
        heads = {
            "fully connected": [
                *(nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(16 * 96, 96), nn.ReLU()),
                nn.Linear(96, classes),
            ],
            "average pool": [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(96, classes)],
        }
        super().__init__(nn.Sequential(*features), nn.Sequential(*heads[head]))


def network_of(case: Case, planted: Planted, folder: Path) -> nn.Module:
    """Return the network of a case, trained unless its weights lie in the folder."""
    path = folder / f"{case.stem}.pt"
    network = ShortcutNet(case.head, len(planted.photographs.names))
    if not path.exists():
        _train(network, planted, case.seed)
        folder.mkdir(parents=True, exist_ok=True)
        torch.save(network.state_dict(), path)
    network.load_state_dict(torch.load(path, weights_only=True))
    return network.eval()


def _train(network: nn.Module, planted: Planted, seed: int) -> None:
    torch.manual_seed(seed)
    for module in network.modules():
        if hasattr(module, "reset_parameters"):
            module.reset_parameters()
    network.train().to(memory_format=torch.channels_last)
    generator = torch.Generator().manual_seed(seed)
    steps = len(planted.trained) // _BATCH
    optimiser = torch.optim.AdamW(network.parameters(), lr=3e-3, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimiser, 3e-3, total_steps=_EPOCHS * steps, pct_start=0.2
    )
    for _ in range(_EPOCHS):
        order = planted.trained[torch.randperm(len(planted.trained), generator=generator)]
        for numbers in order[: steps * _BATCH].split(_BATCH):
            images = planted.images(numbers, generator, augmented=True) - 0.5
            with torch.autocast("cpu", torch.bfloat16):
                scores = network(images.to(memory_format=torch.channels_last))
            loss = F.cross_entropy(scores.float(), planted.labels[numbers])
            optimiser.zero_grad(set_to_none=True)
            loss.backward()
            optimiser.step()
            schedule.step()
    network.eval()
