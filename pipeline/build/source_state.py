"""The state before a build: the images of the source with their splits and classes, and the parent snapshot."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from pipeline.build import plan
from pipeline.config import DatasetConfig
from pipeline.dataset import erasures, index, record, seen, snapshot
from pipeline.dataset.decoding import Rule
from pipeline.dataset.erasures import Tombstone, Tombstones
from pipeline.dataset.keys import DUPLICATE, Keys, ParentRows, match, source_digest
from pipeline.dataset.publish import repair_latest
from pipeline.dataset.record import Publisher, Record
from pipeline.dataset.seen import Seen
from pipeline.dataset.snapshot import SPLITS, Snapshot
from pipeline.progress import Progress
from pipeline.source import list_source
from pipeline.source.duplicates import find_duplicates
from pipeline.source.listing import Listing, Rows
from pipeline.source.members import ScanOptions
from pipeline.source.raw_reads import SourceChangedError
from pipeline.source.recognize import recognize
from pipeline.source.scan_cache import ScanCache
from pipeline.store import objects
from pipeline.store.lease import Fence


@dataclass(frozen=True, kw_only=True)
class SourceState:
    """A source, and the dataset that is built from it."""

    dataset: str
    parent: Snapshot | None
    record: Record | None
    """The record of the parent, with the address of the raw images as it was."""
    former_root: str | None
    """Where the raw images of a parent without a record were, if they were elsewhere."""
    raw_root: str
    listing: Listing
    rows: Rows
    """With class numbers as labels, the parent's versions of unchanged images, and marked versions of duplicates."""
    splits: np.ndarray  # int8 [N], positions in SPLITS
    duplicate_of: np.ndarray  # int64 [N], the row that is kept instead; -1: the image is kept itself
    classes: tuple[str, ...]
    scans: tuple[str, ...]
    left_out: dict[str, int]
    unlabelled: int
    unmatched_labels: int
    problem: str | None
    """What cannot be read of the source."""
    kept_types: dict[str, str]
    tombstones: Tombstones
    """What was erased from the dataset: the listing leaves it out, as far as keys and containers tell."""
    rows_read: ParentRows | None
    """The images of the parent, if they were read already."""

    @cached_property
    def source_digest(self) -> str:
        """Digest of the images that a snapshot of this source contains."""
        return source_digest(self.rows.keys, self.rows.versions, self.splits)

    def source_digest_without(self, keys: Sequence[str]) -> str:
        """The digest without some images, which turned out to be copies of erased ones."""
        if not keys:
            return self.source_digest
        gone = match(Keys.of(keys), self.rows.keys)
        kept = np.setdiff1d(np.arange(len(self.rows)), gone)
        return source_digest(self.rows.keys.take(kept), self.rows.versions[kept], self.splits[kept])

    def check_erasures(self) -> None:
        """Raise SourceChangedError when images were erased since the source was listed."""
        if erasures.names(self.dataset) != self.tombstones.files:
            raise SourceChangedError(f"{self.dataset}: images were erased meanwhile; run this again")

    def keep_out(self, keys: Sequence[str], fence: Fence | None) -> None:
        """Note which files turned out to be copies of erased images, so that none is read again while it stays."""
        if keys:
            if fence is not None:
                fence.check()
            versions = self.listing.rows.versions[match(Keys.of(keys), self.rows.keys)].tolist()
            copies = [erasures.hash_of_copy(key, version) for key, version in zip(keys, versions, strict=True)]
            number = erasures.begin(self.dataset, [Tombstone(key=copy) for copy in copies])
            found = {"images": len(keys), "by": "a build, which found the bytes of erased images under other names"}
            nothing: dict[str, object] = {"snapshots": [], "shards": []}
            about = {"schema": 1, "number": number, "dataset": self.dataset, "ended_at": record.now()}
            erasures.end(self.dataset, number, {**about, **found, **nothing})

    @cached_property
    def parent_rows(self) -> ParentRows:
        """The images of the parent."""
        assert self.parent is not None
        return index.parent_rows(self.parent) if self.rows_read is None else self.rows_read

    def next_record(self, publisher: Publisher | None, *, refused_by: Rule) -> Record:
        """The record of the snapshot that is made of this state; without a publisher, that of the parent as it is now.

        `write_seen` writes the table that it names.
        """
        table = self._seen_table
        former = () if self.former_root is None else (self.former_root,)
        known = Record(raw_root=self.raw_root, former_roots=former, refused_by=refused_by)
        if self.record is not None:
            known = self.record.moved_to(self.raw_root)
        if publisher is not None:
            known = known.published(publisher)
        seen_name = None if table is None else table[0]
        return replace(known, refused_by=refused_by, scans=self.scans, seen=seen_name)

    @cached_property
    def _seen_table(self) -> tuple[str, bytes] | None:
        versions = np.where(self.duplicate_of >= 0, self.rows.versions ^ DUPLICATE, self.rows.versions)
        return seen.encode(Seen.between(self.rows.keys, self.listing.rows.versions, versions))

    def write_seen(self) -> None:
        """Write the table of images that were read again and are the same, unless the parent's record names it."""
        table = self._seen_table
        if table is not None and (self.record is None or self.record.seen != table[0]):
            objects.write_bytes(objects.join(self.dataset, seen.path_of(table[0])), table[1])

    @property
    def moved_from(self) -> str | None:
        """Where the raw images were for the parent, if that was elsewhere."""
        if self.record is None:
            return self.former_root
        return None if self.record.raw_root == self.raw_root else self.record.raw_root

    def images(self, split: str) -> int:
        """Number of images in a split."""
        return int((self.splits == SPLITS.index(split)).sum())

    def anew(self) -> "SourceState":
        """The state for a build that makes everything anew: only classes that have images, versions as listed."""
        classes = _classes(self.listing.label_names, None)
        rows = _with_class_numbers(self.listing, classes)
        versions = np.where(self.duplicate_of >= 0, rows.versions ^ DUPLICATE, rows.versions)
        return replace(self, rows=replace(rows, versions=versions), classes=classes)


