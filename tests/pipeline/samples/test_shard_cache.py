"""The shard cache of a node: shared by its processes, bounded in size, and usable after a process was killed."""

import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from igpt_model.config import PretrainConfig
from igpt_model.runs.open_model import load_model
from igpt_model.training.loop import train
from igpt_model.worker import Worker
from pipeline.dataset.snapshot import Snapshot
from pipeline.errors import IgptError
from pipeline.samples.shard_cache import ShardCache, batches
from pipeline.store import objects
from tests.igpt_model.training.test_loop import Recorder

ROOT = Path(__file__).parents[3]
# Opens the shards of a snapshot in a separate process; each download is logged and delayed.
OPEN = """
import sys, time
from pipeline.samples.shard_cache import ShardCache
from pipeline.dataset import snapshot
from pipeline.store import objects as storage
dataset, folder, log, seconds = sys.argv[1:]
download = storage.download
def slow(url, local):
    with open(log, "a") as file:
        file.write(url + "\\n")
    local.write_bytes(b"half of it")
    time.sleep(float(seconds))
    download(url, local)
storage.download = slow
data = snapshot.read(dataset)
cache = ShardCache(data, folder)
print(sum(int(cache.open(shard).tokens_NHW.sum()) for shard in data.of_split("train")))
"""


def start(data: Snapshot, folder: Path, log: Path, seconds: float) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", OPEN, data.dataset, str(folder), str(log), str(seconds)]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)


def test_processes_fetch_each_shard_once(data: Snapshot, tmp_path: Path) -> None:
    children = [start(data, tmp_path / "cache", tmp_path / "log", 0.05) for _ in range(4)]
    sums = {child.communicate(timeout=120)[0] for child in children}
    assert len(sums) == 1 and int(sums.pop()) > 0
    fetched = (tmp_path / "log").read_text().splitlines()
    assert sorted(fetched) == sorted(objects.join(data.dataset, shard.path) for shard in data.of_split("train"))


def test_a_process_killed_in_a_download_blocks_nobody_and_leaves_no_shared_memory(
    data: Snapshot, tmp_path: Path
) -> None:
    shared_memory = set(Path("/dev/shm").iterdir()) if Path("/dev/shm").exists() else set()
    child = start(data, tmp_path / "cache", tmp_path / "log", 600)
    while not (tmp_path / "log").exists():
        assert child.poll() is None
        time.sleep(0.01)
    child.send_signal(signal.SIGKILL)
    child.communicate()
    cache = ShardCache(data, str(tmp_path / "cache"))
    assert sum(len(cache.open(shard).labels_N) for shard in data.of_split("train")) == data.samples("train")
    assert not list((tmp_path / "cache").rglob("*.partial"))
    if shared_memory:
        assert {path.name for path in set(Path("/dev/shm").iterdir()) - shared_memory if "igpt" in path.name} == set()


def bytes_in(folder: Path, *patterns: str) -> int:
    """Total bytes of the files in a folder, which other threads may remove or move meanwhile."""
    size = 0
    for path in (path for pattern in patterns or ["*.tar"] for path in folder.rglob(pattern)):
        with suppress(FileNotFoundError):
            size += path.stat().st_size
    return size


def test_it_stays_within_its_size_and_evicts_the_least_recently_used(data: Snapshot, tmp_path: Path) -> None:
    shards = data.of_split("train")
    size = max(shard.bytes for shard in shards)
    cache = ShardCache(data, str(tmp_path), limit_bytes=4 * size)
    first = cache.open(shards[0]).tokens_NHW
    before = first.copy()
    for shard in shards[1:]:
        cache.open(shard)
        cache.close(shard)
        assert bytes_in(tmp_path) <= 4 * size
    left = {path.stem for path in tmp_path.rglob("*.tar")}
    assert left == {shards[0].name, *(shard.name for shard in shards[-3:])}  # the first is in use
    cache.close(shards[0])
    ShardCache(data, str(tmp_path), limit_bytes=4 * size).open(shards[1])
    assert shards[0].name not in {path.stem for path in tmp_path.rglob("*.tar")}
    assert np.array_equal(first, before)  # images read before stay valid


def test_concurrent_fetches_stay_within_its_size(
    data: Snapshot, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shards = data.of_split("train")
    limit = 4 * max(shard.bytes for shard in shards)
    download, peak = objects.download, 0

    def slow(url: str, local: Path) -> None:
        nonlocal peak
        time.sleep(0.05)
        download(url, local)
        peak = max(peak, bytes_in(tmp_path, "*.tar", "*.partial"))

    monkeypatch.setattr(objects, "download", slow)
    caches = [ShardCache(data, str(tmp_path), limit_bytes=limit) for _ in range(2)]

    def fetch(number: int) -> None:
        caches[number % 2].open_ahead(shards[number], needed=False)
        caches[number % 2].close(shards[number])

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(fetch, range(len(shards))))
    assert limit / 2 < peak <= limit
    assert bytes_in(tmp_path) <= limit


def test_a_small_cache_changes_nothing(data: Snapshot, config: PretrainConfig, tmp_path: Path) -> None:
    small_limit = 4 * max(shard.bytes for shard in data.shards) + sum(s.bytes for s in data.of_split("validation"))
    weights = []
    for name, limit in (("small", small_limit), ("large", 10**9)):
        run = str(tmp_path / name)
        small = config.with_fields(cache=str(tmp_path / f"cache-{name}"), cache_bytes=limit)
        train(small, data, run, Worker(), Recorder())
        weights.append(load_model(run).model.state_dict())
        assert bytes_in(tmp_path / f"cache-{name}") <= limit
    assert all(torch.equal(value, weights[1][name]) for name, value in weights[0].items())


def test_a_damaged_shard_is_refused_and_a_damaged_cache_mended(data: Snapshot, tmp_path: Path) -> None:
    shard = data.of_split("train")[0]
    cache = ShardCache(data, str(tmp_path / "cache"))
    cache.open(shard)
    (cached,) = (tmp_path / "cache").rglob("*.tar")
    cached.write_bytes(bytes(shard.bytes))
    assert ShardCache(data, str(tmp_path / "cache")).open(shard).labels_N.max() > 0
    wrong = replace(shard, sha256="0" * 64)
    with pytest.raises(IgptError, match="checksum differs"):
        ShardCache(data, str(tmp_path / "other")).open(wrong)


def test_batches_cover_a_split_once_in_any_number_of_parts(data: Snapshot, tmp_path: Path) -> None:
    cache = ShardCache(data, str(tmp_path / "cache"))
    views = [cache.open(shard) for shard in data.of_split("train")]
    whole = np.concatenate([images.tokens_NT for images in batches(views, 1000)])
    for parts in (1, 2, 3, 7):
        part_images = [images for part in range(parts) for images in batches(views, 11, part=part, parts=parts)]
        assert np.array_equal(np.concatenate([images.tokens_NT for images in part_images]), whole)
