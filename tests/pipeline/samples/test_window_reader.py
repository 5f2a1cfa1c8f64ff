"""Images in training order: the next window is fetched and verified ahead, and the cache must hold two."""

import threading
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from igpt_model.config import PretrainConfig
from igpt_model.training.loop import train
from igpt_model.worker import Worker
from pipeline.dataset import verified_shards
from pipeline.dataset.snapshot import ShardEntry, Snapshot
from pipeline.errors import IgptError
from pipeline.hashing import sha256_of_file
from pipeline.samples import window_reader
from pipeline.samples.order import SampleOrder, Samples
from pipeline.samples.shard_cache import Images, ShardCache, ShardImages
from pipeline.samples.window_reader import WindowReader
from pipeline.store import objects
from tests.igpt_model.training.test_loop import Recorder
from tests.pipeline.samples.test_shard_cache import bytes_in


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


def test_the_training_thread_computes_no_checksum(
    data: Snapshot, config: PretrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each shard is verified before its images are used, windows after the first while steps go on."""
    verified: list[tuple[str, int, bool]] = []  # shard, step, on the training thread
    used: list[tuple[str, int]] = []  # shard, number of verifications before
    step_now = 0
    opened = {}

    def check(path: Path) -> str:
        digest = sha256_of_file(path)
        verified.append((path.stem, step_now, threading.current_thread() is threading.main_thread()))
        return digest

    def open_ahead(cache: ShardCache, shard: ShardEntry, *, needed: bool) -> ShardImages | None:
        view = plain_open(cache, shard, needed=needed)
        if view is not None:
            opened[id(view)] = view, shard.name
        return view

    def gather(views: Sequence[ShardImages], samples: Samples) -> Images:
        used.extend((opened[id(view)][1], len(verified)) for view in views)
        return plain_gather(views, samples)

    def beat(step: int) -> None:
        nonlocal step_now
        step_now = step

    plain_open, plain_gather = ShardCache.open_ahead, window_reader.gather
    monkeypatch.setattr(verified_shards, "sha256_of_file", check)
    monkeypatch.setattr(ShardCache, "open_ahead", open_ahead)
    monkeypatch.setattr(window_reader, "gather", gather)
    train(config, data, str(tmp_path / "run"), Worker(), Recorder(), heartbeat=beat)
    names = {shard.name for shard in data.of_split("train")}
    assert {name for name, _, _ in verified} >= names
    assert not [row for row in verified if row[0] in names and row[2]]
    assert len({name for name, step, _ in verified if step > 0}) >= 8
    for name, before in used:
        assert name in {shard for shard, _, _ in verified[:before]}


def test_a_shard_that_is_damaged_in_the_store_ends_a_run_in_its_window(
    data: Snapshot, config: PretrainConfig, tmp_path: Path
) -> None:
    steps: list[int] = []
    order = SampleOrder([shard.samples for shard in data.of_split("train")], seed=0, window_shards=2)
    number = order.window_shards(0, 3)[0]
    shards = [replace(s, sha256="0" * 64) if s is data.of_split("train")[number] else s for s in data.shards]
    damaged = replace(data, shards=tuple(shards))
    with pytest.raises(IgptError, match="checksum differs from the snapshot's"):
        train(config, damaged, str(tmp_path / "run"), Worker(), Recorder(), heartbeat=steps.append)
    assert 3 < len(steps) < 3 * 40 / 16, "windows of 40 images, steps of 16: none with an image of the fourth window"


def test_too_small_a_cache_is_refused_in_a_line(data: Snapshot, config: PretrainConfig, tmp_path: Path) -> None:
    with pytest.raises(IgptError, match=r"cache_bytes is 1,000: two windows of window_shards 2"):
        train(config.with_fields(cache_bytes=1000), data, str(tmp_path / "run"), Worker(), Recorder())
