"""Only pages of the server itself reach it, with bodies that are not too long."""

import asyncio
from typing import Any

import pytest
from starlette.types import Message, Receive, Scope, Send

from flows.playground.guard import Guard

MOST_BYTES = 100


def answer(scope_type: str = "http", method: str = "GET", **headers: str) -> tuple[list[Message], str | None]:
    """What a client is sent, and the person that the application sees; None: nothing reached it."""
    seen: str | None = None
    sent: list[Message] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        nonlocal seen
        seen = scope["state"]["user"]
        await send({"type": "http.response.start", "status": 200, "headers": []})

    async def receive() -> Message:
        raise AssertionError("a refused body is not read")

    async def send(message: Message) -> None:
        sent.append(message)

    raw = [(name.replace("_", "-").encode(), text.encode()) for name, text in headers.items()]
    scope: dict[str, Any] = {"type": scope_type, "method": method, "path": "/", "headers": raw}
    asyncio.run(Guard(app, MOST_BYTES)(scope, receive, send))
    return sent, seen


@pytest.mark.parametrize("host", ["127.0.0.1:8600", "localhost:9", "localhost", "[::1]:8600"])
def test_this_machine_is_answered(host: str) -> None:
    for headers in ({"host": host}, {"host": host, "origin": f"http://{host}"}):
        for kind in ("http", "websocket"):
            sent, user = answer(kind, **headers)
            assert user and sent[0]["status"] == 200


def test_a_link_of_another_site_opens_the_page() -> None:
    sent, user = answer(host="127.0.0.1:8600", sec_fetch_site="cross-site", sec_fetch_dest="document")
    assert user and sent[0]["status"] == 200


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"host": "127.0.0.1:8600", "sec_fetch_site": "cross-site", "sec_fetch_dest": "image"},
        {"host": "127.0.0.1:8600", "sec_fetch_site": "same-site", "sec_fetch_dest": "iframe"},
        {"host": "127.0.0.1:8600", "sec_fetch_site": "cross-site"},
        {"host": ""},
        {"host": "evil.example"},
        {"host": "evil.example:8600"},
        {"host": "127.0.0.1.evil.example:8600"},
        {"host": "localhost:8600.evil.example:80"},
        {"host": "192.168.0.7:8600"},
        {"host": "127.0.0.1:8600", "origin": "http://evil.example"},
        {"host": "127.0.0.1:8600", "origin": "http://127.0.0.1:8601"},
        {"host": "127.0.0.1:8600", "origin": "https://127.0.0.1:8600"},
        {"host": "127.0.0.1:8600", "origin": "http://localhost:8600"},
        {"host": "127.0.0.1:8600", "origin": "null"},
    ],
)
def test_other_pages_are_refused(headers: dict[str, str]) -> None:
    sent, user = answer(**headers)
    assert user is None and sent[0]["status"] == 403
    sent, user = answer("websocket", **headers)
    assert user is None and [message["type"] for message in sent] == ["websocket.close"]


@pytest.mark.parametrize("length", [None, "", "101", "-1", "1e1"])
def test_a_long_body_is_refused_unread(length: str | None) -> None:
    lengths = {} if length is None else {"content_length": length}
    sent, user = answer(method="POST", host="localhost", **lengths)
    assert user is None and sent[0]["status"] == 413
    sent, user = answer(method="POST", host="localhost", content_length="100")
    assert user and sent[0]["status"] == 200


def test_a_person_is_known_by_a_cookie_that_no_script_reads() -> None:
    sent, user = answer(host="localhost")
    headers = {name.decode(): value.decode() for name, value in sent[0]["headers"]}
    assert headers["set-cookie"] == f"igpt_playground={user}; Path=/; HttpOnly; SameSite=Strict"
    assert "frame-ancestors 'none'" in headers["content-security-policy"]
    sent, again = answer(host="localhost", cookie=f"other=1; igpt_playground={user}")
    assert again == user and "set-cookie" not in dict(sent[0]["headers"])
    for forged in ("igpt_playground=x", 'igpt_playground="', "igpt_playground=" + 1000 * "a"):
        _, other = answer(host="localhost", cookie=forged)
        assert other is not None and other != user and len(other) == 22
