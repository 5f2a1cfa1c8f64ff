"""Remove files that no snapshot names: left behind by builds that were interrupted, refused, or overtaken."""

import time
from dataclasses import dataclass

from pipeline.dataset import snapshot
from pipeline.dataset.lifecycle.unnamed import unnamed_files
from pipeline.errors import IgptError
from pipeline.store import objects, presence
from pipeline.store.objects import StoredFile


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
    now = time.time()
    unnamed: list[tuple[str, StoredFile]] = []
    young = 0
    for path, file in unnamed_files(dataset):
        if file.url == own_record:
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
        snapshots=len(snapshot.numbers(dataset)),
        too_young=young,
    )
