"""Asks another replica when one is lost before it answers: an answer depends on nothing but its request.

A middleware of Serve's proxies, which know it by RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH.
"""

from starlette.middleware import Middleware
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

# A request that kills its replica, for which its memory is too small, takes only one more along.
_TRIES = 2


def middlewares() -> list[Middleware]:
    """What Serve's proxies add to their application."""
    return [Middleware(Again)]


class Again:
    """Serve's application, which sends nothing when a replica is lost; then the request is repeated with its body."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request; with 500 when its second replica was lost too."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request = _Request(receive)
        for _ in range(_TRIES):
            answer = _Answer(send)
            # The application adds to the headers that it is given.
            await self._app({**scope, "headers": list(scope["headers"])}, request.from_its_start(), answer.send)
            if answer.has_begun or request.is_abandoned:
                return
        await PlainTextResponse("two replicas were lost while they computed the answer", 500)(scope, receive, send)


class _Request:
    """The messages of a request, kept for the next try."""

    def __init__(self, receive: Receive) -> None:
        self.is_abandoned = False
        """Whether the client has gone."""
        self._receive = receive
        self._body: list[Message] = []

    def from_its_start(self) -> Receive:
        """A function that gives the messages from the first."""
        given = 0

        async def receive() -> Message:
            nonlocal given
            given += 1
            if given <= len(self._body):
                return self._body[given - 1]
            message = await self._receive()
            if message["type"] == "http.request":
                self._body.append(message)
            else:
                self.is_abandoned = True
            return message

        return receive


class _Answer:
    """Hands the messages of an answer on."""

    def __init__(self, send: Send) -> None:
        self.has_begun = False
        self._send = send

    async def send(self, message: Message) -> None:
        self.has_begun = True
        await self._send(message)
