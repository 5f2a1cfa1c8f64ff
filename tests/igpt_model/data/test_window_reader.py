"""Images in training order: the next window is fetched ahead, and the cache must hold two."""

import time
from pathlib import Path

import numpy as np
import pytest

from igpt_model.config import PretrainConfig
from igpt_model.data.order import SampleOrder
from igpt_model.data.shard_cache import ShardCache
from igpt_model.data.window_reader import WindowReader
from igpt_model.training.loop import train
from igpt_model.worker import Worker
from pipeline.dataset.snapshot import Snapshot
from pipeline.errors import IgptError
from pipeline.store import objects
from tests.igpt_model.data.test_shard_cache import bytes_in
from tests.igpt_model.training.test_loop import Recorder


def test_the_next_window_is_prefetched(data: Snapshot, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shards = data.of_split("train")
    order = SampleOrder([shard.samples for shard in shards], seed=0, window_shards=2)
    limit = 5 * max(shard.bytes for shard in shards)
    reader = WindowReader(shards, order, ShardCache(data, str(tmp_path), limit_bytes=limit))
    seen = []
    for start in range(0, 2 * order.samples, 10):
        images = reader.read(range(start, start + 10))
        seen.append(images.tokens_NT.astype(np.int64).sum(1))
        time.sleep(0.005)
        assert bytes_in(tmp_path) <= limit
    epochs = np.concatenate(seen)[: 2 * order.samples].reshape(2, -1)
    assert np.array_equal(np.sort(epochs[0]), np.sort(epochs[1])) and not np.array_equal(*epochs)
    # Wait until the next window is fetched, then make downloads fail: it can still be read.
    reader.read(range(0, 10))
    following = order.window_shards(*order.next_window(*order.window_of(0)))
    deadline = time.monotonic() + 30
    while not {shards[number].name for number in following} <= {path.stem for path in tmp_path.rglob("*.tar")}:
        assert time.monotonic() < deadline, "the next window was not fetched ahead"
        time.sleep(0.01)
    reader.close()
    monkeypatch.setattr(objects, "download", lambda url, local: pytest.fail(f"{url} was not fetched ahead"))
    for number in following:
        ShardCache(data, str(tmp_path)).open(shards[number])


def test_too_small_a_cache_is_refused_in_a_line(data: Snapshot, config: PretrainConfig, tmp_path: Path) -> None:
    with pytest.raises(IgptError, match=r"cache_bytes is 1,000: two windows of window_shards 2"):
        train(config.with_fields(cache_bytes=1000), data, str(tmp_path / "run"), Worker(), Recorder())
