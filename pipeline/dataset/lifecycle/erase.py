"""Erase images from every snapshot of a dataset: the one exception to "snapshots are immutable".

An erasure goes on where it ended, whatever step it died in: (1) tombstones, from which on builds keep the images out;
(2) new shards without them; (3) the plan: which digests and shards go; (4) each manifest in place of the old one, after
its record; (5) the files that no snapshot names any more; (6) what the caller removes outside; (7) the receipt.
"""

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pyarrow as pa

from pipeline.cluster import tasks
from pipeline.dataset import erasures, index, measured, pixel_counts, record, seen, snapshot
from pipeline.dataset.erasures import Tombstone, Tombstones
from pipeline.dataset.keys import source_digest
from pipeline.dataset.lifecycle.assemble import Assembled, Assembly, assemble
from pipeline.dataset.lifecycle.unnamed import unnamed_files
from pipeline.dataset.publish import repair_latest
from pipeline.dataset.record import Publisher, Record
from pipeline.dataset.shards import KEY_LENGTH
from pipeline.dataset.snapshot import SCHEMA, SPLITS, ShardEntry, Snapshot, sort_shards
from pipeline.errors import IgptError
from pipeline.hashing import digest
from pipeline.progress import Progress, silent
from pipeline.store import lease, objects, presence

_SAME_BYTES = "duplicate"
OUT_OF_REACH = (
    "backups of the dataset, and versions that the store keeps of its objects",
    "exports, contact sheets, reports and other files outside the dataset's store and MLflow",
    "results of `igpt batch`, and copies on machines that were not running or are not in the cluster",
    "the palette, the names of classes, and models that were trained on the images",
    "the raw images, which are not this dataset's to delete",
)


@dataclass(frozen=True, kw_only=True)
class Selection:
    """Which images are to be erased: those that one of these names."""

    keys: frozenset[str] = frozenset()
    addresses: frozenset[str] = frozenset()
    """Addresses of images as `igpt dataset images` prints them, or of containers for all in them."""
    columns: Mapping[str, str] = field(default_factory=dict)
    """Values of kept columns."""
    copies: bool = True
    """Whether images with the same bytes under other names are erased too, and kept out."""

    def __bool__(self) -> bool:
        return bool(self.keys or self.addresses or self.columns)

    def summary(self) -> dict[str, Any]:
        """What was given, without the values, which may be those of a person."""
        return {
            "keys": len(self.keys),
            "addresses": len(self.addresses),
            "columns": sorted(self.columns),
            "copies": self.copies,
        }


@dataclass(frozen=True, kw_only=True)
class Found:
    """The images that a selection names, and their copies."""

    tombstones: tuple[Tombstone, ...]
    images: int
    """Number of keys."""
    copies: int
    """Number of those that are named only by their bytes."""
    not_found: int
    """Number of given keys and addresses that name no image of any snapshot."""
    by_snapshot: Mapping[int, int]
    """Number of images in each snapshot, those in quarantine included."""


@dataclass(frozen=True, kw_only=True)
class Erased:
    """What an erasure leaves for others to remove: `outside` is called with it."""

    dataset: str
    plan: Mapping[str, Any]
    tombstones: Tombstones
    kept_shards: frozenset[str]
    """Names of the shards that snapshots name now."""

    @property
    def shards(self) -> list[str]:
        """SHA-256 of the shards that are gone."""
        return sorted(shard["sha256"] for shard in self.plan["shards"])

    @property
    def digests(self) -> list[str]:
        """All digests, of content and manifests, by which changed snapshots were known."""
        return sorted({one for changed in self.plan["snapshots"] for one in changed["old_digests"]})


Outside = Callable[[Erased], Mapping[str, Any]]
"""Removes what is outside of the dataset; returns what it removed, for the receipt."""


def _nothing_outside(erased: Erased) -> Mapping[str, Any]:
    return {}


def erase(
    dataset: str,
    selection: Selection,
    publisher: Publisher,
    *,
    outside: Outside = _nothing_outside,
    progress: Progress = silent,
    run: Callable[..., Any] | None = None,
) -> list[dict[str, Any]]:
    """Finish the erasures that were begun, then erase what is selected; returns the receipts.

    Raises IgptError, before anything is written, when nothing is selected or named and no erasure is under way, or when
    another process works on the dataset. `outside` may raise: the erasure then goes on with the next call.
    """
    dataset = objects.absolute(dataset)
    snapshot.read(dataset)
    with lease.hold(dataset) as held, presence.collecting(dataset):
        repair_latest(dataset)
        work = _Work(dataset, held.fence, publisher, outside, progress, run or tasks.map_tasks)
        done = [work.carry_out(number, {}) for number in erasures.unfinished(dataset)]
        if not selection:
            if not done:
                raise IgptError(f"{dataset}: nothing says what to erase, and no erasure is under way")
            return done
        found = find(dataset, selection)
        if not found.images:
            if done:
                return done
            raise IgptError(f"{dataset}: no snapshot has an image that is named so; nothing was erased")
        held.fence.check()
        number = erasures.begin(dataset, found.tombstones)
        told = {"selected": selection.summary(), "images": found.images, "not_found": found.not_found}
        return [*done, work.carry_out(number, told)]


