"""The CNN of PyTorch's MNIST example, and its training: minutes on two cores, seeded."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import load, save
from torch import Tensor, nn

from afmi.data.items import mnist
from afmi.errors import UsageError
from afmi.files import write_files
from afmi.network.classifier import Classifier
from afmi.network.randomness import keeping_random_state
from afmi.progress import track

__all__ = ["MNISTNet", "build", "digits", "train"]

MEAN, STD = 0.1307, 0.3081
"""Of MNIST's training pixels in [0, 1], as the example has them."""
EPOCHS = 2
BATCH = 64
_FORMAT = 1


class MNISTNet(nn.Module):
    """Two convolutions, max pooling, and two fully connected layers (or one linear head).

    The example's network but for its log-softmax: this one returns logits, for which explanations
    are defined. Activations are functional, as there.

    Args:
        linear_head: global average pooling and one linear layer in place of the example's pooling
            and fully connected layers; then FMI is the same for every image of a class.
    """

    def __init__(self, linear_head: bool = False) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 32, 3)
        self.conv2 = nn.Conv2d(32, 64, 3)
        self.linear_head = linear_head
        if linear_head:
            self.fc2 = nn.Linear(64, 10)
        else:
            self.dropout1 = nn.Dropout(0.25)
            self.dropout2 = nn.Dropout(0.5)
            self.fc1 = nn.Linear(64 * 12 * 12, 128)
            self.fc2 = nn.Linear(128, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits (N, 10) of normalised digits (N, 1, 28, 28)."""
        x = F.relu(self.conv2(F.relu(self.conv1(x))))
        if self.linear_head:
            return self.fc2(x.mean((2, 3)))
        x = self.dropout1(F.max_pool2d(x, 2)).flatten(1)
        return self.fc2(self.dropout2(F.relu(self.fc1(x))))


def build(linear_head: bool = False) -> Classifier:
    """Return the network for digits in [0, 1], untrained: a factory for ``--model``."""
    name = "mnist-cnn-linear-head" if linear_head else "mnist-cnn"
    labels = [str(digit) for digit in range(10)]
    return Classifier(MNISTNet(linear_head), mean=[MEAN], std=[STD], labels=labels, name=name)


def digits(folder: Path, *, training: bool) -> tuple[Tensor, Tensor]:
    """Read MNIST: digits (N, 1, 28, 28) in [0, 1] and labels (N,).

    Raises:
        ImageError: when it is not there; says where it is looked for.
    """
    data = mnist(folder, train=training)
    return data.data[:, None].float() / 255, data.targets


def train(
    folder: Path,
    path: Path,
    *,
    linear_head: bool = False,
    epochs: int = EPOCHS,
    seed: int = 0,
    limit: int | None = None,
    report: Callable[[str], object] = print,
) -> Classifier:
    """Return the trained network; it is trained now unless ``path`` holds it already.

    Adadelta at the example's rate, 1, which falls along a cosine to 0 instead of in steps, so that
    few epochs suffice. After each epoch the state is kept, and an interrupted training resumes
    there with the numbers of an uninterrupted one.

    Args:
        folder: of MNIST, see `digits`.
        path: a .safetensors file to be written.
        linear_head: see `MNISTNet`.
        epochs: through the training digits.
        seed: of the weights, the order and the dropout.
        limit: train on this many digits only.
        report: called with a line for each epoch.

    Raises:
        ImageError: when MNIST is not there.
        UsageError: when the file holds another training's weights.
    """
    settings = {
        "format": str(_FORMAT),
        "linear_head": str(linear_head),
        "epochs": str(epochs),
        "seed": str(seed),
        "limit": str(limit),
    }
    if path.exists():
        return _loaded(path, settings, linear_head)
    images, labels = digits(folder, training=True)
    if limit is not None:
        images, labels = images[:limit], labels[:limit]
    with keeping_random_state(torch.device("cpu")):
        torch.manual_seed(seed)
        model = build(linear_head).train()
        optimizer = torch.optim.Adadelta(model.parameters(), lr=1.0)
        steps = epochs * math.ceil(len(images) / BATCH)
        scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
        parts: dict[str, Any] = {"model": model, "optimizer": optimizer, "scheduler": scheduler}
        checkpoint = path.with_suffix(".checkpoint")
        begin = _resumed(checkpoint, settings, parts)
        for epoch in range(begin, epochs):
            _epoch(parts, images, labels, seed, epoch)
            report(f"{model.name}: epoch {epoch + 1} of {epochs} done")
            state = {"settings": settings, "epoch": epoch + 1}
            state |= {name: part.state_dict() for name, part in parts.items()}
            write_files({checkpoint: lambda file, state=state: torch.save(state, file)})
    model.eval()
    content = save({k: v.contiguous() for k, v in model.network.state_dict().items()}, settings)
    write_files({path: content})
    checkpoint.unlink(missing_ok=True)
    return model


def _epoch(parts: dict[str, Any], images: Tensor, labels: Tensor, seed: int, epoch: int) -> None:
    # The order and the dropout depend on the epoch alone, so that a resumed training has the same.
    torch.manual_seed((seed << 16) + epoch)
    model, optimizer, scheduler = parts["model"], parts["optimizer"], parts["scheduler"]
    batches: Sequence[Tensor] = torch.randperm(len(images), device="cpu").split(BATCH)
    for batch in track(batches, f"{model.name}, epoch {epoch + 1}"):
        optimizer.zero_grad()
        F.cross_entropy(model(images[batch]), labels[batch]).backward()
        optimizer.step()
        scheduler.step()


def _resumed(checkpoint: Path, settings: dict[str, str], parts: dict[str, Any]) -> int:
    """Take up a training that was interrupted; return the epochs that are done."""
    if not checkpoint.exists():
        return 0
    state = torch.load(checkpoint, weights_only=True)
    if state["settings"] != settings:
        return 0
    for name, part in parts.items():
        part.load_state_dict(state[name])
    return int(state["epoch"])


def _loaded(path: Path, settings: dict[str, str], linear_head: bool) -> Classifier:
    from safetensors import safe_open

    with safe_open(str(path), "pt") as file:
        recorded = file.metadata() or {}
    if recorded != settings:
        raise UsageError(
            f"{str(path)!r} holds a network of another training ({recorded}), asked for is "
            f"{settings}; choose another --out"
        )
    with keeping_random_state(torch.device("cpu")):
        model = build(linear_head).eval()
    model.network.load_state_dict(load(path.read_bytes()))
    return model
