"""The state before a build: the images of the source with their splits and classes, and the parent snapshot."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

import numpy as np

from pipeline.build import plan
from pipeline.config import DatasetConfig
from pipeline.dataset import snapshot
from pipeline.dataset.keys import source_digest
from pipeline.dataset.publish import repair_latest
from pipeline.dataset.snapshot import SPLITS, Snapshot
from pipeline.progress import Progress
from pipeline.source import list_source
from pipeline.source.duplicates import find_duplicates
from pipeline.source.listing import Listing, Rows
from pipeline.source.scan_cache import ScanCache, scan_name
from pipeline.store import objects


@dataclass(frozen=True, kw_only=True)
class SourceState:
    """A source, and the dataset that is built from it."""

    dataset: str
    parent: Snapshot | None
    listing: Listing
    rows: Rows
    """With class numbers as labels, and with the versions of duplicates changed."""
    splits: np.ndarray  # int8 [N], positions in SPLITS
    duplicate_of: np.ndarray  # int64 [N], the row that is kept instead; -1: the image is kept itself
    classes: tuple[str, ...]
    scans: tuple[str, ...]
    left_out: dict[str, int]
    unlabelled: int

    @property
    def source_digest(self) -> str:
        """Digest of the images that a snapshot of this source contains."""
        return source_digest(self.rows.keys, self.rows.versions, self.splits)

    def images(self, split: str) -> int:
        """Number of images in a split."""
        return int((self.splits == SPLITS.index(split)).sum())


@contextmanager
def read_source_state(config: DatasetConfig, *, keep_scans: bool, progress: Progress) -> Iterator[SourceState]:
    """List the source of a config and read the newest snapshot of its dataset. The listing exists within the block.

    Raises IgptError as list_source does.
    """
    dataset = objects.absolute(config.dataset)
    objects.check_reachable(dataset)
    repair_latest(dataset)
    latest = snapshot.latest_number(dataset)
    parent = None if latest is None else snapshot.read(dataset, latest)
    scans = ScanCache(dataset, keep=keep_scans, progress=progress)
    with Listing() as listing:
        source = list_source.list_source(config, listing, scan=scans, progress=progress)
        splits = plan.assign_splits(listing.rows, config)
        classes = _classes(listing.label_names, parent)
        rows = _with_class_numbers(listing, classes)
        duplicate_of = np.full(len(rows), -1)
        if config.drop_duplicates:
            duplicate_of = find_duplicates(listing, rows, splits, parent, progress)
            versions = np.where(duplicate_of >= 0, rows.versions ^ plan.DUPLICATE, rows.versions)
            rows = replace(rows, versions=versions)
        yield SourceState(
            dataset=dataset,
            parent=parent,
            listing=listing,
            rows=rows,
            splits=splits,
            duplicate_of=duplicate_of,
            classes=classes,
            scans=tuple(sorted(scan_name(file) for file in source.containers)),
            left_out=source.left_out,
            unlabelled=source.unlabelled,
        )


def _classes(names: tuple[str, ...], parent: Snapshot | None) -> tuple[str, ...]:
    """The classes by number: those of the parent keep their numbers, which its shards contain; new ones are sorted."""
    old = () if parent is None else parent.classes
    new = set(names) - set(old)
    by_number = all(name.isdecimal() for name in new)
    return (*old, *sorted(new, key=lambda name: (int(name), name) if by_number else (0, name)))


def _with_class_numbers(listing: Listing, classes: tuple[str, ...]) -> Rows:
    rows = listing.rows
    numbers = {name: number for number, name in enumerate(classes)}
    number_of = np.array([*(numbers[name] for name in listing.label_names), -1], np.int32)
    return replace(rows, labels=number_of[rows.labels])  # -1 is the last entry
