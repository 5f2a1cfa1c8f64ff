"""Unfinished runs of a recipe on any snapshot, and which of them is finished first."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from igpt_model.config import PretrainConfig
from igpt_model.runs import attempts, initial_model, record, unfinished
from igpt_model.runs.attempts import Failures
from igpt_model.runs.record import RunRecord
from igpt_model.runs.unfinished import Unfinished, choose
from pipeline.dataset import snapshot as snapshots
from pipeline.dataset.lifecycle.rollback import rollback
from pipeline.dataset.record import Publisher
from pipeline.dataset.snapshot import Snapshot
from pipeline.store import objects
from tests.igpt_model.runs.test_attempts import add_checkpoint
from tests.igpt_model.training.test_loop import build_here, digits_snapshot


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> tuple[Snapshot, Snapshot]:
    """A snapshot of 300 digits, and the next one, with an image more."""
    root = tmp_path_factory.mktemp("two")
    first = digits_snapshot(root)
    (root / "raw" / "0" / "new.png").write_bytes(next((root / "raw" / "1").glob("*.png")).read_bytes())
    return first, build_here(root / "raw", root / "dataset")


@pytest.fixture
def wanted(two: tuple[Snapshot, Snapshot], tmp_path: Path) -> PretrainConfig:
    """Tonight's training, on the second snapshot."""
    return PretrainConfig.from_fields(
        runs=str(tmp_path / "runs"), preset="tiny", dataset=two[1].dataset, snapshot=2, steps=40
    )


def begin(config: PretrainConfig, data: Snapshot, step: int, *, of_snapshot: Snapshot | None = None) -> str:
    """A run as a training leaves it that was killed after the checkpoint at `step`."""
    run = record.folder_of(config, data)
    pinned = config.with_fields(dataset=data.dataset, snapshot=data.number, precision=config.training_precision)
    record.write(run, RunRecord(config=pinned, mlflow_run=None))
    if step:
        add_checkpoint(run, step, (of_snapshot or data).content_digest)
    return run


def found(wanted: PretrainConfig, data: Snapshot) -> list[tuple[str, int, int]]:
    return [(run.run, run.number, run.step) for run in unfinished.find(wanted, data.dataset)]


def test_a_run_on_an_earlier_snapshot_is_the_same_recipe(
    two: tuple[Snapshot, Snapshot], wanted: PretrainConfig
) -> None:
    first, second = two
    assert first.content_digest != second.content_digest
    assert found(wanted, second) == []
    run = begin(wanted, first, 20)
    assert found(wanted, second) == [(run, 1, 20)]
    how = {"workers": 1, "checkpoint_every": 7, "model_name": "other", "layers": wanted.model.shape.layers}
    assert found(wanted.with_fields(**how), second) == [(run, 1, 20)]
    for other in ({"seed": 1}, {"steps": 41}, {"flip": True}, {"parent": "models:/m/1"}, {"precision": "bfloat16"}):
        assert found(wanted.with_fields(**other), second) == [], other
    assert unfinished.find(wanted, f"{second.dataset}-other") == []


def test_it_is_continued_in_its_folder_on_its_snapshot_with_its_precision(
    two: tuple[Snapshot, Snapshot], wanted: PretrainConfig
) -> None:
    first, second = two
    run = begin(wanted, first, 20)
    tonight = wanted.with_fields(use_gpu=True, layers=wanted.model.shape.layers, workers=1)
    (begun,) = unfinished.find(tonight, second.dataset)
    config = begun.config(tonight)
    assert record.folder_of(config, first) == run
    assert (config.data.snapshot, config.training_precision, config.execution.workers) == (1, "float32", 1)
    assert begun.snapshot == first


def test_finished_and_given_up_runs_are_left_out_and_awaited_registrations_are_not(
    two: tuple[Snapshot, Snapshot], wanted: PretrainConfig
) -> None:
    first, second = two
    run = begin(wanted, first, 40)
    result = {
        **dict.fromkeys(("images", "validation_images", "restarts", "parameters"), 1),
        **dict.fromkeys(("validation_loss", "train_loss", "seconds", "images_per_second"), 1.0),
        **{"steps": 40, "snapshot_digest": first.content_digest, "palette_sha256": first.palette_sha256},
    }
    objects.write_bytes(objects.join(run, "result.json"), json.dumps(result).encode())
    assert found(wanted, second) == []
    attempts.await_registration(run)
    assert found(wanted, second) == [(run, 1, 40)]
    attempts.note_registration(run, "models:/m/1")
    assert found(wanted, second) == []
    other = begin(wanted.with_fields(seed=1), first, 10)
    attempts.abandon(other, "no longer wanted")
    assert found(wanted.with_fields(seed=1), second) == []


def test_an_alias_is_the_same_recipe_whatever_it_means_today(
    two: tuple[Snapshot, Snapshot], wanted: PretrainConfig
) -> None:
    first, second = two
    nightly = wanted.with_fields(parent="models:/m@champion")
    begun = wanted.with_fields(parent="models:/m/3")
    run = begin(begun, first, 20)
    assert found(nightly, second) == [], "begun from the number, not from the alias"
    initial_model._store(run, model="models:/m/3", alias="models:/m@champion")
    assert found(nightly, second) == [(run, 1, 20)] == found(begun, second)
    assert found(wanted.with_fields(parent="models:/m@candidate"), second) == []
    (again,) = unfinished.find(nightly, second.dataset)
    assert again.config(nightly).model.parent == "models:/m/3"


