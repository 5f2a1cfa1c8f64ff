"""An unreachable server is told in a line, and a run is closed as it ended. Runs on a server are in integration/."""

from http.server import BaseHTTPRequestHandler, HTTPServer
from threading import Thread

import pytest
from mlflow.exceptions import MlflowException
from mlflow.utils import validation

from flows.services.ports import HOST
from igpt_model.tracking.runs import RunLogger, check_reachable, valid_name
from pipeline.errors import IgptError


class Health(BaseHTTPRequestHandler):
    """Answers to /health alone."""

    def do_GET(self) -> None:
        self.send_response(200 if self.path == "/health" else 404)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


def test_a_server_that_answers_is_reachable() -> None:
    with HTTPServer((HOST, 0), Health) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        try:
            for slash in ("", "/"):
                check_reachable(f"http://{HOST}:{server.server_port}{slash}")
            with pytest.raises(IgptError, match="does not answer"):
                check_reachable(f"http://{HOST}:{server.server_port}/elsewhere")
        finally:
            server.shutdown()


@pytest.mark.parametrize(
    ("uri", "expected"),
    [
        ("http://127.0.0.1:9", "does not answer .*; start it"),
        ("http://", "does not answer"),
        ("sqlite:///mlflow.db", "MLFLOW_TRACKING_URI is 'sqlite:///mlflow.db': give the http:// address"),
        ("", "MLFLOW_TRACKING_URI is '': give"),
    ],
)
def test_what_is_no_server_is_refused_in_one_line(uri: str, expected: str) -> None:
    with pytest.raises(IgptError, match=expected) as raised:
        check_reachable(uri)
    assert "\n" not in str(raised.value)


class Closed(RunLogger):
    """A run that notes how it was closed, or cannot be."""

    def __init__(self, answers: bool = True) -> None:
        self.tracking_uri, self.run_id, self.statuses, self._answers = "http://mlflow", "abc", [], answers

    def end(self, status: str) -> None:
        if not self._answers:
            raise MlflowException("away")
        self.statuses.append(status)


@pytest.mark.parametrize(
    ("error", "status"), [(None, "FINISHED"), (IgptError("bad"), "FAILED"), (KeyboardInterrupt(), "KILLED")]
)
def test_a_run_is_closed_as_it_ended(error: BaseException | None, status: str) -> None:
    run = Closed()
    try:
        with run.closing():
            if error is not None:
                raise error
    except (IgptError, KeyboardInterrupt) as raised:
        assert raised is error
    assert run.statuses == [status]


def test_a_server_that_is_away_hides_no_error() -> None:
    with pytest.raises(ZeroDivisionError), Closed(answers=False).closing():
        _ = 1 / 0
    with pytest.raises(IgptError, match="does not close the run abc"), Closed(answers=False).closing():
        pass


@pytest.mark.parametrize(
    "name", ["digits", "a[b]", "$x$", "a\nb\x1b", "a#b?c%d", "x" * 255, "größer 猫", "..", ".hidden"]
)
def test_what_becomes_of_a_name_is_a_name_for_mlflow(name: str) -> None:
    valid = valid_name(name)
    assert valid == name or "_" in valid or len(valid) == 150
    validation._validate_metric_name(f"{valid}.probe_test_accuracy")
    validation._validate_tag_name(f"igpt.probe.{valid}.raw_pixels_test_accuracy")
    validation._validate_model_version_tag(f"igpt.probe.{valid}.snapshot", "1")
