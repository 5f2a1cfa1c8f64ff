"""Lines of Ray's workers in the log of their flow run: with their level and node, and not without limit."""

import logging
import threading

import pytest

from flows.prefect_ops.worker_lines import WorkerLines
from pipeline.cluster.logs import WorkerLine

LINE = WorkerLine(node="10.0.0.7", level=logging.WARNING, text="shard 3: slow\nTraceback\x1b")
SHOWN = "10.0.0.7: shard 3: slow\nTraceback" + r"\x1b"


def test_a_line_names_its_node_and_keeps_its_level(caplog: pytest.LogCaptureFixture) -> None:
    WorkerLines()(LINE)
    (record,) = caplog.records
    assert (record.levelno, record.getMessage()) == (logging.WARNING, SHOWN)


def test_a_process_that_ends_passes_nothing_on(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(threading, "main_thread", lambda: threading.Thread())
    WorkerLines()(LINE)
    assert caplog.records == []


def test_of_too_many_lines_the_number_is_told(caplog: pytest.LogCaptureFixture) -> None:
    now = 0.0
    lines = WorkerLines(clock=lambda: now)
    for _ in range(1000):
        lines(LINE)
    assert len(caplog.records) == 600
    now = 61.0
    lines(LINE)
    told = [record.getMessage() for record in caplog.records[600:]]
    assert told == ["400 lines of Ray's workers were left out; their nodes have them", SHOWN]


def test_what_libraries_log_below_warnings_and_what_ray_repeats_is_left_on_the_node(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.DEBUG)
    lines = WorkerLines()
    for logger in ("pipeline.build", "ray.train.v2", "botocore.credentials", ""):
        lines(WorkerLine(node="n", level=logging.INFO, text=f"of {logger}", logger=logger))
    lines(WorkerLine(node="n", level=logging.WARNING, text="of ray", logger="ray.core"))
    noise = "Failed to query Ray Train Controller actor state. State API may be temporarily unavailable."
    lines(WorkerLine(node="n", level=logging.WARNING, text=noise, logger="ray.train"))
    assert [record.getMessage() for record in caplog.records] == [
        *("n: of pipeline.build", "n: of ray.train.v2", "n: of ", "n: of ray"),
    ]
