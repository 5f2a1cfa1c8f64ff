"""Damage and forgeries that verification finds."""

import json
import os
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from pipeline.config import DatasetConfig
from pipeline.dataset import snapshot
from pipeline.inspect.verify import verify


def test_a_sound_snapshot_has_no_problems(twice_built: DatasetConfig) -> None:
    for number in (1, 2):
        assert verify(snapshot.read(twice_built.dataset, number)) == []


def flip_a_bit(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(bytes(data))


@pytest.mark.parametrize("folder", ["shards", "index", "quarantine", "palettes"])
@pytest.mark.parametrize("damage", [Path.unlink, flip_a_bit, lambda path: os.truncate(path, 10)])
def test_damage_of_any_file_is_found(dataset: Path, folder: str, damage: object) -> None:
    chosen = snapshot.read(str(dataset))
    path = next(path for path in chosen.paths if path.startswith(folder))
    damage(dataset / path)  # type: ignore[operator]
    problems = verify(chosen)
    assert [problem.path for problem in problems] == [path], problems


def test_an_index_of_another_shard_is_found(dataset: Path) -> None:
    chosen = snapshot.read(str(dataset))
    full = [shard for shard in chosen.of_split("train") if shard.images == chosen.of_split("train")[0].images]
    assert len(full) > 1
    shutil.copy(dataset / full[1].index_path, dataset / full[0].index_path)
    problems = verify(chosen)
    assert [problem.path for problem in problems] == [full[0].index_path]
    # Nor does it help whoever writes its checksum into the manifest.
    fitting = replace(full[0], index_sha256=full[1].index_sha256)
    forged = replace(chosen, shards=tuple(fitting if shard == full[0] else shard for shard in chosen.shards))
    (problem,) = verify(forged)
    assert (problem.path, "its keys or labels differ from" in problem.what) == (full[0].index_path, True)


def test_a_manifest_that_leaves_out_a_shard_is_found(dataset: Path) -> None:
    path = dataset / snapshot.snapshot_path(2)
    fields = json.loads(path.read_bytes())
    fields["shards"] = fields["shards"][1:]
    path.write_text(json.dumps(fields))
    (problem,) = verify(snapshot.read(str(dataset), 2))
    assert (problem.path, "source_digest" in problem.what) == (snapshot.snapshot_path(2), True)
