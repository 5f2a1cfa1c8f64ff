"""`igpt runs` on finished, interrupted and damaged runs."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from igpt_model.runs import attempts, checkpoint
from igpt_model.runs import record as run_record
from igpt_model.training.loop import train
from igpt_model.worker import Worker
from tests.conftest import Command
from tests.igpt_model.training.test_loop import KilledError, Recorder, digits_snapshot, short_training


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A runs folder with a finished run and one that was interrupted at step 17."""
    root = tmp_path_factory.mktemp("runs")
    data = digits_snapshot(root)
    config = short_training(data, root).with_fields(seed=7)
    train(config, data, str(root / "runs" / "done"), Worker(), Recorder(), mlflow_run="abc")

    def die(step: int) -> None:
        if step == 17:
            raise KilledError

    with pytest.raises(KilledError):
        train(config, data, str(root / "runs" / "cut"), Worker(), Recorder(), heartbeat=die)
    return root / "runs"


def test_ls_shows_the_progress_of_each_run(igpt: Callable[..., Command], runs: Path) -> None:
    ended = igpt("runs", "ls", runs, "--json")
    assert ended.code == 0, ended.err
    cut, done = json.loads(ended.out)
    shown = [cut[name] for name in ("name", "state", "step", "of", "validation loss")]
    assert shown == ["cut", "unfinished", 10, 30, None]
    assert (done["name"], done["state"], done["step"], done["restarts"]) == ("done", "finished", 30, 0)
    assert 0 < done["validation loss"] < 3
    heading, *lines = igpt("runs", "ls", runs).out.splitlines()
    assert heading.split()[:3] == ["name", "state", "step"]
    assert [line.split()[:3] for line in lines] == [["cut", "unfinished", "10"], ["done", "finished", "30"]]
    assert igpt("runs", "ls", runs.parent / "raw").out.startswith("no training run in ")


@pytest.mark.parametrize("name", ["run.json", "result.json"])
@pytest.mark.parametrize("content", [b"", b"[]", b'{"config": 5}', b"\xff\0"])
def test_ls_tells_a_damaged_run_and_lists_the_others(
    igpt: Callable[..., Command], runs: Path, name: str, content: bytes
) -> None:
    whole = (runs / "done" / name).read_bytes()
    (runs / "done" / name).write_bytes(content)
    try:
        as_json, as_text = igpt("runs", "ls", runs, "--json"), igpt("runs", "ls", runs)
    finally:
        (runs / "done" / name).write_bytes(whole)
    assert (as_json.code, as_text.code) == (1, 1)
    cut, done = json.loads(as_json.out)
    assert (cut["name"], cut["state"], cut["problem"]) == ("cut", "unfinished", None)
    assert (done["name"], done["state"], done["step"]) == ("done", "damaged", None)
    assert done["problem"].startswith(f"{runs}/done/{name}: not the re")
    _, first, second, told = as_text.out.splitlines()
    assert first.startswith("cut ") and second.startswith("done  damaged")
    assert told == done["problem"]


def test_show_prints_checkpoints_curve_and_changed_fields(igpt: Callable[..., Command], runs: Path) -> None:
    shown = json.loads(igpt("runs", "show", runs / "done", "--json").out)
    assert (shown["mlflow_run"], shown["config"]["seed"], shown["config"]["steps"]) == ("abc", 7, 30)
    assert "max_restarts" not in shown["config"]
    assert [row["checkpoint"] for row in shown["checkpoints"]] == checkpoint.marked_steps(str(runs / "done"))
    assert [row["step"] for row in shown["curve"]] == [10, 15, 20, 30]
    text = igpt("runs", "show", runs / "cut").out
    assert "unfinished, step 10 of 30" in text and "`igpt runs resume" in text and "seed=7" in text


def test_a_run_that_was_given_up_is_shown_with_the_reason(igpt: Callable[..., Command], runs: Path) -> None:
    attempts.abandon(str(runs / "cut"), "the labels were wrong")
    try:
        assert [row["state"] for row in json.loads(igpt("runs", "ls", runs, "--json").out)] == ["abandoned", "finished"]
        text = igpt("runs", "show", runs / "cut").out
        assert "abandoned, step 10 of 30" in text
        assert "given up: the labels were wrong" in text and "`igpt runs resume" in text
    finally:
        attempts.take_up_again(str(runs / "cut"))


def test_verify_finds_damaged_files(igpt: Callable[..., Command], runs: Path) -> None:
    assert igpt("runs", "show", runs / "cut", "--verify").code == 0
    file = runs / "cut" / "checkpoints" / "00000010" / "optimizer-00000.safetensors"
    whole = file.read_bytes()
    file.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    try:
        assert "not read" in igpt("runs", "show", runs / "cut").out
        ended = igpt("runs", "show", runs / "cut", "--verify")
        assert ended.code == 1 and "damaged" in ended.out
    finally:
        file.write_bytes(whole)


def test_a_folder_that_is_not_a_run_is_refused_in_one_line(igpt: Callable[..., Command], runs: Path) -> None:
    for arguments in (("show", runs), ("show", runs / "nothing")):
        ended = igpt("runs", *arguments)
        assert ended.code == 2
        (line,) = ended.err.splitlines()
        assert "no training run there" in line


def test_the_record_is_the_config_with_its_snapshot(runs: Path) -> None:
    record = run_record.read(str(runs / "done"))
    assert record.config.data.snapshot == 1
    assert run_record.read(str(runs / "cut")).config == record.config
