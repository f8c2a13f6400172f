"""Train a masking model: masks for a classifier, learned from many images once."""

from __future__ import annotations

import dataclasses
import math
import os
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import afmi
from afmi.data.labelled import LabelledImages, open_images
from afmi.errors import ImageError, ModelError, ShapeError, UsageError
from afmi.files import write_files
from afmi.gradients.passes import BatchRunner
from afmi.methods.masking_network import (
    MaskingNetwork,
    load_masks,
    masks_as_bytes,
    not_finite,
    untrained,
)
from afmi.network.classifier import name_of, preparation_of
from afmi.network.guards import evaluation_mode
from afmi.network.outputs import Meaning, declaration_of
from afmi.network.randomness import generator_of
from afmi.network.scales import read_scales
from afmi.network.trial import meaning_of
from afmi.network.wrappers import runnable
from afmi.training.checkpoint import read_checkpoint, refuse_another, write_checkpoint
from afmi.training.masking_losses import MaskLosses, replacements

__all__ = ["Recipe", "checkpoint_of", "train_masking_model"]

OnStep = Callable[[str, int, int, float], None]
"""Called with what is trained, its steps made and in all, and the loss of the last one."""

_WARM_UP = 0.05
"""Share of the steps in which the learning rate rises."""
_DECAY = 1e-4
"""Of the weights, as in the authors' program."""


@dataclass(frozen=True)
class Recipe:
    """How a masking model is trained.

    Args:
        epochs: how often the masks see every image.
        selector_epochs: how often the class selector sees every image before that.
        batch_size: images in a step.
        learning_rate: of Adam for the masks; it rises at first, and then falls as a cosine.
        selector_rate: likewise for the class selector.
        fakes: share of the images that are asked for a class that is not there.
        losses: the loss and its weights.
        width: see `afmi.methods.masking_network.MaskingNetwork`.
        finest: pixels along a side that one place of the masks stands for at least.
        seed: of the first weights, the order of the images, and all that is drawn.
    """

    epochs: int = 1
    selector_epochs: int = 1
    batch_size: int = 16
    learning_rate: float = 2e-3
    selector_rate: float = 0.02
    fakes: float = 0.3
    losses: MaskLosses = field(default_factory=MaskLosses)
    width: int = 32
    finest: int = 4
    seed: int = 0

    def __post_init__(self) -> None:
        if min(self.epochs, self.batch_size - 1, self.width, self.finest) < 1:
            raise UsageError(
                "expected epochs, width and finest from 1 and a batch_size from 2, got "
                f"{self.epochs}, {self.width}, {self.finest} and {self.batch_size}"
            )
        if self.selector_epochs < 0:
            raise UsageError(f"expected selector_epochs from 0, got {self.selector_epochs}")
        if abs(self.seed) >= 2**32:
            raise UsageError(f"expected a seed of at most 32 bits, got {self.seed}")
        rates = (self.learning_rate, self.selector_rate)
        if not all(0 < rate < math.inf for rate in rates) or not 0 <= self.fakes < 1:
            raise UsageError(
                "expected finite learning rates above 0 and fakes from 0 to below 1, got "
                f"{self.learning_rate}, {self.selector_rate} and {self.fakes}"
            )


