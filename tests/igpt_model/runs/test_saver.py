"""Checkpoints are written while training goes on, and a failing store costs what it must and no more."""

import threading
from pathlib import Path
from typing import Any

import pytest
import torch

from igpt_model.config import PretrainConfig
from igpt_model.runs import checkpoint, metric_log
from igpt_model.runs.open_model import load_model
from igpt_model.training.loop import train
from igpt_model.worker import Worker
from pipeline.dataset.snapshot import Snapshot
from pipeline.errors import IgptError
from pipeline.store import objects
from tests.igpt_model.training.test_loop import Recorder


class _Store:
    """Intercepts uploads: fails those that `fails` selects, and holds all while `open` is not set."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.fails = lambda url: False
        self.open = threading.Event()
        self.open.set()
        upload = objects.upload

        def through(local: Path, url: str, **options: Any) -> None:
            self.open.wait(30)
            if self.fails(url):
                raise IgptError(f"{url}: the object store does not answer")
            upload(local, url, **options)

        monkeypatch.setattr(objects, "upload", through)


def test_steps_go_on_while_a_checkpoint_is_being_written(
    data: Snapshot, config: PretrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = _Store(monkeypatch)
    store.open.clear()
    run = str(tmp_path / "run")

    def check_nothing_is_written(step: int) -> None:
        if step == 19:
            assert checkpoint.marked_steps(run) == []
            store.open.set()

    train(config, data, run, Worker(), Recorder(), heartbeat=check_nothing_is_written)
    calm = str(tmp_path / "calm")
    train(config, data, calm, Worker(), Recorder())
    for step in (20, 30):  # the weights of that step were written, not those of later steps
        written = load_model(checkpoint.folder_of(run, step)).model.state_dict()
        expected = load_model(checkpoint.folder_of(calm, step)).model.state_dict()
        assert written.keys() == expected.keys()
        assert all(torch.equal(written[name], expected[name]) for name in expected)


def test_a_failing_store_costs_a_warning_while_there_is_an_older_checkpoint(
    data: Snapshot, config: PretrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = _Store(monkeypatch)
    store.fails = lambda url: "/00000020/" in url
    run, recorder = str(tmp_path / "run"), Recorder()
    result = train(config, data, run, Worker(), recorder)
    assert result.steps == 30
    assert checkpoint.marked_steps(run) == [10, 30]
    assert len(recorder.lines) == 1 and "checkpoint of step 20 could not be written" in recorder.lines[0]
    # The metrics logged meanwhile are stored with the next checkpoint.
    assert [entry.step for entry in metric_log.read(run)] == sorted(recorder.values)


@pytest.mark.parametrize("step", [10, 30])
def test_the_first_and_the_last_checkpoint_are_needed(
    step: int, data: Snapshot, config: PretrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = _Store(monkeypatch)
    store.fails = lambda url: f"/{step:08d}/" in url
    run = str(tmp_path / "run")
    with pytest.raises(IgptError, match=f"the checkpoint of step {step} could not be written"):
        train(config, data, run, Worker(), Recorder())
    assert not objects.exists(f"{run}/result.json")
    store.fails = lambda url: False
    assert train(config, data, run, Worker(), Recorder()).steps == 30
