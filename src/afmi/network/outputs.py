"""What a network's outputs mean: scores of classes, the probabilities they stand for, or values."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from afmi.errors import AfmiError, ModelError, OperationError
from afmi.network.operations import Trait, operation_name, operations_with
from afmi.network.wrappers import wrappings

__all__ = [
    "Declaration",
    "Meaning",
    "Outputs",
    "check_outputs",
    "declaration_of",
    "may_be_squashed",
    "read_detections",
    "read_maps",
    "read_outputs",
    "responses",
    "scores_of",
    "selected",
]

Meaning = Literal["logits", "sigmoid", "probabilities", "value"]
"""Logits of classes of which one holds; logits of labels that hold or not, each by itself;
probabilities; or numbers that are scores of no class."""

_TOLERANCE = 1e-3
"""Within which probabilities sum to 1; ten times as much in half precision."""


@dataclass(frozen=True)
class Declaration:
    """What a `Classifier` says of its network's outputs.

    Attributes:
        meaning: None: as it looks.
        key: which of several outputs is meant: a name or a position; None: the only one.
        labels: how many names its classes have.
    """

    meaning: Meaning | None = None
    key: str | int | None = None
    labels: int = 0

    def __post_init__(self) -> None:
        if self.meaning not in (None, *get_args(Meaning)):
            raise ModelError(
                f"expected output as {', '.join(map(repr, get_args(Meaning)))} or None (as it "
                f"looks), got {self.meaning!r}"
            )


@dataclass(frozen=True)
class Outputs:
    """The scores that a run of a network gave, and what they mean.

    Attributes:
        scores: (N, K): logits, probabilities or values.
        meaning: which of these.
        assumed: what was concluded without having been told, and how to say otherwise; None where
            nothing was.
    """

    scores: Tensor
    meaning: Meaning
    assumed: str | None = None


def declaration_of(model: nn.Module) -> Declaration:
    """Return what a model says of its outputs: nothing, unless a `Classifier` is in it."""
    declared = (getattr(one, "declaration", None) for one in wrappings(model))
    return next((one for one in declared if isinstance(one, Declaration)), Declaration())


def selected(output: Any, key: str | int | None) -> Any:
    """Return the one tensor that is meant in what a network returned.

    That is the one of the key; or what is called ``logits`` or ``out``; or the only one of shape
    (N, C); or the only one. Where none of these singles one out, all is returned as it came.

    Raises:
        ModelError: when there is nothing under the key.
    """
    if isinstance(output, Tensor):
        return output
    if key is not None:
        try:
            return output[key] if not isinstance(key, str) else _named(output)[key]
        except (KeyError, IndexError, TypeError) as error:
            raise ModelError(
                f"the network returned {_form(output)}, where there is no output_key={key!r}"
            ) from error
    by_name = _named(output)
    for name in ("logits", "out"):
        if isinstance(by_name.get(name), Tensor):
            return by_name[name]
    tensors = _tensors(output)
    rows = [t for t in tensors if t.dim() == 2 and t.is_floating_point()]
    if len(rows) == 1:
        return rows[0]
    return tensors[0] if len(tensors) == 1 else output


def _named(output: Any) -> dict[str, Any]:
    if isinstance(output, dict):
        return dict(output)
    if isinstance(output, tuple) and hasattr(output, "_asdict"):
        return output._asdict()  # type: ignore[attr-defined]
    logits = getattr(output, "logits", None)
    return {} if logits is None else {"logits": logits}


def _tensors(output: Any) -> list[Tensor]:
    values: Iterable[Any] = output.values() if isinstance(output, dict) else ()
    if isinstance(output, (tuple, list)):
        values = output
    return [value for value in values if isinstance(value, Tensor)]


def _form(output: Any) -> str:
    if isinstance(output, Tensor):
        return f"{tuple(output.shape)} {output.dtype}"
    if isinstance(output, dict):
        held = ", ".join(f"{name!r}: {_form(value)}" for name, value in list(output.items())[:8])
        return f"a dict of {held or 'nothing'}"
    if isinstance(output, (tuple, list)):
        held = ", ".join(_form(value) for value in output[:8])
        return f"a {type(output).__name__} of {held or 'nothing'}"
    return type(output).__name__


def scores_of(model: nn.Module, images: Tensor, *, seen: bool = True) -> Tensor:
    """Run a network and return its scores (N, K); see `read_outputs`."""
    return read_outputs(model, images, seen=seen).scores


def may_be_squashed(scores: Tensor) -> bool:
    """Tell whether scores could come out of a softmax, its logarithm or a sigmoid."""
    low, high = (float(bound) for bound in scores.detach().aminmax())
    return high <= 0 or (low >= 0 and high <= 1)


def read_outputs(model: nn.Module, images: Tensor, *, seen: bool = True) -> Outputs:
    """Run a network on images (N, C, …) and tell which scores of classes it gives.

    A softmax or sigmoid at the end is undone: the scores are what went into it, as the paper asks
    (the gradient of a saturated probability vanishes). One logit of two classes becomes those of
    both, −y and y, and one probability becomes 1 − p and p.

    Args:
        model: the network.
        images: passed as they are.
        seen: whether the operations can be seen, so that the one at the end is known.

    Raises:
        ModelError: when there are no scores (N, K), or no telling which they are.
    """
    declared = declaration_of(model)
    name, before = None, None
    if declared.meaning in ("probabilities", "value") or not seen:
        returned = model(images)
        output = _rows(selected(returned, declared.key), returned)
    else:
        with _Activations() as activations:
            returned = model(images)
        output = _rows(selected(returned, declared.key), returned)
        name, before = activations.behind(output)
    scores = output if before is None else before
    scores = scores[:, None] if scores.dim() == 1 else scores
    return _meant(scores, name, declared, declared.meaning)


def read_maps(model: nn.Module, images: Tensor, *, meaning: Meaning | None = None) -> Outputs:
    """Run a network on images (N, C, …) and return the scores of classes at each place.

    A softmax over the classes or a sigmoid at the end is undone, and one map becomes those of two
    classes, as in `read_outputs`.

    Args:
        model: the network.
        images: passed as they are.
        meaning: of the scores, where that is known of an earlier run; None: as the model says, or
            as it looks.

    Returns:
        Scores (N, K, *places), with as many dimensions as the images.

    Raises:
        ModelError: when the network returns no such maps, or no telling which they are.
    """
    declared = declaration_of(model)
    with _Activations(of_maps=True) as activations:
        returned = model(images)
    output = selected(returned, declared.key)
    fits = isinstance(output, Tensor) and output.is_floating_point() and len(output) == len(images)
    if fits and output.dim() == images.dim() - 1:
        maps = output[:, None]
    elif fits and output.dim() == images.dim() > 2:
        maps = output
    else:
        advice = "say which output holds them: Classifier(network, output_key=…)"
        if isinstance(returned, Tensor):
            advice = "explain a class or another target of a network that is no segmentation"
        raise ModelError(
            f"expected class scores at each place, (N, C, h, w), got {_form(returned)}; {advice}"
        )
    name, before = None, None
    if declared.meaning not in ("probabilities", "value"):
        name, before = activations.behind(output)
    scores = maps if before is None else before.reshape(maps.shape)
    return _meant(scores, name, declared, meaning or declared.meaning)


def read_detections(model: nn.Module, images: Tensor) -> list[dict[str, Tensor]]:
    """Run a detector on images (N, C, H, W) and return the objects that it finds in each.

    Returns:
        N dictionaries of ``boxes`` (D, 4), ``labels`` (D,) and ``scores`` (D,).

    Raises:
        ModelError: when the network returns anything else.
    """
    returned = model(images)
    names = ("boxes", "labels", "scores")
    fits = isinstance(returned, (list, tuple)) and all(
        isinstance(found, dict) and all(isinstance(found.get(name), Tensor) for name in names)
        for found in returned
    )
    if not fits or len(returned) != len(images):
        raise ModelError(
            "expected a detector, which returns a dictionary of boxes, labels and scores for each "
            f"image, got {_form(returned)}; wrap it in an nn.Module that returns such"
        )
    return list(returned)


def _meant(
    scores: Tensor, name: str | None, declared: Declaration, meaning: Meaning | None
) -> Outputs:
    """Return scores (N, K, …) with what they mean, those of two classes for one logit."""
    assumed = None
    if meaning is None:
        meaning, assumed = _apparent(name, scores, declared.labels)
    column = scores.shape[1] == 1
    if column:
        scores = _both_classes(scores, meaning)
    if declared.labels and scores.shape[1] != declared.labels:
        plural = "" if declared.labels == 1 else "s"
        advice = "pass one label per class, in the order of the logits"
        if column and meaning != "value":
            advice = "pass two for its one output, first what holds where that is negative or low"
        raise ModelError(
            f"the network tells {scores.shape[1]} classes apart but has {declared.labels} "
            f"label{plural}; {advice}"
        )
    return Outputs(scores, meaning, assumed)


def _rows(output: Any, returned: Any) -> Tensor:
    """Return the outputs, where they have a row for each image."""
    fits = isinstance(output, Tensor) and output.is_floating_point() and output.dim() in (1, 2)
    if fits and output.shape[-1]:
        return output
    several = not isinstance(output, Tensor) and len(_tensors(returned)) > 1
    advice = "wrap it in an nn.Module whose forward returns the logits"
    if several:
        advice = "say which is meant: Classifier(network, output_key=…)"
    elif isinstance(returned, list) and returned and all("boxes" in _named(r) for r in returned):
        advice = "explain a detection by afmi.targets.Box"
    elif isinstance(output, Tensor) and output.dim() > 2:
        advice = (
            "explain a region of a segmentation by afmi.targets.Region, or any number made of the "
            "outputs by afmi.targets.Scalar(function)"
        )
    raise ModelError(
        "the network must return a row of outputs for each image, (N, C), but returned "
        f"{_form(returned)}; {advice}"
    )


def _apparent(name: str | None, scores: Tensor, labels: int) -> tuple[Meaning, str | None]:
    """Return what undeclared outputs seem to mean, and what is thereby assumed."""
    if name is not None:
        meaning: Meaning = "sigmoid" if name == "sigmoid" else "logits"
        return meaning, (
            f"the network ends in {name}, so what goes into it is explained (probabilities "
            "saturate); pass Classifier(network, output='probabilities') to explain what comes out"
        )
    if scores.shape[1] == 1:
        if labels == 2:
            return "sigmoid", (
                "the network returns one number for two labels, which is taken for the logit of "
                "the second; pass Classifier(network, output=…) to say what it is"
            )
        return "value", (
            "the network returns one number for each image, which is taken for a value and not "
            "for a class; pass Classifier(network, output='sigmoid') where it is the logit of a "
            "class, output='probabilities' where it is its probability, or output='value'"
        )
    if _sum_to_one(scores):
        return "probabilities", (
            "the network's outputs sum to 1, so they are taken for probabilities, whose gradients "
            "vanish where the network is sure; let it return its logits, or say what they are: "
            "Classifier(network, output=…)"
        )
    return "logits", None


@torch.no_grad()
def _sum_to_one(scores: Tensor) -> bool:
    with torch._C.DisableTorchFunction():  # no part of what the network does
        return _rows_sum_to_one(scores.detach())


def _rows_sum_to_one(rows: Tensor) -> bool:
    if rows.is_meta:  # where shapes alone are asked for
        return False
    if float(rows.amin()) < 0:  # the usual case, at once
        return False
    exact = rows.dtype in (torch.float32, torch.float64)
    return bool(((rows.sum(1) - 1).abs() <= _TOLERANCE * (1 if exact else 10)).all())


def _both_classes(scores: Tensor, meaning: Meaning) -> Tensor:
    """Return the scores of both classes (N, 2), given those of the second; a value stays one."""
    if meaning == "sigmoid":
        return torch.cat([-scores, scores], 1)
    if meaning == "probabilities":
        return torch.cat([1 - scores, scores], 1)
    if meaning == "logits":
        raise ModelError(
            "the network returns one logit, whose softmax is 1 for every image; pass "
            "Classifier(network, output='sigmoid') where it is the logit of a class, "
            "output='value' where it is a value"
        )
    return scores


def responses(scores: Tensor, meaning: Meaning) -> Tensor:
    """Return what a network answers with: probabilities where it gives any, else its values.

    Args:
        scores: (…, K).
        meaning: of the scores.

    Returns:
        (…, K), in the scores' dtype and on their device.
    """
    if meaning == "logits":
        return scores.softmax(-1)
    return scores.sigmoid() if meaning == "sigmoid" else scores


class _Activations(TorchFunctionMode):
    """Notes what goes into each softmax and sigmoid, by what comes out.

    One that other modes cannot let pass, such as the rules of a backward pass, is no matter where
    it is the last: it fails when something else is made of what comes out.

    Args:
        of_maps: note those of maps (N, C, …), a softmax where it is over the classes; else those of
            rows alone.
    """

    def __init__(self, *, of_maps: bool = False) -> None:
        super().__init__()
        self._of_maps = of_maps
        # Held, so that no other tensor gets their identity.
        self._noted: dict[int, _Activation] = {}
        self._failed = False

    def behind(self, output: Tensor) -> tuple[str | None, Tensor | None]:
        """Return the name of the activation that gave this output, and what went into it."""
        noted = self._noted.get(id(output))
        return (None, None) if noted is None else (noted.name, noted.before)

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        name = _kind(func)
        if name is None or not args or not isinstance(args[0], Tensor):
            if self._failed:
                self._raise_failure(args, kwargs)
            return func(*args, **kwargs)
        if name in _ACTIVATIONS:
            return self._activated(name, func, args, kwargs)
        noted = self._noted.get(id(args[0]))
        if noted is None:
            return func(*args, **kwargs)
        before = func(noted.before, *args[1:], **kwargs)
        if noted.failure is None:
            output = func(*args, **kwargs)
        else:
            with torch._C.DisableTorchFunction():
                output = func(*args, **kwargs)
        self._noted[id(output)] = _Activation(noted.name, before, output, noted.failure)
        return output

    def _activated(
        self,
        name: str,
        func: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> Any:
        if not self._may_end(name, *args, **kwargs):  # in the midst of the network
            return func(*args, **kwargs)
        before = args[0].clone() if _in_place(func) else args[0]
        failure = None
        try:
            output = func(*args, **kwargs)
        except OperationError as error:
            failure = error
            with torch._C.DisableTorchFunction():
                output = func(args[0].detach(), *args[1:], **kwargs)
            self._failed = True
        self._noted[id(output)] = _Activation(name, before, output, failure)
        return output

    def _may_end(self, name: str, x: Tensor, dim: Any = None, *_: Any, **__: Any) -> bool:
        """Tell whether what an activation makes of a tensor may be the network's output."""
        if not self._of_maps:
            return x.dim() <= 2
        of_classes = isinstance(dim, int) and dim % x.dim() == 1
        return x.dim() > 2 and (name == "sigmoid" or of_classes)

    def _raise_failure(self, args: Any, kwargs: dict[str, Any]) -> None:
        for value in (*args, *kwargs.values()):
            if isinstance(value, (tuple, list)):
                self._raise_failure(value, {})
            noted = self._noted.get(id(value))
            if noted is not None and noted.failure is not None:
                raise noted.failure


