"""Guard a server of Gradio's: what it must not be asked for, and what browsers must not load."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

__all__ = ["Guard"]

_Message = MutableMapping[str, Any]
_Receive = Callable[[], Awaitable[_Message]]
_Send = Callable[[_Message], Awaitable[None]]

MOST_JSON = 2**25
"""The most bytes of a request that is no upload: a frame of a video is the largest."""

# The page itself is all that it needs: nothing is loaded from elsewhere, and nothing is sent there.
_POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval'; "
    "style-src 'self' 'unsafe-inline'; img-src 'self' data: blob:; media-src 'self' data: blob:; "
    "font-src 'self' data:; connect-src 'self' data: blob:; worker-src 'self' blob:; "
    "object-src 'none'; base-uri 'self'; form-action 'self'"
)
_HEADERS = (
    (b"content-security-policy", _POLICY.encode()),
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
)
# The server would fetch what these name from anywhere.
_FETCHING = ("file=http", "file/http", "proxy=")
_SCHEMES = ("http:", "https:", "//")


class Guard:
    """Refuse what would make the server fetch from other hosts or hold more than it should.

    An ASGI middleware around Gradio's, which itself refuses to read files that nobody uploaded.

    Args:
        app: what is guarded.
        most_bytes: of an upload.
    """

    def __init__(self, app: Any, most_bytes: int) -> None:
        self._app = app
        self._most_bytes = most_bytes

    async def __call__(self, scope: _Message, receive: _Receive, send: _Send) -> None:
        """Answer a request, or let Gradio answer it."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def with_headers(message: _Message) -> None:
            if message["type"] == "http.response.start":
                message = {**message, "headers": [*message.get("headers", ()), *_HEADERS]}
            await send(message)

        last = scope["path"].partition("/gradio_api/")[2].casefold()
        if last.startswith(_FETCHING):
            await _refuse(with_headers, 403, "This page serves its own files only.")
        elif scope["method"] != "POST":
            await self._app(scope, receive, with_headers)
        elif _header(scope, b"content-type").startswith(b"multipart/"):
            # Two of them: one for the parts of the form around the file.
            if int(_header(scope, b"content-length") or 0) > 2 * self._most_bytes:
                await _refuse(with_headers, 413, "The file is too large for this page.")
            else:
                await self._app(scope, receive, with_headers)
        else:
            await self._answer_json(scope, receive, with_headers)

    async def _answer_json(self, scope: _Message, receive: _Receive, send: _Send) -> None:
        body = bytearray()
        more = True
        while more:
            message = await receive()
            if message["type"] != "http.request":
                return
            body += message.get("body", b"")
            more = message.get("more_body", False)
            if len(body) > MOST_JSON:
                await _refuse(send, 413, "The request is too large for this page.")
                return
        if _names_another_host(body):
            await _refuse(send, 403, "This page takes uploaded files only.")
            return
        sent = False

        async def again() -> _Message:
            nonlocal sent
            if sent:
                return await receive()
            sent = True
            return {"type": "http.request", "body": bytes(body), "more_body": False}

        await self._app(scope, again, send)


def _names_another_host(body: bytes | bytearray) -> bool:
    """Tell whether a request holds a file that the server would have to fetch."""
    try:
        waiting = [json.loads(body)] if body else []
    except (ValueError, RecursionError):  # which Gradio answers
        return False
    while waiting:
        value = waiting.pop()
        if isinstance(value, dict):
            path = value.get("path")
            if isinstance(path, str) and path.strip().casefold().startswith(_SCHEMES):
                return True
            waiting += value.values()
        elif isinstance(value, list):
            waiting += value
    return False


def _header(scope: _Message, name: bytes) -> bytes:
    return next((value for key, value in scope["headers"] if key == name), b"")


async def _refuse(send: _Send, status: int, text: str) -> None:
    headers = [(b"content-type", b"text/plain; charset=utf-8")]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": text.encode()})