def train_masking_model(
    model: nn.Module,
    data: Any,
    out: str | os.PathLike[str] | None = None,
    *,
    recipe: Recipe | None = None,
    limit: int | None = None,
    on_step: OnStep | None = None,
    checkpoint_seconds: float = 60,
) -> MaskingNetwork:
    """Train masks for a classifier, which stays as it is, and return them.

    First the class selector learns which classes are there, from the coarsest feature maps alone.
    Then the decoder learns masks by `MaskLosses`: each step runs the images through the
    classifier, what the masks keep and what they leave again with a gradient. Images are
    mirrored by a coin. On the CPU the result does not depend on whether the training was
    interrupted.

    Paper: Dabkowski & Gal, *Real Time Image Saliency for Black Box Classifiers*, NeurIPS 2017,
    Section 4. Differs: the selector sees every class of an image at once, where the authors'
    program draws one, in half of the cases one that is not there; the share of those for the masks
    is the program's, 0.3. The learning rates are higher, 0.02 for the selector and 0.002 for the
    masks, for a few hundred steps of 16 images: they rise over a twentieth of the steps and fall as
    a cosine, where the program has 0.001 for both, a tenth of it for the selector after every 4000
    steps, for 8500 steps of 128 images and 3000 of 64. Images are mirrored but not cropped at
    random. How the loss differs, `MaskLosses` says.

    Args:
        model: a `Classifier`, or any convolutional network with classes.
        data: labelled images, as `afmi.data.labelled.open_images` takes them; or these opened.
        out: the file to write, .safetensors. Where it holds the masks of the same training, they
            are returned; any other file is not replaced. A checkpoint lies beside it meanwhile
            (`checkpoint_of`), from which the same call resumes.
        recipe: how. None: `Recipe()`.
        limit: take so many images only.
        on_step: called after each step.
        checkpoint_seconds: between checkpoints.

    Returns:
        In evaluation mode, on the model's device; for ``afmi.methods.MaskingModel(model,
        weights=…)``.

    Raises:
        UsageError: when the recipe, the images or a checkpoint cannot be used, another file is in
            the way, or the training diverges.
        LayerError: when the network has no feature maps (N, K, h, w).

    Example:
        >>> body = [nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
        >>> model = nn.Sequential(*body, nn.Linear(4, 2)).eval()
        >>> images = [(torch.rand(3, 16, 16), n % 2) for n in range(4)]
        >>> masks = train_masking_model(model, images, recipe=Recipe(batch_size=2))
        >>> afmi.methods.MaskingModel(model, weights=masks).attribute(images[0][0][None]).shape
        torch.Size([1, 1, 16, 16])
    """
    with torch.inference_mode(False), torch.enable_grad():
        return _train(model, data, out, recipe or Recipe(), limit, on_step, checkpoint_seconds)


def checkpoint_of(out: str | os.PathLike[str]) -> Path:
    """Return where the checkpoint of a training lies that will write this file."""
    file = Path(out).expanduser()
    return file.with_name(f"{file.name}.checkpoint")


def _train(
    model: nn.Module,
    data: Any,
    out: str | os.PathLike[str] | None,
    recipe: Recipe,
    limit: int | None,
    on_step: OnStep | None,
    checkpoint_seconds: float,
) -> MaskingNetwork:
    model = runnable(model)
    images = data if isinstance(data, LabelledImages) else open_images(data, model, limit=limit)
    first = images.first()
    with evaluation_mode(model):
        meaning = meaning_of(model, first)
    if meaning == "value":
        raise UsageError(f"masks are trained for classes, and {name_of(model)} gives values")
    masks = untrained(model, first, width=recipe.width, finest=recipe.finest, seed=recipe.seed)
    if masks.classes < 2 or len(images) < 2:
        raise UsageError(
            f"expected 2 classes and 2 images at least, got {masks.classes} and {len(images)}"
        )
    masks.to(first.device, first.dtype)
    run = _Training(model, images, recipe, masks, meaning)
    if out is None:
        run.go(0, on_step, lambda step: None)
        return masks.requires_grad_(False).eval()
    file, checkpoint = Path(out).expanduser(), checkpoint_of(out)
    training = _identity(model, meaning, first, images, recipe, masks)
    if not _is_finished(file, training):
        step = read_checkpoint(checkpoint, masks, run.optimiser, training)
        clock = _Clock(checkpoint_seconds)

        def keep(step: int) -> None:
            if clock.is_due():
                write_checkpoint(checkpoint, masks, run.optimiser, step, training)

        run.go(step, on_step, keep)
        write_files({file: masks_as_bytes(masks, training)})
        checkpoint.unlink(missing_ok=True)
    return load_masks(file)[0].to(first.device, first.dtype)