@dataclass(frozen=True)
class _Activation:
    """What a softmax or sigmoid was given and gave, and why it cannot be passed, if it cannot."""

    name: str
    before: Tensor
    output: Tensor
    failure: OperationError | None


_ACTIVATIONS = operations_with(Trait.LAST)
_FORMS = operations_with(Trait.RESHAPE)
_kinds: dict[Callable[..., Any], str | None] = {}


def _kind(function: Callable[..., Any]) -> str | None:
    """Return an operation's name, where it is an activation or changes the form alone."""
    if function not in _kinds:
        name = operation_name(function).partition(".")[0]
        _kinds[function] = name if name in _ACTIVATIONS | _FORMS else None
    return _kinds[function]


def _in_place(function: Callable[..., Any]) -> bool:
    return getattr(function, "__name__", "").endswith("_")


def check_outputs(scores: Tensor, of: str = "the network") -> None:
    """Raise unless each image's scores (N, K) can be compared.

    The arg-max of NaN is class 0, so it must not be taken for a prediction. A class may be ruled
    out by −∞; NaN, +∞, and −∞ for all classes leave no probabilities.

    Args:
        scores: (N, K).
        of: what gives them, for the message.

    Raises:
        AfmiError: when the softmax of a row is not defined.
    """
    largest = scores.detach().amax(1)  # to which NaN spreads
    failed = (~largest.isfinite()).nonzero().flatten().tolist()
    if failed:
        kind = "NaN" if bool(largest[failed[0]].isnan()) else "infinity"
        where = f" for {len(failed)} of {len(scores)} images" if len(scores) > 1 else ""
        raise AfmiError(
            f"{of} gives {kind} instead of logits{where}, so no class is predicted; see whether "
            "the image suits the network (one that standardises each image divides by zero where "
            "all pixels are equal), whether its weights are finite, and whether its activations "
            f"overflow in {scores.dtype}"
        )
