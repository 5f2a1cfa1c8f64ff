"""Querying the configured addresses: no answer, refused credentials, wrong clocks; secrets are never shown."""

import http.server
import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import pytest

from flows.doctor import addresses
from flows.doctor.addresses import Answer, ask_all
from flows.services.ports import HOST, free_port
from flows.services.settings import VARIABLES

SECRET = "sesame-opens-it"


class Server(http.server.ThreadingHTTPServer):
    """Answers as Prefect and MLflow with basic authentication do; its clock is an hour ahead."""

    daemon_threads = True
    authorized: bool


class Handler(http.server.BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        allowed = self.server.authorized or self.headers["Authorization"] == "Basic aWdwdDpzZXNhbWUtb3BlbnMtaXQ="
        body = {"/api/admin/version": b'"3.8.8"', "/version": b"3.17.2"}[self.path] if allowed else b"who are you?"
        self.send_response_only(200 if allowed else 401)
        self.send_header("Date", format_datetime(datetime.now(UTC) + timedelta(hours=1), usegmt=True))
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None: ...


@pytest.fixture
def server() -> Iterator[Server]:
    with Server((HOST, 0), Handler) as server:
        server.authorized = False
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture(autouse=True)
def nothing_configured(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (*VARIABLES.values(), "AWS_ENDPOINT_URL_S3", "AWS_ACCESS_KEY_ID", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    for name in ("PREFECT_API_AUTH_STRING", "MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", "/no/such/home")  # nor any file of credentials


def query_all() -> dict[str, Answer]:
    return {answer.service: answer for answer in ask_all()}


def test_services_without_an_address_are_not_queried() -> None:
    services = ("S3", "Prefect", "MLflow", "Ray")
    assert query_all() == {service: Answer(service=service, address="") for service in services}


def test_the_right_credentials_give_versions_and_clocks(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    url = f"http://{HOST}:{server.server_port}"
    monkeypatch.setenv("PREFECT_API_URL", f"{url}/api")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"{url}/")
    refused = query_all()
    assert refused["Prefect"].problem.startswith("it refuses the credentials of PREFECT_API_AUTH_STRING")
    assert "MLFLOW_TRACKING_PASSWORD" in refused["MLflow"].problem
    monkeypatch.setenv("PREFECT_API_AUTH_STRING", f"igpt:{SECRET}")
    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "igpt")
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", SECRET)
    accepted = query_all()
    assert (accepted["Prefect"].version, accepted["MLflow"].version) == ("3.8.8", "3.17.2")
    for answer in (accepted["Prefect"], accepted["MLflow"], refused["Prefect"]):
        assert answer.clock_ahead is not None and abs(answer.clock_ahead - 3600) < 60
    assert SECRET not in str(accepted) + str(refused)


def test_a_service_that_does_not_answer_is_reported_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    port = free_port()
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://{HOST}:{port}")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    monkeypatch.setenv("PREFECT_API_URL", f"http://{HOST}:{port}/api")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "no address")
    monkeypatch.setenv("RAY_ADDRESS", f"{HOST}:{port}")
    monkeypatch.setattr(addresses, "_RAY_SECONDS", 0.1)  # Ray's client tries for half a minute
    answers = query_all()
    assert all(answer.problem.startswith("it does not answer") for answer in answers.values()), answers
    assert not any("\n" in answer.problem for answer in answers.values())
    assert SECRET not in str(answers)


def test_an_address_with_a_password_is_neither_queried_nor_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://igpt:{SECRET}@localhost:1")
    answer = query_all()["MLflow"]
    assert (answer.address, answer.problem) == ("", "its address carries a password")
