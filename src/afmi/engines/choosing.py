"""Find the engine that a user names."""

from __future__ import annotations

from typing import TypeAlias

from afmi.engines.base import Engine
from afmi.engines.local import Local
from afmi.engines.ray import Ray
from afmi.errors import UsageError, near_matches

__all__ = ["ENGINES", "EngineLike", "as_engine"]

EngineLike: TypeAlias = Engine | str | None

ENGINES: dict[str, type[Engine]] = {"local": Local, "ray": Ray}


def as_engine(wanted: EngineLike) -> Engine:
    """Return an engine: itself, by its name with its defaults, or this process for None.

    Raises:
        UsageError: when it is none.
    """
    if wanted is None:
        return Local()
    if isinstance(wanted, Engine):
        return wanted
    if isinstance(wanted, str) and wanted.casefold() in ENGINES:
        return ENGINES[wanted.casefold()]()
    hint = near_matches(wanted, ENGINES) if isinstance(wanted, str) else ""
    raise UsageError(
        f"expected an engine, local or ray, got {wanted!r}{hint}; for more workers pass "
        "afmi.engines.Local(workers=2), say"
    )
