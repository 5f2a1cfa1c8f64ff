"""A store that answers with a redirect to another host: nothing is asked there, whatever way it is read."""

import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import boto3
import pytest
from botocore.config import Config
from botocore.exceptions import BotoCoreError

from pipeline.errors import IgptError
from pipeline.store import objects
from pipeline.store.credentials import forget_clients


class Answering:
    """A web server that answers every request with one status and headers, and counts them."""

    def __init__(self, status: int, headers: dict[str, str]) -> None:
        self.requests: list[str] = []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def answer(self) -> None:
                outer.requests.append(self.path)
                self.send_response(status)
                for name, value in headers.items():
                    self.send_header(name, value)
                self.send_header("Content-Length", "0")
                self.end_headers()

            do_GET = do_HEAD = do_PUT = do_POST = answer

            def log_message(self, *_: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()


@pytest.fixture(params=[301, 307])
def stores(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Answering, Answering]]:
    """A store that redirects, and the host that it names."""
    other = Answering(200, {})
    store = Answering(request.param, {"Location": f"{other.url}/stolen"})
    for name, value in {
        "AWS_ENDPOINT_URL": store.url,
        "AWS_ACCESS_KEY_ID": "key",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_DEFAULT_REGION": "us-east-1",
    }.items():
        monkeypatch.setenv(name, value)
    forget_clients()
    yield store, other
    forget_clients()
    store.close()
    other.close()


def _with_boto3() -> None:
    boto3.client("s3", config=Config(retries={"total_max_attempts": 1})).get_object(Bucket="raw", Key="x")


READS: dict[str, Callable[[], Any]] = {
    "read": lambda: objects.read_bytes("s3://raw/x"),
    "list": lambda: list(objects.list_files("s3://raw/x")),
    "write": lambda: objects.write_bytes("s3://raw/x", b"x"),
    "boto3": _with_boto3,
}


@pytest.mark.parametrize("way", READS)
def test_no_request_follows(way: str, stores: tuple[Answering, Answering]) -> None:
    store, other = stores
    with pytest.raises((BotoCoreError, RecursionError) if way == "boto3" else IgptError) as refused:
        READS[way]()
    assert way == "boto3" or "to another address, which is not followed" in str(refused.value)
    assert store.requests, "the store was asked"
    assert other.requests == []
