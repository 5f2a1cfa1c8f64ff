"""Scans of containers, kept in the dataset: a tar that is what it was is not read again to know what it holds."""

import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import pyarrow as pa

from pipeline.cluster import tasks as ray_cluster
from pipeline.dataset import snapshot
from pipeline.hashing import sha256
from pipeline.source import containers
from pipeline.store import bulk, objects
from pipeline.store.objects import StoredFile


def scan_name(file: StoredFile) -> str:
    """The name under which the scan of a container is kept; another one when the container changes."""
    identity = f"{containers.SCANNER}\0{file.url}\0{file.size}\0{file.etag}"
    return sha256(identity.encode())[:32]


def _scan(file: StoredFile) -> bytes:
    return containers.to_bytes(containers.scan(file))


class ScanCache:
    """Lists the members of containers: known ones from the dataset, the others by tasks, which it then keeps there."""

    def __init__(self, dataset: str, *, keep: bool, progress: Callable[[int, int], None]) -> None:
        """`keep` says whether new scans are written to the dataset; `progress` hears of containers done and in all."""
        self._dataset, self._keep, self._progress = dataset, keep, progress

    def __call__(self, files: Sequence[StoredFile]) -> Iterable[pa.Table]:
        """The members of each container, in the order of the containers."""
        if not files:
            return
        folder = objects.join(self._dataset, "scans")
        kept = bulk.sizes_below(folder)
        names = [scan_name(file) for file in files]
        urls = [objects.join(self._dataset, snapshot.scan_path(name)) for name in names]
        with tempfile.TemporaryDirectory(prefix="igpt-scans-") as local:
            paths = [Path(local) / name for name in names]
            missing = [number for number, url in enumerate(urls) if url not in kept]
            for number, data in self._scan_missing([files[number] for number in missing]):
                place = missing[number]
                paths[place].write_bytes(data)
                if self._keep:
                    objects.write_bytes(urls[place], data)
            for file, url, path in zip(files, urls, paths, strict=True):
                yield self._read(file, url, path)

    def _scan_missing(self, files: Sequence[StoredFile]) -> Iterator[tuple[int, bytes]]:
        if not files:
            return
        self._progress(0, len(files))
        tasks = ray_cluster.map_tasks(_scan, ((file,) for file in files))
        for done, (number, data) in enumerate(tasks, 1):
            yield number, data
            self._progress(done, len(files))

    def _read(self, file: StoredFile, url: str, path: Path) -> pa.Table:
        if path.exists():
            return containers.from_bytes(path.read_bytes())
        try:
            return containers.from_bytes(objects.read_bytes(url))
        except (ValueError, OSError):  # damaged, or removed meanwhile: the container itself knows
            return containers.scan(file)