# What is looked for


def find(dataset: str, selection: Selection) -> Found:
    """The images of any snapshot that a selection names. Raises IgptError when no index has a column of it."""
    dataset = objects.absolute(dataset)
    snapshots = [snapshot.read(dataset, number) for number in snapshot.numbers(dataset)]
    search = _Search(selection)
    for of in snapshots:
        search.add(of)
    return search.found(snapshots)


class _Search:
    """Reads each table once, and keeps of its rows what decides."""

    def __init__(self, selection: Selection) -> None:
        self._selection = selection
        self._named: set[str] = set()
        self._given: set[str] = set()  # what of the given keys and addresses names an image
        self._contents: dict[str, set[str]] = defaultdict(set)  # keys by SHA-256
        self._checksums: dict[str, set[str]] = defaultdict(set)  # SHA-256 by key
        self._copies: dict[str, set[str]] = defaultdict(set)  # keys of duplicates by the key of what they are copies of
        self._keys: dict[str, list[str]] = {}  # by path of the table
        self._columns: set[str] = set()

    def add(self, of: Snapshot) -> None:
        paths = [path for path in _tables(of.shards) if path not in self._keys]
        addresses = record.of_addresses(of)
        for path, table in zip(paths, index.read_all(of.dataset, paths), strict=True):
            self._keys[path] = table["key"].to_pylist()
            self._add_table(index.with_addresses(table, addresses))

    def _add_table(self, table: pa.Table) -> None:
        selection = self._selection
        names = {name: name for name in table.column_names}
        wanted = {}
        for column, value in selection.columns.items():
            name = names.get(f"kept_{column}", names.get(column))
            if name is not None:
                self._columns.add(column)
                wanted[name] = value
        for row in table.to_pylist():
            key, address, container = row["key"], row["uri"], row.get("url")
            given = {key} & selection.keys | {address, container, address.partition("#")[0]} & selection.addresses
            if given or any(_text(row[name]) == value for name, value in wanted.items()):
                self._named.add(key)
                self._given |= given
            checksum = row.get("sha256")
            if erasures.hash_of_content(checksum) is not None:
                self._contents[checksum].add(key)
                self._checksums[key].add(checksum)
            if row.get("reason") == _SAME_BYTES:
                self._copies[row["detail"].rpartition(" ")[2]].add(key)

    def found(self, snapshots: Sequence[Snapshot]) -> Found:
        missing = self._selection.columns.keys() - self._columns
        if missing:
            raise IgptError(f"{sorted(missing)[0]}: no index has this column; keep_columns says which are kept")
        keys = set(self._named)
        waiting = list(self._named) if self._selection.copies else []
        while waiting:
            key = waiting.pop()
            same = set(self._copies.get(key, ()))
            for checksum in self._checksums.get(key, ()):
                same |= self._contents[checksum]
            waiting += same - keys
            keys |= same
        rows = []
        for key in sorted(keys):
            contents = [erasures.hash_of_content(checksum) for checksum in sorted(self._checksums.get(key, ()))]
            of_key = erasures.hash_of_key(key)
            rows += [Tombstone(key=of_key, content=it if self._selection.copies else None) for it in contents or [None]]
        counts = {
            of.number: sum(key in keys for path in _tables(of.shards) for key in self._keys[path]) for of in snapshots
        }
        given = self._selection.keys | self._selection.addresses
        return Found(
            tombstones=tuple(dict.fromkeys(rows)),
            images=len(keys),
            copies=len(keys - self._named),
            not_found=len(given - self._given),
            by_snapshot={number: count for number, count in counts.items() if count},
        )


def _text(value: object) -> str | None:
    """A value of a kept column as a user writes it."""
    if value is None:
        return None
    return str(value).lower() if isinstance(value, bool) else str(value)


def _tables(shards: Sequence[ShardEntry]) -> list[str]:
    """The paths of the indexes and quarantines of shards."""
    return [path for shard in shards for path in (shard.index_path, shard.quarantine_path) if path is not None]


# What is done


@dataclass(frozen=True, kw_only=True)
class _Change:
    """A snapshot as it is, and as it becomes."""

    old: Snapshot
    new: Snapshot
    images: int
    rejected: int


