"""What a dataset has been: its snapshots, what one holds, and what changed between two."""

from collections import Counter
from dataclasses import dataclass

import numpy as np

from pipeline.dataset import index, snapshot
from pipeline.dataset.keys import ParentRows, match
from pipeline.dataset.snapshot import SPLITS, Snapshot
from pipeline.errors import IgptError
from pipeline.store import objects

# Images of each kind of change that a difference names.
_NAMED = 20


@dataclass(frozen=True, kw_only=True)
class SnapshotSummary:
    """One line of a dataset's history."""

    number: int
    parent: int | None
    published: float
    """Seconds since 1970, by the store's clock."""
    latest: bool
    images: int
    rejected: int
    shards: int
    bytes: int
    """Of the shards."""
    resolution: int
    colours: int
    palette_sha256: str


def summaries(dataset: str) -> list[SnapshotSummary]:
    """Every snapshot of a dataset, the oldest first. Raises IgptError when it has none."""
    dataset = objects.absolute(dataset)
    objects.check_reachable(dataset)
    latest = snapshot.latest_number(dataset)
    published = {file.url: file.modified for file in objects.list_files(objects.join(dataset, "snapshots"))}
    found = []
    for number in snapshot.numbers(dataset):
        each = snapshot.read(dataset, number)
        found.append(
            SnapshotSummary(
                number=number,
                parent=each.parent,
                published=published[objects.join(dataset, snapshot.snapshot_path(number))],
                latest=number == latest,
                images=each.images(),
                rejected=sum(each.rejected.values()),
                shards=len(each.shards),
                bytes=sum(shard.bytes for shard in each.shards),
                resolution=each.resolution,
                colours=each.colours,
                palette_sha256=each.palette_sha256,
            )
        )
    if not found:
        raise IgptError(f"{dataset}: no dataset snapshot there; build one with `igpt dataset build`")
    return found


@dataclass(frozen=True, kw_only=True)
class Contents:
    """What a snapshot holds, counted."""

    snapshot: Snapshot
    images_by_split: dict[str, int]
    samples_by_split: dict[str, int]
    shards_by_split: dict[str, int]
    images_by_class: dict[str, dict[str, int]]
    """By class name, then by split; under None's name, "", the images without a label."""
    rejected: dict[str, int]


def contents(chosen: Snapshot) -> Contents:
    """Count a snapshot's images by split, class and reason of rejection; reads the labels of every index."""
    by_class: dict[str, Counter[str]] = {name: Counter() for name in (*chosen.classes, "")}
    tables = index.read_all(chosen.dataset, [shard.index_path for shard in chosen.shards], ("label",))
    for shard, table in zip(chosen.shards, tables, strict=True):
        numbers, counts = np.unique(table["label"].to_numpy(), return_counts=True)
        for number, count in zip(numbers.tolist(), counts.tolist(), strict=True):
            by_class[chosen.classes[number] if number >= 0 else ""][shard.split] += count
    return Contents(
        snapshot=chosen,
        images_by_split={split: chosen.images(split) for split in SPLITS},
        samples_by_split={split: chosen.samples(split) for split in SPLITS},
        shards_by_split={split: sum(shard.split == split for shard in chosen.shards) for split in SPLITS},
        images_by_class={name: dict(counts) for name, counts in by_class.items() if counts},
        rejected=chosen.rejected,
    )


@dataclass(frozen=True, kw_only=True)
class Difference:
    """What a later snapshot has otherwise than an earlier one. Images in quarantine count, as images of the source."""

    before: int
    after: int
    added: int
    removed: int
    changed: int
    """Images whose content or label differs."""
    moved: int
    """Images in another split."""
    unchanged: int
    shards_kept: int
    shards_new: int
    shards_gone: int
    rejected_before: dict[str, int]
    rejected_after: dict[str, int]
    config: dict[str, tuple[object, object]]
    """Fields of the config that differ: before and after."""
    same_palette: bool
    new_classes: tuple[str, ...]
    examples: dict[str, list[str]]
    """Where some of the added, removed and changed images come from."""


def difference(before: Snapshot, after: Snapshot) -> Difference:
    """Compare two snapshots of a dataset."""
    old, new = index.parent_rows(before), index.parent_rows(after)
    place = match(new.keys, old.keys)
    both = np.flatnonzero(place >= 0)
    changed = both[old.versions[place[both]] != new.versions[both]]
    moved = both[_splits(before, old)[place[both]] != _splits(after, new)[both]]
    added = np.flatnonzero(place < 0)
    removed = np.flatnonzero(match(old.keys, new.keys) < 0)
    old_names, new_names = ({shard.name for shard in each.shards} for each in (before, after))
    names = sorted({*before.config, *after.config})
    return Difference(
        before=before.number,
        after=after.number,
        added=len(added),
        removed=len(removed),
        changed=len(changed),
        moved=len(moved),
        unchanged=len(both) - len(np.union1d(changed, moved)),
        shards_kept=len(old_names & new_names),
        shards_new=len(new_names - old_names),
        shards_gone=len(old_names - new_names),
        rejected_before=before.rejected,
        rejected_after=after.rejected,
        config={
            name: (before.config.get(name), after.config.get(name))
            for name in names
            if before.config.get(name) != after.config.get(name)
        },
        same_palette=before.palette_sha256 == after.palette_sha256,
        new_classes=tuple(name for name in after.classes if name not in before.classes),
        examples={
            "added": _uris(after, new, added[:_NAMED]),
            "removed": _uris(before, old, removed[:_NAMED]),
            "changed": _uris(after, new, changed[:_NAMED]),
        },
    )


def _splits(of: Snapshot, rows: ParentRows) -> np.ndarray:
    return np.array([SPLITS.index(shard.split) for shard in of.shards], np.int8)[rows.shards]


def _uris(of: Snapshot, rows: ParentRows, chosen: np.ndarray) -> list[str]:
    """Where some images come from, sorted."""
    wanted = set(rows.keys.take(chosen).text())
    found = []
    for number in np.unique(rows.shards[chosen]).tolist():
        shard = of.shards[number]
        for path in (shard.index_path, shard.quarantine_path):
            if path is not None:
                table = index.read(of.dataset, path, ("key", "uri"))
                pairs = zip(table["key"].to_pylist(), table["uri"].to_pylist(), strict=True)
                found += [uri for key, uri in pairs if key in wanted]
    return sorted(found)
