"""The folder and the record of a run, also of one that an earlier version began."""

import json
from pathlib import Path

import pytest

from igpt_model.config import PretrainConfig
from igpt_model.runs import record
from pipeline.errors import IgptError
from tests.igpt_model.training.test_loop import digits_snapshot

BASE = PretrainConfig.from_fields(runs="r", preset="tiny")


def test_a_run_of_a_flat_config_is_gone_on_with(tmp_path: Path) -> None:
    data = digits_snapshot(tmp_path)
    config = BASE.with_fields(runs=str(tmp_path / "runs"), dataset=data.dataset)
    names = (config.run_name(data.content_digest), config.flat_run_name(data.manifest_digest))
    new, flat = (tmp_path / "runs" / name for name in names)
    assert record.folder_of(config, data) == str(new)
    flat.mkdir(parents=True)
    as_stored = config.with_fields(precision="float32", compile=False)  # the defaults then
    (flat / "run.json").write_text(json.dumps({"config": as_stored.flat(), "mlflow_run": "abc"}))
    assert record.folder_of(config, data) == record.folder_of(config.with_fields(use_gpu=True), data) == str(flat)
    assert record.read(str(flat)) == record.RunRecord(config=as_stored, mlflow_run="abc")
    assert record.as_begun(config.with_fields(use_gpu=True), str(flat)).training_precision == "float32"
    assert record.folder_of(config.with_fields(name="mine"), data) == str(tmp_path / "runs" / "mine")
    assert record.folder_of(config.with_fields(seed=1), data) not in (str(flat), str(new))
    record.write(str(new), record.RunRecord(config=config, mlflow_run=None))
    assert record.folder_of(config, data) == str(new)
    assert record.read(str(new)).config == config


@pytest.mark.parametrize(
    ("begun", "continued", "precision"),
    [
        ({}, {"use_gpu": True}, "float32"),  # on a CPU, or on a GPU when float32 was the default there
        ({"use_gpu": True}, {}, "bfloat16"),
        ({"use_gpu": True}, {"use_gpu": True}, "bfloat16"),
        ({"precision": "bfloat16"}, {"use_gpu": True}, "bfloat16"),
        ({"name": "mine"}, {"name": "mine", "use_gpu": True}, "float32"),
        ({}, {"precision": "bfloat16"}, None),
        ({"use_gpu": True}, {"precision": "float32"}, None),
        ({"precision": "tf32"}, {"use_gpu": True}, None),
    ],
)
def test_a_run_keeps_the_precision_that_it_began_with(
    begun: dict, continued: dict, precision: str | None, tmp_path: Path
) -> None:
    """None: it is another run."""
    data = digits_snapshot(tmp_path)
    config = BASE.with_fields(runs=str(tmp_path / "runs"), dataset=data.dataset)
    first = config.with_fields(**begun)
    run = record.folder_of(first, data)
    assert record.as_begun(first, run) == first, "there is no run yet"
    kept = first.with_fields(precision=first.training_precision)
    record.write(run, record.RunRecord(config=kept, mlflow_run=None))
    second = config.with_fields(**continued)
    assert (record.folder_of(second, data) == run) == (precision is not None)
    if precision is not None:
        assert record.as_begun(second, run) == second.with_fields(precision=precision)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (None, "no training run there; `igpt runs ls FOLDER`"),
        ("{", "not the record of a run of this version"),
        ('{"mlflow_run": null}', "not the record of a run of this version"),
        ('{"config": {"runs": "r", "wings": 2}, "mlflow_run": null}', "unknown field wings"),
    ],
)
def test_a_folder_without_a_record_of_ours_is_refused(content: str | None, expected: str, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / "run.json").write_text(content)
    with pytest.raises(IgptError, match=expected) as raised:
        record.read(str(tmp_path))
    assert "\n" not in str(raised.value)


def test_the_first_record_replaces_none(tmp_path: Path) -> None:
    """The folder may be that of a run on another snapshot, which the training refuses later."""
    run, kept = str(tmp_path / "run"), record.RunRecord(config=BASE, mlflow_run="abc")
    record.write_first(run, kept)
    record.write_first(run, record.RunRecord(config=BASE.with_fields(seed=1), mlflow_run="def"))
    assert record.read(run) == kept


def test_the_runs_of_a_folder_are_those_with_a_record(tmp_path: Path) -> None:
    for name in ("two", "one"):
        record.write(str(tmp_path / name), record.RunRecord(config=BASE, mlflow_run=None))
    (tmp_path / "three").mkdir()
    assert sorted(record.find(str(tmp_path))) == [str(tmp_path / "one"), str(tmp_path / "two")]