class _Work:
    """Carries out erasures of a dataset whose lease is held."""

    def __init__(
        self,
        dataset: str,
        fence: lease.Fence,
        publisher: Publisher,
        outside: Outside,
        progress: Progress,
        run: Callable[..., Any],
    ) -> None:
        self._dataset, self._fence = dataset, fence
        self._publisher, self._outside, self._progress, self._run = publisher, outside, progress, run

    def carry_out(self, number: int, told: Mapping[str, Any]) -> dict[str, Any]:
        """Erase what the tombstones of an erasure name from every snapshot; returns the receipt."""
        rows = erasures.read_one(self._dataset, number)
        tombstones = Tombstones(
            keys=frozenset(row.key for row in rows),
            contents=frozenset(row.content for row in rows if row.content is not None),
        )
        snapshots = [snapshot.read(self._dataset, one) for one in snapshot.numbers(self._dataset)]
        changes = self._changes(snapshots, tombstones)
        plan = self._keep_plan(number, told, len(tombstones.keys), changes)
        for change in changes:
            self._replace(change, tombstones)
        removed = self._remove_unnamed()
        for changed in plan["snapshots"]:
            if changed["old_digests"][0] != changed["content_digest"]:
                objects.delete_tree(measured.folder_of(self._dataset, changed["old_digests"][0]))
        kept = frozenset(shard.name for change in changes for shard in change.new.shards)
        outside = self._outside(Erased(dataset=self._dataset, plan=plan, tombstones=tombstones, kept_shards=kept))
        receipt = {
            **plan,
            "ended_at": record.now(),
            "files_removed": plan.get("files_removed", 0) + removed,
            "outside": dict(outside),
            "out_of_reach": list(OUT_OF_REACH),
        }
        self._fence.check()
        erasures.end(self._dataset, number, receipt)
        return receipt

    def _changes(self, snapshots: Sequence[Snapshot], tombstones: Tombstones) -> list[_Change]:
        shards = {_identity(shard): shard for of in snapshots for shard in of.shards}
        without = dict(self._left_out(list(shards.values()), tombstones))
        touched = [shard for shard in shards.values() if shard in without]
        assemblies = [Assembly(name=_name(one, without[one]), pieces=(one,), without=without[one]) for one in touched]
        self._progress("erase", 0, len(assemblies), "shards")
        results: dict[tuple[str, ...], Assembled] = {}
        newest = snapshots[-1]
        shared = (replace(newest, shards=()), record.of_addresses(newest))
        # Snapshots may differ in resolution, on which the layout of a shard depends.
        by_shape: dict[tuple[int, int], list[int]] = defaultdict(list)
        shape_of = {_identity(shard): (of.resolution, of.colours) for of in snapshots for shard in of.shards}
        for position, one in enumerate(touched):
            by_shape[shape_of[_identity(one)]].append(position)
        for (resolution, colours), positions in by_shape.items():
            of = replace(shared[0], resolution=resolution, colours=colours)
            calls = ((assemblies[position],) for position in positions)
            for call, assembled in self._run(assemble, calls, shared=(of, shared[1])):
                results[_identity(touched[positions[call]])] = assembled
                self._progress("erase", len(results), len(assemblies), "shards")
        return [_changed(of, results, without) for of in snapshots]

    def _left_out(
        self, shards: Sequence[ShardEntry], tombstones: Tombstones
    ) -> Iterator[tuple[ShardEntry, frozenset[str]]]:
        """The shards that have something of an erased image, with the keys that must not be in them any more."""
        columns = ("key", "sha256", "reason", "detail")
        for shard in shards:
            keys: set[str] = set()
            for path in _tables([shard]):
                table = index.read(self._dataset, path, columns[:2] if path == shard.index_path else columns)
                for row in table.to_pylist():
                    if tombstones.has_key(row["key"]) or tombstones.has_content(row["sha256"]):
                        keys.add(row["key"])
                    words = (row.get("detail") or "").split()
                    keys |= {word for word in words if len(word) == KEY_LENGTH and tombstones.has_key(word)}
            if keys:
                yield shard, frozenset(keys)

    def _keep_plan(self, number: int, told: Mapping[str, Any], keys: int, changes: Sequence[_Change]) -> dict[str, Any]:
        """The plan so far and these changes, written before anything is removed."""
        known = erasures.read_plan(self._dataset, number)
        plan: dict[str, Any] = {
            "schema": 1,
            "number": number,
            "dataset": self._dataset,
            "begun_at": record.now(),
            "by": self._publisher.program,
            "images": keys,
            "snapshots": [],
            "shards": [],
            **told,
            **known,
        }
        named = {shard.sha256 for change in changes for shard in change.new.shards}
        gone = {shard["sha256"]: shard for shard in plan["shards"]}
        for change in changes:
            if change.old.shards != change.new.shards:
                plan["snapshots"].append(_described(change))
            for shard in change.old.shards:
                if shard.sha256 not in named:
                    gone[shard.sha256] = {"name": shard.name, "sha256": shard.sha256}
        plan["shards"] = [gone[checksum] for checksum in sorted(gone)]
        self._fence.check()
        erasures.write_plan(self._dataset, number, plan)
        return plan

    def _replace(self, change: _Change, tombstones: Tombstones) -> None:
        """Put the new record and manifest of a snapshot in the place of the old ones; again, if it died in between."""
        beside = record.read(change.old) or record.read(change.new)
        if beside is not None:
            beside = replace(beside, scans=(), seen=self._seen(beside, tombstones))
        manifest = change.new.to_bytes()
        self._fence.check()
        if beside is not None:
            record.write(change.new, beside)
        if manifest != change.old.to_bytes():
            objects.write_bytes(objects.join(self._dataset, snapshot.snapshot_path(change.new.number)), manifest)

    def _seen(self, beside: Record, tombstones: Tombstones) -> str | None:
        """The name of the table of images that need not be read again, without those that are erased."""
        table = seen.read(self._dataset, beside.seen)
        kept = np.flatnonzero([not tombstones.has_key(key) for key in table.keys.text()])
        if len(kept) == len(table):
            return beside.seen
        encoded = seen.encode(
            seen.Seen(keys=table.keys.take(kept), listed=table.listed[kept], versions=table.versions[kept])
        )
        if encoded is not None:
            objects.write_bytes(objects.join(self._dataset, seen.path_of(encoded[0])), encoded[1])
        return None if encoded is None else encoded[0]

    def _remove_unnamed(self) -> int:
        """Remove what no snapshot names, whoever left it: it may hold the images too. Returns the number of files."""
        unnamed = [(path, file) for path, file in unnamed_files(self._dataset) if not path.startswith("active/")]
        for _, file in sorted(unnamed, key=lambda entry: not entry[0].startswith("index/")):
            objects.delete(file.url)
        return len(unnamed)


