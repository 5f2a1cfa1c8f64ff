"""A request whose replica was lost is asked again, whole; every answer goes through as it is."""

import asyncio
from collections.abc import Callable

import pytest
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response, StreamingResponse
from starlette.testclient import TestClient
from starlette.types import Message, Receive, Scope, Send

from flows.serving.again import Again, middlewares


class Replicas:
    """Lost with the first requests, of which nothing is sent; then the answer is made of the request's body."""

    def __init__(self, losses: int, answer: Callable[[bytes], Response]) -> None:
        self._losses, self._answer = losses, answer
        self.asked = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.asked += 1
        assert b"x-request-id" not in dict(scope["headers"])
        scope["headers"].append((b"x-request-id", b"of this try"))  # as Serve's proxy does
        body = await Request(scope, receive).body()
        if self.asked > self._losses:
            await self._answer(body)(scope, receive, send)


def client(replicas: Replicas) -> TestClient:
    (middleware,) = middlewares()
    return TestClient(middleware.cls(replicas))


@pytest.mark.parametrize("losses", [0, 1])
def test_a_request_is_asked_again_with_its_whole_body(losses: int) -> None:
    replicas = Replicas(losses, lambda body: PlainTextResponse(body[::-1]))
    answer = client(replicas).post("/invocations", content=iter([b"a" * 70_000, b"b" * 70_000]))
    assert (answer.status_code, replicas.asked) == (200, losses + 1)
    assert answer.content == b"b" * 70_000 + b"a" * 70_000


def test_a_request_that_kills_its_replicas_takes_two_along() -> None:
    replicas = Replicas(100, PlainTextResponse)
    answer = client(replicas).post("/invocations", content=b"{}")
    assert (answer.status_code, replicas.asked) == (500, 2)
    assert answer.text == "two replicas were lost while they computed the answer"


@pytest.mark.parametrize("status", [200, 400, 408, 500, 503])
def test_every_answer_is_handed_on(status: int) -> None:
    headers = {"Retry-After": "1"}
    for answer in (PlainTextResponse("so", status, headers), StreamingResponse(iter([b"s", b"o"]), status, headers)):
        replicas = Replicas(0, lambda _, answer=answer: answer)
        got = client(replicas).post("/invocations", content=b"{}")
        assert (got.status_code, got.text, got.headers["Retry-After"], replicas.asked) == (status, "so", "1", 1)


def test_nobody_is_asked_for_a_client_that_has_gone() -> None:
    asked = 0

    async def lost(scope: Scope, receive: Receive, send: Send) -> None:
        nonlocal asked
        asked += 1
        while (await receive())["type"] != "http.disconnect":
            pass

    messages: list[Message] = [{"type": "http.request", "body": b"{}"}, {"type": "http.disconnect"}]

    async def receive() -> Message:
        return messages.pop(0)

    async def send(message: Message) -> None:
        raise AssertionError(message)

    asyncio.run(Again(lost)({"type": "http", "headers": []}, receive, send))
    assert asked == 1 and not messages
