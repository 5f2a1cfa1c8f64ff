"""Remove files that no snapshot names: left behind by builds that were interrupted, refused, or overtaken."""

import time
from dataclasses import dataclass

from pipeline.dataset import record, snapshot
from pipeline.errors import IgptError
from pipeline.store import objects, presence
from pipeline.store.objects import StoredFile

# Folders of a dataset; other files in its folder belong to somebody else.
_FOLDERS = ("shards", "index", "quarantine", "palettes", "counts", "records", "scans", "seen", "active")
_CLAIM_SUFFIX = ".claims/"


@dataclass(frozen=True, kw_only=True)
class Collected:
    """The files that were removed, or would be without `dry_run`."""

    files: list[str]
    """Relative to the dataset, sorted."""
    bytes: int
    snapshots: int
    """Number of snapshots, whose files were kept."""
    too_young: int
    """Number of files that no snapshot names, but that were kept because of their age."""


def collect(dataset: str, *, min_age_seconds: float, dry_run: bool = False) -> Collected:
    """Remove the files of a dataset that no snapshot names and that are older than `min_age_seconds`.

    Raises IgptError, and removes nothing, while a build is running: it may be about to reuse files of an earlier build.
    """
    dataset = objects.absolute(dataset)
    objects.check_reachable(dataset)
    if snapshot.latest_number(dataset) is None and not snapshot.numbers(dataset):
        raise IgptError(f"{dataset}: no dataset snapshot there; nothing was removed")
    if dry_run:
        return _collect(dataset, min_age_seconds, remove=False)
    with presence.collecting(dataset) as own_record:
        return _collect(dataset, min_age_seconds, remove=True, own_record=own_record)


def _collect(dataset: str, min_age_seconds: float, *, remove: bool, own_record: str = "") -> Collected:
    numbers = snapshot.numbers(dataset)
    named: set[str] = set()
    for number in numbers:
        manifest = snapshot.read(dataset, number)
        beside = record.read(manifest)
        named.update((*manifest.paths, record.path_of(number), *(() if beside is None else beside.paths)))
    now = time.time()
    unnamed: list[tuple[str, StoredFile]] = []
    young = 0
    for file in objects.list_files(dataset):
        path = file.url[len(dataset) :].lstrip("/")
        if path in named or file.url == own_record or not _belongs_to_dataset(path):
            continue
        if now - file.modified < min_age_seconds:
            young += 1
        else:
            unnamed.append((path, file))
    if remove:
        # Indexes first: a shard counts as finished only if it has an index.
        for _, file in sorted(unnamed, key=lambda entry: not entry[0].startswith("index/")):
            objects.delete(file.url)
    return Collected(
        files=sorted(path for path, _ in unnamed),
        bytes=sum(file.size for _, file in unnamed),
        snapshots=len(numbers),
        too_young=young,
    )


def _belongs_to_dataset(path: str) -> bool:
    return path.split("/")[0] in _FOLDERS or (path.startswith("snapshots/") and _CLAIM_SUFFIX in path)
