"""Token images of a snapshot, for training and readers: shards are cached on disk, verified and memory-mapped."""

import fcntl
import os
import time
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np

from pipeline.dataset import verified_shards
from pipeline.dataset.shards import ShardView
from pipeline.dataset.snapshot import ShardEntry, Snapshot
from pipeline.errors import IgptError
from pipeline.hashing import sha256
from pipeline.operating_system import own_cache
from pipeline.partition import part_of
from pipeline.samples.order import Samples

# Maximum time that a fetch waits for space. A shard that is needed immediately is then fetched anyway.
_SPACE_SECONDS = 10.0


@dataclass(frozen=True, kw_only=True)
class Images:
    """A batch of images: tokens uint16 [n, T] in raster order, and class numbers int64 [n], -1 for no class."""

    tokens_NT: np.ndarray
    labels_N: np.ndarray


@dataclass(frozen=True, kw_only=True)
class ShardImages:
    """The images of a shard: tokens uint16 [N, H, W], memory-mapped, and class numbers int64 [N], -1 for no class."""

    tokens_NHW: np.ndarray
    labels_N: np.ndarray
    view: ShardView
    """The shard in whole, which also has the keys."""
    shard: ShardEntry


class ShardCache:
    """A size-limited cache of a dataset's shards in a folder on this node, shared by its processes.

    A shard is verified against the snapshot's checksum when a process opens it; a damaged file is downloaded again
    once. A process holds a shared lock on each shard it has open, so no other process removes it; the lock ends with
    the process.

    {name}.lock is held by readers of a shard. {name}.fetching is held by the process that downloads it, and contains
    the number of bytes it has reserved; a dead process no longer holds the lock, so its reservation does not count.
    """

    def __init__(self, snapshot: Snapshot, folder: str | None = None, limit_bytes: int | None = None) -> None:
        self._root, self._limit_bytes = _root(folder), limit_bytes
        self._folder = self._root / _folder_of(snapshot.dataset)
        self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._snapshot = snapshot
        self._opened: dict[str, tuple[ShardImages, IO[bytes]]] = {}

    def open(self, shard: ShardEntry) -> ShardImages:
        """The shard's images. Raises IgptError when its bytes differ from the snapshot's."""
        view = self.open_ahead(shard, needed=True)
        assert view is not None
        return view

    def open_ahead(self, shard: ShardEntry, *, needed: bool) -> ShardImages | None:
        """The same; None when it is not `needed` yet and there is no space for it beside the shards in use.

        Different shards may be opened by several threads at once.
        """
        if shard.name not in self._opened:
            lock = (self._folder / f"{shard.name}.lock").open("ab")
            path = self._fetch(shard, lock, needed=needed)
            if path is None:
                lock.close()
                return None
            view = ShardView.open(path, samples=shard.samples, side=self._snapshot.resolution)
            # As plain arrays over the same memory: indexing a numpy.memmap takes five times as long.
            tokens_NHW, labels_N = np.asarray(view.tokens_NHW), np.asarray(view.labels_N)
            images = ShardImages(tokens_NHW=tokens_NHW, labels_N=labels_N, view=view, shard=shard)
            self._opened[shard.name] = images, lock
        return self._opened[shard.name][0]

    def close(self, shard: ShardEntry) -> None:
        """Release a shard, so that it can be evicted; images already read from it stay valid."""
        if shard.name in self._opened:
            _, lock = self._opened.pop(shard.name)
            lock.close()

    def _fetch(self, shard: ShardEntry, lock: IO[bytes], *, needed: bool) -> Path | None:
        """The verified file of a shard; takes `lock` as a reader.

        None: there is no space for it and it is not `needed` immediately.
        """
        path = self._folder / f"{shard.name}.tar"
        fcntl.flock(lock, fcntl.LOCK_SH)
        if not verified_shards.matches(path, shard):
            with (self._folder / f"{shard.name}.fetching").open("a+b") as fetching:
                fcntl.flock(fetching, fcntl.LOCK_EX)  # one process on the node downloads, the others wait
                if not verified_shards.matches(path, shard):
                    if not self._reserve(shard.bytes, fetching) and not needed:
                        return None
                    self._download(shard, path, fetching)
        os.utime(path)  # marks it as recently used
        return path

    def _download(self, shard: ShardEntry, path: Path, fetching: IO[bytes]) -> None:
        partial = path.with_suffix(".partial")
        verified_shards.download(self._snapshot, shard, partial)
        with self._lock_cache():
            partial.replace(path)
            fetching.truncate(0)  # from now on the file itself is counted

    @contextmanager
    def _lock_cache(self) -> Iterator[None]:
        """Lock the cache for adding and removing files."""
        with (self._root / "room.lock").open("ab") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    def _reserve(self, size: int, fetching: IO[bytes]) -> bool:
        """Reserve space for a file, waiting for other readers to close shards; False: there is no space."""
        if self._limit_bytes is None:
            return True
        fetching.truncate(0)  # a dead process may have left its reservation
        deadline = time.monotonic() + _SPACE_SECONDS
        while True:
            with self._lock_cache():
                fits = self._evict(self._limit_bytes - size)
                if fits or time.monotonic() > deadline:
                    fetching.write(str(size if fits else 0).encode())
                    fetching.flush()
                    return fits
            time.sleep(0.05)

    def _evict(self, target_bytes: int) -> bool:
        """Remove the least recently used shards of any dataset that no process has open.

        Stops when shards and reservations take at most `target_bytes`; False: they still take more.
        """
        files = sorted((path.stat().st_mtime, path.stat().st_size, path) for path in self._root.glob("*/*.tar"))
        used_bytes = sum(size for _, size, _ in files) + sum(map(_reserved, self._root.glob("*/*.fetching")))
        for _, size, path in files:
            if used_bytes <= target_bytes:
                break
            with path.with_suffix(".lock").open("ab") as lock, suppress(BlockingIOError):
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                path.unlink()
                used_bytes -= size
        return used_bytes <= target_bytes


