"""Let the documentation know the docstrings' ``Example:`` for what it calls ``Examples:``."""

from __future__ import annotations

import re
from typing import Any

import griffe


class Example(griffe.Extension):
    """Rename the section in every docstring, so that doctests are drawn as code."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        """Rename it in one object's docstring."""
        if obj.docstring is not None:
            value = obj.docstring.value
            obj.docstring.value = re.sub(r"^Example:$", "Examples:", value, flags=re.MULTILINE)