@contextmanager
def read_source_state(
    config: DatasetConfig, *, keep_scans: bool, progress: Progress, verify_bytes: bool = False
) -> Iterator[SourceState]:
    """List the source of a config and read the newest snapshot of its dataset. The listing exists within the block.

    With `verify_bytes`, all images are read and compared with the snapshot. Raises IgptError as list_source does.
    """
    dataset = objects.absolute(config.dataset)
    objects.check_reachable(dataset)
    repair_latest(dataset)
    latest = snapshot.latest_number(dataset)
    parent = None if latest is None else snapshot.read(dataset, latest)
    known = None if parent is None else record.read(parent)
    root = record.root_of(config.raw)
    scans = ScanCache(dataset, root, ScanOptions.of(config), keep=keep_scans, fresh=verify_bytes, progress=progress)
    tombstones = erasures.read(dataset)
    with Listing(tombstones) as listing:
        source = list_source.list_source(config, listing, scan=scans, progress=progress)
        splits = plan.assign_splits(listing.rows, config)
        classes = _classes(listing.label_names, parent)
        rows = _with_class_numbers(listing, classes)
        before = None
        if parent is not None:
            if known is not None:
                rows = replace(rows, versions=seen.read(dataset, known.seen).apply(rows.keys, rows.versions))
            # The common night: nothing is new, and no index has to be read to know it.
            if verify_bytes or source_digest(rows.keys, rows.versions, splits) != parent.source_digest:
                before = index.parent_rows(parent)
                versions = recognize(
                    listing,
                    rows,
                    parent,
                    before,
                    verify_bytes=verify_bytes,
                    accept_earlier_tags=known is None,
                    progress=progress,
                )
                rows = replace(rows, versions=versions)
        duplicate_of = np.full(len(rows), -1)
        if config.drop_duplicates:
            duplicate_of = find_duplicates(listing, rows, splits, parent, progress, tombstones)
            versions = np.where(duplicate_of >= 0, rows.versions ^ DUPLICATE, rows.versions)
            rows = replace(rows, versions=versions)
        yield SourceState(
            dataset=dataset,
            parent=parent,
            record=known,
            former_root=None if parent is None or known is not None else _former_root(parent, listing, root),
            raw_root=root,
            listing=listing,
            rows=rows,
            splits=splits,
            duplicate_of=duplicate_of,
            classes=classes,
            scans=scans.names,
            left_out=source.left_out,
            unlabelled=source.unlabelled,
            unmatched_labels=source.unmatched_labels,
            problem=source.problem,
            kept_types=source.kept_types,
            tombstones=tombstones,
            rows_read=before,
        )


def _former_root(parent: Snapshot, listing: Listing, root: str) -> str | None:
    """Where the raw images were when a parent without a record was built, if that was elsewhere.

    It is seen from an image that is still there: the end of its old address is its address below the root.
    """
    shard = next((shard for shard in parent.shards if shard.images), None)
    if shard is None:
        return None
    table = index.read(parent.dataset, shard.index_path, ("key", "url"))
    keys = Keys.of(table["key"].to_pylist())
    rows = match(keys, listing.rows.keys)
    there = np.flatnonzero(rows >= 0)[:1]
    if not len(there):
        return None
    old = table["url"][int(there[0])].as_py()
    below = record.relative_address(root, listing.take(rows[there])["url"][0].as_py())
    former = old if not below else old.removesuffix(f"/{below}")
    return None if former == root or (below and former == old) else former


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
