"""Fill the pages with what the catalogue knows, so that a new method needs no new documentation."""

from __future__ import annotations

from typing import Any

TABLE = "<!-- table of methods -->"
REFERENCE = "<!-- reference of methods -->"


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Put the methods' table and their reference where a page asks for them."""
    if TABLE in markdown:
        markdown = markdown.replace(TABLE, _table())
    if REFERENCE in markdown:
        markdown = markdown.replace(REFERENCE, _reference())
    return markdown


def _table() -> str:
    from afmi.methods import CATALOGUE

    rows = ["| method | class | features | scores | cost per image | paper |", "|" + "---|" * 6]
    for name, cls in CATALOGUE.items():
        link = f"[`{name}`][{cls.__module__}.{name}]"
        rows.append(
            f"| {cls.name} | {link} | {cls.family} | {cls.scores} | {cls.cost} | {cls.paper} |"
        )
    return "\n".join(rows)


def _reference() -> str:
    from afmi.methods import CATALOGUE

    return "\n\n".join(f"::: {cls.__module__}.{name}" for name, cls in CATALOGUE.items())
