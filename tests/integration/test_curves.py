"""The curves of a training in MLflow: one value per step after repetitions, and none lost while it is down."""

import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from mlflow import MlflowClient

from flows.services.ports import HOST, free_port
from igpt_model.tracking import runs as tracking
from igpt_model.tracking.curve_logger import CurveLogger
from igpt_model.tracking.runs import RunLogger
from pipeline.errors import IgptError
from tests.igpt_model.training.test_loop import digits_snapshot, short_training
from tests.rigs.mlflow_server import MlflowServer, mlflow_server

pytestmark = pytest.mark.services


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MlflowServer]:
    with mlflow_server(tmp_path_factory.mktemp("mlflow"), HOST, free_port()) as started:
        yield started


@pytest.fixture
def logger(server: MlflowServer, monkeypatch: pytest.MonkeyPatch) -> RunLogger:
    """A logger of a new run; its client gives up quickly."""
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    return RunLogger(server.url, MlflowClient(server.url).create_run("0").info.run_id)


def test_a_step_that_is_repeated_has_its_first_value(logger: RunLogger) -> None:
    curve = CurveLogger(logger)
    for step in (10, 20, 30, 20, 30, 40):
        curve.metrics(step, {"train_loss": step / 10, "images_per_second": time.time()})
    curve.flush()
    # A new process repeats the steps so far, and continues.
    another = CurveLogger(logger)
    for step in (30, 40, 50):
        another.metrics(step, {"train_loss": 100 + step})
    another.flush()
    history = logger.metric_history("train_loss")
    assert history == [(10, 1.0), (20, 2.0), (30, 3.0), (40, 4.0), (50, 150.0)]
    assert [step for step, _ in logger.metric_history("images_per_second")] == [10, 20, 30, 40]


@pytest.mark.faults
@pytest.mark.sample
def test_what_is_told_while_the_server_is_away_comes_when_it_is_back(server: MlflowServer, logger: RunLogger) -> None:
    curve = CurveLogger(logger)
    curve.metrics(10, {"train_loss": 1.0})
    curve.flush()
    server.stop()
    try:
        for step in (20, 30):
            curve.metrics(step, {"train_loss": 2.0})
        with pytest.raises(IgptError, match="does not accept 2 metrics"):
            curve.flush(seconds=0)
    finally:
        server.start()
    curve.metrics(40, {"train_loss": 3.0})
    curve.flush()
    assert logger.metric_history("train_loss") == [(10, 1.0), (20, 2.0), (30, 2.0), (40, 3.0)]


def test_nobody_waits_for_a_server_that_does_not_answer() -> None:
    warnings: list[str] = []
    with socket.create_server(("127.0.0.1", 0)) as silent:  # connects, and does not answer
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        curve = CurveLogger(RunLogger(url, "0" * 32), warnings.append)
        began = time.monotonic()
        for step in range(100):
            curve.metrics(step, {"train_loss": 2.0})
        assert time.monotonic() - began < 20  # waiting for the answer would take a minute
        with pytest.raises(IgptError, match="does not accept 100 metrics"):
            curve.flush(seconds=0.2)


@pytest.mark.faults
def test_an_outage_is_told_once_and_so_is_its_end(server: MlflowServer, logger: RunLogger) -> None:
    told: list[str] = []
    curve = CurveLogger(logger, told.append)
    server.stop()
    try:
        curve.metrics(10, {"train_loss": 1.0})
        with pytest.raises(IgptError):
            curve.flush(seconds=4)
    finally:
        server.start()
    curve.flush()
    warnings = [line.split(" ", 3)[3].split(" (")[0] for line in told]
    assert warnings == ["does not accept metrics", "accepts metrics again"]


@pytest.mark.faults
def test_a_run_that_cannot_be_closed_is_one_line_if_it_was_well_and_else_what_was_wrong(
    server: MlflowServer, logger: RunLogger
) -> None:
    server.stop()
    try:
        with pytest.raises(IgptError, match="does not close the run"), logger.closing():
            pass
        with pytest.raises(ZeroDivisionError), logger.closing():
            _ = 1 / 0
    finally:
        server.start()


def test_a_run_that_died_unheard_is_killed_when_it_was_last_heard_of(server: MlflowServer) -> None:
    client = MlflowClient(server.url)
    experiment = client.create_experiment("abandoned")
    runs = {
        name: client.create_run(experiment, tags=tags).info.run_id
        for name, tags in {
            "dead": {"igpt.last_sign_of_life": "1000000"},
            "alive": {"igpt.last_sign_of_life": f"{time.time():.0f}"},
            "foreign": {},
        }.items()
    }
    assert tracking.close_abandoned(server.url, "abandoned") == [runs["dead"]]
    assert {name: client.get_run(run).info.status for name, run in runs.items()} == {
        **{"dead": "KILLED", "alive": "RUNNING"},
        "foreign": "RUNNING",
    }
    assert client.get_run(runs["dead"]).info.end_time == 1_000_000_000


def test_a_run_that_is_taken_up_again_after_long_is_not_taken_for_abandoned(
    server: MlflowServer, tmp_path: Path
) -> None:
    client = MlflowClient(server.url)
    data = digits_snapshot(tmp_path)
    config = short_training(data, tmp_path).with_fields(experiment="taken up again")
    opened = [tracking.open_run(server.url, config, data, "s3://runs/it", {"igpt.prefect_run": "1"})]
    opened[0].tags({tracking.BEAT_TAG: "1000000"})
    opened[0].end("FAILED")
    opened.append(tracking.open_run(server.url, config, data, "s3://runs/it", {"igpt.prefect_run": "2"}))
    assert tracking.close_abandoned(server.url, "taken up again") == []
    assert opened[0].run_id == opened[1].run_id
    run = client.get_run(opened[0].run_id)
    assert (run.info.status, run.data.tags["igpt.prefect_run"]) == ("RUNNING", "2")


def test_abandoned_runs_of_an_experiment_that_is_not_there_are_none(server: MlflowServer) -> None:
    assert tracking.close_abandoned(server.url, "no such experiment") == []
