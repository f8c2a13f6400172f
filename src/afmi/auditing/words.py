"""Say in sentences what an audit found of a group."""

from __future__ import annotations

from afmi.auditing.interventions import Change, Intervention
from afmi.auditing.records import ClassAudit, Group
from afmi.report.statistics import Estimate
from afmi.report.words import counted, number

__all__ = ["about_group", "about_intervention"]


def about_group(one: ClassAudit, group: Group) -> list[str]:
    """Return what marks a group of a class, in sentences."""
    maps = counted(len(group.maps), "feature map")
    numbers = ", ".join(str(lead.number) for lead in group.maps)
    held = sum(lead.share for lead in group.maps)
    by = {"what": "the feature maps that speak", "where": "the places that speak"}[one.by]
    sentences = [
        f"{counted(len(group.images), 'image')} ({group.share:.0%} of the class) stand apart by "
        f"{by} for them: "
        f"isolation {group.isolation:.2f}, and {group.stability:.0%} the same images when a fifth "
        "is left out" + ("." if group.stable else ", so that other images could have ended it."),
        f"{group.recognised:.0%} of them are predicted as {one.label}, of the rest "
        f"{group.recognised_rest:.0%}; their score is {_signed(group.score)} above that of the "
        f"rest, {number(group.effect, 1)} standard deviations.",
    ]
    if group.maps:
        sentences.append(
            f"{maps} ({numbers}) {'makes' if len(group.maps) == 1 else 'make'} {held:.0%} of what "
            f"the group has more than the rest, and {group.carried:.0%} of its score's change from "
            "the reference."
        )
    if group.stable and not group.suspicious:
        sentences.append(
            "They do not score much higher, so they are rather images of another kind, recognised "
            "by something else in place of what the rest shows, than images with something added."
        )
    if group.intervention is not None:
        sentences += about_intervention(one.label, group.intervention)
    return sentences


def about_intervention(label: str, done: Intervention) -> list[str]:
    """Return what changing images did, in sentences."""
    sentences = [f"The marked region covers {done.area:.1%} of an image on average."]
    if done.pasted is not None:
        change = done.pasted
        times = change.marked.count
        different = f" ({done.others} different ones)" if done.others < times else ""
        sentences.append(
            f"Pasted into {counted(times, 'image')} of other classes{different} it makes "
            f"{_percent(change.marked)} of them {label}, a random region of the same shape "
            f"{_percent(change.control)}{_doubt(change)}."
        )
    if done.removed:
        ways = "; ".join(
            f"{change.what} {_percent(change.marked)}, a random region "
            f"{_percent(change.control)}{_doubt(change)}"
            for change in done.removed
        )
        sentences.append(
            "Removing it changes the prediction of "
            f"{counted(done.removed[0].marked.count, 'image')} of the group that often: {ways}."
        )
    if done.confirmed:
        sentences.append(
            f"So the network does use what lies there to say {label}. Whether it should, look."
        )
    else:
        sentences.append(
            "So what lies there alone does not decide: the group may differ in what is spread over "
            "the image, such as its colour, or in how strongly the same reason speaks."
        )
    return sentences


def _percent(estimate: Estimate) -> str:
    return f"{estimate.value:.0%} ({max(estimate.low, 0):.0%} to {min(estimate.high, 1):.0%})"


def _doubt(change: Change) -> str:
    return "" if change.clear else " (no clear difference)"


def _signed(estimate: Estimate) -> str:
    return f"{number(estimate.value)} ({number(estimate.low)} to {number(estimate.high)})"
