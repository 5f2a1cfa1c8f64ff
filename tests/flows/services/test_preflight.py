"""A Prefect server that does not answer is told before a flow would wait for it."""

from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from threading import Thread

import pytest

from flows.services.ports import HOST
from flows.services.preflight import check_prefect
from pipeline.errors import IgptError


class Health(BaseHTTPRequestHandler):
    """Answers to /api/health alone."""

    def do_GET(self) -> None:
        self.send_response(200 if self.path == "/api/health" else 404)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def url() -> Iterator[str]:
    with HTTPServer((HOST, 0), Health) as server:
        thread = Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield f"http://{HOST}:{server.server_port}"
        server.shutdown()
        thread.join()


def test_a_server_that_answers_is_used(url: str) -> None:
    check_prefect(f"{url}/api")
    check_prefect(f"{url}/api/")


def test_another_server_is_not_prefect(url: str) -> None:
    with pytest.raises(IgptError, match=r"does not answer \(Not Found\)"):
        check_prefect(url)


@pytest.mark.parametrize("address", [f"http://{HOST}:9/api", "no address", ""])
def test_no_server_is_one_line_with_what_to_do(address: str) -> None:
    with pytest.raises(
        IgptError, match=r"does not answer .*; start it \(`igpt up`\) or correct PREFECT_API_URL"
    ) as raised:
        check_prefect(address)
    assert "\n" not in str(raised.value)
