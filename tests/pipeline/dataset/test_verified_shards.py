"""A whole shard is what the manifest says, or an error in one line."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from pipeline.dataset import verified_shards
from pipeline.dataset.shards import ShardView, encode
from pipeline.dataset.snapshot import ShardEntry, Snapshot
from pipeline.errors import IgptError
from pipeline.hashing import sha256

TOKENS = np.arange(3 * 4 * 4).reshape(3, 4, 4)
DATA = encode(["0" * 20, "1" * 20, "2" * 20], TOKENS, np.array([1, -1, 0]))


@pytest.fixture
def data(tmp_path: Path) -> Snapshot:
    """A snapshot of one shard with three images."""
    entry = ShardEntry(
        name="train-000000-aa", split="train", samples=3, images=3, bytes=len(DATA), sha256=sha256(DATA), rejected={},
        quarantine=None, index_sha256="", quarantine_sha256=None,
    )  # fmt: skip
    (tmp_path / "shards").mkdir()
    (tmp_path / entry.path).write_bytes(DATA)
    return Snapshot(
        number=7, parent=None, resolution=4, classes=("a", "b"), palette_sha256="", colours=48, config={},
        source_digest="", shards=(entry,), dataset=str(tmp_path),
    )  # fmt: skip


def into_memory(data: Snapshot, folder: Path) -> ShardView:
    return verified_shards.read(data, data.shards[0])


def into_a_file(data: Snapshot, folder: Path) -> ShardView:
    path = folder / "fetched"
    try:
        verified_shards.download(data, data.shards[0], path)
    except IgptError:
        assert not path.exists()
        raise
    assert verified_shards.matches(path, data.shards[0])
    return ShardView.open(path, samples=3, side=4)


@pytest.mark.parametrize("read", [into_memory, into_a_file])
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda path: None, None),
        (lambda path: path.write_bytes(DATA[:-1]), "checksum differs from the snapshot's; rebuild"),
        (
            lambda path: path.write_bytes(DATA[:700] + b"!" + DATA[701:]),
            "checksum differs from the snapshot's; rebuild",
        ),
        (lambda path: path.unlink(), "the shard is gone, though snapshot 7 names it"),
    ],
    ids=["whole", "cut", "one byte", "gone"],
)
def test_a_shard_is_whole_or_refused(
    read: Callable[[Snapshot, Path], ShardView], change: Callable[[Path], None], message: str | None,
    data: Snapshot, tmp_path: Path,
) -> None:  # fmt: skip
    change(tmp_path / data.shards[0].path)
    if message is None:
        assert np.array_equal(read(data, tmp_path).tokens_NHW, TOKENS)
    else:
        with pytest.raises(IgptError, match=message):
            read(data, tmp_path)
