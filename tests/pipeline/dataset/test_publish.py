"""A commit is complete or refused, and the loser of two builds damages nothing."""

from dataclasses import replace
from pathlib import Path

import pytest

from pipeline.dataset import snapshot
from pipeline.dataset.publish import commit, repair_latest
from pipeline.errors import IgptError
from tests.pipeline.dataset.test_snapshot import files, make


@pytest.mark.parametrize("damage", ["missing", "cut"])
def test_a_commit_without_a_whole_shard_is_refused(tmp_path: Path, damage: str) -> None:
    made = make(tmp_path)
    path = tmp_path / made.shards[1].path
    path.unlink()
    if damage == "cut":
        path.write_bytes(bytes(7))
    before = files(tmp_path)
    words = "is missing" if damage == "missing" else "has 7 bytes, 101 were written"
    with pytest.raises(IgptError, match=f"{made.shards[1].path} {words}"):
        commit(made)
    assert files(tmp_path) == before
    assert snapshot.latest_number(str(tmp_path)) is None


@pytest.mark.parametrize("folder", ["index", "quarantine", "palettes", "counts"])
def test_a_commit_without_all_that_it_names_is_refused(tmp_path: Path, folder: str) -> None:
    made = make(tmp_path)
    next((tmp_path / folder).iterdir()).unlink()
    with pytest.raises(IgptError, match=f"{folder}/.* is missing"):
        commit(made)
    assert snapshot.latest_number(str(tmp_path)) is None


def test_the_second_builder_of_a_number_damages_nothing(tmp_path: Path) -> None:
    winner = make(tmp_path)
    loser = make(tmp_path, source_digest="cd" * 32)
    commit(winner)
    before = files(tmp_path)
    with pytest.raises(IgptError, match="another build published snapshot 1 meanwhile"):
        commit(loser)
    assert files(tmp_path) == before


def test_a_commit_is_idempotent(tmp_path: Path) -> None:
    made = make(tmp_path)
    commit(made)
    before = files(tmp_path)
    commit(made)
    assert files(tmp_path) == before


def test_a_build_that_died_before_latest_blocks_no_other(tmp_path: Path) -> None:
    dead, living = make(tmp_path), make(tmp_path, source_digest="cd" * 32)
    commit(dead)
    (tmp_path / "LATEST").unlink()
    with pytest.raises(IgptError, match="run this one again"):
        commit(living)
    assert snapshot.read(str(tmp_path)) == dead
    commit(replace(living, number=2, parent=1))
    assert snapshot.latest_number(str(tmp_path)) == 2


def test_latest_is_repaired_after_a_build_died(tmp_path: Path) -> None:
    first, second = make(tmp_path), make(tmp_path, number=2)
    commit(first)
    commit(second)
    (tmp_path / "LATEST").write_bytes(b"1\n")
    repair_latest(str(tmp_path))
    assert snapshot.read(str(tmp_path)) == second
    before = files(tmp_path)
    repair_latest(str(tmp_path))
    assert files(tmp_path) == before
    assert snapshot.numbers(str(tmp_path)) == [1, 2]


def test_a_late_build_does_not_set_latest_back(tmp_path: Path) -> None:
    first, second = make(tmp_path), make(tmp_path, number=2)
    commit(first)
    commit(second)
    commit(first)
    assert snapshot.latest_number(str(tmp_path)) == 2
