"""Scans of containers, kept in the dataset, so that unchanged containers are not rescanned."""

import tempfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import pyarrow as pa

from pipeline.cluster import tasks
from pipeline.dataset import snapshot
from pipeline.dataset.record import relative_address
from pipeline.hashing import sha256
from pipeline.progress import Progress
from pipeline.source import containers
from pipeline.source.members import ScanOptions
from pipeline.store import bulk, objects
from pipeline.store.objects import StoredFile


def _name(file: StoredFile, root: str, options: ScanOptions) -> str:
    """The name of the scan of a container. It changes with the container, and not when the raw images move."""
    content = f"{containers.SCAN_VERSION}\0{relative_address(root, file.url)}\0{file.size}\0{file.etag}"
    return sha256(f"{content}\0{options!r}".encode())[:32]


def _scan(file: StoredFile, options: ScanOptions) -> bytes:
    return containers.to_bytes(containers.scan(file, options))


class ScanCache:
    """A Scanner that reads kept scans from the dataset, and scans other containers in tasks."""

    def __init__(
        self, dataset: str, root: str, options: ScanOptions, *, keep: bool, fresh: bool, progress: Progress
    ) -> None:
        """`root`: that of the raw images; `keep`: whether new scans are written to the dataset; `fresh`: scan all."""
        self._dataset, self._root, self._options = dataset, root, options
        self._keep, self._fresh, self._progress = keep, fresh, progress
        self.names: tuple[str, ...] = ()
        """The names of the scans in the dataset, sorted."""

    def __call__(self, files: Sequence[StoredFile]) -> Iterable[pa.Table]:
        """The members of each container, in the order of the containers."""
        if not files:
            return
        folder = objects.join(self._dataset, "scans")
        kept = {} if self._fresh else bulk.sizes_below(folder)

        def url_of(name: str) -> str:
            return objects.join(self._dataset, snapshot.scan_path(name))

        names = [_name(file, self._root, self._options) for file in files]
        self.names = tuple(sorted(names))
        urls = [url_of(name) for name in names]
        with tempfile.TemporaryDirectory(prefix="igpt-scans-") as local:
            paths = [Path(local) / name for name in names]
            missing = [number for number, url in enumerate(urls) if url not in kept]
            for i, data in self._scan_in_tasks([files[number] for number in missing]):
                number = missing[i]
                paths[number].write_bytes(data)
                if self._keep:
                    objects.write_bytes(urls[number], data)
            for file, url, path in zip(files, urls, paths, strict=True):
                yield self._read(file, url, path)

    def _scan_in_tasks(self, files: Sequence[StoredFile]) -> Iterator[tuple[int, bytes]]:
        if not files:
            return
        self._progress("scan", 0, len(files), "containers")
        results = tasks.map_tasks(_scan, ((file, self._options) for file in files))
        for done, (number, data) in enumerate(results, 1):
            yield number, data
            self._progress("scan", done, len(files), "containers")

    def _read(self, file: StoredFile, url: str, path: Path) -> pa.Table:
        if path.exists():
            return containers.from_bytes(path.read_bytes())
        try:
            return containers.from_bytes(objects.read_bytes(url))
        except (ValueError, OSError):  # the scan is damaged, or was removed meanwhile
            return containers.scan(file, self._options)
