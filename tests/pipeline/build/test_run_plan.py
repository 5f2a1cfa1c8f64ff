"""Before the commit the counts must add up, and shards are listed in one order."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from pipeline.build import run_plan
from pipeline.build.count_pixels import PixelDifference
from pipeline.build.plan import ShardPlan
from pipeline.build.run_plan import check_counts, make_shards
from pipeline.build.shard_tasks import ShardResult
from pipeline.build.source_state import read_source_state
from pipeline.config import DatasetConfig
from pipeline.dataset.erasures import Tombstones
from pipeline.errors import IgptError
from pipeline.progress import silent
from tests.pipeline.dataset.test_snapshot import PALETTE, entry, make

CONFIG = DatasetConfig(raw="raw", dataset="dataset", max_reject_fraction=0.3)


@pytest.mark.parametrize(
    ("rejected", "images_in", "expected"),
    [
        ({"truncated": 1}, 10, None),  # 8 images and two rejects
        ({"truncated": 1}, 11, "the shards account for 10 of 11 images, nothing was published"),
        ({"truncated": 1}, 9, "the shards account for 10 of 9 images"),
        ({"truncated": 2, "time_out": 1}, 14, r"6 of 14 images were rejected \(4 truncated, 2 time_out\)"),
        ({"truncated": 1, "duplicate": 20}, 50, None),
    ],
)
def test_images_that_are_missing_or_rejected_stop_the_commit(
    rejected: dict[str, int], images_in: int, expected: str | None, tmp_path: Path
) -> None:
    shards = tuple(replace(entry("train", number), rejected=rejected) for number in range(2))
    new = make(tmp_path, shards=shards)
    if expected is None:
        check_counts(new, images_in, CONFIG)
        return
    with pytest.raises(IgptError, match=expected) as raised:
        check_counts(new, images_in, CONFIG)
    assert "\n" not in str(raised.value)


def test_a_snapshot_without_training_images_is_refused(tmp_path: Path) -> None:
    new = make(tmp_path, shards=(replace(entry("test", 0), rejected={}),))
    with pytest.raises(IgptError, match="no image is left to train on"):
        check_counts(new, 4, CONFIG)


@pytest.mark.usefixtures("without_cluster")
def test_a_task_that_loses_an_image_is_noticed(config: DatasetConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    def lose_one(task: object, config: DatasetConfig, table: np.ndarray, without: Tombstones) -> ShardResult:
        return ShardResult(entry=replace(entry("train", 0), images=98))

    monkeypatch.setattr(run_plan, "make_shard", lose_one)
    plans = [ShardPlan(split="train", name="train-000000-0123456789abcdef", rows=np.arange(100))]
    with read_source_state(config, keep_scans=False, progress=silent) as state:
        with pytest.raises(IgptError, match=r"accounts for 99 of 100 images; delete index/train-000000-.*\.parquet"):
            make_shards(state, plans, config, PALETTE, PixelDifference(), silent, tolerant=False)
        with pytest.raises(AssertionError, match="twice"):
            make_shards(state, [*plans, *plans], config, PALETTE, PixelDifference(), silent, tolerant=False)
