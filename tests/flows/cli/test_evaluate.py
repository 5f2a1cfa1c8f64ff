"""`igpt evaluate`: whatever opens as a model, on any split, without services; one line for what does not match."""

import json
import math
from pathlib import Path

import pytest

from igpt_model.runs.open_model import load_model
from igpt_model.runs.result import read_result
from igpt_model.training.loop import train
from igpt_model.worker import Worker
from pipeline.dataset.snapshot import Snapshot
from pipeline.store import objects
from tests.igpt_model.training.test_loop import Recorder, build_here, digits_snapshot, short_training


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Snapshot:
    return digits_snapshot(tmp_path_factory.mktemp("digits"))


@pytest.fixture(scope="module")
def run(data: Snapshot, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A trained run, and beside it the same model as a folder."""
    folder = tmp_path_factory.mktemp("trained")
    run = str(folder / "run")
    train(short_training(data, folder), data, run, Worker(), Recorder())
    (folder / "folder").mkdir()
    load_model(run).save(folder / "folder")
    return run


@pytest.fixture(scope="module")
def others(data: Snapshot, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with datasets of the same images that have another resolution and another palette."""
    folder, raw = tmp_path_factory.mktemp("others"), Path(data.dataset).parent / "raw"
    build_here(raw, folder / "smaller", resolution=4)
    build_here(raw, folder / "coarser", colours=8)
    return folder


def test_a_run_a_checkpoint_and_a_folder_have_the_loss_that_training_ended_with(igpt, run: str, data: Snapshot) -> None:
    trained = read_result(run)
    assert trained is not None
    answers = [
        igpt("evaluate", model, f"dataset={data.dataset}", "split=validation", "--json")
        for model in (run, f"{run}/checkpoints/00000030", Path(run).parent / "folder")
    ]
    assert [answer.code for answer in answers] == [0, 0, 0], answers[0].err
    first, *others = [json.loads(answer.out) for answer in answers]
    assert first["nats_per_pixel"] == pytest.approx(trained.validation_loss, abs=1e-6)
    assert first["bits_per_pixel"] == pytest.approx(first["nats_per_pixel"] / math.log(2))
    assert (first["images"], first["split"]) == (trained.validation_images, "validation")
    assert first["content_digest"] == data.content_digest
    assert first["baselines_nats_per_pixel"]["uniform"] == pytest.approx(math.log(16))
    assert all(other == {**first, "model": other["model"]} for other in others)


def test_people_get_a_table_with_the_baselines(igpt, run: str, data: Snapshot) -> None:
    done = igpt("evaluate", run, f"dataset={data.dataset}")
    assert done.code == 0, done.err
    for text in ("nats per pixel", "per-position unigram", "uniform", "2.7726", "4.0000"):
        assert text in done.out
    assert f"{data.samples('test')} images, test split of {data.dataset}, snapshot 1" in done.out


def test_a_cluster_that_does_not_answer_is_told_and_not_needed(
    igpt, run: str, data: Snapshot, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    done = igpt("evaluate", run, f"dataset={data.dataset}")
    assert done.code == 0, done.err
    assert "Ray at 127.0.0.1:1 does not answer" in done.out and "evaluating in this process" in done.out


def test_what_cannot_be_evaluated_is_one_line(others: Path, igpt, run: str, data: Snapshot, tmp_path: Path) -> None:
    for arguments, expected in (
        ([run], "dataset is empty"),
        ([run, f"dataset={tmp_path}/nothing"], "no dataset snapshot there"),
        ([run, f"dataset={data.dataset}", "split=all"], "split is 'all'"),
        ([run, f"dataset={data.dataset}", "snapshot=7"], "there is no snapshot 7"),
        ([run, f"dataset={others}/smaller"], "has resolution 4, the model 8"),
        ([run, f"dataset={others}/coarser"], "has palette"),
        ([str(tmp_path / "empty"), f"dataset={data.dataset}"], "no model there"),
        (["models:/igpt@champion", f"dataset={data.dataset}"], "no MLflow server is known"),
    ):
        done = igpt("evaluate", *arguments)
        assert done.code == 2 and expected in done.err and len(done.err.splitlines()) == 1, done.err
    assert not objects.exists(f"{others}/smaller-measured")
