"""What a network and its images must be, and what an error from inside a network means."""

from __future__ import annotations

import re
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import chain

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd
from torch.nn.parameter import UninitializedBuffer, UninitializedParameter, is_lazy

from afmi.errors import (
    AfmiError,
    ModelError,
    OperationError,
    ShapeError,
    UsageError,
    first_line,
)
from afmi.network.arguments import Bound
from afmi.network.guards import all_modules
from afmi.network.memory import is_out_of_memory
from afmi.pictures.dimensions import ANY_FORM, FORMS

__all__ = [
    "check_dense",
    "check_images",
    "check_model",
    "check_run",
    "first_convolution",
    "is_quantised",
    "named_failures",
    "opaque_part",
]

_FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def check_model(model: object) -> None:
    """Raise a `ModelError` unless this is a network whose weights hold numbers."""
    if not isinstance(model, nn.Module):
        advice = "use afmi.load_model(name) or afmi.Classifier(network)"
        if isinstance(model, torch.export.ExportedProgram):
            advice = "its module() is one, but the network before the export can do more"
        raise ModelError(
            f"expected a model that is an nn.Module, got {type(model).__name__}; {advice}"
        )
    tensors: list[Tensor | None] = []
    for module in all_modules(model):
        tensors += module._parameters.values()
        tensors += module._buffers.values()
    kinds = set(map(type, tensors))
    if any(issubclass(kind, (UninitializedBuffer, UninitializedParameter)) for kind in kinds):
        names = _names(name for name, tensor in _weights(model) if is_lazy(tensor))
        raise ModelError(
            f"the network's {names} are not initialised yet, as in lazy modules before their first "
            "run; run one image through it first: model(images[:1])"
        )
    if any(tensor is not None and tensor.is_meta for tensor in tensors):
        names = _names(name for name, tensor in _weights(model) if tensor.is_meta)
        raise ModelError(
            f"the network's {names} are on the device 'meta', where tensors have no numbers; load "
            "them: model.to_empty(device='cpu'), then model.load_state_dict(weights)"
        )


