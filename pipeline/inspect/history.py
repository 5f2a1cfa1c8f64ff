"""The history of a dataset: its snapshots, the contents of one, and the difference between two."""

from collections import Counter
from dataclasses import dataclass

import numpy as np

from pipeline.dataset import index, record, snapshot
from pipeline.dataset.keys import ParentRows, match
from pipeline.dataset.record import Record
from pipeline.dataset.snapshot import SPLITS, Snapshot
from pipeline.errors import IgptError
from pipeline.store import objects


@dataclass(frozen=True, kw_only=True)
class SnapshotSummary:
    """One line of a dataset's history."""

    number: int
    parent: int | None
    published: float
    """Seconds since 1970: from its record, without one by the store's clock."""
    published_by: str | None
    """Program and version."""
    flow_run: str | None
    """URL of the Prefect flow run."""
    tags: tuple[str, ...]
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
    """All snapshots of a dataset, oldest first. Raises IgptError when it has none."""
    dataset = objects.absolute(dataset)
    objects.check_reachable(dataset)
    latest = snapshot.latest_number(dataset)
    published = {file.url: file.modified for file in objects.list_files(objects.join(dataset, "snapshots"))}
    history = []
    for number in snapshot.numbers(dataset):
        manifest = snapshot.read(dataset, number)
        beside = record.read(manifest)
        by_store = published[objects.join(dataset, snapshot.snapshot_path(number))]
        history.append(
            SnapshotSummary(
                number=number,
                parent=manifest.parent,
                published=by_store if beside is None else beside.published_seconds or by_store,
                published_by=None if beside is None else beside.published_by,
                flow_run=None if beside is None else beside.flow_run,
                tags=() if beside is None else beside.tags,
                latest=number == latest,
                images=manifest.images(),
                rejected=sum(manifest.rejected.values()),
                shards=len(manifest.shards),
                bytes=sum(shard.bytes for shard in manifest.shards),
                resolution=manifest.resolution,
                colours=manifest.colours,
                palette_sha256=manifest.palette_sha256,
            )
        )
    if not history:
        raise IgptError(f"{dataset}: no dataset snapshot there; build one with `igpt dataset build`")
    return history


@dataclass(frozen=True, kw_only=True)
class Contents:
    """The contents of a snapshot, counted."""

    snapshot: Snapshot
    images_by_split: dict[str, int]
    samples_by_split: dict[str, int]
    shards_by_split: dict[str, int]
    images_by_class: dict[str, dict[str, int]]
    """By class name, then by split; images without a label under the name ""."""
    rejected: dict[str, int]


def contents(chosen: Snapshot) -> Contents:
    """Count a snapshot's images by split, class and reason of rejection. Reads the labels of every index."""
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
    """The difference between two snapshots, in images of the source: those in quarantine count too."""

    before: int
    after: int
    added: int
    removed: int
    changed: int
    """Images with another content or label."""
    moved: int
    """Images in another split."""
    unchanged: int
    shards_kept: int
    shards_new: int
    shards_gone: int
    rejected_before: dict[str, int]
    rejected_after: dict[str, int]
    config: dict[str, tuple[object, object]]
    """Fields of the config that differ: their values before and after."""
    same_palette: bool
    new_classes: tuple[str, ...]
    gone_classes: tuple[str, ...]
    sources: dict[str, list[str]]
    """Sources of the added, removed, changed and moved images, sorted."""


def difference(before: Snapshot, after: Snapshot) -> Difference:
    """Compare two snapshots of a dataset."""
    old, new = index.parent_rows(before), index.parent_rows(after)
    in_old = match(new.keys, old.keys)
    both = np.flatnonzero(in_old >= 0)
    changed = both[old.versions[in_old[both]] != new.versions[both]]
    moved = both[index.splits_of(before, old)[in_old[both]] != index.splits_of(after, new)[both]]
    added = np.flatnonzero(in_old < 0)
    removed = np.flatnonzero(match(old.keys, new.keys) < 0)
    old_names = {shard.name for shard in before.shards}
    new_names = {shard.name for shard in after.shards}
    names = sorted({*before.config, *after.config})
    addresses = record.of_addresses(after)
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
        gone_classes=tuple(name for name in before.classes if name not in after.classes),
        sources={
            "added": _uris(after, new, added, addresses),
            "removed": _uris(before, old, removed, addresses),
            "changed": _uris(after, new, changed, addresses),
            "moved": _uris(after, new, moved, addresses),
        },
    )


def _uris(of: Snapshot, rows: ParentRows, chosen: np.ndarray, addresses: Record | None) -> list[str]:
    """The sources of some images, sorted."""
    wanted = set(rows.keys.take(chosen).text())
    uris: list[str] = []
    for number in np.unique(rows.shards[chosen]).tolist():
        shard = of.shards[number]
        for path in (shard.index_path, shard.quarantine_path):
            if path is not None:
                table = index.with_addresses(index.read(of.dataset, path, ("key", "uri")), addresses)
                pairs = zip(table["key"].to_pylist(), table["uri"].to_pylist(), strict=True)
                uris += [uri for key, uri in pairs if key in wanted]
    return sorted(uris)