def forget(dataset: str, kept: Collection[str], folders: Iterable[str | None] = (None,)) -> int:
    """Remove the shards of a dataset from caches on this node, but for those of some names; returns their number.

    `folders` are those of the caches, None for the default. A process that has a shard open keeps it until it ends.
    """
    removed = 0
    for folder in {_root(folder) / _folder_of(dataset) for folder in folders}:
        for path in (*folder.glob("*.tar"), *folder.glob("*.partial")):
            if path.stem not in kept:
                path.unlink(missing_ok=True)
                removed += 1
    return removed


def _root(folder: str | None) -> Path:
    root = Path(folder) if folder else own_cache()
    if root is None:
        raise IgptError("the temporary folder has an igpt-cache of another user; remove it, or set cache")
    return root


def _folder_of(dataset: str) -> str:
    return sha256(dataset.encode())[:16]


def _reserved(path: Path) -> int:
    """The bytes reserved by a `.fetching` file; 0 when its process is dead."""
    with path.open("rb") as fetching:
        try:
            fcntl.flock(fetching, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return int(fetching.read() or 0)
    return 0


def gather(shards: Sequence[ShardImages], samples: Samples) -> Images:
    """The images of samples, in order; the samples' shard numbers index `shards`."""
    side = shards[0].tokens_NHW.shape[1]
    tokens_NHW = np.empty((len(samples.rows), side, side), np.uint16)
    labels_N = np.empty(len(samples.rows), np.int64)
    for number in np.unique(samples.shards).tolist():
        positions = np.flatnonzero(samples.shards == number)
        rows, shard = samples.rows[positions], shards[number]
        tokens_NHW[positions], labels_N[positions] = shard.tokens_NHW[rows], shard.labels_N[rows]
    return Images(tokens_NT=tokens_NHW.reshape(len(tokens_NHW), side * side), labels_N=labels_N)


def batches(shards: Sequence[ShardImages], batch: int, *, part: int = 0, parts: int = 1) -> Iterator[Images]:
    """The images of a split in shard order, in batches of at most `batch`; only part `part` of `parts` equal parts."""
    chosen = part_of(sum(len(shard.tokens_NHW) for shard in shards), part, parts)
    first = 0
    for shard in shards:
        low, high = max(chosen.start - first, 0), min(chosen.stop - first, len(shard.tokens_NHW))
        for start in range(low, high, batch):
            rows = slice(start, min(start + batch, high))
            tokens_NHW = shard.tokens_NHW[rows]
            yield Images(tokens_NT=tokens_NHW.reshape(len(tokens_NHW), -1), labels_N=shard.labels_N[rows])
        first += len(shard.tokens_NHW)
