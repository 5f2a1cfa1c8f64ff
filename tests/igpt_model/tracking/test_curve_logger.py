"""Every value of a curve is logged once, whatever the server does. integration/test_curves.py has a real server."""

import threading

import pytest
from mlflow.entities import Metric
from mlflow.exceptions import MlflowException

from igpt_model.tracking import curve_logger
from igpt_model.tracking.curve_logger import CurveLogger
from igpt_model.tracking.runs import BEAT_TAG, PROGRESS_TAG
from pipeline.errors import IgptError


class Run:
    """Stands for the run of a server that may be away."""

    tracking_uri = "http://mlflow:5000"

    def __init__(self) -> None:
        self.logged: list[tuple[str, int, float]] = []
        self.tagged: dict[str, str] = {}
        self.away = threading.Event()
        self.requests: list[int] = []

    def metric_history(self, name: str) -> list[tuple[int, float]]:
        return sorted((step, value) for known, step, value in self.logged if known == name)

    def points(self, points: list[Metric]) -> None:
        if self.away.is_set():
            raise MlflowException("it is\naway")
        self.requests.append(len(points))
        self.logged += [(point.key, point.step, point.value) for point in points]

    def tags(self, values: dict[str, str]) -> None:
        self.tagged |= values


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(curve_logger, "_RETRY_SECONDS", 0.01)


def test_the_first_value_of_a_step_is_logged_once_also_by_a_later_process() -> None:
    run = Run()
    curve = CurveLogger(run)  # type: ignore[arg-type]
    curve.progress = "trained 20 of 300 steps"
    for step, loss in ((10, 2.0), (20, 1.0), (10, 9.0)):
        curve.metrics(step, {"train_loss": loss})
    curve.flush()
    later = CurveLogger(run)  # type: ignore[arg-type]
    for step in (10, 20, 30):
        later.metrics(step, {"train_loss": 0.5, "validation_loss": 0.75})
    later.flush()
    assert run.metric_history("train_loss") == [(10, 2.0), (20, 1.0), (30, 0.5)]
    assert run.metric_history("validation_loss") == [(10, 0.75), (20, 0.75), (30, 0.75)]
    assert set(run.tagged) == {BEAT_TAG, PROGRESS_TAG} and run.tagged[PROGRESS_TAG] == "trained 20 of 300 steps"


def test_values_wait_for_a_server_that_is_away_and_two_lines_say_so() -> None:
    run, lines = Run(), []
    run.away.set()
    curve = CurveLogger(run, lines.append)  # type: ignore[arg-type]
    for step in range(1200):
        curve.metrics(step, {"train_loss": float(step)})
    with pytest.raises(
        IgptError, match=r"http://mlflow:5000 does not accept 1200 metrics \(.*\); when it does"
    ) as raised:
        curve.flush(seconds=0.3)
    assert "\n" not in str(raised.value)
    run.away.clear()
    curve.flush(seconds=30)
    assert run.metric_history("train_loss") == [(step, float(step)) for step in range(1200)]
    assert max(run.requests) == 500
    away, back = lines
    assert away.endswith("they are queued, and training goes on") and back.endswith("accepts metrics again")
