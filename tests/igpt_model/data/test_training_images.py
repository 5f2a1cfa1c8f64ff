"""The images that workers are given are those of the sample order, each once, whatever the number of workers."""

from pathlib import Path

import numpy as np
import pytest
import torch

from igpt_model.config import PretrainConfig
from igpt_model.data.batches import Preparation
from igpt_model.data.training_images import TrainingImages
from igpt_model.worker import Worker
from pipeline.dataset.snapshot import Snapshot
from pipeline.samples.order import SampleOrder
from pipeline.samples.shard_cache import ShardCache


@pytest.mark.parametrize(("workers", "micro_batch"), [(1, None), (1, 5), (3, 2)])
def test_workers_together_are_given_every_position_in_order(
    workers: int, micro_batch: int | None, data: Snapshot, config: PretrainConfig, tmp_path: Path
) -> None:
    config = config.with_fields(micro_batch=micro_batch, workers=workers)
    cache = ShardCache(data, str(tmp_path / "cache"))
    preparation = Preparation(config, config.model_for(data), data.palette(), torch.device("cpu"))
    first, steps, batch = 200, 7, config.optimizer.global_batch  # over the end of an epoch of 240 images
    given: dict[int, np.ndarray] = {}
    for rank in range(workers):
        worker = Worker(rank=rank, world_size=workers)
        images = TrainingImages(config, data, cache, preparation, worker, cursor=first, steps=steps)
        images.example(first)  # as before the first step; nothing is missing afterwards
        for step in range(steps):
            for positions in images.ranges(first + step * batch):
                taken = images.take()
                inputs = images.inputs(taken, positions)
                assert len(inputs.tokens_BT) == len(positions)
                given.update(zip(positions, inputs.tokens_BT.numpy(), strict=True))
        images.close()
    assert sorted(given) == list(range(first, first + steps * batch))
    shards = data.of_split("train")
    samples = SampleOrder([shard.samples for shard in shards], seed=0, window_shards=2).at(first, first + steps * batch)
    views = [cache.open(shard).tokens_NHW for shard in shards]
    for position, shard, row in zip(sorted(given), samples.shards, samples.rows, strict=True):
        assert np.array_equal(given[position], views[shard][row].reshape(-1))
