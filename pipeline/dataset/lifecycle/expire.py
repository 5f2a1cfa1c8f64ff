"""Remove the manifests of old snapshots, after which `igpt dataset gc` frees the files that only they name."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from pipeline.dataset import record, snapshot
from pipeline.dataset.publish import repair_latest
from pipeline.dataset.record import Record
from pipeline.dataset.snapshot import Snapshot
from pipeline.errors import IgptError
from pipeline.store import lease, objects

_DAY = 86_400.0


@dataclass(frozen=True, kw_only=True)
class KnownSnapshot:
    """What decides whether a snapshot expires."""

    number: int
    published: float
    """Seconds since 1970: from its record, without one by the store's clock."""
    tags: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class KeptSnapshot:
    """A snapshot that stays, though it is old enough to go."""

    number: int
    because: str


@dataclass(frozen=True, kw_only=True)
class Expiry:
    """The snapshots that were removed, or would be."""

    expired: tuple[KnownSnapshot, ...]
    """By number."""
    kept: tuple[KeptSnapshot, ...]
    """Those that would have gone by number and age, with the reason."""
    snapshots: int
    """Number of snapshots that are left."""
    bytes: int
    """Of shards that only expired snapshots name, which `igpt dataset gc` frees."""


def choose(
    known: Sequence[KnownSnapshot],
    *,
    latest: int,
    keep: int | None,
    days: float | None,
    used: Mapping[int, str],
    now: float,
) -> tuple[list[KnownSnapshot], list[KeptSnapshot]]:
    """Which snapshots expire, and which of the others stay for a reason of their own. Pure.

    Old enough is one that is not among the `keep` newest, and was published more than `days` ago; None: that does not
    matter. The latest stays, and so do those with a tag, and the `used` ones, with the reason by number.
    """
    newest_first = sorted(known, key=lambda one: -one.number)
    old = newest_first[keep or 0 :]
    if days is not None:
        old = [one for one in old if now - one.published > days * _DAY]
    expired, kept = [], []
    for one in reversed(old):
        if one.number >= latest:
            kept.append(KeptSnapshot(number=one.number, because="it is the newest"))
        elif one.tags:
            kept.append(KeptSnapshot(number=one.number, because=f"it has the tag {one.tags[0]}"))
        elif one.number in used:
            kept.append(KeptSnapshot(number=one.number, because=used[one.number]))
        else:
            expired.append(one)
    return expired, kept


def expire(
    dataset: str,
    *,
    keep: int | None = None,
    days: float | None = None,
    used: Mapping[int, str] | None = None,
    dry_run: bool = False,
) -> Expiry:
    """Remove the manifests and records of the snapshots that expire; see `choose`. With `dry_run`, only tell.

    A manifest goes before its record, the oldest first: after a crash the same command removes the rest. Raises
    IgptError, and removes nothing, when neither `keep` nor `days` is given, or when a build is running.
    """
    if keep is None and days is None:
        raise IgptError("nothing says which snapshots expire: give --keep, --days or both")
    dataset = objects.absolute(dataset)
    snapshot.read(dataset)
    if dry_run:
        return _expire(dataset, keep, days, used or {}, None)
    with lease.hold(dataset) as held:
        repair_latest(dataset)
        return _expire(dataset, keep, days, used or {}, held.fence)


def _expire(
    dataset: str, keep: int | None, days: float | None, used: Mapping[int, str], fence: lease.Fence | None
) -> Expiry:
    manifests = {number: snapshot.read(dataset, number) for number in snapshot.numbers(dataset)}
    times = {file.url: file.modified for file in objects.list_files(objects.join(dataset, "snapshots"))}
    known = []
    for number, manifest in manifests.items():
        beside = record.read(manifest)
        by_store = times.get(objects.join(dataset, snapshot.snapshot_path(number)), time.time())
        known.append(_known(number, beside, by_store))
    latest = snapshot.latest_number(dataset) or max(manifests)
    expired, kept = choose(known, latest=latest, keep=keep, days=days, used=used, now=time.time())
    gone = {one.number for one in expired}
    left = [manifest for number, manifest in manifests.items() if number not in gone]
    size = _bytes_only_in([manifests[number] for number in sorted(gone)], left)
    for one in expired if fence is not None else ():
        assert fence is not None
        fence.check()
        objects.delete(objects.join(dataset, snapshot.snapshot_path(one.number)))
        objects.delete(objects.join(dataset, record.path_of(one.number)))
    return Expiry(expired=tuple(expired), kept=tuple(kept), snapshots=len(left), bytes=size)


def _known(number: int, beside: Record | None, by_store: float) -> KnownSnapshot:
    if beside is None:
        return KnownSnapshot(number=number, published=by_store)
    return KnownSnapshot(number=number, published=beside.published_seconds or by_store, tags=beside.tags)


def _bytes_only_in(expired: Sequence[Snapshot], left: Sequence[Snapshot]) -> int:
    sizes = {shard.path: shard.bytes for manifest in expired for shard in manifest.shards}
    named = {shard.path for manifest in left for shard in manifest.shards}
    return sum(size for path, size in sizes.items() if path not in named)
