"""Draw the gallery, methods × networks × images, and the picture of the first page."""

from __future__ import annotations

import io
import re
import warnings
from typing import TYPE_CHECKING, Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

if TYPE_CHECKING:
    from afmi import Classifier
    from afmi.methods import Method

# So that methods of hundreds of passes cost little; everything else is the method's default.
DRAFTS = {
    "GradientSHAP": {"samples": 20},
    "IntegratedGradients": {"steps": 20},
    "KernelSHAP": {"samples": 350},
    "LIME": {"samples": 350},
    "RISE": {"masks": 390},
    "SmoothGrad": {"samples": 20},
    "XRAI": {"steps": 20},
}
NETWORKS = {"imagenet": 45, "photos": 400}
"""The networks, and the most passes through each that a picture may cost here."""
COSTLY, REFUSED = "too many passes", "refused"
SIDE = 160
"""Pixels of a picture of the gallery."""

_page: dict[str, str] = {}
"""What the pages ask for, by their marks."""


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pictures, and keep what is said of them."""
    from tools import front_picture

    made = front_picture.explanations()
    files.append(File.generated(config, "images/first.jpg", content=front_picture.drawn(made)))
    said = _plain(" ".join(one.alt_text for one in made))
    _page["<!-- first picture -->"] = f"![{said}](images/first.jpg)"
    pictures: dict[str, bytes] = {}
    _page["<!-- gallery -->"] = _gallery(pictures)
    for name, content in pictures.items():
        files.append(File.generated(config, f"gallery/{name}", content=content))
    return files


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Put the pictures where a page asks for them."""
    for mark, made in _page.items():
        markdown = markdown.replace(mark, made)
    return markdown


def _gallery(pictures: dict[str, bytes]) -> str:
    from skimage.data import chelsea, coffee
    from sklearn.datasets import load_sample_image

    import afmi
    from afmi.methods import CATALOGUE

    models = {name: afmi.load_model(name) for name in NETWORKS}
    images = {"coffee": coffee(), "temple": load_sample_image("china.jpg"), "cat": chelsea()}
    places = [(model, *image) for image in images.items() for model in models.values()]
    rows, costly = [], []
    for name, cls in CATALOGUE.items():
        settings = DRAFTS.get(name, {})
        cells = [_cell(pictures, cls, settings, *place) for place in places]
        if set(cells) <= {COSTLY, REFUSED}:
            costly.append(f"[{cls.name}](methods/{name}.md)")
            continue
        said = ", ".join(f"{key}={value}" for key, value in settings.items())
        head = f"[{cls.name}](methods/{name}.md)" + (f" ({said})" if said else "")
        rows.append([head, *cells])
    heads = ["", *(_head(pictures, *place) for place in places)]
    lines = [heads, ["---"] * len(heads), *rows]
    table = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    most = " and ".join(f"{passes} of {name}" for name, passes in NETWORKS.items())
    return f"{table}\n\nMore passes than {most} need: {', '.join(costly)}."


def _head(pictures: dict[str, bytes], model: Classifier, image: str, pixels: Any) -> str:
    import afmi

    explanation = afmi.explain(model, pixels, method="random")
    picture = _picture(pictures, f"{image}-{model.name}.jpg", explanation.original(), image)
    return f"{picture} {model.name}: {explanation.answer}"


def _cell(
    pictures: dict[str, bytes],
    cls: type[Method],
    settings: dict[str, Any],
    model: Classifier,
    image: str,
    pixels: Any,
) -> str:
    """Return the picture of a method, or why there is none."""
    import afmi
    from afmi.errors import AfmiError

    prepared = model.prepare(pixels)
    try:
        work = cls(model, **settings).work(prepared)
        if work.forwards + work.backwards > NETWORKS[model.name]:
            return COSTLY
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            explanation = afmi.explain(model, pixels, method=cls, **settings)
    except AfmiError:
        return REFUSED
    name = f"{cls.__name__}-{image}-{model.name}.jpg"
    return _picture(pictures, name, explanation.overlay(), explanation.alt_text)


def _picture(pictures: dict[str, bytes], name: str, picture: Any, said: str) -> str:
    picture.convert("RGB").resize((SIDE, SIDE)).save(buffer := io.BytesIO(), "JPEG", quality=85)
    pictures[name] = buffer.getvalue()
    return f"![{_plain(said)}](gallery/{name})"


def _plain(text: str) -> str:
    """Return a text as the words of a picture: without what Markdown or a table would read."""
    return re.sub(r"[\[\]|<>*_]", " ", text)
