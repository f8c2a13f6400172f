"""What an audit found, as records that show and save themselves."""

from __future__ import annotations

import html
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from afmi.auditing.grouping import LEAST, STABLE, STRONGER
from afmi.auditing.interventions import Change, Intervention
from afmi.files import Location
from afmi.report.statistics import Estimate

__all__ = ["Audit", "ClassAudit", "Group", "MapLead", "Outlier"]


@dataclass(frozen=True)
class MapLead:
    """A feature map through which a group gets more than the rest of its class.

    Attributes:
        number: of the feature map.
        group: its mean contribution to the score in the group.
        rest: that in the rest.
        share: of the lead that the group has through all such maps, 0 to 1.
    """

    number: int
    group: float
    rest: float
    share: float


@dataclass(frozen=True)
class Group:
    """Images of a class that stand apart by the feature maps that speak for them.

    Attributes:
        images: keys of its images, the most typical first.
        share: of the class.
        isolation: mean silhouette, −1 to 1: how far the group stands from the rest.
        stability: mean Jaccard index when a fifth of the images is left out, 0 to 1.
        recognised: share of its images that are predicted as the class.
        recognised_rest: that of the rest.
        score: mean score of its images less that of the rest, with its interval.
        effect: that difference in standard deviations of the rest.
        maps: that tell it from the rest, the one with the largest lead first.
        carried: share of the group's change of the score, from the reference, that goes through
            these maps.
        intervention: what came of changing images; None: none was made.
    """

    images: tuple[str, ...]
    share: float
    isolation: float
    stability: float
    recognised: float
    recognised_rest: float
    score: Estimate
    effect: float
    maps: tuple[MapLead, ...]
    carried: float
    intervention: Intervention | None = None

    @property
    def stable(self) -> bool:
        """Whether the group comes back when images are left out."""
        return self.stability >= STABLE

    @property
    def suspicious(self) -> bool:
        """Whether it is stable, and its images have much higher scores than the rest.

        What is added to the reason that the rest has raises the score; images of another kind, such
        as churches from inside, have another reason in its place.
        """
        return self.stable and self.score.low > 0 and self.effect >= STRONGER


@dataclass(frozen=True)
class Outlier:
    """An image that is recognised like no other of its class.

    Attributes:
        image: its key.
        distance: to its tenth neighbour, in deviations from the class's median.
    """

    image: str
    distance: float


@dataclass(frozen=True)
class ClassAudit:
    """What was found of one class.

    Attributes:
        index: of the class.
        label: its name.
        count: images of it that were explained.
        failed: images of it that could not be.
        recognised: share that is predicted as the class.
        by: what the groups differ in: ``"what"``, the feature maps that speak for the class, or
            ``"where"``, the places of the exact map that do; the one that is more suspicious.
        isolation: highest mean silhouette of any group, also where it is not apart; NaN where
            nothing can be said.
        groups: those that are apart, the furthest first; the other images are the rest.
        outliers: the furthest first.
    """

    index: int
    label: str
    count: int
    failed: int
    recognised: float
    by: str
    isolation: float
    groups: tuple[Group, ...]
    outliers: tuple[Outlier, ...]

    @property
    def suspicious(self) -> bool:
        """Whether it has a suspicious group."""
        return any(group.suspicious for group in self.groups)

    @property
    def stable(self) -> bool:
        """Whether it has a group apart that is stable."""
        return any(group.stable for group in self.groups)

    @property
    def confirmed(self) -> bool:
        """Whether changing what marks such a group changes predictions more than chance does."""
        return any(
            group.suspicious and group.intervention is not None and group.intervention.confirmed
            for group in self.groups
        )

    @property
    def verdict(self) -> str:
        """The outcome in a few words."""
        if self.count < LEAST:
            return f"too few images (fewer than {LEAST})"
        if self.suspicious:
            return f"a second reason, {'' if self.confirmed else 'not '}confirmed"
        if self.stable:
            return "images of another kind"
        return "one reason"