def test_a_snapshot_that_is_gone_or_has_other_content_is_told(
    two: tuple[Snapshot, Snapshot], wanted: PretrainConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = two
    begin(wanted, first, 20, of_snapshot=second)  # the dataset was made anew meanwhile
    (begun,) = unfinished.find(wanted, second.dataset)
    assert begun.snapshot is None
    monkeypatch.setattr(snapshots, "numbers", lambda dataset: [2])
    begin(wanted.with_fields(seed=1), first, 20)
    (begun,) = unfinished.find(wanted.with_fields(seed=1), second.dataset)
    assert begun.snapshot is None
    ((_, reason),) = choose([begun], second, max_failures=3).abandon
    assert reason == "its snapshot 1 is gone or has other content now"


def test_a_run_on_a_snapshot_that_was_rolled_back_is_given_up(tmp_path: Path) -> None:
    digits_snapshot(tmp_path)
    raw, dataset = tmp_path / "raw", tmp_path / "dataset"
    (raw / "0" / "bad.png").write_bytes(next((raw / "1").glob("*.png")).read_bytes())
    second = build_here(raw, dataset)
    wanted = PretrainConfig.from_fields(
        runs=str(tmp_path / "runs"), preset="tiny", dataset=second.dataset, snapshot=2, steps=40
    )
    begin(wanted, second, 20)
    restored = rollback(second.dataset, 1, Publisher(program="igpt 9.9"))
    (raw / "0" / "bad.png").unlink()
    (raw / "0" / "good.png").write_bytes(next((raw / "2").glob("*.png")).read_bytes())
    mended = build_here(raw, dataset)
    for newest in (restored, mended):
        (begun,) = unfinished.find(wanted.with_fields(snapshot=newest.number), newest.dataset)
        assert begun.snapshot == second
        ((_, reason),) = choose([begun], newest, max_failures=3).abandon
        assert reason == "its snapshot 2 was rolled back by snapshot 3"
    assert choose([begun], second, max_failures=3).abandon == (), "the newest has its content"
    # The run on the snapshot that was published again is not, and neither is one on a later snapshot.
    for data in (snapshots.read(second.dataset, 1), mended):
        begin(wanted.with_fields(seed=1, snapshot=data.number), data, 20)
    others = unfinished.find(wanted.with_fields(seed=1), second.dataset)
    assert [run.rolled_back_by for run in others] == [None, None]


def an_unfinished(name: str, data: Snapshot, number: int, step: int, failed: int = 0) -> Unfinished:
    return Unfinished(
        run=f"runs/{name}",
        number=number,
        snapshot=replace(data, number=number),
        rolled_back_by=None,
        step=step,
        failures=Failures(count=failed, step=step, reason="out of memory"),
        parent="",
        precision="float32",
    )


def test_the_run_with_the_most_steps_is_finished_and_the_others_are_given_up(two: tuple[Snapshot, Snapshot]) -> None:
    first, second = two
    runs = [
        an_unfinished("old", first, 1, 10),
        an_unfinished("furthest", first, 2, 30),
        an_unfinished("as-far-but-older", first, 1, 30),
        an_unfinished("none-yet", first, 3, 0),
        an_unfinished("failing", first, 3, 35, failed=3),
        an_unfinished("tonight", second, 9, 20),
    ]
    newest = replace(second, number=9)
    choice = choose(runs, newest, max_failures=3)
    assert choice.finish is runs[1]
    reasons = {objects.name_of(run.run): reason for run, reason in choice.abandon}
    assert set(reasons) == {"old", "as-far-but-older", "none-yet", "failing"}
    assert "furthest of the same recipe is further, at step 30" in reasons["old"]
    assert "no checkpoint yet" in reasons["none-yet"]
    assert reasons["failing"].startswith("it failed 3 times in a row") and "out of memory" in reasons["failing"]
    assert choose(runs, newest, max_failures=4).finish is runs[4]


def test_the_run_on_the_newest_snapshot_is_never_given_up_for_another(two: tuple[Snapshot, Snapshot]) -> None:
    first, second = two
    earlier, tonight = an_unfinished("earlier", first, 1, 20), an_unfinished("tonight", second, 2, 30, failed=5)
    choice = choose([earlier, tonight], second, max_failures=3)
    assert choice.finish is None and [run for run, _ in choice.abandon] == [earlier]
    assert choose([tonight], second, max_failures=3, abandon="new recipe").abandon == ()
    published_again = replace(second, number=7)  # by a rollback: another number, the same content
    assert choose([tonight], published_again, max_failures=3, abandon="new recipe").abandon == ()


def test_abandoning_gives_up_all_with_the_given_reason(two: tuple[Snapshot, Snapshot]) -> None:
    first, second = two
    runs = [an_unfinished("one", first, 1, 10), an_unfinished("two", first, 1, 20)]
    choice = choose(runs, second, max_failures=3, abandon="the labels were wrong")
    assert choice.finish is None
    assert choice.abandon == tuple((run, "the labels were wrong") for run in runs)