class _Clock:
    """Tells when so many seconds have passed since it was last asked and they had."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._since = time.monotonic()

    def is_due(self) -> bool:
        now = time.monotonic()
        if now - self._since < self._seconds:
            return False
        self._since = now
        return True


def _identity(
    model: nn.Module,
    meaning: Meaning,
    first: Tensor,
    images: LabelledImages,
    recipe: Recipe,
    masks: MaskingNetwork,
) -> dict[str, Any]:
    """Return what makes a training what it is, as JSON holds it."""
    return {
        "afmi": afmi.__version__,
        **preparation_of(model),
        "network": masks.fingerprint,
        "layers": list(masks.layers),
        "output": meaning,
        "output_key": declaration_of(model).key,
        "shape": list(first.shape[1:]),
        "images": images.fingerprint,
        "count": len(images),
        **dataclasses.asdict(recipe),
    }


def _is_finished(file: Path, training: dict[str, Any]) -> bool:
    """Tell whether a file is there, which must then hold the masks of this training."""
    if not file.exists():
        return False
    try:
        before = load_masks(file)[1]
    except ModelError as error:
        raise UsageError(
            f"{str(file)!r} is there and holds no masks, so it is not replaced ({error}); write "
            "elsewhere with out"
        ) from error
    refuse_another(
        f"{str(file)!r}, which is not replaced,",
        before,
        training,
        "write elsewhere with out, or delete the file",
    )
    return True


class _Training:
    """One training: a step depends on the recipe, its number, and what the steps before left.

    Attributes:
        optimiser: Adam, of the selector and of everything else.
    """

    def __init__(
        self,
        model: nn.Module,
        images: LabelledImages,
        recipe: Recipe,
        masks: MaskingNetwork,
        meaning: Meaning,
    ) -> None:
        self.model = model
        self.images = images
        self.recipe = recipe
        self.masks = masks
        self.meaning: Meaning = meaning
        selector = [masks.selector.weight]
        others = [p for name, p in masks.named_parameters() if not name.startswith("selector")]
        self.optimiser = torch.optim.Adam(
            [{"params": selector}, {"params": others}], recipe.learning_rate, weight_decay=_DECAY
        )
        self.size = min(recipe.batch_size, len(images))
        self.steps = len(images) // self.size
        self._unread: set[int] = set()

    def go(self, done: int, on_step: OnStep | None, keep: Callable[[int], None]) -> None:
        """Make the steps from number ``done`` on, and call ``keep`` after each.

        Raises:
            UsageError: when a number is no longer finite, or all steps of a phase lack images.
        """
        first = self.recipe.selector_epochs * self.steps
        total = first + self.recipe.epochs * self.steps
        for phase, begin, end in (("class selector", 0, first), ("masks", first, total)):
            made = done > begin  # where a checkpoint was kept, a step was made
            for step in range(max(done, begin), end):
                loss = self._step(step)
                if loss is None:
                    continue
                made = True
                keep(step + 1)
                if on_step is not None:
                    on_step(phase, step + 1 - begin, end - begin, loss)
            if end > begin and not made:
                raise UsageError(
                    f"expected 2 images that can be read in some batch, but no step of the {phase} "
                    f"had them: {len(self._unread)} of {len(self.images)} cannot be read; mend "
                    "them, or take others"
                )

    def _step(self, step: int) -> float | None:
        """Make a step, and return its loss; None: it has no images."""
        recipe = self.recipe
        first = recipe.selector_epochs * self.steps
        generator = generator_of(recipe.seed * 1_000_003 + step)
        batch = self._batch(step, generator)
        if batch is None:
            return None
        if step < first:
            self._set_rate(recipe.selector_rate, step, first)
            loss = self._selector_gradients(*batch)
        else:
            self._set_rate(recipe.learning_rate, step - first, recipe.epochs * self.steps)
            loss = self._mask_gradients(*batch, generator)
        if math.isfinite(loss):
            self.optimiser.step()
        self.optimiser.zero_grad(set_to_none=True)
        if not math.isfinite(loss) or not_finite(self.masks.state_dict()):
            raise UsageError(
                f"the training diverged: after step {step + 1} the loss is {loss:.3g}, and the "
                "loss or the weights are no longer finite; take a smaller learning_rate (it is "
                f"{recipe.learning_rate:g}) or selector_rate ({recipe.selector_rate:g})"
            )
        return loss

    def _set_rate(self, peak: float, step: int, steps: int) -> None:
        rising = (step + 1) / max(1.0, _WARM_UP * steps)
        falling = 0.5 * (1 + math.cos(math.pi * step / steps))
        for group in self.optimiser.param_groups:
            group["lr"] = peak * min(1.0, rising) * falling

    def _batch(self, step: int, generator: torch.Generator) -> tuple[Tensor, Tensor] | None:
        """Return the images (N, C, H, W) of a step, some mirrored, and their classes (N,)."""
        epoch, place = divmod(step, self.steps)
        order = torch.randperm(
            len(self.images),
            generator=generator_of(-1 - self.recipe.seed * 1_000_003 - epoch),
            device="cpu",
        )
        chosen = order[place * self.size : (place + 1) * self.size].tolist()
        pictures, classes = [], []
        for index in chosen:
            picture = self._read(index)
            if picture is not None:
                pictures.append(picture)
                classes.append(self.images.labels[index])
        if len(pictures) < 2:  # of one image a batch norm learns nothing
            return None
        shapes = {tuple(picture.shape[1:]) for picture in pictures}
        if len(shapes) > 1:
            raise ShapeError(
                f"expected images of one size, got {' and '.join(map(str, sorted(shapes)))}; give "
                "the model a crop: Classifier(…, crop=224), or --crop 224"
            )
        batch = torch.cat(pictures)
        coins = torch.rand(len(batch), generator=generator, dtype=torch.float32, device="cpu")
        mirrored = (coins < 0.5).to(batch.device)[:, None, None, None]
        batch = torch.where(mirrored, batch.flip(-1), batch)
        return batch, torch.tensor(classes, dtype=torch.int64, device=batch.device)

    def _read(self, index: int) -> Tensor | None:
        try:
            return self.images.read(index)
        except ImageError as error:
            if not self._unread:
                warnings.warn(f"{error}; it is left out, as others like it", stacklevel=2)
            self._unread.add(index)
            return None

    def _selector_gradients(self, images: Tensor, classes: Tensor) -> float:
        """Leave the gradient of the selector's mean loss in it; return the loss.

        That is how badly it tells the class that is there from those that are not.
        """
        (coarsest, *_), _ = read_scales(self.model, images, self.masks.layers[:1])
        presence = self.masks.presence(coarsest)
        there = F.one_hot(classes, presence.shape[1]).bool()
        missed = F.softplus(-presence[there])
        wrong = F.softplus(presence.masked_fill(there, -torch.inf)).sum(1)
        loss = (missed + wrong / (presence.shape[1] - 1)).mean() / 2
        loss.backward()
        return float(loss.detach())

    def _mask_gradients(self, images: Tensor, labels: Tensor, generator: torch.Generator) -> float:
        """Leave the gradient of a batch's mean loss in the decoder; return the loss.

        Where the masks are not finite, the classifier is not run on them.
        """
        losses, count = self.recipe.losses, len(images)
        classes, fake = self._asked(labels, generator)
        instead = replacements(images, generator)
        maps, _ = read_scales(self.model, images, self.masks.layers)
        self.masks.train()
        coarse = self.masks(maps, classes)
        masks = F.interpolate(coarse, images.shape[2:], mode="bilinear", align_corners=False)
        regular = losses.of_masks(masks).mean()
        if not math.isfinite(float(regular.detach())):
            return math.nan
        # What is deleted matters only where the class is there.
        shown = torch.cat([masks, 1 - masks[~fake]])
        originals = torch.cat([images, images[~fake]])
        others = torch.cat([instead, instead[~fake]])
        perturbed = torch.lerp(others, originals, shown)
        values = images.new_zeros(len(shown))

        def slope(scores: Tensor, start: int, stop: int) -> Tensor:
            with torch.enable_grad():
                leaf = scores.detach().requires_grad_(True)
                kept = min(max(count - start, 0), stop - start)
                end = start + kept
                terms = torch.cat(
                    [
                        losses.of_preserved(
                            leaf[:kept], classes[start:end], fake[start:end], self.meaning
                        ),
                        losses.of_deleted(
                            leaf[kept:], classes[~fake][end - count :][: stop - end], self.meaning
                        ),
                    ]
                )
                values[start:stop] = terms.detach()
                return torch.autograd.grad(terms.sum(), leaf)[0]

        runner = BatchRunner(self.model, images)
        _, gradients = runner.gradients(perturbed.detach(), slope)
        torch.autograd.backward([regular, perturbed], [None, gradients / count])
        return float(regular.detach()) + float(values.sum()) / count

    def _asked(self, labels: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Return the classes that the masks are asked for, (N,), and which are not there."""
        coins = torch.rand(len(labels), generator=generator, dtype=torch.float32, device="cpu")
        shifts = torch.randint(
            1, self.masks.classes, labels.shape, generator=generator, device="cpu"
        )
        fake = (coins < self.recipe.fakes).to(labels.device)
        return (labels + fake * shifts.to(labels.device)) % self.masks.classes, fake
