"""Counts of shards: the same by tasks as in the manifest, kept once, and in bounds for any number of shards."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from igpt_model.model.losses import baselines
from pipeline.dataset import count_shards, measured, pixel_counts, shards
from pipeline.dataset.snapshot import ShardEntry, Snapshot, snapshot_path
from pipeline.errors import IgptError
from pipeline.hashing import sha256
from tests.conftest import run_here

SIDE, COLOURS, IMAGES = 8, 16, 25


def linked_snapshot(dataset: Path, **shards_of: int) -> Snapshot:
    """A snapshot of schema 2, on disk, with this many shards of each split: links to one tar for each split."""
    (dataset / "shards").mkdir(parents=True)
    entries = []
    for seed, (split, number) in enumerate(shards_of.items()):
        # Split by split other shares of the colours, so that the baselines differ.
        draw = np.random.default_rng(seed)
        tokens = draw.binomial(COLOURS - 1, 0.3 + 0.1 * seed, (IMAGES, SIDE, SIDE)).astype(np.uint16)
        content = shards.encode([f"{image:020d}" for image in range(IMAGES)], tokens, np.arange(IMAGES) % 3)
        first = dataset / f"{split}.tar"
        first.write_bytes(content)
        entry = ShardEntry(
            name="", split=split, samples=IMAGES, images=IMAGES, bytes=len(content), sha256=sha256(content),
            rejected={}, quarantine=None, index_sha256="", quarantine_sha256=None,
        )  # fmt: skip
        for index in range(number):
            entries.append(replace(entry, name=f"{split}-{index:06d}-{entry.sha256[:12]}"))
            os.link(first, dataset / entries[-1].path)
    data = Snapshot(
        number=1, parent=None, resolution=SIDE, classes=("a", "b", "c"), palette_sha256="0" * 64, colours=COLOURS,
        config={}, source_digest="", shards=tuple(entries), schema=2, dataset=str(dataset),
    )  # fmt: skip
    manifest = dataset / snapshot_path(1)
    manifest.parent.mkdir()
    manifest.write_bytes(data.to_bytes())
    (dataset / "LATEST").write_text("1")
    return data


def counts_by_hand(data: Snapshot, split: str) -> np.ndarray:
    """The counts of the one tar of a split, as often as it has shards."""
    (first, *_) = linked = data.of_split(split)
    content = np.frombuffer((Path(data.dataset) / first.path).read_bytes(), np.uint8)
    view = shards.ShardView(content, samples=IMAGES, side=SIDE, name=first.name)
    return pixel_counts.count(view.tokens_NHW, COLOURS) * len(linked)


class Runs:
    """Runs tasks here, and counts them."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, function: Any, calls: Any, **options: Any) -> Iterator[tuple[int, Any]]:
        for number, result in run_here(function, calls, **options):
            self.calls += 1
            yield number, result


def test_a_snapshot_without_counts_is_counted_once(tmp_path: Path) -> None:
    data = linked_snapshot(tmp_path / "dataset", train=70, validation=3)
    runs, told = Runs(), []
    for _ in range(2):
        for split in ("train", "validation"):
            counts_TK = count_shards.of_split(data, split, lambda *step: told.append(step), runs)
            assert np.array_equal(counts_TK, counts_by_hand(data, split))
    assert runs.calls == 70 + 3
    assert told[70] == ("count", 70, 70, "shards")
    # What was kept and does not count every sample once is counted anew.
    measured.keep(data, "pixel-counts-validation.npy", pixel_counts.to_bytes(counts_TK + 1))
    assert np.array_equal(count_shards.of_split(data, "validation", run=runs), counts_TK)
    measured.keep(data, "pixel-counts-validation.npy", b"no array")
    assert np.array_equal(count_shards.of_split(data, "validation", run=runs), counts_TK)
    assert runs.calls == 70 + 3 * 3


def test_counts_of_the_manifest_are_taken_and_a_lost_file_is_counted(tmp_path: Path) -> None:
    data = linked_snapshot(tmp_path / "dataset", train=2, validation=1)
    name = pixel_counts.write(data.dataset, counts_by_hand(data, "train"))
    data, runs = replace(data, pixel_counts={"train": name}), Runs()
    assert np.array_equal(count_shards.of_split(data, "train", run=runs), counts_by_hand(data, "train"))
    assert runs.calls == 0
    (Path(data.dataset) / pixel_counts.path_of(name)).unlink()
    assert np.array_equal(count_shards.of_split(data, "train", run=runs), counts_by_hand(data, "train"))
    assert runs.calls == 2


def test_a_damaged_shard_is_no_count(tmp_path: Path) -> None:
    data = linked_snapshot(tmp_path / "dataset", train=2, validation=1)
    path = Path(data.dataset) / data.shards[0].path
    path.write_bytes(path.read_bytes()[:-1] + b"\1")
    with pytest.raises(IgptError, match="igpt dataset verify"):
        count_shards.of_split(data, "train", run=Runs())
    assert measured.read(data, "pixel-counts-train.npy") is None
    with pytest.raises(IgptError, match="no images in split 'test'"):
        count_shards.of_split(data, "test", run=Runs())


LIMITED_DRIVER = """
import dataclasses, json, resource, sys
import ray
from igpt_model.model.losses import baselines
from pipeline.dataset import count_shards, snapshot

resource.setrlimit(resource.RLIMIT_NOFILE, (256, 256))
ray.init(address=sys.argv[2], log_to_driver=False)
size = next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmSize"))
limit = size * 1024 + int(sys.argv[3])
resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
data = snapshot.read(sys.argv[1])
levels = baselines(*(count_shards.of_split(data, split) for split in ("train", "validation")))
print(json.dumps(dataclasses.asdict(levels)))
"""


@pytest.mark.usefixtures("own_ray")
def test_the_driver_needs_few_files_and_little_memory_for_5000_shards(tmp_path: Path) -> None:
    import ray

    data = linked_snapshot(tmp_path / "dataset", train=4_900, validation=100)
    room = 192 << 20
    assert sum(shard.bytes for shard in data.shards) > room
    address = ray.get_runtime_context().gcs_address
    done = subprocess.run(
        [sys.executable, "-c", LIMITED_DRIVER, data.dataset, address, str(room)],
        capture_output=True, text=True, check=False, timeout=300,
        env={**os.environ, "MALLOC_ARENA_MAX": "2"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    expected = baselines(counts_by_hand(data, "train"), counts_by_hand(data, "validation"))
    assert json.loads(done.stdout.splitlines()[-1]) == asdict(expected)
    assert measured.read(data, "pixel-counts-train.npy") is not None
