"""Garbage collection: what is removed, what is kept, and when it is refused."""

import os
from pathlib import Path

import pytest

from pipeline.dataset import snapshot
from pipeline.errors import IgptError
from pipeline.inspect.gc import collect
from pipeline.inspect.verify import verify
from pipeline.store import objects, presence


def make_litter(dataset: Path) -> set[str]:
    """What builds that were interrupted leave behind, and a note of somebody's."""
    litter = {
        "shards/train-000077-0123456789abcdef.tar",
        "index/train-000077-0123456789abcdef.parquet",
        "quarantine/train-000077-0123456789abcdef.parquet",
        "palettes/00.npy",
        "scans/00.parquet",
        "seen/00.parquet",
        "counts/00.npy",
        "records/000009.json",
        "snapshots/000003.json.claims/1234",
        "active/build-0.json",
    }
    for name in litter:
        objects.write_bytes(str(dataset / name), b"litter")
        os.utime(dataset / name, (1e9, 1e9))
    (dataset / "NOTES.txt").write_text("mine")
    os.utime(dataset / "NOTES.txt", (1e9, 1e9))
    return litter


def test_files_that_no_snapshot_names_are_removed(dataset: Path) -> None:
    litter = make_litter(dataset)
    assert set(collect(str(dataset), min_age_seconds=3600, dry_run=True).files) == litter
    assert all((dataset / name).exists() for name in litter)
    collected = collect(str(dataset), min_age_seconds=3600)
    assert (set(collected.files), collected.snapshots, collected.too_young) == (litter, 2, 0)
    assert not any((dataset / name).exists() for name in litter)
    assert (dataset / "NOTES.txt").exists()
    for number in (1, 2):
        assert verify(snapshot.read(str(dataset), number)) == []


def test_young_files_are_kept(dataset: Path) -> None:
    objects.write_bytes(str(dataset / "shards" / "train-000077-0123456789abcdef.tar"), b"litter")
    collected = collect(str(dataset), min_age_seconds=3600)
    assert (collected.files, collected.too_young) == ([], 1)


def test_nothing_is_removed_while_a_build_runs(dataset: Path) -> None:
    litter = make_litter(dataset)
    with presence.building(str(dataset)), pytest.raises(IgptError, match=r"a build is running \(process \d+ on"):
        collect(str(dataset), min_age_seconds=0)
    assert all((dataset / name).exists() for name in litter)
    assert set(collect(str(dataset), min_age_seconds=0).files) == litter
    assert not list((dataset / "active").glob("*.json"))


def test_a_build_that_died_long_ago_blocks_no_collection(dataset: Path) -> None:
    objects.write_bytes(str(dataset / "active" / "build-dead.json"), b'{"kind": "build", "who": "process 1 on host"}')
    os.utime(dataset / "active" / "build-dead.json", (1e9, 1e9))
    assert "active/build-dead.json" in collect(str(dataset), min_age_seconds=3600).files


def test_a_dataset_without_a_snapshot_is_not_collected(tmp_path: Path) -> None:
    objects.write_bytes(str(tmp_path / "shards" / "train-000000-0.tar"), b"a first build is under way")
    with pytest.raises(IgptError, match="nothing was removed"):
        collect(str(tmp_path), min_age_seconds=0)
    assert (tmp_path / "shards" / "train-000000-0.tar").exists()
