"""Removing what no snapshot names: left behind by builds that were interrupted, refused, or overtaken."""

import time
from dataclasses import dataclass

from pipeline.dataset import snapshot
from pipeline.errors import IgptError
from pipeline.store import objects, presence
from pipeline.store.objects import StoredFile

# What a dataset consists of; anything else in its folder is somebody's own.
_FOLDERS = ("shards", "index", "quarantine", "palettes", "scans", "active")
_CLAIM_SUFFIX = ".claims/"


@dataclass(frozen=True, kw_only=True)
class Collected:
    """What was removed, or, in a dry run, what would be."""

    files: list[str]
    """Relative to the dataset, sorted."""
    bytes: int
    snapshots: int
    """Snapshots whose files were kept."""
    too_young: int
    """Files that no snapshot names and that were kept for their age."""


def collect(dataset: str, *, min_age_seconds: float, dry_run: bool = False) -> Collected:
    """Remove the files of a dataset that no snapshot names and that are older than `min_age_seconds`.

    Raises IgptError, and removes nothing, while a build is running: it may be about to name what another left behind.
    """
    dataset = objects.absolute(dataset)
    objects.check_reachable(dataset)
    if snapshot.latest_number(dataset) is None and not snapshot.numbers(dataset):
        raise IgptError(f"{dataset}: no dataset snapshot there; nothing was removed")
    if dry_run:
        return _collect(dataset, min_age_seconds, remove=False)
    with presence.collecting(dataset) as mark:
        return _collect(dataset, min_age_seconds, remove=True, mark=mark)


def _collect(dataset: str, min_age_seconds: float, *, remove: bool, mark: str = "") -> Collected:
    numbers = snapshot.numbers(dataset)
    named = {path for number in numbers for path in snapshot.read(dataset, number).paths}
    now = time.time()
    found: list[tuple[str, StoredFile]] = []
    young = 0
    for file in objects.list_files(dataset):
        path = file.url[len(dataset) :].lstrip("/")
        if path in named or file.url == mark or not _is_ours(path):
            continue
        if now - file.modified < min_age_seconds:
            young += 1
        else:
            found.append((path, file))
    if remove:
        # An index before its shard: a shard without index is not taken for finished.
        for _, file in sorted(found, key=lambda each: not each[0].startswith("index/")):
            objects.delete(file.url)
    return Collected(
        files=sorted(path for path, _ in found),
        bytes=sum(file.size for _, file in found),
        snapshots=len(numbers),
        too_young=young,
    )


def _is_ours(path: str) -> bool:
    return path.split("/")[0] in _FOLDERS or (path.startswith("snapshots/") and _CLAIM_SUFFIX in path)
