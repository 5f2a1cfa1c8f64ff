"""Which checkpoints of which runs are removed, and that what anybody works on stays."""

import json
import os
from pathlib import Path

import pytest

from igpt_model.config import PretrainConfig
from igpt_model.runs import attempts, checkpoint, old_checkpoints, record
from igpt_model.runs.old_checkpoints import OldFiles
from igpt_model.runs.record import RunRecord
from pipeline.errors import IgptError
from pipeline.store import lease, objects
from tests.igpt_model.runs.test_attempts import add_checkpoint

VERSION = "models:/digits/3"
RESULT = {
    **dict.fromkeys(("images", "validation_images", "restarts", "parameters"), 1),
    **dict.fromkeys(("validation_loss", "train_loss", "seconds", "images_per_second"), 1.0),
    **{"steps": 30, "snapshot_digest": "s", "palette_sha256": "p"},
}


@pytest.fixture
def run(tmp_path: Path) -> str:
    """A run that ended long ago, with the checkpoints 10, 20 and 30, and what is left of one at 25."""
    run = str(tmp_path / "runs" / "nightly" / "one")
    config = PretrainConfig.from_fields(dataset="d", runs=str(tmp_path / "runs"), preset="tiny", steps=30, snapshot=1)
    record.write(run, RunRecord(config=config, mlflow_run=None))
    for step in (10, 20, 30):
        add_checkpoint(run, step)
    objects.write_bytes(f"{run}/checkpoints/00000025/weights-00000.safetensors", b"half")
    for name, content in (("result.json", json.dumps(RESULT)), ("stacks/worker-0.txt", "stacks")):
        objects.write_bytes(f"{run}/{name}", content.encode())
        os.utime(f"{run}/{name}", (1e9, 1e9))
    return run


def old_of(run: str, days: float | None = 30, versions: tuple[str, ...] = (VERSION,)) -> list[OldFiles]:
    seconds = None if days is None else days * 86_400
    return list(
        old_checkpoints.find(
            str(Path(run).parents[1]), checkpoint_seconds=seconds, stack_seconds=None, is_version=versions.__contains__
        )
    )


def register(run: str, model: str = VERSION) -> None:
    objects.write_bytes(f"{run}/registration.json", json.dumps({"model": model}).encode())


def write_result(run: str, **fields: object) -> None:
    objects.write_bytes(f"{run}/result.json", json.dumps({**RESULT, **fields}).encode())
    os.utime(f"{run}/result.json", (1e9, 1e9))


SITUATIONS = {
    "finished": (lambda run: None, 3, [30]),
    "registered": (register, 4, []),
    "registered, and the version was deleted": (lambda run: register(run, "models:/digits/4"), 3, [30]),
    "about to be registered": (lambda run: register(run, ""), 0, [10, 20, 30]),
    "ended today": (lambda run: os.utime(f"{run}/result.json"), 0, [10, 20, 30]),
    "unfinished": (lambda run: objects.delete(f"{run}/result.json"), 0, [10, 20, 30]),
    "extended to more steps": (lambda run: write_result(run, steps=20), 0, [10, 20, 30]),
    "given up": (
        lambda run: (objects.delete(f"{run}/result.json"), attempts.abandon(run, "no")),
        0,
        [10, 20, 30],
    ),
    "a damaged result": (lambda run: objects.write_bytes(f"{run}/result.json", b"{"), 0, [10, 20, 30]),
    "of another version": (lambda run: objects.write_bytes(f"{run}/run.json", b"{}"), 0, [10, 20, 30]),
    "only its newest is left": (
        lambda run: [objects.delete_tree(f"{run}/checkpoints/000000{step}") for step in (10, 20, 25)],
        0,
        [30],
    ),
    "none is complete": (
        lambda run: [objects.delete(f"{run}/checkpoints/000000{step}/index.json") for step in (10, 20, 30)],
        0,
        [],
    ),
}


@pytest.mark.parametrize("situation", SITUATIONS)
def test_what_is_removed(run: str, situation: str) -> None:
    arrange, count, left = SITUATIONS[situation]
    arrange(run)
    before = {file.url for file in objects.list_files(run)}
    old = old_of(run)
    assert sum(files.count for files in old) == count
    assert {file.url for file in objects.list_files(run)} == before, "looking removes nothing"
    assert all(old_checkpoints.remove(files) for files in old)
    assert checkpoint.marked_steps(run) == left
    removed = before - {file.url for file in objects.list_files(run)}
    assert removed == {url for files in old for url in files.urls}
    assert old_of(run) == [], "a second time there is nothing to do"


def test_without_a_setting_nothing_is_old(run: str) -> None:
    assert old_of(run, days=None) == []


def test_a_run_that_somebody_works_on_keeps_its_checkpoints(run: str) -> None:
    (old,) = old_of(run)
    with lease.hold(run):
        assert not old_checkpoints.remove(old)
    assert checkpoint.marked_steps(run) == [10, 20, 30]
    write_result(run, steps=20)  # another process has extended it since
    assert not old_checkpoints.remove(old)
    assert checkpoint.marked_steps(run) == [10, 20, 30]


def test_a_removal_that_is_interrupted_leaves_no_checkpoint_that_looks_complete(
    run: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    register(run)
    (old,) = old_of(run)
    real, deleted = objects.delete, []

    def delete(url: str, **options: bool) -> None:
        if "/checkpoints/" in url:
            deleted.append(url)
            if len(deleted) > 3:
                raise IgptError("the store does not answer")
        real(url, **options)

    monkeypatch.setattr(objects, "delete", delete)
    with pytest.raises(IgptError, match="does not answer"):
        old_checkpoints.remove(old)
    monkeypatch.undo()
    assert checkpoint.marked_steps(run) == []
    (rest,) = old_of(run)
    assert old_checkpoints.remove(rest) and not list(objects.list_files(f"{run}/checkpoints"))


def test_stacks_are_removed_by_their_own_age(run: str) -> None:
    objects.delete(f"{run}/result.json")
    objects.write_bytes(f"{run}/stacks/worker-1.txt", b"of today")
    runs = str(Path(run).parents[1])
    (old,) = old_checkpoints.find(runs, checkpoint_seconds=0, stack_seconds=3600, is_version=lambda uri: False)
    assert old.urls == (f"{run}/stacks/worker-0.txt",)
    assert old_checkpoints.remove(old)
    assert [file.url for file in objects.list_files(f"{run}/stacks")] == [f"{run}/stacks/worker-1.txt"]