def _weights(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    return chain(model.named_parameters(), model.named_buffers())


def _names(names: Iterator[str]) -> str:
    listed = list(names)
    return "weights " + ", ".join(map(repr, listed[:3])) + (", …" if len(listed) > 3 else "")


def _like(model: nn.Module) -> Tensor | None:
    """Return a weight, which has the device and usually the dtype of the images to come."""
    return next((tensor for _, tensor in _weights(model) if tensor.is_floating_point()), None)


def check_images(model: nn.Module, images: object) -> None:
    """Raise unless these are images (N, C, *spatial) that can go through the network.

    Raises:
        ShapeError: when they have another type, shape, layout, dtype or device, or are single
            images or of another number of dimensions than the network's convolutions.
        UsageError: when a pixel is not finite.
    """
    if not isinstance(images, Tensor):
        advice = "afmi.explain takes files, model.prepare(image) makes a tensor of one"
        if isinstance(images, np.ndarray):
            advice = "make it one with torch.from_numpy(images)"
        elif isinstance(images, (list, tuple)):
            advice = "stack images of one size with torch.stack(images)"
        raise ShapeError(
            f"expected a tensor of {_form(model)}, got {type(images).__name__}; {advice}"
        )
    check_dense(images)
    advice = _other_form(model, images)
    if advice or 0 in images.shape or images.dtype not in _FLOATS:
        raise ShapeError(
            f"expected a non-empty floating-point tensor of {_form(model)}, got "
            f"{tuple(images.shape)} {images.dtype}; {advice or _advice(images)}"
        )
    weight = _like(model)
    if weight is not None and weight.device != images.device:
        raise ShapeError(
            f"expected images on the model's device {weight.device}, got {images.device}; "
            "move them with images.to(device)"
        )
    if not bool(torch.isfinite(torch.stack(images.detach().aminmax())).all()):
        raise UsageError("expected finite pixels, got NaN or infinity in the images")


def first_convolution(model: nn.Module) -> tuple[int, int] | None:
    """Return how many dimensions a network's first convolution slides along, and its channels.

    It tells signals, pictures and volumes apart, and a batch from a single one. None: the network
    has none, or none that can be looked at.
    """
    for module in model.modules():
        if isinstance(module, _ConvNd):
            return len(module.kernel_size), module.in_channels
    return None


def _form(model: nn.Module) -> str:
    """Return what a batch for this network is called."""
    first = first_convolution(model)
    return ANY_FORM if first is None else FORMS[first[0]]


def _other_form(model: nn.Module, images: Tensor) -> str | None:
    """Say what to do with images that have not the network's number of dimensions; None: they do.

    A network may make pictures of signals itself, or take volumes slice by slice: only a single
    image and what lacks the channels' dimension are known to be none that it takes.
    """
    first = first_convolution(model)
    dimensions, channels = first or (2, None)
    shape = images.shape
    reshape = f"reshape them to {FORMS[dimensions].partition(' ')[2]}"
    if images.dim() not in (3, 4, 5):
        one_short = images.dim() == dimensions + 1
        return "add a batch dimension with images[None]" if one_short else reshape
    if first is None or images.dim() == dimensions + 2 or shape[1] == channels:
        return None
    if images.dim() == dimensions + 1:
        # Pictures (1, C, H, W) may become volumes of one channel inside the network.
        single = shape[0] == channels and (dimensions, channels) != (3, 1)
        return "add a batch dimension with images[None]" if single else None
    return reshape if images.dim() > dimensions + 2 else None


def check_dense(images: Tensor) -> None:
    """Raise a `ShapeError` unless the tensor holds a number for each pixel."""
    if images.is_meta:
        raise ShapeError(
            "expected images that hold numbers, got a tensor on the device 'meta', which holds none"
        )
    if images.is_nested or images.layout is not torch.strided:
        kind = "nested" if images.is_nested else images.layout
        advice = "torch.stack images of one size" if images.is_nested else "use images.to_dense()"
        raise ShapeError(f"expected a dense tensor of images, got a {kind} one; {advice}")


def _advice(images: Tensor) -> str:
    if images.dtype == torch.uint8:
        return "divide bytes by 255"
    if images.is_quantized:
        return "convert them with images.dequantize()"
    return "convert them with images.float()" if images.numel() else "give one image or more"


def check_run(logits: Tensor, images: Tensor) -> Tensor:
    """Return the logits, where the network gave one row of them for each image."""
    rows, wanted = logits.shape[0], images.shape[0]  # symbols, where the run is traced
    if rows != wanted:
        raise ModelError(
            f"the network must return one row of logits for each image, but returned {rows} "
            f"for {wanted}; wrap it in an nn.Module that keeps images apart"
        )
    return logits


@contextmanager
def named_failures(model: nn.Module, images: Tensor) -> Iterator[None]:
    """Raise a named error where a network's own error says that it was given the wrong input.

    Where parts of the network cannot be watched or differentiated, the error says which. Others
    go through as they are, as do those of too little memory.

    Args:
        model: the network that is run in this context.
        images: (N, C, *spatial), what it is run on, or what that is made of.
    """
    try:
        yield
    except OperationError as error:
        part = opaque_part(model)
        if part is None:
            raise
        raise OperationError(part) from error
    except AfmiError:
        raise
    except (RuntimeError, TypeError, ValueError, AssertionError) as error:
        if isinstance(error, RuntimeError) and is_out_of_memory(error):
            raise
        if isinstance(error, AssertionError) and _raised_here(error):
            raise
        named = _named(model, images, error)
        if named is None:
            raise
        raise named from error


def _raised_here(error: Exception) -> bool:
    """Tell whether this package raised the error, and not the network."""
    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
    return str(frames[-1].f_globals.get("__name__")).startswith("afmi.")


_ARGUMENTS = re.compile(r"(\w+\.)?forward\(\) (is missing|missing|takes|got)\b")
_CHANNELS = re.compile(r"expected input\[.*\] to have (\d+) channels, but got (\d+) channels")
_DTYPES = re.compile(
    r"should be the same$|have the same dtype|expected scalar type|same dtype, but got"
)
_DEVICES = re.compile(r"on the same device|should be the same$|same device")
_SIZES = re.compile(
    r"shapes cannot be multiplied|greater than actual input size|[Oo]utput size is too small"
    r"|is invalid for input of size|must match the (existing )?size|[Pp]adding size should be"
    r"|don't multiply up to the size|[Ss]izes of tensors must match|to have \d+ channels"
    r"|[Ee]xpected \dD .*input"
)


def _named(model: nn.Module, images: Tensor, error: Exception) -> AfmiError | None:
    """Return the error to raise instead of a network's own; None: that one is as good."""
    text, shape = str(error), tuple(images.shape)
    if _ARGUMENTS.search(text):
        if any(isinstance(module, Bound) for module in all_modules(model)):
            return ModelError(
                f"the network cannot be called with these arguments ({first_line(error)}); compare "
                "forward_arguments= and input= with its forward"
            )
        return ModelError(
            f"the network cannot be called with images alone ({first_line(error)}); pass the rest "
            "as forward_arguments=, a tuple or a dictionary of keywords, and with input= which "
            "argument the images are: Classifier(network, forward_arguments=…, input=…)"
        )
    channels = _CHANNELS.search(text)
    if channels and int(channels[2]) == shape[1]:
        form = FORMS[images.dim() - 2].partition(" ")[2].replace("C", channels[1])
        return ShapeError(
            f"expected images of {channels[1]} channels, {form}, as the network takes them, got "
            f"{shape[1]} channels"
        )
    weight = _like(model)
    if weight is not None and _DTYPES.search(text) and weight.dtype != images.dtype:
        return ShapeError(
            f"expected images in the network's dtype {weight.dtype}, got {images.dtype}; convert "
            f"them with images.to({weight.dtype})"
        )
    devices = {str(tensor.device) for _, tensor in _weights(model)}
    if len(devices) > 1 and _DEVICES.search(text):
        return ModelError(
            f"the network's weights are on several devices, {', '.join(sorted(devices))}; move "
            "them to one: model.to(device)"
        )
    if isinstance(error, AssertionError) and text.startswith("Guard failed"):
        return ModelError(
            f"the network was exported for images of another shape than {shape} ({text}); export "
            "it with dynamic_shapes for the number of images, or use the network before the export"
        )
    if isinstance(error, AssertionError) or _SIZES.search(text):
        single = ", and give a single image a batch dimension: images[None]"
        return ShapeError(
            f"the network cannot run images of shape {shape} ({first_line(error)}); bring them to "
            f"the size that it was made for{single if len(shape) == 3 else ''}"
        )
    return None


def opaque_part(model: nn.Module) -> str | None:
    """Say why parts of a network cannot be watched or differentiated, and what to do.

    Returns:
        A sentence about the first such part: TorchScript, an exported graph or quantised weights;
        None where there is none.
    """
    for name, module in model.named_modules():
        where = f"the network's part {name!r}" if name else "the network"
        if is_quantised(module):
            return (
                f"{where} is quantised ({type(module).__name__}), and PyTorch cannot differentiate "
                "that; explain the network before it was quantised, or use a method that only "
                "looks at its outputs: KernelSHAP, LIME, Occlusion, PredictionDifference or RISE"
            )
        kind = None
        if isinstance(module, torch.jit.ScriptModule):
            kind = "TorchScript (scripted, traced or frozen)"
        elif _is_exported(module):
            kind = "an exported graph"
        if kind is not None:
            return (
                f"{where} is {kind}, whose modules and operations cannot be watched one by one; "
                "explain the network before that, or use a method that needs no more than its "
                "gradient (IntegratedGradients, SmoothGrad, Gradient, …) or its outputs (RISE, …)"
            )
    return None


def is_quantised(module: nn.Module) -> bool:
    """Tell whether a module's own weights are quantised."""
    parameters = (p for p in module._parameters.values() if p is not None)
    return (
        ".quantized." in type(module).__module__
        or any(p.is_quantized or type(p).__module__.startswith("torchao") for p in parameters)
        or any(n.endswith("_packed_params_0") or "_packed_weight" in n for n in vars(module))
    )


def _is_exported(module: nn.Module) -> bool:
    graph = getattr(module, "graph", None)
    if not isinstance(module, torch.fx.GraphModule) or graph is None:
        return False
    return any(isinstance(node.target, torch._ops.OpOverload) for node in graph.nodes)
