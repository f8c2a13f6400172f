"""Fetch from the Hugging Face Hub, or at once from its cache where there is no connection."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from afmi.errors import ModelError, first_line
from afmi.packages import imported

__all__ = ["fetching"]

_PATIENCE = 10  # seconds until a network that does not answer counts as none


@contextmanager
def fetching(repository: str | None, what: str, instead: str) -> Iterator[bool]:
    """Let a block fetch files of a repository; gives it whether the Hub can be reached.

    The Hub's client retries for half a minute for each file; here the Hub is asked once, and where
    it does not answer, files come from the cache or not at all.

    Args:
        repository: ``owner/name``; None: the files lie elsewhere.
        what: what is fetched, for errors.
        instead: what the user can do without it, for errors.

    Raises:
        ModelError: there is no such repository, or a file can neither be fetched nor is it in the
            cache.
    """
    hub: Any = imported("huggingface_hub", "a network of the Hugging Face Hub")
    failure = _failure(hub, repository) if repository else None
    offline = hub.constants.HF_HUB_OFFLINE
    hub.constants.HF_HUB_OFFLINE = offline or failure is not None
    try:
        yield failure is None
    except OSError as error:
        raise ModelError(
            f"{what} cannot be downloaded ({failure or first_line(error)}) and the cache "
            f"does not have all of it; {instead}"
        ) from error
    finally:
        hub.constants.HF_HUB_OFFLINE = offline


def _failure(hub: Any, repository: str) -> str | None:
    """Return why the Hub cannot be asked, or None where it answers."""
    try:
        hub.HfApi().model_info(repository, timeout=_PATIENCE)
    except hub.errors.HFValidationError as error:
        raise ModelError(
            f"expected a repository owner/name on the Hugging Face Hub, got {repository!r}"
        ) from error
    except hub.errors.RepositoryNotFoundError as error:
        raise ModelError(
            f"the Hugging Face Hub has no repository {repository!r}, or it is private or gated; "
            "log in with `hf auth login` where it is yours to use"
        ) from error
    except Exception as error:  # errors of the network have many types
        return first_line(error)
    return None
