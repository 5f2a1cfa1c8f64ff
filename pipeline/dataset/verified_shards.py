"""Whole shards from the store, compared with the snapshot's checksums: into memory, or into a file."""

from pathlib import Path

import numpy as np

from pipeline.dataset import erasures
from pipeline.dataset.shards import ShardView
from pipeline.dataset.snapshot import ShardEntry, Snapshot
from pipeline.errors import IgptError
from pipeline.hashing import sha256, sha256_of_file
from pipeline.store import objects


def read(snapshot: Snapshot, shard: ShardEntry) -> ShardView:
    """A shard in memory. Raises IgptError when it is gone or its bytes differ from the snapshot's."""
    url = objects.join(snapshot.dataset, shard.path)
    try:
        data = objects.read_bytes(url)
    except FileNotFoundError:
        raise _gone(snapshot, url) from None
    if len(data) != shard.bytes or sha256(data) != shard.sha256:
        raise _differs(url)
    return ShardView(np.frombuffer(data, np.uint8), samples=shard.samples, side=snapshot.resolution, name=url)


def download(snapshot: Snapshot, shard: ShardEntry, path: Path) -> None:
    """Fetch a shard into a file. Raises IgptError, without leaving the file, as `read` does."""
    url = objects.join(snapshot.dataset, shard.path)
    try:
        objects.download(url, path)
    except FileNotFoundError:
        raise _gone(snapshot, url) from None
    if not matches(path, shard):
        path.unlink()
        raise _differs(url)


def matches(path: Path, shard: ShardEntry) -> bool:
    """Whether a file exists and has the bytes of a shard."""
    try:
        return path.stat().st_size == shard.bytes and sha256_of_file(path) == shard.sha256
    except FileNotFoundError:
        return False


def _gone(snapshot: Snapshot, url: str) -> IgptError:
    name = objects.name_of(url).removesuffix(".tar")
    why = erasures.why_gone(snapshot.dataset, lambda fields: name in {shard["name"] for shard in fields["shards"]})
    if why is not None:
        return IgptError(f"{url}: the shard is gone: {why}; read the snapshot again, a training has to begin anew")
    return IgptError(f"{url}: the shard is gone, though snapshot {snapshot.number} names it; rebuild the dataset")


def _differs(url: str) -> IgptError:
    return IgptError(f"{url}: the shard's checksum differs from the snapshot's; rebuild the dataset")
