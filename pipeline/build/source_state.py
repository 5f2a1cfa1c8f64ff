"""What there is before a build: the source's images with their splits and classes, and the snapshot to go on from."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

import numpy as np

from pipeline.build import plan
from pipeline.config import DatasetConfig
from pipeline.dataset import snapshot
from pipeline.dataset.keys import source_digest
from pipeline.dataset.publish import heal_latest
from pipeline.dataset.snapshot import SPLITS, Snapshot
from pipeline.progress import Progress
from pipeline.source import list_source
from pipeline.source.duplicates import find_duplicates
from pipeline.source.listing import Listing, Rows
from pipeline.source.scan_cache import ScanCache, scan_name
from pipeline.store import objects


@dataclass(frozen=True, kw_only=True)
class Survey:
    """A source and the dataset that it goes into."""

    dataset: str
    parent: Snapshot | None
    listing: Listing
    rows: Rows
    """With class numbers as labels, and versions that are others for duplicates."""
    splits: np.ndarray  # int8 [N], an index into SPLITS
    duplicate_of: np.ndarray  # int64 [N], the row that is taken in the place of one; -1: none
    classes: tuple[str, ...]
    scans: tuple[str, ...]
    ignored_files: int
    unlabelled: int

    @property
    def source_digest(self) -> str:
        """Digest of what a snapshot of all this accounts for."""
        return source_digest(self.rows.keys, self.rows.versions, self.splits)

    def images(self, split: str) -> int:
        """Number of images in a split."""
        return int((self.splits == SPLITS.index(split)).sum())


@contextmanager
def survey(config: DatasetConfig, *, keep_scans: bool, progress: Progress) -> Iterator[Survey]:
    """List the source of a config and read the newest snapshot of its dataset. The listing goes with the block.

    Raises IgptError as list_source does.
    """
    dataset = objects.absolute(config.dataset)
    objects.check_reachable(dataset)
    heal_latest(dataset)
    latest = snapshot.latest_number(dataset)
    parent = None if latest is None else snapshot.read(dataset, latest)
    scans = ScanCache(
        dataset, keep=keep_scans, progress=lambda done, total: progress("scan", done, total, "containers")
    )
    with Listing() as listing:
        source = list_source.list_source(
            config, listing, scan=scans, progress=lambda count: progress("list", count, 0, "images")
        )
        splits = plan.assign_splits(listing.rows, config)
        classes = _classes(listing.label_names, parent)
        rows = _numbered(listing, classes)
        duplicate_of = np.full(len(rows), -1)
        if config.drop_duplicates:
            duplicate_of = find_duplicates(listing, rows, splits, parent, progress)
            versions = np.where(duplicate_of >= 0, rows.versions ^ plan.DUPLICATE, rows.versions)
            rows = replace(rows, versions=versions)
        yield Survey(
            dataset=dataset,
            parent=parent,
            listing=listing,
            rows=rows,
            splits=splits,
            duplicate_of=duplicate_of,
            classes=classes,
            scans=tuple(sorted(scan_name(file) for file in source.containers)),
            ignored_files=source.ignored_files,
            unlabelled=source.unlabelled,
        )


def _classes(names: tuple[str, ...], parent: Snapshot | None) -> tuple[str, ...]:
    """The classes in order: those of the parent first, whose numbers stand in its shards; new ones sorted."""
    before = () if parent is None else parent.classes
    new = set(names) - set(before)
    by_number = all(name.isdecimal() for name in new)
    return (*before, *sorted(new, key=lambda name: (int(name), name) if by_number else (0, name)))


def _numbered(listing: Listing, classes: tuple[str, ...]) -> Rows:
    rows = listing.rows
    numbers = {name: number for number, name in enumerate(classes)}
    number_of = np.array([*(numbers[name] for name in listing.label_names), -1], np.int32)
    return replace(rows, labels=number_of[rows.labels])  # -1 is the last entry
