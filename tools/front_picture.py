"""Draw the picture that the README and the documentation begin with.

    python -m tools.front_picture

writes ``docs/images/front.jpg``. The first page of the documentation draws it anew.
"""

from __future__ import annotations

import io
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from afmi import Explanation

__all__ = ["FILE", "drawn", "explanations"]

FILE = Path(__file__).parents[1] / "docs" / "images" / "front.jpg"
WIDTH = 1200
"""Pixels: enough for a wide page, small enough for the repository."""


def explanations() -> list[Explanation]:
    """Explain a picture of a cat and a cup: the cup, the cat, and the one rather than the other."""
    import numpy as np
    from PIL import Image
    from skimage.data import chelsea, coffee

    import afmi
    from afmi.targets import Difference

    halves = (chelsea(), (0, 30, 450, 255)), (coffee(), (50, 10, 550, 260))
    cut = [Image.fromarray(pixels).crop(box).resize((448, 224)) for pixels, box in halves]
    both = np.vstack([np.asarray(half) for half in cut])
    cup, cat = "espresso", "Egyptian cat"
    return list(afmi.explain_classes(afmi.load_model(), both, [cup, cat, Difference(cup, cat)]))


def drawn(made: list[Explanation]) -> bytes:
    """Return them side by side, as JPEG."""
    from PIL import Image

    from afmi.pictures import figures

    panels = [figures.Panel(made[0].original(), "Photograph")]
    panels += [figures.Panel(one.overlay(), _title(one)) for one in made]
    figures.figure_png(figures.grid([panels], side=400), buffer := io.BytesIO())
    picture = Image.open(buffer).convert("RGB")
    height = round(picture.height * WIDTH / picture.width)
    picture.resize((WIDTH, height), Image.Resampling.LANCZOS).save(
        buffer := io.BytesIO(), "JPEG", quality=85
    )
    return buffer.getvalue()


def _title(explanation: Explanation) -> str:
    return explanation.label if explanation.compared else explanation.answer


if __name__ == "__main__":
    FILE.write_bytes(drawn(explanations()))
