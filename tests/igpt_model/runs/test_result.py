"""When a run is finished, and for which data."""

from dataclasses import replace
from pathlib import Path

import pytest

from igpt_model.config import PretrainConfig
from igpt_model.runs.result import finished
from igpt_model.training.loop import train
from igpt_model.worker import Worker
from pipeline.dataset.snapshot import Snapshot
from pipeline.errors import IgptError
from tests.igpt_model.training.test_loop import Recorder


def test_a_finished_run_is_found_prolonged_or_refused(data: Snapshot, config: PretrainConfig, tmp_path: Path) -> None:
    run = str(tmp_path / "run")
    assert finished(config, data, run) is None
    first = train(config, data, run, Worker(), Recorder())
    assert finished(config, data, run) == first
    longer = config.with_fields(steps=40)
    assert finished(longer, data, run) is None
    recorder = Recorder()
    assert train(longer, data, run, Worker(), recorder).steps == 40
    assert min(recorder.values) > 30
    with pytest.raises(IgptError, match="it was trained with palette"):
        finished(config, replace(data, palette_sha256="0" * 64), run)
    anew = replace(data, source_digest="0", number=7)
    assert finished(config, anew, run) is not None, "the same content, published anew"
    changed = replace(data, classes=(*data.classes, "another"))
    for call in (finished, lambda c, d, r: train(c, d, r, Worker(), Recorder())):
        with pytest.raises(IgptError, match="it was trained on the snapshot"):
            call(config.with_fields(steps=60), changed, run)