def _identity(shard: ShardEntry) -> tuple[str, ...]:
    return shard.sha256, shard.name, shard.index_sha256, str(shard.quarantine), str(shard.quarantine_sha256)


def _name(shard: ShardEntry, without: frozenset[str]) -> str:
    return f"{shard.split}-{shard.number:06d}-{digest(['erase', _identity(shard), sorted(without)])[:16]}"


def _changed(
    old: Snapshot, results: Mapping[tuple[str, ...], Assembled], without: Mapping[ShardEntry, frozenset[str]]
) -> _Change:
    entries, images, rejected = [], 0, 0
    left_out: dict[str, np.ndarray] = {}
    uncounted: set[str] = set()
    for shard in old.shards:
        result = results.get(_identity(shard))
        if result is None:
            entries.append(shard)
            continue
        entry = result.entry
        entries += [] if entry is None else [entry]
        fewer = shard.samples - (0 if entry is None else entry.samples)
        images += shard.images - (0 if entry is None else entry.images)
        rejected += sum(shard.rejected.values()) - (0 if entry is None else sum(entry.rejected.values()))
        if result.left_out_pixels is not None:
            left_out[shard.split] = left_out.get(shard.split, 0) + result.left_out_pixels
        elif fewer:
            uncounted.add(shard.split)
    counts = dict(old.pixel_counts)
    for split in SPLITS:
        if split in counts and (split in uncounted or split in left_out):
            name = counts.pop(split)
            left = None if split in uncounted else _fewer_pixels(old, name, left_out[split])
            counts |= {} if left is None else {split: left}
    new = replace(old, shards=sort_shards(entries), pixel_counts=counts, schema=SCHEMA, scans=())
    if old.schema < SCHEMA:
        new = replace(new, earlier_digests=old.digests[1:])
    if new.content_digest != old.content_digest:
        new = replace(new, earlier_digests=())
    if new.shards != old.shards:
        rows = index.parent_rows(new)
        new = replace(new, source_digest=source_digest(rows.keys, rows.versions, index.splits_of(new, rows)))
    return _Change(old=old, new=new, images=images, rejected=rejected)


def _fewer_pixels(old: Snapshot, name: str, left_out_TK: np.ndarray) -> str | None:
    """Write pixel counts without those of some samples; None without any, or where the old ones are lost."""
    try:
        left_TK = pixel_counts.read(old.dataset, name) - left_out_TK
    except IgptError:
        return None
    return pixel_counts.write(old.dataset, left_TK) if left_TK.any() else None


def _described(change: _Change) -> dict[str, Any]:
    old, new = change.old, change.new
    return {
        "number": old.number,
        "images": change.images,
        "rejected": change.rejected,
        "old_digests": list(old.digests),
        "content_digest": new.content_digest,
        "manifest_digest": new.manifest_digest,
    }
