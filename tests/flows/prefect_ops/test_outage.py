"""Requests of Prefect's clients wait for a server that is away, and fail at once for other reasons."""

import asyncio
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from prefect.client import orchestration
from prefect.exceptions import PrefectHTTPStatusError
from prefect.settings import PREFECT_API_URL, PREFECT_CLIENT_MAX_RETRIES, temporary_settings

from flows.prefect_ops import outage
from flows.services.ports import HOST, free_port

Statuses = dict[str, list[int]]


@pytest.fixture
def port() -> int:
    return free_port()


@pytest.fixture
def answers() -> Statuses:
    """The statuses that the server gives by path, in turn; 200 for a path without any more."""
    return {}


@pytest.fixture
def asked() -> list[str]:
    """The paths that the server was asked for."""
    return []


@pytest.fixture
def server(port: int, answers: Statuses, asked: list[str]) -> Iterator[ThreadingHTTPServer]:
    """Listens once it is given to `serve`, as every test does."""

    class Page(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            left = answers.get(self.path, [])
            self.send_response(left.pop(0) if left else 200)
            self.send_header("Content-Type", "application/json")
            self.end_headers()
            self.wfile.write(json.dumps("3.8.8").encode())

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer((HOST, port), Page, bind_and_activate=False)
    yield server
    server.shutdown()  # a thread that serves a closed socket spins
    server.server_close()


@pytest.fixture(autouse=True)
def installed(port: int, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for name in ("PrefectHttpxSyncClient", "PrefectHttpxAsyncClient"):
        monkeypatch.setattr(orchestration, name, getattr(orchestration, name))  # put back after the test
    outage.install()
    with temporary_settings({PREFECT_API_URL: f"http://{HOST}:{port}/api", PREFECT_CLIENT_MAX_RETRIES: 0}):
        yield


def serve(server: ThreadingHTTPServer, after: float = 0.0) -> None:
    def begin() -> None:
        server.server_bind()
        server.server_activate()
        threading.Thread(target=server.serve_forever, daemon=True).start()

    threading.Timer(after, begin).start()


def version(kind: str) -> str:
    """A request by a client that has not reached the server before."""
    if kind == "sync":
        with orchestration.get_client(sync_client=True) as client:
            return str(client.api_version())

    async def ask() -> str:
        async with orchestration.get_client() as client:
            return str(await client.api_version())

    return asyncio.run(ask())


@pytest.mark.parametrize("kind", ["sync", "async"])
def test_a_request_waits_for_a_server_that_does_not_listen_yet(kind: str, server: ThreadingHTTPServer) -> None:
    serve(server, after=2.0)
    assert version(kind) == "3.8.8"


@pytest.mark.parametrize("kind", ["sync", "async"])
@pytest.mark.parametrize(
    "statuses",
    [
        {"/api/admin/version": [503, 502]},
        {"/api/admin/version": [500, 500, 500, 500], "/api/ready": [503, 503, 503, 503]},  # its database is away
        {"/api/admin/version": [500, 500]},  # its database was away a moment ago
    ],
    ids=["gateway", "database", "moment"],
)
def test_a_request_waits_while_the_server_or_its_database_is_away(
    kind: str, statuses: Statuses, answers: Statuses, server: ThreadingHTTPServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(outage, "_LONGEST_PAUSE_SECONDS", 0.1)
    answers.update({path: list(codes) for path, codes in statuses.items()})
    serve(server)
    assert version(kind) == "3.8.8"
    assert not any(answers.values()), "all of the failures were met"


@pytest.mark.parametrize("kind", ["sync", "async"])
@pytest.mark.parametrize(("status", "tries"), [(404, 1), (422, 1), (500, 3)])
def test_an_error_about_the_request_is_raised(
    kind: str,
    status: int,
    tries: int,
    answers: Statuses,
    asked: list[str],
    server: ThreadingHTTPServer,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(outage, "_LONGEST_PAUSE_SECONDS", 0.1)
    answers["/api/admin/version"] = [status] * 9
    serve(server)
    with pytest.raises(PrefectHTTPStatusError, match=str(status)):
        version(kind)
    assert asked.count("/api/admin/version") == tries


def test_after_a_day_the_error_is_raised(monkeypatch: pytest.MonkeyPatch) -> None:
    assert outage._LIMIT_SECONDS == 24 * 3600
    monkeypatch.setattr(outage, "_LIMIT_SECONDS", 0.5)
    with pytest.raises(Exception, match=r"refused|connect"):
        version("sync")


def test_what_is_read_and_written_in_one_turn_has_no_request_in_between(server: ThreadingHTTPServer) -> None:
    serve(server)
    order: list[Any] = []

    def other() -> None:
        version("sync")
        order.append("other")

    with outage.turn:
        version("sync")
        thread = threading.Thread(target=other)
        thread.start()
        thread.join(1.0)
        version("sync")  # by the thread that holds the turn
        order.append("turn")
    thread.join()
    assert order == ["turn", "other"]
