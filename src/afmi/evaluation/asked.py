"""What an evaluation explains of each picture: its labelled class, or a target for all or each."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from afmi import specs
from afmi.errors import AfmiError, TargetError, UsageError, first_line
from afmi.evaluation.code import CodeReader
from afmi.metrics import CATALOGUE, Metric, MetricsLike, chosen_metrics
from afmi.network.guards import evaluation_mode
from afmi.network.outputs import declaration_of
from afmi.network.trial import meaning_of
from afmi.targets import Class, Difference, OneTarget, Output, Target, as_targets

__all__ = ["Asked", "AskedLike"]

AskedLike: TypeAlias = "int | str | Target | Callable[[int], Any] | None"


@dataclass(frozen=True)
class Asked:
    """What is explained of each picture.

    Attributes:
        model: the network.
        given: one target for all pictures; a function from a picture's label to its target; None:
            the labelled class.
        classes: whether each picture's target is a class.
    """

    model: nn.Module
    given: Target | Callable[[int], Any] | None = None
    classes: bool = True

    @classmethod
    def of(cls, model: nn.Module, wanted: AskedLike) -> Asked:
        """Return what a user asks for.

        Args:
            model: the network.
            wanted: see `afmi.evaluate`.

        Raises:
            TargetError: when it is no target, or the network is known to have no labelled class.
        """
        if wanted is None:
            if declaration_of(model).meaning == "value":
                raise _no_labelled_class()
            return cls(model)
        if callable(wanted) and not isinstance(wanted, (Target, str)):
            return cls(model, wanted)
        (target,) = as_targets(model, [wanted])
        if isinstance(target, Class):
            target = Class(target.index(model))
        return cls(model, target, classes=isinstance(target, Class))

    @property
    def labelled(self) -> bool:
        """Whether it depends on the pictures' labels."""
        if isinstance(self.given, Difference):
            return self.given.of is None
        return not isinstance(self.given, Target)

    def on(self, image: Tensor, labels: Sequence[int]) -> Asked:
        """Return the same for what the network's outputs mean, and see that each label has one.

        Args:
            image: (1, C, …), as the model takes it.
            labels: of the pictures.

        Raises:
            TargetError: when the network has no labelled class, or a label no target.
        """
        asked = self
        if isinstance(self.given, (Class, type(None))) and _gives_values(self.model, image):
            if self.given is None:
                raise _no_labelled_class()
            asked = replace(self, given=Output(self.given.index(self.model)))
        some = sorted({n for n in labels if n >= 0}) if asked.labelled else [0]
        targets = [asked.target(label) for label in some]
        for target in targets:
            if not (isinstance(target, Difference) and target.of is None):
                target.label(self.model)  # raises where there is no class of a label
        return replace(asked, classes=all(isinstance(target, Class) for target in targets))

    def target(self, label: int) -> Target:
        """Return what is explained of a picture with this label."""
        if self.given is None:
            return Class(label)
        if isinstance(self.given, Difference) and self.given.of is None:
            # Of a picture of the other class: why the most probable one rather than that.
            versus = self.given.versus
            same = versus is not None and Class(versus).index(self.model) == label
            return self.given if same else replace(self.given, of=label)
        if isinstance(self.given, Target):
            return self.given
        try:
            (target,) = as_targets(self.model, [self.given(label)])
        except AfmiError:
            raise
        except Exception as error:
            raise TargetError(
                f"expected a function from a label, such as {label}, to what is explained of its "
                f"pictures, and it raised {type(error).__name__}: {first_line(error)}; a function "
                "of the network's outputs is afmi.targets.Scalar(function)"
            ) from error
        return target

    def one(self, label: int) -> OneTarget:
        """Return the same, a class by its index."""
        target = self.target(label)
        return target.index(self.model) if isinstance(target, Class) else target

    def each(self, labels: Sequence[int], device: torch.device) -> Any:
        """Return what is explained of pictures with these labels, as a method takes it."""
        targets = [self.target(label) for label in labels]
        if self.classes:
            other = next((target for target in targets if not isinstance(target, Class)), None)
            if other is not None:
                raise TargetError(
                    f"expected a class for each label, as for those that came first, got "
                    f"{specs.text(other)}; let the function give targets of one kind"
                )
            indices = [target.index(self.model) for target in targets if isinstance(target, Class)]
            return torch.tensor(indices, dtype=torch.int64, device=device)
        # One for all runs them together.
        return targets[0] if all(target == targets[0] for target in targets) else targets

    def metrics(self, wanted: MetricsLike | None) -> dict[str, Metric]:
        """Return the metrics chosen, which fit; None: the standard ones that do.

        Raises:
            UsageError: when one asks for a class, and none is explained.
        """
        if not self.classes and isinstance(wanted, str) and wanted.strip().casefold() == "all":
            wanted = [cls for cls in CATALOGUE.values() if not cls.needs_class]
        chosen = chosen_metrics(wanted, classes=self.classes)
        unfit = [] if self.classes else [m for m in chosen.values() if m.needs_class]
        if unfit:
            names = " and ".join(metric.name for metric in unfit)
            instead = " and ".join(dict.fromkeys(m.instead for m in unfit if m.instead))
            advice = f"; use {instead} in its place" if instead else "; leave it out"
            verb = "asks" if len(unfit) == 1 else "ask"
            raise UsageError(
                f"{names} {verb} which class the network recognises, and what is explained, "
                f"{self.label}, is no class{advice}"
            )
        return chosen

    @property
    def label(self) -> str:
        """What is explained, in words."""
        if self.given is None:
            return "the labelled class"
        if isinstance(self.given, Difference) and self.given.of is None:
            other = "any other"
            if self.given.versus is not None:
                other = Class(self.given.versus).label(self.model)
            return f"the labelled class rather than {other}"
        if isinstance(self.given, Target):
            return self.given.label(self.model)
        name = getattr(self.given, "__name__", type(self.given).__name__)
        return f"what {name} gives for the label"

    def identity(self) -> dict[str, Any]:
        """Return what must be the same for results to be continued, as JSON holds it."""
        reader = CodeReader()
        text = "" if self.given is None else reader.text(self.given)
        named = specs.text(self.given) if isinstance(self.given, Target) else text
        return {
            "label": self.label,
            "text": named,
            "classes": self.classes,
            "unit": "" if self.classes else _unit(self.given),
            "code": reader.code,
        }


def _gives_values(model: nn.Module, image: Tensor) -> bool:
    with torch.inference_mode(False), torch.no_grad(), evaluation_mode(model):
        try:
            return meaning_of(model, image) == "value"
        except Exception:  # what is wrong with the network, each picture's row will say
            return False


def _unit(given: Any) -> str:
    return given.unit if isinstance(given, Target) else "score"


def _no_labelled_class() -> TargetError:
    return TargetError(
        "the network returns values and no classes, so there is no labelled class to be explained; "
        "say what is: target=afmi.targets.Output(), say, or --target output"
    )
