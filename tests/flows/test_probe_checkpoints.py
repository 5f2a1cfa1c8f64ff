"""A figure over checkpoints needs two that were evaluated. The whole flow: integration/test_probing.py."""

from pathlib import Path

import pytest

from flows.probe_checkpoints import probe_checkpoints
from igpt_model.probing.config import ProbeConfig
from igpt_model.training import standalone
from igpt_model.training.loop import train
from igpt_model.worker import Worker
from pipeline.errors import IgptError
from tests.igpt_model.training.test_loop import digits_snapshot, short_training


def test_fewer_than_two_evaluated_checkpoints_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("flows.services.settings.load", lambda: None)  # what is asked for is checked before they serve
    data, run = digits_snapshot(tmp_path), str(tmp_path / "run")
    # It keeps the checkpoints of the steps 20 and 30, and evaluates those of 15 and 30.
    train(short_training(data, tmp_path), data, run, Worker(), standalone.Printer())
    with pytest.raises(IgptError, match=f"{run}: 1 of its checkpoints are evaluated, a figure needs two; set keep"):
        probe_checkpoints.fn(ProbeConfig(model=run, dataset=data.dataset, checkpoints="all"))
