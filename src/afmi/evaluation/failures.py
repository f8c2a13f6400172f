"""What fails at an image may be its own fault, or that of the memory, the device or the machine."""

from __future__ import annotations

import traceback
import warnings
from collections.abc import Callable, Sequence
from typing import TypeVar

import torch
from torch import Tensor

from afmi.data.labelled import LabelledImages
from afmi.data.witness import Witness
from afmi.errors import SourceError
from afmi.methods import Method
from afmi.network.classifier import device_of
from afmi.network.devices import check_device
from afmi.network.memory import check_memory, from_lack_of_memory

__all__ = ["MemoryWarning", "read_image", "taken_apart"]

T = TypeVar("T")
Result = TypeVar("Result")


class MemoryWarning(UserWarning):
    """Pictures went through the network in smaller batches, since memory ran out.

    Their numbers may differ in the last digits from those of whole batches.
    """


def read_image(
    images: LabelledImages, number: int, witness: Witness | None = None
) -> Tensor | Exception:
    """Return an image as the network is to see it, or the error, where that is the image's own.

    Args:
        images: the data.
        number: of the image.
        witness: knows the data as the process that listed them reads them; None: they are in
            memory.

    Raises:
        SourceError: when the place that the images come from cannot be reached, or holds others
            than it held when they were listed.
        MemoryError: when memory ran out.
        DeviceError: when the device works no longer.
    """
    try:
        return images.read(number)
    except SourceError as error:  # later ones could not be read, either
        check_memory(error)
        raise
    except Exception as error:
        check_device(device_of(images.model), f"{images.keys[number]} was read", error)
        check_memory(error)
        if witness is not None:
            witness.check_unread(images, number)
        return _bare(error)


def taken_apart(
    run: Callable[[Sequence[T]], Sequence[Result]],
    batch: Sequence[T],
    device: torch.device,
    method: Method,
    name: Callable[[T], str],
    *,
    fatal: tuple[type[Exception], ...] = (),
) -> list[Result | Exception]:
    """Run over a batch; if that fails, over each image by itself: none shall cost its neighbours.

    Where memory runs out, half of the batch at a time.

    Args:
        run: returns a result for each image.
        batch: the images, at least one.
        device: where they lie.
        method: that they are given to.
        name: says what an image is called in errors.
        fatal: errors that are no image's fault.

    Returns:
        For each image its result, or the error that it raised by itself.

    Raises:
        MemoryError: when there is too little for one image.
        DeviceError: when the device works no longer.
    """
    size = 1
    try:
        return [*run(batch)]
    except fatal:
        raise
    except Exception as error:
        check_device(device, f"{method.name} was given {', '.join(map(name, batch))}", error)
        if from_lack_of_memory(error):
            if len(batch) == 1:
                check_memory(error)
            warnings.warn(
                f"{method.name} ran out of memory with {len(batch)} images at once, which are done "
                "in smaller batches; a smaller batch_size (--batch-size) from the beginning keeps "
                "the last digits the same",
                MemoryWarning,
                stacklevel=2,
            )
            size = len(batch) // 2
        # Else the frames of the failed run would keep its tensors.
        traceback.clear_frames(error.__traceback__)
        failure = _bare(error)
    if len(batch) == 1:
        return [failure]
    parts = [batch[start : start + size] for start in range(0, len(batch), size)]
    return [
        result
        for part in parts
        for result in taken_apart(run, part, device, method, name, fatal=fatal)
    ]


def _bare(error: Exception) -> Exception:
    """Return an error without what it would keep alive."""
    error.__traceback__ = error.__cause__ = error.__context__ = None
    return error
