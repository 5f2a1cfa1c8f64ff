"""A snapshot as a dataset of Ray Data, on a cluster."""

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import ray

from pipeline.dataset.snapshot import Snapshot
from pipeline.errors import IgptError
from pipeline.readers import arrow

pytestmark = [pytest.mark.services, pytest.mark.usefixtures("own_ray")]


@pytest.mark.parametrize("pixels", ["tokens", "rgb"])
@pytest.mark.parametrize("blocks", [None, 3])
def test_it_has_what_the_tables_have(built: Snapshot, pixels: str, blocks: int | None) -> None:
    from pipeline.readers import ray_data

    samples = ray_data.read(built.dataset, split="train", pixels=pixels, override_num_blocks=blocks)
    assert samples.count() == built.samples("train")
    expected = arrow.table(built.dataset, split="train", pixels=pixels)
    pictures = {
        (row["key"], row["crop"]): picture
        for row, picture in zip(
            expected.select(["key", "crop"]).to_pylist(), arrow.pixels_of(expected[pixels]), strict=True
        )
    }
    rows = samples.take_all()
    for row in rows:
        assert np.array_equal(row[pixels], pictures.pop((row["key"], row["crop"])))
        assert row[pixels].dtype == (np.uint16 if pixels == "tokens" else np.uint8)
    assert not pictures
    assert Counter(row["licence"] for row in rows) == Counter(expected["licence"].to_pylist())
    (batch,) = samples.limit(5).iter_batches(batch_size=5)
    assert batch[pixels].shape == (5, 8, 8, 3)[: 4 if pixels == "rgb" else 3]


def test_trainers_divide_it_and_batches_are_tensors(built: Snapshot) -> None:
    from pipeline.readers import ray_data

    samples = ray_data.read(built.dataset, split="train").select_columns(["tokens", "label"])
    batches = list(samples.random_shuffle(seed=1).iter_torch_batches(batch_size=16))
    assert sum(len(batch["label"]) for batch in batches) == built.samples("train")
    assert batches[0]["tokens"].shape == (16, 8, 8)


def test_a_task_is_not_sent_the_whole_manifest(built: Snapshot) -> None:
    from pipeline.readers import ray_data
    from pipeline.readers.selection import select

    sizes = []
    for shards in (built.shards, built.shards * 50):
        many = replace(select(built.dataset, split=None, snapshot=None, pixels="rgb"), shards=shards)
        many = replace(many, snapshot=replace(built, shards=shards))
        tasks = ray_data.SnapshotDatasource(many).get_read_tasks(len(shards))
        assert len(tasks) == len(shards)
        sizes.append(max(len(ray.cloudpickle.dumps(task)) for task in tasks[:3]))
    assert sizes[0] == sizes[1]


def test_a_damaged_shard_fails_its_task_with_a_line(damaged: str) -> None:
    from pipeline.readers import ray_data

    with pytest.raises(ray.exceptions.RayTaskError, match="the shard's checksum differs from the snapshot's"):
        ray_data.read(damaged, split="train").take_all()
    with pytest.raises(IgptError, match="split is 'holdout'"):
        ray_data.read(damaged, split="holdout")
