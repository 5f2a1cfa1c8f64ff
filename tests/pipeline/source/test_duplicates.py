"""Images with the same bytes: one is kept, and held-out images are never trained on."""

import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from pipeline.build.build import build
from pipeline.config import DatasetConfig
from pipeline.dataset import snapshot
from pipeline.dataset.keys import key_of
from tests.pipeline.build.test_build import rows
from tests.pipeline.build.test_rerun import assert_sound, rows_of

pytestmark = pytest.mark.usefixtures("without_cluster")


def test_one_of_the_images_with_the_same_bytes_is_kept(config: DatasetConfig, tmp_path: Path) -> None:
    raw = Path(config.raw)
    for number in range(5):
        shutil.copy(raw / "temple" / f"{number:02d}.png", raw / "flower" / f"copy-{number}.png")
    single = replace(config, drop_duplicates=True, max_reject_fraction=0.0)
    result = build(single)
    assert result.snapshot.rejected == {"duplicate": 5}
    assert result.snapshot.images() == 100
    details = {row["key"]: row["detail"] for row in rows(config.dataset, "quarantine")}
    taken = {row["key"] for row in rows(config.dataset, "index")}
    for number in range(5):
        pair = {key_of(f"temple/{number:02d}.png"), key_of(f"flower/copy-{number}.png")}
        (left_out,) = pair & details.keys()
        (kept,) = pair & taken
        assert details[left_out] == f"the same bytes as image {kept}"
    assert_sound(result)
    assert build(single).unchanged
    # The one that was taken is deleted: its copy comes in its place.
    (kept,) = {key_of("temple/02.png"), key_of("flower/copy-2.png")} & taken
    gone = raw / ("temple/02.png" if kept == key_of("temple/02.png") else "flower/copy-2.png")
    gone.unlink()
    after = build(single)
    assert after.snapshot.rejected == {"duplicate": 4}
    assert after.snapshot.images() == 100
    assert_sound(after)


def test_a_copy_of_a_held_out_image_is_not_trained_on(config: DatasetConfig) -> None:
    raw = Path(config.raw)
    for path in sorted(raw.rglob("*.png")):
        shutil.copy(path, path.with_name(f"copy-{path.name}"))
    result = build(replace(config, drop_duplicates=True))
    index = {row["key"]: row["sha256"] for row in rows(config.dataset, "index")}
    assert len(set(index.values())) == len(index) == 100
    checksums = {split: set() for split in snapshot.SPLITS}
    for shard in result.snapshot.shards:
        checksums[shard.split] |= {row["sha256"] for row in rows_of(config.dataset, shard.index_path)}
    plain = build(replace(config, dataset=f"{config.dataset}-all"))
    held_out: set[str] = set()
    for shard in plain.snapshot.shards:
        if shard.split != "train":
            held_out |= {row["sha256"] for row in rows_of(plain.snapshot.dataset, shard.index_path)}
    assert not held_out & checksums["train"]
