"""Lets only this machine's own pages reach a server on loopback. Middleware, outside of everything else.

A page of another site can make a browser send requests to loopback, and after DNS rebinding under that site's own name.
Both are known by their headers. Files of a size that nobody may send are refused unread.
"""

import secrets
from http.cookies import CookieError, SimpleCookie

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

_NAMES = ("127.0.0.1", "localhost", "[::1]")
_COOKIE = "igpt_playground"
_TOKEN_CHARACTERS = 22  # 16 bytes in the characters of URLs
# The page's library compiles its templates in the browser. Nothing comes from other servers.
_HEADERS = {
    "Content-Security-Policy": (
        "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval'; style-src 'self' 'unsafe-inline'; "
        "img-src 'self' data: blob:; font-src 'self' data:; connect-src 'self'; object-src 'none'; "
        "base-uri 'self'; form-action 'none'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
}


class Guard:
    """An application that passes on what this machine's own pages ask. `scope["state"]["user"]` tells who asks."""

    def __init__(self, app: ASGIApp, most_bytes: int) -> None:
        """`most_bytes`: of the body of a request."""
        self._app, self._most_bytes = app, most_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request, or refuse it with a line."""
        if scope["type"] not in ("http", "websocket"):
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        refused = _foreign(headers)
        if refused is not None and scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008, "reason": refused})
            return
        if refused is not None:
            await PlainTextResponse(refused, 403)(scope, receive, send)
            return
        if scope["type"] == "http" and scope["method"] not in ("GET", "HEAD") and not self._fits(headers):
            line = f"a picture may have {self._most_bytes // 1024**2} MB: give a smaller file"
            await PlainTextResponse(line, 413)(scope, receive, send)
            return
        user = _user(headers)
        scope = {**scope, "state": {**scope.get("state", {}), "user": user or secrets.token_urlsafe(16)}}

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                added = MutableHeaders(scope=message)
                for name, value in _HEADERS.items():
                    added[name] = value
                if user is None:
                    cookie = f"{_COOKIE}={scope['state']['user']}; Path=/; HttpOnly; SameSite=Strict"
                    added.append("Set-Cookie", cookie)
            await send(message)

        await self._app(scope, receive, send_with_headers)

    def _fits(self, headers: Headers) -> bool:
        """Whether a body tells its length, which the server then holds it to, and is short enough."""
        length = headers.get("content-length", "")
        return length.isdecimal() and int(length) <= self._most_bytes


def _foreign(headers: Headers) -> str | None:
    """Why a request is not from a page of this server; None when it may be."""
    hosts = headers.getlist("host")
    if len(hosts) != 1 or not {hosts[0], hosts[0].rpartition(":")[0]} & set(_NAMES):
        return "this page is for 127.0.0.1 and localhost alone"
    if any(origin != f"http://{hosts[0]}" for origin in headers.getlist("origin")):
        return "this page answers no other page"
    # What another site embeds or fetches; whoever follows its link opens a document.
    if headers.get("sec-fetch-site") in ("cross-site", "same-site") and headers.get("sec-fetch-dest") != "document":
        return "this page answers no other page"
    return None


def _user(headers: Headers) -> str | None:
    """The person that a cookie names; None for a new one."""
    try:
        morsel = SimpleCookie(headers.get("cookie", "")).get(_COOKIE)
    except CookieError:
        return None
    return morsel.value if morsel is not None and len(morsel.value) == _TOKEN_CHARACTERS else None
