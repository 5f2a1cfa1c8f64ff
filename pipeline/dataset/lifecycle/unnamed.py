"""The files of a dataset that no snapshot names."""

from collections.abc import Iterator

from pipeline.dataset import record, snapshot
from pipeline.store import objects
from pipeline.store.objects import StoredFile

# Folders of a dataset; other files in its folder belong to somebody else.
_FOLDERS = ("shards", "index", "quarantine", "palettes", "counts", "records", "scans", "seen", "active")
_CLAIM_SUFFIX = ".claims/"


def unnamed_files(dataset: str) -> Iterator[tuple[str, StoredFile]]:
    """The files that no snapshot of a dataset names, with their paths relative to it."""
    named: set[str] = set()
    for number in snapshot.numbers(dataset):
        manifest = snapshot.read(dataset, number)
        beside = record.read(manifest)
        named.update((*manifest.paths, record.path_of(number), *(() if beside is None else beside.paths)))
    for file in objects.list_files(dataset):
        path = file.url[len(dataset) :].lstrip("/")
        if path not in named and _belongs_to_dataset(path):
            yield path, file


def _belongs_to_dataset(path: str) -> bool:
    return path.split("/")[0] in _FOLDERS or (path.startswith("snapshots/") and _CLAIM_SUFFIX in path)
