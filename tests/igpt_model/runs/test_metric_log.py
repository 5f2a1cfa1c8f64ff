"""The logged metrics of a run are complete, whatever happened to it."""

from pathlib import Path

import pytest

from igpt_model.config import PretrainConfig
from igpt_model.runs import metric_log
from igpt_model.runs.metric_log import LoggedMetrics
from igpt_model.training.loop import train
from igpt_model.worker import Worker
from pipeline.dataset.snapshot import Snapshot
from tests.igpt_model.training.test_loop import KilledError, Recorder


def test_logged_metrics_are_complete_after_an_interruption(
    data: Snapshot, config: PretrainConfig, tmp_path: Path
) -> None:
    calm, cut = str(tmp_path / "calm"), str(tmp_path / "cut")
    expected = Recorder()
    train(config, data, calm, Worker(), expected)

    def die(step: int) -> None:
        if step == 17:
            raise KilledError

    with pytest.raises(KilledError):
        train(config, data, cut, Worker(), Recorder(), heartbeat=die)
    train(config, data, cut, Worker(), Recorder())
    stored = {entry.step: entry.values["train_loss"] for entry in metric_log.read(cut)}
    assert stored == {step: values["train_loss"] for step, values in expected.values.items()}


def test_of_a_step_that_was_logged_twice_the_last_values_count(tmp_path: Path) -> None:
    run = str(tmp_path)
    assert metric_log.read(run) == []
    first, second = (LoggedMetrics(step=step, values={"train_loss": float(step)}) for step in (5, 10))
    metric_log.write(run, 10, [first, second])
    again, third = (LoggedMetrics(step=step, values={"train_loss": 0.5}) for step in (10, 15))
    metric_log.write(run, 20, [third, again])
    assert metric_log.read(run) == [first, again, third]
