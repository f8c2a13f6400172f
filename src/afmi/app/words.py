"""What the page says of an explanation: checks in words, and the pieces of HTML around pictures."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined
from PIL import Image

from afmi.app.choices import REFERENCES, Choices
from afmi.app.photographs import Example, Photograph
from afmi.app.work import CURVE, Prediction
from afmi.comparison import Comparison
from afmi.explanation import Explanation, number, percent
from afmi.pictures import plots
from afmi.pictures.plots import Style

__all__ = [
    "Check",
    "checks_of",
    "comparison_html",
    "credits_html",
    "head_html",
    "kept_html",
    "map_html",
    "predictions_html",
    "video_html",
    "waiting_html",
]

_EXACT = 0.005
"""Residual up to which a map is said to account for the score."""
_OFF = 0.1
"""Residual from which a map is to be treated with care."""
_UNSURE = 0.5
_FRESH = "Nothing is explained yet. Choose a photograph, or take one of the examples."
_BAR = (256, 14)
_TILE = 360


@dataclass(frozen=True)
class Check:
    """Something that was checked, or is worth knowing.

    Attributes:
        kind: whether it is well, calls for care, or is there to be known.
        text: a sentence.
    """

    kind: Literal["good", "care", "note"]
    text: str


def checks_of(explanation: Explanation, warnings: Sequence[str] = ()) -> list[Check]:
    """Return what there is to say of an explanation, what calls for care first.

    Args:
        explanation: of a photograph.
        warnings: that came while it was made.
    """
    found = [*_of_prediction(explanation), _of_residual(explanation)]
    if explanation.hidden is not None:
        found.append(Check("care", _sentence(explanation.hidden)))
    found.append(Check("note", _sentence(explanation.where)))
    found.append(Check("note", _how(explanation)))
    found += [Check("care", _sentence(text)) for text in warnings]
    return sorted(found, key=lambda check: ("care", "good", "note").index(check.kind))


def _of_prediction(explanation: Explanation) -> list[Check]:
    if explanation.prediction is not None:
        text = f"the network predicts something else: {explanation.prediction}"
        return [Check("care", _sentence(text))]
    probability = explanation.predicted_probability
    if probability is not None and probability < _UNSURE:
        text = f"the network is not sure: it gives its first choice only {percent(probability)}"
        return [Check("care", _sentence(text))]
    return []


def _of_residual(explanation: Explanation) -> Check:
    residual = explanation.residual
    if residual is None:
        return Check(
            "note",
            "There is no sum to check: this method promises none, or the score did not change.",
        )
    off = abs(residual)
    if off <= _EXACT:
        return Check("good", f"The map accounts for the score to within {max(off, 0.001):.1%}.")
    if off <= _OFF:
        return Check("note", f"The map accounts for the score to within {off:.0%}.")
    text = f"The map misses {off:.0%} of what it should account for: treat it with care"
    if explanation.agreement is not None:  # which averaged maps alone have
        text += ", or choose A-FMI (averaged=false), whose sum is exact"
    return Check("care", f"{text}.")


def _how(explanation: Explanation) -> str:
    words = {value: text for text, value in REFERENCES}
    reference = explanation.reference
    text = f"{explanation.method}"
    if explanation.layer is not None:
        text += f", at the layer {explanation.layer}"
    if reference is not None:
        text += f", compared with {words.get(reference, reference)}"
    return _sentence(text)


def _sentence(text: str) -> str:
    return f"{text[:1].upper()}{text[1:]}{'' if text.endswith('.') else '.'}"


def head_html(choices: Choices) -> str:
    """Return the top of the page."""
    return _render(
        "head.html",
        model=choices.model.name,
        count=f"{len(choices.labels):,}",
        has_classes=choices.has_classes,
    )


def credits_html(offered: Sequence[Example]) -> str:
    """Return whose the examples are."""
    return _render("credits.html", offered=[one for one in offered if one.credit])


def waiting_html(text: str = _FRESH) -> str:
    """Return what stands where there is nothing to see yet."""
    return _render("waiting.html", text=text)


def video_html() -> str:
    """Return the part where a frame of a video is chosen."""
    return _render("video.html")


def predictions_html(choices: Choices, predictions: Sequence[Prediction]) -> str:
    """Return the most probable classes as a table with bars."""
    return _render(
        "predictions.html",
        predictions=predictions,
        has_classes=choices.has_classes,
        percent=percent,
        number=number,
        several=choices.meaning == "sigmoid",
    )


def map_html(explanation: Explanation, photograph: Photograph, checks: Sequence[Check]) -> str:
    """Return the map over the photograph, whose strength the page sets, with its legend.

    Two pictures lie on each other, the map not at all and at full strength. Between them an
    overlay changes in proportion, so the upper one's opacity is the strength of the map.
    """
    without, full = _layers(explanation, photograph)
    return _render(
        "map.html",
        without=_address(without),
        full=_address(full),
        size=without.size,
        alt=explanation.alt_text,
        title=explanation.answer,
        bar=_address(plots.colorbar(explanation.scale, *_BAR), lossy=False),
        ends=_ends(explanation),
        framed=photograph.shown is not None and not _sees_all(photograph),
        checks=checks,
    )


def kept_html(
    explanation: Explanation, fraction: float, response: float, curve: Sequence[float]
) -> str:
    """Return the top pixels on black, what the network says of them, and the curve of that.

    Args:
        explanation: whose map ranks the pixels.
        fraction: how many are kept, from 0 to 1.
        response: of the network to them.
        curve: its responses at `CURVE`.
    """
    return _render(
        "kept.html",
        picture=_address(explanation.insertion(fraction)),
        alt=f"The {fraction:.0%} of the pixels that the map ranks first, the others black.",
        share=f"{fraction:.0%}",
        answer=_answer(explanation, response),
        whole=_answer(explanation, curve[-1]),
        label=explanation.label,
        curve=_curve(curve, explanation.probability is not None),
        place=fraction,
    )


def comparison_html(comparison: Comparison) -> str:
    """Return the maps of several methods side by side, each with what was checked of it."""
    tiles = []
    kept = comparison.fractions.index(0.1)
    for one, answers in zip(comparison.explanations, comparison.responses, strict=True):
        without, full = (_small(one.overlay(alpha=alpha)) for alpha in (0, 1))
        tiles.append(
            {
                "method": one.method,
                "without": _address(without),
                "full": _address(full),
                "alt": one.alt_text,
                "residual": _of_residual(one),
                "hidden": one.hidden,
                "where": _sentence(one.where),
                "kept": _answer(one, answers[kept]),
                "signed": one.signed,
            }
        )
    return _render(
        "comparison.html",
        tiles=tiles,
        title=comparison.explanations[0].answer,
        refused=comparison.refused,
    )


def _answer(explanation: Explanation, response: float) -> str:
    if np.isnan(response):
        return "no answer"
    if explanation.probability is None:
        return f"{explanation.unit} {number(response)}"
    return percent(response)


def _ends(explanation: Explanation) -> tuple[str, str]:
    """Return what the lowest and the highest colour of a map mean."""
    if not explanation.signed:
        return "dark: matters least", "yellow: matters most"
    rises, falls = explanation.ends
    if explanation.compared:
        return f"blue: speaks {falls}", f"red: speaks {rises}"
    return f"blue: speaks {falls} it", f"red: speaks {rises} it"


def _layers(explanation: Explanation, photograph: Photograph) -> tuple[Image.Image, Image.Image]:
    if photograph.shown is None:
        return explanation.overlay(alpha=0), explanation.overlay(alpha=1)
    without, full = (
        plots.full_overlay(
            photograph.shown,
            explanation.map,
            photograph.box,
            signed=explanation.signed,
            style=Style(alpha=alpha),
        )
        for alpha in (0, 1)
    )
    return without, full


def _sees_all(photograph: Photograph) -> bool:
    assert photograph.shown is not None
    height, width = photograph.shown.shape[:2]
    left, top, right, bottom = photograph.box
    return left <= 0 and top <= 0 and right >= width and bottom >= height


def _small(picture: Image.Image) -> Image.Image:
    small = picture.copy()
    small.thumbnail((_TILE, _TILE))
    return small


def _curve(responses: Sequence[float], probability: bool) -> Mapping[str, Any] | None:
    """Return the points of the curve, both axes from 0 to 100; None: it cannot be drawn."""
    values = np.asarray(responses)
    if not np.isfinite(values).all():
        return None
    low, high = (0.0, 1.0) if probability else (float(values.min()), float(values.max()))
    heights = (values - low) / ((high - low) or 1) * 100
    points = [(100 * share, 100 - height) for share, height in zip(CURVE, heights, strict=True)]
    format = (lambda value: f"{value:.0%}") if probability else number
    return {"points": points, "low": format(low), "high": format(high)}


def _address(picture: Image.Image, lossy: bool = True) -> str:
    """Return a picture as an address that holds it."""
    buffer = io.BytesIO()
    if lossy:
        picture.save(buffer, "JPEG", quality=92, subsampling=0)
    else:
        picture.save(buffer, "PNG")
    content = base64.b64encode(buffer.getvalue()).decode()
    return f"data:image/{'jpeg' if lossy else 'png'};base64,{content}"


def _render(name: str, **what: Any) -> str:
    return _templates().get_template(name).render(**what)


@cache
def _templates() -> Environment:
    return Environment(
        loader=PackageLoader("afmi.app"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