@dataclass(frozen=True, repr=False)
class Audit:
    """Whether classes are recognised for more than one reason.

    Attributes:
        classes: the most suspicious first.
        model: the network's name.
        data: the data's name.
        layer: whose feature maps were looked at.
        reference: what images were compared with.
        versus: the class that each was set against; "" for none.
        threshold: mean silhouette from which a group is apart.
        folder: where everything was written.
        seed: of everything random.
        versions: of afmi, torch, torchvision and python.
    """

    classes: tuple[ClassAudit, ...]
    model: str
    data: str
    layer: str
    reference: str
    versus: str
    threshold: float
    folder: Location
    seed: int
    versions: dict[str, str] = field(default_factory=dict)

    @property
    def page(self) -> Location:
        """The page that shows it."""
        return self.folder / "audit.html"

    @property
    def suspicious(self) -> tuple[ClassAudit, ...]:
        """The classes with a suspicious group."""
        return tuple(one for one in self.classes if one.suspicious)

    def __getitem__(self, label: str | int) -> ClassAudit:
        """Return what was found of a class.

        Raises:
            KeyError: it was not audited.
        """
        for one in self.classes:
            if label in (one.label, one.index):
                return one
        raise KeyError(label)

    @property
    def finding(self) -> str:
        """The outcome in a sentence."""
        found = self.suspicious
        if not found:
            return f"None of {len(self.classes)} classes has a second reason."
        names = ", ".join(
            f"{one.label} ({'confirmed' if one.confirmed else 'not confirmed'})" for one in found
        )
        verb = "has" if len(found) == 1 else "have"
        return f"{len(found)} of {len(self.classes)} classes {verb} a second reason: {names}."

    def to_dict(self) -> dict[str, Any]:
        """Return the record as JSON holds it."""
        return {
            "model": self.model,
            "data": self.data,
            "layer": self.layer,
            "reference": self.reference,
            "versus": self.versus,
            "threshold": self.threshold,
            "seed": self.seed,
            "versions": self.versions,
            "classes": [_class_dict(one) for one in self.classes],
        }

    def rows(self) -> list[list[Any]]:
        """Return the classes as rows of a table, the headings first."""
        headings = ["class", "label", "images", "failed", "recognised", "by", "isolation"]
        headings += ["groups", "outliers", "suspicious", "confirmed"]
        return [
            headings,
            *(
                [
                    *(one.index, one.label, one.count, one.failed, one.recognised),
                    *(one.by, one.isolation, len(one.groups), len(one.outliers)),
                    *(one.suspicious, one.confirmed),
                ]
                for one in self.classes
            ),
        ]

    def _repr_html_(self) -> str:
        shown = ("label", "images", "recognised", "isolation", "verdict")
        head = "".join(f"<th>{name}</th>" for name in shown)
        body = "".join(
            f"<tr><td>{html.escape(one.label)}</td><td>{one.count}</td>"
            f"<td>{one.recognised:.0%}</td><td>{one.isolation:.2f}</td><td>{one.verdict}</td></tr>"
            for one in self.classes
        )
        page = html.escape(str(self.page), quote=True)
        link = f'<a href="{page}">{page}</a>' if isinstance(self.folder, Path) else page
        return f"<p>{html.escape(self.finding)}</p><table>{head}{body}</table><p>{link}</p>"

    def __repr__(self) -> str:
        return f"Audit({self.finding!r}, {str(self.folder)!r})"


def _class_dict(one: ClassAudit) -> dict[str, Any]:
    return {
        "class": one.index,
        "label": one.label,
        "images": one.count,
        "failed": one.failed,
        "recognised": one.recognised,
        "by": one.by,
        "isolation": one.isolation,
        "verdict": one.verdict,
        "suspicious": one.suspicious,
        "confirmed": one.confirmed,
        "groups": [_group_dict(group) for group in one.groups],
        "outliers": [{"image": far.image, "distance": far.distance} for far in one.outliers],
    }


def _group_dict(group: Group) -> dict[str, Any]:
    return {
        "images": list(group.images),
        "share": group.share,
        "suspicious": group.suspicious,
        "isolation": group.isolation,
        "stability": group.stability,
        "recognised": group.recognised,
        "recognised_rest": group.recognised_rest,
        "score_difference": _estimate_dict(group.score),
        "effect": group.effect,
        "maps": [vars(lead) for lead in group.maps],
        "carried": group.carried,
        "intervention": _intervention_dict(group.intervention),
    }


def _intervention_dict(done: Intervention | None) -> dict[str, Any] | None:
    if done is None:
        return None
    return {
        "area": done.area,
        "others": done.others,
        "confirmed": done.confirmed,
        "pasted": None if done.pasted is None else _change_dict(done.pasted),
        "removed": _changes(done.removed),
    }


def _changes(changes: Sequence[Change]) -> list[dict[str, Any]]:
    return [_change_dict(change) for change in changes]


def _change_dict(change: Change) -> dict[str, Any]:
    return {
        "what": change.what,
        "marked": _estimate_dict(change.marked),
        "control": _estimate_dict(change.control),
        "difference": _estimate_dict(change.difference),
        "clear": change.clear,
    }


def _estimate_dict(estimate: Estimate) -> dict[str, Any]:
    return {
        "value": estimate.value,
        "low": estimate.low,
        "high": estimate.high,
        "images": estimate.count,
    }
