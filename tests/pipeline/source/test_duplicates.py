"""Images with the same bytes: one is kept, so that held-out images are never trained on."""

import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from pipeline.build import plan
from pipeline.build.build import build
from pipeline.config import DatasetConfig
from pipeline.dataset.keys import Keys, key_of
from pipeline.dataset.snapshot import Snapshot
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


def test_of_copies_in_several_splits_one_is_kept_and_rather_in_training(config: DatasetConfig) -> None:
    raw = Path(config.raw)
    for path in sorted(raw.rglob("*.png"))[:20]:
        for number in range(30):
            shutil.copy(path, path.with_name(f"copy-{number}-{path.name}"))
    plain = build(replace(config, dataset=f"{config.dataset}-all"))
    result = build(replace(config, drop_duplicates=True))
    kept = _splits_by_checksum(result.snapshot)
    in_all = _splits_by_checksum(plain.snapshot)
    assert all(len(splits) == 1 for splits in kept.values()) and kept.keys() == in_all.keys()
    # No image is in two splits, so none that is held out is trained on; copies do not take images out of training.
    assert all((splits == {"train"}) == ("train" in in_all[checksum]) for checksum, splits in kept.items())
    assert sum(len(splits) > 1 for splits in in_all.values()) == 20
    again = build(replace(config, drop_duplicates=True))
    assert again.unchanged


def test_empty_files_are_no_copies_of_each_other(config: DatasetConfig) -> None:
    for number in range(5):
        (Path(config.raw) / "temple" / f"empty-{number}.png").write_bytes(b"")
    assert build(replace(config, drop_duplicates=True)).snapshot.rejected == {"zero_bytes": 5}


def test_a_dataset_goes_on_keeping_the_copies_that_it_has(
    config: DatasetConfig,
) -> None:
    raw = Path(config.raw)
    held_out = next(name for name in sorted(raw.rglob("*.png")) if _split_of(config, name) == "test")
    before = build(replace(config, drop_duplicates=True))
    for number in range(30):
        shutil.copy(held_out, held_out.with_name(f"copy-{number}.png"))
    after = build(replace(config, drop_duplicates=True))
    assert after.snapshot.rejected == {"duplicate": 30}
    assert _splits_by_checksum(after.snapshot) == _splits_by_checksum(before.snapshot)


def _split_of(config: DatasetConfig, path: Path) -> str:
    position = plan.unit_hash(Keys.of([key_of(str(path.relative_to(config.raw)))]), f"split {config.seed}")[0]
    return "test" if position < config.test_fraction else "train"


def _splits_by_checksum(of: Snapshot) -> dict[str, set[str]]:
    splits: dict[str, set[str]] = {}
    for shard in of.shards:
        for row in rows_of(of.dataset, shard.index_path):
            splits.setdefault(row["sha256"], set()).add(shard.split)
    return splits
