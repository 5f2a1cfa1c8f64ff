"""Making a shard: it is made once, and images that change while they are read are read again or rejected."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from pipeline.build import shard_tasks
from pipeline.build.build import BuildResult, build
from pipeline.build.shard_tasks import ShardTask, make_shard
from pipeline.config import DatasetConfig
from pipeline.dataset import snapshot
from pipeline.images import palette
from pipeline.source.list_source import list_source
from pipeline.source.listing import Listing
from tests.pipeline.build.test_build import times
from tests.pipeline.build.test_rerun import assert_holds_what_a_first_build_holds, assert_sound, save

pytestmark = pytest.mark.usefixtures("without_cluster")


def during_the_first_shard(action: Callable[[], None], monkeypatch: pytest.MonkeyPatch) -> None:
    """Do something once, after the source was listed and before its first image is read for a shard."""
    make = shard_tasks._Shard.make
    done: list[bool] = []

    def make_after(self: shard_tasks._Shard, table: np.ndarray) -> shard_tasks.ShardResult:
        if not done:
            done.append(True)
            action()
        return make(self, table)

    monkeypatch.setattr(shard_tasks._Shard, "make", make_after)


def test_an_image_replaced_while_the_build_reads_it(
    config: DatasetConfig, photos: np.ndarray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    during_the_first_shard(
        lambda: [save(config, f"temple/{n:02d}.png", photos[80 + n]) for n in range(40)], monkeypatch
    )
    result = build(config)
    assert (result.snapshot.number, result.snapshot.images()) == (1, 100)
    assert_holds_what_a_first_build_holds(result, config, tmp_path)
    undisturbed = build(replace(config, dataset=str(tmp_path / "undisturbed"), palette=palette_of(result)))
    assert undisturbed.snapshot.manifest_digest == result.snapshot.manifest_digest


def palette_of(result: BuildResult) -> str:
    return str(Path(result.snapshot.dataset) / snapshot.palette_path(result.snapshot.palette_sha256))


def test_a_source_that_keeps_changing_is_published_without_the_changing_images(
    config: DatasetConfig, photos: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    make = shard_tasks._Shard.make
    turn: list[int] = []

    def make_after(self: shard_tasks._Shard, table: np.ndarray) -> shard_tasks.ShardResult:
        turn.append(len(turn))
        save(config, "temple/01.png", photos[turn[-1]])
        return make(self, table)

    monkeypatch.setattr(shard_tasks._Shard, "make", make_after)
    restless = build(config)
    assert restless.snapshot.rejected == {"replaced_while_read": 1}
    monkeypatch.setattr(shard_tasks._Shard, "make", make)
    recovered = build(config)
    assert (recovered.snapshot.rejected, recovered.snapshot.images()) == ({}, 100)
    assert_sound(recovered)


def task_of(config: DatasetConfig, **fields: object) -> ShardTask:
    """The task for one shard of all images of the source, none of which has a class."""
    with Listing() as listing:
        list_source(config, listing)
        table = listing.take(np.arange(len(listing.rows)))
    count = len(table)
    given = {"duplicate_of": [None] * count, "listing": table, "labels": np.full(count, -1), **fields}
    name = "train-000000-0123456789abcdef"
    return ShardTask(dataset=config.dataset, name=name, split="train", raw_root=config.raw, **given)  # type: ignore[arg-type]


@pytest.fixture
def table() -> np.ndarray:
    """The lookup table of eight greys."""
    return palette.compute_lookup_table(np.linspace(-1, 1, 8, dtype=np.float32)[:, None].repeat(3, 1))


def test_a_finished_shard_is_not_made_again(config: DatasetConfig, table: np.ndarray) -> None:
    task = task_of(config)
    first = make_shard(task, config, table)
    assert (first.reused, first.entry.images) == (False, 100)
    before = times(config.dataset)
    again = make_shard(task, config, table)
    assert (again.reused, again.entry) == (True, first.entry)
    assert times(config.dataset) == before
    # Without its whole tar it is not finished, and is made with the same bytes.
    path = Path(config.dataset) / first.entry.path
    whole = path.read_bytes()
    path.write_bytes(whole[:-1])
    assert make_shard(task, config, table).reused is False
    assert path.read_bytes() == whole


def test_a_duplicate_is_in_quarantine_with_the_image_that_is_kept(config: DatasetConfig, table: np.ndarray) -> None:
    entry = make_shard(task_of(config, duplicate_of=[None, "another", *[None] * 98]), config, table).entry
    assert (entry.images, entry.rejected) == (99, {"duplicate": 1})
    assert entry.quarantine_path is not None
    (row,) = pq.read_table(Path(config.dataset) / entry.quarantine_path).to_pylist()
    assert row["detail"] == "the same bytes as image another"
