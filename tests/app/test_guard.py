"""The guard lets a page's own requests through, and none that would lead elsewhere."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from afmi.app import guard
from afmi.app.guard import Guard


def ask(
    path: str,
    method: str = "GET",
    bodies: tuple[bytes, ...] = (b"",),
    headers: dict[str, str] | None = None,
    local: bool = False,
) -> tuple[int, dict[bytes, bytes], bytes]:
    """Send a request through a guard to an application that echoes it."""

    async def echo(scope: Any, receive: Any, send: Any) -> None:
        body, more = b"", True
        while more:
            message = await receive()
            body += message["body"]
            more = message.get("more_body", False)
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": body})

    waiting = [
        {"type": "http.request", "body": body, "more_body": k + 1 < len(bodies)}
        for k, body in enumerate(bodies)
    ]
    sent: list[Any] = []

    async def receive() -> Any:
        return waiting.pop(0)

    async def send(message: Any) -> None:
        sent.append(message)

    pairs = [(k.encode(), v.encode()) for k, v in (headers or {}).items()]
    scope = {"type": "http", "path": path, "method": method, "headers": pairs}
    asyncio.run(Guard(echo, most_bytes=100, local=local)(scope, receive, send))
    return sent[0]["status"], dict(sent[0]["headers"]), sent[1]["body"]


def test_answers_forbid_browsers_to_load_from_elsewhere() -> None:
    status, headers, _ = ask("/")
    assert status == 200
    policy = headers[b"content-security-policy"].decode()
    assert "default-src 'self'" in policy
    assert "http" not in policy


@pytest.mark.parametrize("place", ["file=https://a.b/c", "file=HTTP://a.b", "proxy=https://a.b"])
def test_the_server_fetches_nothing(place: str) -> None:
    assert ask(f"/gradio_api/{place}")[0] == 403


def test_a_request_passes_whole() -> None:
    parts = (b'{"data": [{"path": ', b'"/tmp/x/dog.png"}]}')
    status, _, body = ask("/gradio_api/queue/join", "POST", parts)
    assert (status, body) == (200, b"".join(parts))


@pytest.mark.parametrize("path", ["https://a.b/c.png", " HTTP://a.b", "//a.b/c.png"])
def test_files_of_other_hosts_are_refused(path: str) -> None:
    body = json.dumps({"data": [0, [{"path": path, "meta": {"_type": "gradio.FileData"}}]]})
    assert ask("/gradio_api/queue/join", "POST", (body.encode(),))[0] == 403


def test_requests_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guard, "MOST_JSON", 10)
    assert ask("/x", "POST", (b"12345", b"67890"))[0] == 200
    assert ask("/x", "POST", (b"12345", b"678901"))[0] == 413
    for kind, size, status in (
        ("multipart/form-data; boundary=x", "200", 200),
        ("multipart/form-data; boundary=x", "201", 413),
        ("Multipart/Form-Data; boundary=x", "201", 413),
        ("multipart/form-data; boundary=x", "", 411),
    ):
        form = {"content-type": kind, "content-length": size}
        assert ask("/gradio_api/upload", "POST", headers=form)[0] == status
    chunked = {**form, "content-length": "9", "transfer-encoding": "chunked"}
    assert ask("/gradio_api/upload", "POST", headers=chunked)[0] == 411


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("127.0.0.1:7860", 200),
        ("localhost", 200),
        ("[::1]:7860", 200),
        ("evil.example:7860", 421),
        ("127.0.0.1.evil.example", 421),
        ("[", 421),
        ("", 421),
    ],
)
def test_a_page_for_this_machine_answers_under_its_names_alone(host: str, status: int) -> None:
    assert ask("/config", headers={"host": host}, local=True)[0] == status
    assert ask("/config", headers={"host": host})[0] == 200


@pytest.mark.parametrize(
    ("origin", "site", "status"),
    [
        (None, None, 200),  # no browser, or a link
        (None, "cross-site", 200),
        ("https://page.example", None, 200),
        ("https://known-by-another-name.example", "same-origin", 200),
        ("https://evil.example", "cross-site", 403),
        ("https://page.example:444", "same-site", 403),
        ("https://evil.example", None, 403),
        ("null", None, 403),
    ],
)
@pytest.mark.parametrize("method", ["GET", "POST", "OPTIONS"])
def test_other_sites_are_answered_nothing(
    method: str, origin: str | None, site: str | None, status: int
) -> None:
    given = {"host": "page.example", "origin": origin, "sec-fetch-site": site}
    headers = {name: value for name, value in given.items() if value is not None}
    assert ask("/gradio_api/queue/join", method, headers=headers)[0] == status
