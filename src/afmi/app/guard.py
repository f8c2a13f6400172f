"""Guard a server of Gradio's: what it must not be asked for, and what browsers must not load."""

from __future__ import annotations

import ipaddress
import json
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any
from urllib.parse import urlsplit

__all__ = ["Guard", "is_for_this_machine"]

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
_ELSEWHERE = (
    "This page answers to 127.0.0.1 and localhost alone. Where another server passes requests on "
    "to it, ask for passwords (--accounts), or let that server ask for 127.0.0.1."
)


class Guard:
    """Refuse what would make the server fetch from other hosts or hold more than it should.

    Pages of other sites are refused as well: a visitor's browser would send them what this page
    knows. An ASGI middleware around Gradio's, which itself refuses to read files that nobody
    uploaded.

    Args:
        app: what is guarded.
        most_bytes: of an upload.
        local: whether the page answers under names of this machine alone, so that no other site
            whose name was made to point here can read it.
    """

    def __init__(self, app: Any, most_bytes: int, local: bool = False) -> None:
        self._app = app
        self._most_bytes = most_bytes
        self._local = local

    async def __call__(self, scope: _Message, receive: _Receive, send: _Send) -> None:
        """Answer a request, or let Gradio answer it."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def with_headers(message: _Message) -> None:
            if message["type"] == "http.response.start":
                message = {**message, "headers": [*message.get("headers", ()), *_HEADERS]}
            await send(message)

        refusal = self._refusal(scope)
        if refusal is not None:
            await _refuse(with_headers, *refusal)
        elif scope["method"] != "POST" or _is_form(scope):
            await self._app(scope, receive, with_headers)
        else:
            await self._answer_json(scope, receive, with_headers)

    def _refusal(self, scope: _Message) -> tuple[int, str] | None:
        """Return with which status and words a request is refused; None: it is not."""
        if self._local and not is_for_this_machine(_host_name(_header(scope, b"host"))):
            return 421, _ELSEWHERE
        if _from_another_site(scope):
            return 403, "This page answers no other site."
        last = scope["path"].partition("/gradio_api/")[2].casefold()
        if last.startswith(_FETCHING):
            return 403, "This page serves its own files only."
        if scope["method"] == "POST" and _is_form(scope):
            size = _header(scope, b"content-length")
            # Where chunks are sent as well, they are read, whatever the size said.
            if not size or _header(scope, b"transfer-encoding"):
                return 411, "The size of the file must be said before it is sent."
            # Two of them: one for the parts of the form around the file.
            if int(size) > 2 * self._most_bytes:
                return 413, "The file is too large for this page."
        return None

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


def is_for_this_machine(host: str) -> bool:
    """Tell whether only programs of this machine reach an address, or ask for it by this name.

    Example:
        >>> is_for_this_machine("127.0.0.1"), is_for_this_machine("0.0.0.0")
        (True, False)
    """
    if host.casefold() == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:  # another name
        return False


def _host_name(host: str) -> str:
    """Return the name of what a browser asked for, without its port."""
    try:
        return urlsplit(f"//{host}").hostname or ""
    except ValueError:
        return ""


def _from_another_site(scope: _Message) -> bool:
    """Tell whether a page of another site sent a request, or would read the answer.

    Browsers say where such a request comes from. To a server behind another one, which may know
    the page by another name, they also say whether that is the site itself.
    """
    origin, site = _header(scope, b"origin"), _header(scope, b"sec-fetch-site")
    if not origin:  # no page could read the answer, nor send more than an address
        return False
    if site:
        return site != "same-origin"
    return origin.partition("://")[2] != _header(scope, b"host")


def _is_form(scope: _Message) -> bool:
    return _header(scope, b"content-type").casefold().startswith("multipart/")


def _header(scope: _Message, name: bytes) -> str:
    return next((value.decode("latin-1") for key, value in scope["headers"] if key == name), "")


async def _refuse(send: _Send, status: int, text: str) -> None:
    headers = [(b"content-type", b"text/plain; charset=utf-8")]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": text.encode()})
